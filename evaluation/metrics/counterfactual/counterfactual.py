"""The `evaluate` module of `unimedvl.evaluation.metrics.ranking.counterfactual`."""

from unimedvl.evaluation.metrics import evaluate_modules, ranking


class Counterfactual(evaluate_modules.MetricModule):
    """See the function."""

    title = "Counterfactuals as a classifier sees them"
    function = staticmethod(ranking.counterfactual)
    columns = {"predictions": evaluate_modules.REAL, "references": evaluate_modules.INTEGER}
