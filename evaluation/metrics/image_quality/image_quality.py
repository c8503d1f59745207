"""The `evaluate` module of `unimedvl.evaluation.metrics.images.image_quality`."""

from unimedvl.evaluation.metrics import evaluate_modules, images


class ImageQuality(evaluate_modules.MetricModule):
    """See the function."""

    title = "Image quality"
    function = staticmethod(images.image_quality)
    columns = {"predictions": evaluate_modules.IMAGE, "references": evaluate_modules.IMAGE}
