"""A predictor without a model, and runs of it."""

from collections.abc import Sequence

from PIL import Image

from unimedvl.evaluation.benchmarks import BenchmarkData, get_benchmark
from unimedvl.evaluation.harness import Run, evaluate
from unimedvl.evaluation.metrics.image_features import load_feature_extractor
from unimedvl.evaluation.predictions import Prediction, Predictor
from unimedvl.evaluation.samples import TASKS, Sample
from unimedvl.evaluation.scoring import Settings


class Painter:
    """Answers everything from the sample's own seed; counts what it was asked, and stops where it is asked to."""

    name = "painter"
    settings: dict = {}

    def __init__(self, stop_after: int | None = None):
        self.asked: list[str] = []
        self.stop_after = stop_after

    def supports(self, task: str, sample: Sample | None = None) -> bool:
        return True

    def predict(self, samples: Sequence[Sample]) -> list[Prediction]:
        if self.stop_after is not None and len(self.asked) >= self.stop_after:
            raise KeyboardInterrupt
        self.asked += [sample.id for sample in samples]
        shade = [sample.seed(3) % 256 for sample in samples]
        return [
            Prediction(
                "yes it is" if value % 2 else "a scan",
                Image.new("RGB", (32, 24), (value, 90, 255 - value)) if TASKS[sample.task].draws else None,
                value / 256,
            )
            for sample, value in zip(samples, shade, strict=True)
        ]


def settings() -> Settings:
    return Settings(extractor=load_feature_extractor("pixels-2"), meteor=False)


def run(predictor: Predictor, folder, out, **options) -> dict:
    data = BenchmarkData(get_benchmark("unimed-mini"), folder, **options)
    return evaluate(Run("m", out, batch_size=3, scoring={"features": "x"}), predictor, [data], settings(), print)
