"""The `evaluate` module of `unimedvl.evaluation.metrics.distributions.diversity`."""

from unimedvl.evaluation.metrics import distributions, evaluate_modules


class Diversity(evaluate_modules.MetricModule):
    """See the function."""

    title = "Diversity of images"
    function = staticmethod(distributions.diversity)
    columns = {"predictions": evaluate_modules.IMAGE, "references": evaluate_modules.IMAGE}
