"""The `evaluate` module of `unimedvl.evaluation.metrics.masks.segmentation`."""

from unimedvl.evaluation.metrics import evaluate_modules, masks


class Segmentation(evaluate_modules.MetricModule):
    """See the function."""

    title = "Segmentation overlap"
    function = staticmethod(masks.segmentation)
    columns = {"predictions": evaluate_modules.IMAGE, "references": evaluate_modules.IMAGE}
