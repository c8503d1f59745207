"""Packed records say the same, show the same within what WebP loses, and fit a limit."""

import tarfile

import numpy
import pytest
import torch
from safetensors.torch import load_file, save_file

from examples.nano import carried, prepare
from unimedvl.unimed5m.task_images import pixels_of
from unimedvl.utils.command_line import run_module

pytestmark = pytest.mark.medium


@pytest.fixture(scope="module")
def both(work, tmp_path_factory):
    folder = tmp_path_factory.mktemp("carried")
    account = carried.pack(work, folder / "packed", 30 << 20, processes=1)
    carried.unpack(folder / "packed", folder / "work", processes=1)
    return work, folder, account


@pytest.mark.parametrize("split", ["train", "validation"])
def test_texts_are_the_same_and_images_of_the_same_sizes(both, split):
    work, folder, _ = both
    before, after = (list(prepare.work_records(place, split)) for place in (work, folder / "work"))
    assert [record.id for record in before] == [record.id for record in after] and before
    for one, other in zip(before, after, strict=True):
        assert one.replace(input_img=(), output_img=()) == other.replace(input_img=(), output_img=())
        for column in prepare.IMAGES:
            sizes = [[(image.width, image.height) for image in getattr(r, column)] for r in (one, other)]
            assert sizes[0] == sizes[1]
        other.validate()


def test_masks_are_exact_and_others_close(both):
    work, folder, _ = both
    pairs = zip(prepare.work_records(work, "train"), prepare.work_records(folder / "work", "train"), strict=True)
    masks = 0
    for one, other in pairs:
        for before, after in zip(one.output_img, other.output_img, strict=True):
            first, second = (pixels_of(image).astype(float) for image in (before, after))
            if one.sub_task_type == "segmentation":
                masks += 1
                assert numpy.array_equal(first, second)
            else:
                # The drawn records are noise, which no codec keeps well; what is far off is another image.
                assert numpy.corrcoef(first.ravel(), second.ravel())[0, 1] > 0.7
    assert masks


def test_each_image_is_kept_once_and_pairs_for_super_resolution_not_at_all(both):
    work, _, account = both
    records = [r for split in carried.SPLITS for r in prepare.work_records(work, split)]
    kept = {
        image.sha256
        for record in records
        if record.sub_task_type != "super_resolution"
        for column in prepare.IMAGES
        for image in getattr(record, column)
    }
    assert account["images"] == len(kept) and account["records"] == len(records) > len(kept)


def test_what_does_not_fit_is_refused_and_leaves_nothing(work, tmp_path):
    with pytest.raises(ValueError, match="more than the limit of 0"):
        carried.pack(work, tmp_path / "packed", 1000, processes=1)
    assert not (tmp_path / "packed").exists()


def test_a_folder_that_is_not_packed_is_reported_in_one_line(tmp_path, capsys):
    with pytest.raises(ValueError, match="holds no packed records"):
        carried.unpack(tmp_path, tmp_path / "work")
    arguments = ["--work", str(tmp_path / "none"), "--out", str(tmp_path / "packed")]
    assert run_module(carried.main, arguments) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_weights_go_along_where_they_are_trained(tmp_path):
    with pytest.raises(ValueError, match="holds no finished training: `train --only autoencoder` does it"):
        carried.copy_weights(tmp_path / "untrained", tmp_path)
    for part, name in (("autoencoder", "diffusion_pytorch_model.safetensors"), ("vision", "vision.safetensors")):
        folder = tmp_path / "work" / part
        (folder / "checkpoint-9").mkdir(parents=True)
        (folder / name).write_bytes(b"weights")
        (folder / "training.json").write_text('{"steps": 9}')
        (folder / "network.safetensors").write_bytes(b"float32")
    out = tmp_path / "out"
    out.mkdir()
    carried.copy_weights(tmp_path / "work", out)
    carried_along = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    assert carried_along == [
        "autoencoder/diffusion_pytorch_model.safetensors", "autoencoder/training.json",
        "vision/training.json", "vision/vision.safetensors",
    ]  # fmt: skip


def test_results_are_small_files_that_hold_the_newest_weights(tmp_path):
    results = tmp_path / "results"
    (tmp_path / "parts.json").write_text("{}")
    # Two shards first, one then: nothing of the first may be left among the second.
    for scale, count in ((1.0, 5), (2.0, 2)):
        folder = tmp_path / f"stage{count}"
        folder.mkdir()
        weights = {f"w{i}": torch.full((1_000_000,), scale) for i in range(count)}
        save_file(weights, folder / "model.safetensors")
        (folder / "config.json").write_text(str(count))
        (folder / "modeling_x.py").write_text("")
        carried.hand_over(folder, [tmp_path / "parts.json"], results)
        files = list(results.iterdir())
        assert len(files) <= 8 and all(path.stat().st_size < 15 << 20 for path in files)
        assert sum(path.suffix == ".safetensors" for path in files) == (2 if count == 5 else 1)
        back = tmp_path / f"back{count}"
        carried.take_over(results, back)
        merged = load_file(back / "model.safetensors")
        assert merged.keys() == weights.keys() and all(torch.equal(merged[name], weights[name]) for name in weights)
        assert sorted(path.name for path in back.iterdir()) == ["config.json", "model.safetensors"]
        with tarfile.open(results / "rest.tar.gz") as archive:
            assert sorted(archive.getnames()) == ["config.json", "parts.json"]


def test_nothing_is_taken_over_where_nothing_was_handed(tmp_path):
    with pytest.raises(ValueError, match="holds no weights that a run has handed over"):
        carried.take_over(tmp_path, tmp_path / "checkpoint")
