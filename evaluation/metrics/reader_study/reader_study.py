"""The `evaluate` module of `unimedvl.evaluation.metrics.ranking.reader_study`."""

from unimedvl.evaluation.metrics import evaluate_modules, ranking


class ReaderStudy(evaluate_modules.MetricModule):
    """See the function."""

    title = "Reader study"
    function = staticmethod(ranking.reader_study)
    columns = {"predictions": evaluate_modules.REAL, "references": evaluate_modules.INTEGER}
