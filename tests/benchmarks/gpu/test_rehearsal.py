"""The whole script at a small size on the CPU: every figure comes, in the documented form."""

import json
import re

import pytest

from benchmarks.gpu.__main__ import PARTS, main
from benchmarks.gpu.architecture import SIZES
from benchmarks.gpu.record import ROOT, SCHEMA, STATUSES

pytestmark = pytest.mark.medium

PATIENT = 300
ATTENTION = [f"attention.eager.{name}" for name in ("text", "question", "image", "edit")]
CORRECTNESS = [
    "golden.float32.failed",
    "golden.float32.passed",
    *(f"cpu.{name}" for name in ("text", "question", "image", "edit", "losses", "gradients")),
    *(f"cpu.greedy.{name}" for name in ("text", "question")),
    *(f"bfloat16.{name}" for name in ("text", "question", "image", "edit", "losses", "gradients")),
    *ATTENTION,
    "attention.sdpa_flash.text",
    "attention.flash_attention_2",
    "attention.flex.text",
    "attention.flex.question",
    *(f"compiled.{name}" for name in ("text", "question", "image", "edit")),
    "batch.logits",
    "batch.greedy",
    *(f"{kind}.{name}" for kind in ("nf4", "int8") for name in ("text", "question")),
    "float8",
    "float8_dynamic",
    *(f"offload.{name}" for name in ("greedy", "image", "edit")),
]
SMALL, LARGE = SIZES["tiny"].sides
UPDATES = [f"update.{side}.contexts{contexts}" for side in (SMALL, LARGE) for contexts in (1, 2, 3)]
COMPILED = f"update.{SMALL}.contexts2.compiled"
DENOISE = [
    "ceiling.matmul",
    "ceiling.copy",
    *UPDATES,
    *(f"{name}.peak_memory" for name in UPDATES),
    *(f"{name}.{side}" for name in ("kernels", "busy") for side in (SMALL, LARGE)),
    "waits",
    *(f"image.{side}{part}" for side in (SMALL, LARGE) for part in ("", ".peak_memory")),
    "reference_block",
    COMPILED,
    f"{COMPILED}.parity",
    f"{COMPILED}.cold_start",
    *(f"image.{SMALL}.compiled{part}" for part in ("", ".peak_memory", ".difference")),
]
BATCHES = ("batch1", f"batch{SIZES['tiny'].batch}")
DECODE = [
    "ceiling.matmul",
    "ceiling.copy",
    *(f"dynamic.{batch}" for batch in BATCHES),
    *(f"static.{batch}" for batch in BATCHES),
    *(f"static.{batch}.parity" for batch in BATCHES),
    "prefill",
    "prefill.peak_memory",
    "waits",
    *(f"{kind}.batch1{part}" for kind in ("static_compiled", "static_regions") for part in ("", ".parity")),
]
TRAIN = [
    "ceiling.matmul",
    "ceiling.copy",
    *(f"{kind}.{name}" for kind in ("full", "lora", "full.compiled") for name in ("step", "peak_memory", "losses")),
    "full.waits",
    "full.compiled.parity",
    "full.flex",
]
MEMORY = [
    "understanding.weights",
    "understanding.answer",
    "cache_per_token",
    *(f"{kind}.{name}" for kind in ("all", "nf4", "int8") for name in ("weights", "answer", "image")),
    "float8",
    "float8_dynamic",
]
FIGURES = {"correctness": CORRECTNESS, "denoise": DENOISE, "decode": DECODE, "train": TRAIN, "memory": MEMORY}
# Of libraries that a rehearsal has not, or without a backward pass on a CPU.
FLOAT8 = {f"{part}.{kind}" for part in ("correctness", "memory") for kind in ("float8", "float8_dynamic")}
MAY_MISS = {"correctness.attention.flash_attention_2", "train.full.flex"} | FLOAT8


@pytest.fixture(scope="module")
def rehearsal(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu")
    limits = [f"{part.name}={PATIENT}" for part in PARTS]
    code = main(["--size", "tiny", "--device", "cpu", "--out", str(folder), "--limit", *limits])
    return code, folder, json.loads((folder / "gpu.json").read_text())


def test_nothing_fails(rehearsal):
    code, folder, document = rehearsal
    assert code == 0, (folder / "gpu.txt").read_text()
    assert [entry["status"] for entry in document["parts"].values()] == ["done"] * len(PARTS)


@pytest.mark.parametrize("part", FIGURES)
def test_every_figure_is_there(rehearsal, part):
    figures = {figure["name"]: figure for figure in rehearsal[2]["parts"][part]["figures"]}
    wanted = {f"{part}.{name}" for name in FIGURES[part]}
    golden = {name for name in figures if ".golden.float32." in name}
    assert figures.keys() - golden == wanted - golden
    assert wanted <= figures.keys()
    assert {name for name, figure in figures.items() if figure["value"] is None} <= MAY_MISS


def test_the_record_has_the_documented_form(rehearsal):
    document = rehearsal[2]
    assert document["schema"] == SCHEMA
    assert {"date", "commit", "settings", "machine", "parts"} <= document.keys()
    assert {"device", "python", "torch", "cuda", "transformers"} <= document["machine"].keys()
    for part in document["parts"].values():
        assert {"status", "seconds", "limit_seconds", "steps", "figures"} <= part.keys()
        for figure in part["figures"]:
            assert {"name", "value", "unit", "status"} <= figure.keys()
            assert figure["status"] in STATUSES
            assert figure["status"] == "measured" or figure["status"] == "passed" or figure["reason"]


def test_every_figure_is_explained(rehearsal):
    """docs/gpu.md names each figure, with * where a size, a number or a file stands in its name."""
    text = (ROOT / "docs" / "gpu.md").read_text()
    explained = {name for name in re.findall(r"`([a-z0-9_*.]+)`", text) if "." in name}
    patterns = [re.compile(re.escape(name).replace(r"\*", r"[\w.]+")) for name in explained]
    names = [figure["name"] for part in rehearsal[2]["parts"].values() for figure in part["figures"]]
    missing = [name for name in names if not any(pattern.fullmatch(name) for pattern in patterns)]
    assert not missing


def test_results_are_few_and_small(rehearsal):
    files = [path for path in rehearsal[1].rglob("*") if path.is_file()]
    assert {path.name for path in files} == {"gpu.json", "gpu.log", "gpu.txt"}
    assert all(path.stat().st_size < 15 << 20 for path in files)
