"""A merged folder works alone and answers as base and adapter do; it is there whole, or not at all."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.adapters import write_adapter
from tests.hub_cards.clean_process import use
from tests.hub_cards.test_clean_process import run_clean
from tests.tiny_checkpoint import tiny_checkpoint
from unimedvl.checkpoint.folder import open_checkpoint
from unimedvl.checkpoint.loading import load
from unimedvl.checkpoint.merging import merge_adapter
from unimedvl.hub_cards.push import check_folder

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def adapter(checkpoint, tmp_path_factory):
    return write_adapter(checkpoint, tmp_path_factory.mktemp("adapter") / "lora", experts="both")


@pytest.fixture(scope="module")
def merged(adapter, tmp_path_factory):
    return merge_adapter(adapter, tmp_path_factory.mktemp("merged") / "whole")


def test_f14_case_43_answers_and_images_are_those_of_base_and_adapter(adapter, merged, checkpoint):
    together, alone, base = (load(folder) for folder in (adapter, merged.output, checkpoint))
    expected = use(together.model, together.processor)
    found = use(alone.model, alone.processor)
    assert found["ids"] == expected["ids"]
    assert found["ids"] != use(base.model, base.processor)["ids"]
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        wanted = together.model(input_ids=ids).logits
        assert (alone.model(input_ids=ids).logits - wanted).abs().max() <= 1e-4 * wanted.abs().max()


def test_f14_the_folder_loads_where_there_is_neither_unimedvl_nor_the_base(merged, tmp_path):
    loaded = load(merged.output)
    there = run_clean(tmp_path / "home", str(merged.output))
    assert there["AutoModelForMultimodalLM"]["ids"] == use(loaded.model, loaded.processor)["ids"]


def test_f14_it_says_where_it_comes_from(adapter, merged, checkpoint):
    record = json.loads((merged.output / "merge.json").read_text())
    assert record == merged.record
    assert record["base_revision"] == open_checkpoint(checkpoint).revision
    assert (record["adapter"], record["base"], record["method"]) == ("lora", "tiny", "LORA")
    card = (merged.output / "README.md").read_text()
    assert record["base_revision"] in card and "not for diagnosis" in card
    # Paths of this machine may name a person.
    assert str(checkpoint.parent) not in card + json.dumps(record)
    with pytest.raises(ValueError, match="names no license"):
        check_folder(merged.output)


def test_f14_the_license_is_that_of_the_base(tmp_path):
    tiny_checkpoint(tmp_path / "base")
    (tmp_path / "base" / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n# base\n")
    (tmp_path / "base" / "LICENSE").write_text("terms")
    merge_adapter(write_adapter(tmp_path / "base", tmp_path / "lora"), tmp_path / "out")
    assert "LICENSE" in check_folder(tmp_path / "out").files
    assert "license: cc-by-4.0" in (tmp_path / "out" / "README.md").read_text()


def test_f14_weights_that_are_no_numbers_leave_no_folder(checkpoint, tmp_path):
    folder = write_adapter(checkpoint, tmp_path / "lora")
    path = folder / "adapter_model.safetensors"
    save_file({name: torch.full_like(value, float("nan")) for name, value in load_file(path).items()}, path)
    with pytest.raises(ValueError, match="cannot be merged .*NaN"):
        merge_adapter(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob(".out*"))


def test_f14_a_base_in_8_bits_is_refused_and_the_adapter_still_answers(checkpoint, tmp_path):
    packed = load(checkpoint, quantize="int8", device="cpu")
    packed.model.save_pretrained(tmp_path / "int8")
    packed.processor.save_pretrained(tmp_path / "int8")
    folder = write_adapter(checkpoint, tmp_path / "lora")
    # Its values are others, as the record says; an adapter without one is judged by its layers.
    (folder / "base_model.json").unlink()
    with pytest.raises(ValueError, match="stored in 4 or 8 bits.*name the full one, --base"):
        merge_adapter(folder, tmp_path / "out", base=tmp_path / "int8")
    assert not (tmp_path / "out").exists()


def test_f14_what_is_there_stays(adapter, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(ValueError, match="is not empty: choose another folder"):
        merge_adapter(adapter, tmp_path / "out")
    with pytest.raises(ValueError, match="is not empty: choose another folder"):
        merge_adapter(adapter, tmp_path / "out" / "mine")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
