"""The ablation's bookkeeping: equal samples in every arm, gains with the right sign, verdicts from intervals."""

from collections import Counter

import numpy
import pytest

from examples.nano import ablation
from examples.nano.left_out_patient import gray_level_map
from examples.nano.model import RECIPES
from unimedvl.training.recipe import CurriculumRecipe, TrainingRecipe, load_recipe


def asked(arm):
    """Samples of each group that the recipes of an arm ask for."""
    source = RECIPES / "ablation" / f"{arm}.yaml"
    recipe = load_recipe(source)
    stages = [stage.recipe for stage in recipe.stages] if isinstance(recipe, CurriculumRecipe) else [source.name]
    samples: Counter[str] = Counter()
    for name in stages:
        stage = load_recipe(source.with_name(name))
        assert isinstance(stage, TrainingRecipe)
        for group in stage.data.groups:
            samples[group.name] += group.weight
    return samples


def test_every_arm_asks_for_the_same_samples_of_a_group():
    joint = asked("joint")
    assert asked("three-stages") == joint
    apart = asked("understanding") + asked("generation")
    assert apart == joint
    assert not set(asked("understanding")) & set(asked("generation"))


def results(**gains):
    """Three seeds: every arm scores 0.5 everywhere, moved by `gains` of the joint arm."""
    runs = []
    for seed, noise in ((1, -0.01), (2, 0.0), (3, 0.01)):
        for arm in ablation.ARMS:
            scores = {name: 0.5 for name, (_, side) in ablation.SCORES.items() if arm not in OTHER[side]}
            if arm == "joint":
                scores |= {name: 0.5 + gain + noise for name, gain in gains.items()}
            runs.append({"arm": arm, "seed": seed, "scores": scores})
    return runs


OTHER = {"understanding": ("generation",), "generation": ("understanding",)}


def test_gains_are_for_the_claim_and_intervals_are_students():
    rows = ablation.compare(results(**{"modality named": 0.2, "loss of diagnoses": 0.2, "segmentation, Dice": 0.001}))
    found = {(row["claim"], row["score"]): row for row in rows}
    helps = "Learning to generate helps understanding"
    row = found[helps, "modality named"]
    assert row["gain"] == pytest.approx(0.2) and row["verdict"] == "shown"
    half = 4.302653 * numpy.std([-0.01, 0.0, 0.01], ddof=1) / 3**0.5
    assert row["interval"] == pytest.approx([0.2 - half, 0.2 + half], abs=1e-6)
    # A larger loss speaks against the claim.
    assert found[helps, "loss of diagnoses"]["verdict"] == "opposite"
    assert found["Learning to understand helps generation", "segmentation, Dice"]["verdict"] == "not shown"
    # The same difference the other way round.
    assert found["Three stages beat one on understanding", "modality named"]["verdict"] == "opposite"


def test_equal_scores_show_nothing():
    assert {row["verdict"] for row in ablation.compare(results())} == {"not shown"}


def test_the_table_and_the_plot_hold_every_comparison(tmp_path):
    runs = results(**{"modality named": 0.2})
    rows = ablation.compare(runs)
    lines = list(ablation.table(runs, rows))
    assert sum(line.startswith("| Learning") or line.startswith("| Three") for line in lines) == len(rows) == 18
    ablation.plot(rows, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000


def test_the_gray_level_map_is_the_mean_at_equal_levels(monkeypatch):
    class Pair:
        def __init__(self, source, result):
            self.input_img, self.output_img = (source,), (result,)

    from PIL import Image

    monkeypatch.setattr("examples.nano.left_out_patient.seen", lambda array: Image.fromarray(array))
    source = numpy.array([[10, 10], [20, 30]], dtype=numpy.uint8)
    result = numpy.array([[100, 200], [50, 70]], dtype=numpy.uint8)
    table = gray_level_map([Pair(source, result)])
    assert table[10] == 150 and table[20] == 50 and table[30] == 70
    assert table[25] == pytest.approx(60)  # between its neighbors
