"""The `evaluate` module of `unimedvl.evaluation.metrics.distributions.image_distribution`."""

from unimedvl.evaluation.metrics import distributions, evaluate_modules


class ImageDistribution(evaluate_modules.MetricModule):
    """See the function."""

    title = "FID and KID"
    function = staticmethod(distributions.image_distribution)
    columns = {"predictions": evaluate_modules.IMAGE, "references": evaluate_modules.IMAGE}
