"""The `evaluate` module of `unimedvl.evaluation.metrics.clinical_models.clinical_text`."""

from unimedvl.evaluation.metrics import clinical_models, evaluate_modules


class ClinicalText(evaluate_modules.MetricModule):
    """See the function."""

    title = "Clinical agreement of reports"
    function = staticmethod(clinical_models.clinical_text)
    columns = {"predictions": evaluate_modules.TEXT, "references": evaluate_modules.TEXT}
