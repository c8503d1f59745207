"""Blocks in the paper's order, conditions dropped as often as asked and the same for a sample and epoch everywhere."""

import subprocess
import sys
from collections import Counter

import pytest

from tests.training.record_folders import record
from unimedvl.modeling_unimedvl.blocks_unimedvl import BlockKind
from unimedvl.training.data.sequences import Layout
from unimedvl.training.data_recipe import ConditionDropout, GroupRecipe, ImageRange

pytestmark = pytest.mark.medium

TEXT, VIT, CLEAN, NOISED = BlockKind.TEXT, BlockKind.VIT, BlockKind.CLEAN, BlockKind.NOISED
NONE = ConditionDropout(0.0, 0.0, 0.0)


def layout(dropout=NONE, vit_source="original", seed=0):
    group = GroupRecipe(
        "drawn", "nowhere", vae=ImageRange(16, 48), vit=ImageRange(12, 36), understanding=ImageRange(12, 48)
    )
    return Layout(group, dropout, vit_source, lambda text: [ord(letter) % 100 for letter in text], 6, 8, seed)


def kinds(sample):
    return [("answer" if block.loss else block.kind) for block in sample.blocks]


@pytest.mark.parametrize(
    "task, expected",
    [
        ("vqa", [VIT, TEXT, "answer"]),
        ("dialogue", [TEXT, "answer"]),
        ("text_to_image", [TEXT, "answer", NOISED]),
        ("segmentation", [CLEAN, VIT, TEXT, "answer", NOISED]),
        ("counterfactual", [CLEAN, VIT, TEXT, NOISED, "answer"]),
    ],
)
def test_blocks_stand_as_in_the_paper(task, expected):
    sample = layout()(record(task, 1), 0)
    assert kinds(sample) == expected
    assert len(sample.images) == sum(kind in (VIT, CLEAN, NOISED) for kind in expected)


@pytest.mark.parametrize(
    "task, turns, expected",
    [
        ("vqa", [("human", "what is it?"), ("gpt", "a scan")], [VIT, TEXT, "answer"]),
        (
            "vqa",
            [("human", "look <image> what is it?"), ("gpt", "a scan"), ("human", "sure?"), ("gpt", "yes")],
            [TEXT, VIT, TEXT, "answer", TEXT, "answer"],
        ),
        (  # F13: what the system says is read and not learned, and images stay with the question.
            "vqa",
            [("system", "answer in French"), ("human", "what is it?"), ("gpt", "oui")],
            [TEXT, VIT, TEXT, "answer"],
        ),
        ("vqa", [("gpt", "hello"), ("human", "what is it?"), ("gpt", "a scan")], ["answer", VIT, TEXT, "answer"]),
        ("segmentation", [("human", "find it"), ("gpt", "done")], [CLEAN, VIT, TEXT, "answer", NOISED]),
        (
            "segmentation",
            [("human", "<image> find it"), ("gpt", "<image>"), ("human", "what is it?"), ("gpt", "a scan")],
            [CLEAN, VIT, TEXT, NOISED, CLEAN, VIT, TEXT, "answer"],
        ),
    ],
)
def test_placeholders_and_turns_decide_the_order(task, turns, expected):
    assert kinds(layout()(record(task, 1, turns=turns), 0)) == expected


def test_each_draw_of_an_image_is_a_block_that_takes_no_position():
    draws = layout()
    draws.group.flow_draws = 2
    sample = draws(record("counterfactual", 1), 0)
    assert kinds(sample) == [CLEAN, VIT, TEXT, NOISED, NOISED, "answer"]
    assert len(sample.images) == 4


def test_sizes_follow_the_groups_ranges():
    sample = layout()(record("segmentation", 2), 0)  # 40 x 24 pixels
    assert [image.steps for image in sample.images] == [((40, 24),), ((36, 24),), ((40, 24),)]
    assert [block.grid for block in sample.blocks if block.grid] == [(3, 5), (4, 6), (3, 5)]
    assert sample.num_tokens == sum((15 + 2, 24 + 2, 15 + 2)) + sum(
        len(block.token_ids) + 2 for block in sample.blocks if block.token_ids is not None
    )
    chained = layout(vit_source="vae")(record("segmentation", 0), 0)
    assert chained.images[1].steps[0] == chained.images[0].steps[0] and len(chained.images[1].steps) == 2


@pytest.mark.parametrize("scope", ["all", "upstream"])
def test_conditions_are_dropped_as_often_as_asked_and_nothing_else(scope):
    made = layout(ConditionDropout(0.3, 0.2, 0.1, scope))
    counts: dict[str, Counter] = {}
    for task in ("vqa", "dialogue", "text_to_image", "segmentation", "counterfactual"):
        counts[task], drawn = Counter(), record(task, 0)
        for epoch in range(3000):
            for block in made(drawn, epoch).blocks:
                name = "answer" if block.loss else BlockKind(block.kind).name
                counts[task][name] += block.dropped
    rates = {task: {name: count / 3000 for name, count in rows.items()} for task, rows in counts.items()}
    upstream = scope == "upstream"
    edit = {"CLEAN": 0.0 if upstream else 0.1, "VIT": 0.0 if upstream else 0.2, "TEXT": 0.0 if upstream else 0.3}
    expected = {
        "vqa": {"VIT": 0.2, "TEXT": 0.0, "answer": 0.0},
        "dialogue": {"TEXT": 0.0, "answer": 0.0},
        "text_to_image": {"TEXT": 0.3, "answer": 0.0, "NOISED": 0.0},
        "segmentation": {**edit, "answer": 0.0, "NOISED": 0.0},
        "counterfactual": {**edit, "answer": 0.0, "NOISED": 0.0},
    }
    for task, rows in expected.items():
        assert rates[task] == pytest.approx(rows, abs=0.03)
        assert all(rates[task][name] == 0.0 for name, rate in rows.items() if rate == 0.0)


def dropped(seed, count=60):
    made = layout(ConditionDropout(0.5, 0.5, 0.5), seed=seed)
    return "".join(
        str(int(block.dropped)) for epoch in range(count) for block in made(record("segmentation", 1), epoch).blocks
    )


def test_what_is_dropped_depends_on_seed_epoch_and_id_alone():
    code = "from tests.training.data.test_sequences import dropped; print(dropped(4))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert other.stdout.strip() == dropped(4) != dropped(5)


def test_a_record_without_sizes_is_named():
    unknown = record("vqa", 1)
    object.__setattr__(unknown.input_img[0], "width", 0)
    with pytest.raises(ValueError, match="vqa-1-train: the size of 1.png is unknown"):
        layout()(unknown, 0)
