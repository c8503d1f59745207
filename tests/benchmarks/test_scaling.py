"""Predictions for clusters follow from the model's own numbers, and the document is made from them."""

import json

import pytest

from benchmarks import scaling
from benchmarks.performance import ROOT, filled
from unimedvl.checkpoint.compute import pass_flops
from unimedvl.modeling_unimedvl.configuration_unimedvl import UniMedVLConfig


@pytest.fixture(scope="module")
def found():
    return scaling.predict()


def test_stored_predictions_are_those_of_the_code(found):
    stored = json.loads((ROOT / "benchmarks" / "results" / "scaling.json").read_text())
    del stored["origin"]
    assert stored == json.loads(json.dumps(found)) and stored["predicted"] is True


@pytest.mark.parametrize("name", ["scaling.md", "upstream-weights.md"])
def test_the_documents_are_made_from_them(found, name):
    text = (ROOT / "docs" / name).read_text(encoding="utf-8")
    assert filled(text, scaling.DOCUMENTS[name], {"scaling": found}) == text


def test_what_is_asked_for_agrees_with_the_rest(found):
    answer, image, edit = found["modes"].values()
    everything, understanding = found["inference"]["weights_bytes"].values()
    assert image["weights"]["bfloat16"] == edit["weights"]["bfloat16"] == everything
    assert answer["weights"]["bfloat16"] == understanding
    # The same image as in the other table, and an edit reads three longer contexts in the place of two.
    assert image["seconds"] == pytest.approx(found["inference"]["image_seconds"]["1024"], rel=0.01)
    assert edit["seconds"][0] > 1.5 * image["seconds"][0]
    # 128 tokens of 7 B weights, a little more with the longer context and the reading of the image.
    assert answer["seconds"][0] > 128 * found["inference"]["token_seconds"][0]
    for entry in found["modes"].values():
        assert entry["weights"]["nf4"] < entry["weights"]["int8"] < entry["weights"]["bfloat16"]


def test_parameters_are_those_of_the_paper(found):
    """14 B in all, 7 B of them read for a token of text (paper, section 4.1)."""
    assert found["parameters"]["total"] == pytest.approx(14.7e9, rel=0.01)
    assert found["parameters"]["reading"] == pytest.approx(7.1e9, rel=0.01)
    assert found["parameters"]["layer"] * 28 == pytest.approx(13.05e9, rel=0.01)


def test_memory_is_shared_and_times_have_a_floor(found):
    one, eight, many = (found["training"][str(devices)] for devices in scaling.DEVICES)
    states = 20 * found["parameters"]["trained"] + 4 * found["parameters"]["frozen"]
    assert one["memory_bytes"] - eight["memory_bytes"] == pytest.approx(states * 7 / 8, rel=0.02)
    assert not one["fits"] and eight["fits"] and many["memory_bytes"] < eight["memory_bytes"]
    # Twice forwards and twice that backwards, at the vendor's full rate: nothing is faster.
    floor = 4 * 10 * pass_flops(UniMedVLConfig(), 2_000, 0) / 989e12
    for entry in (one, eight, many):
        assert floor < entry["seconds"][0] <= entry["seconds"][1]
    # 7 B weights of two bytes at the full rate of the memory.
    assert found["inference"]["token_seconds"][0] > 2 * 7.0e9 / 3.35e12
