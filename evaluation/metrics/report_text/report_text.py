"""The `evaluate` module of `unimedvl.evaluation.metrics.texts.report_text`."""

from unimedvl.evaluation.metrics import evaluate_modules, texts


class ReportText(evaluate_modules.MetricModule):
    """See the function."""

    title = "Overlap of reports"
    function = staticmethod(texts.report_text)
    columns = {"predictions": evaluate_modules.TEXT, "references": evaluate_modules.TEXT}
