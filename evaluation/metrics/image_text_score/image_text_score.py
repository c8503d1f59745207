"""The `evaluate` module of `unimedvl.evaluation.metrics.image_text.image_text_score`."""

from unimedvl.evaluation.metrics import evaluate_modules, image_text


class ImageTextScore(evaluate_modules.MetricModule):
    """See the function."""

    title = "Image-text score"
    function = staticmethod(image_text.image_text_score)
    columns = {"predictions": evaluate_modules.IMAGE, "references": evaluate_modules.TEXT}
