"""The `evaluate` module of `unimedvl.evaluation.metrics.answers.vqa_accuracy`."""

from unimedvl.evaluation.metrics import answers, evaluate_modules


class VQAAccuracy(evaluate_modules.MetricModule):
    """See the function."""

    title = "VQA accuracy"
    function = staticmethod(answers.vqa_accuracy)
    columns = {"predictions": evaluate_modules.TEXT, "references": evaluate_modules.TEXT}
