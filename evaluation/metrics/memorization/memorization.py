"""The `evaluate` module of `unimedvl.evaluation.metrics.nearest.memorization`."""

from unimedvl.evaluation.metrics import evaluate_modules, nearest


class Memorization(evaluate_modules.MetricModule):
    """See the function; each set of images is one row, since sets have different sizes."""

    title = "Memorization"
    function = staticmethod(nearest.memorization)
    columns = dict.fromkeys(("predictions", "references", "held_out"), evaluate_modules.IMAGES)

    def _compute(self, **sets):
        return super()._compute(**{name: [image for row in rows for image in row] for name, rows in sets.items()})
