"""Files of a user's own: what cameras and people wrote into them stays at home, and nothing is lost or mixed up."""

import dataclasses
import io
import json

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from tests.processing.medical_files import make_dicom
from unimedvl.commands.main import main
from unimedvl.unimed5m.build import build
from unimedvl.unimed5m.builders import get_source
from unimedvl.unimed5m.clean_image_files import plain_jpeg, plain_png
from unimedvl.unimed5m.publish import publish, without_names
from unimedvl.unimed5m.relink import relink
from unimedvl.unimed5m.schema import from_table, to_table
from unimedvl.unimed5m.shards import batches, build_sources, parquet_writer, shard_paths
from unimedvl.unimed5m.task_images import pixels_of, upright_image

from .fixtures_files import write_image, write_json, write_mask, write_table

NAME = "SMITH^JOHN"
OPEN = {"modality": "CXR", "license": "CC0-1.0", "license_tier": "A", "redistributable": "yes"}


def image(format, orientation=1, seed=0):
    """A file that names a patient wherever its format has room."""
    pixels = np.random.default_rng(seed).integers(0, 256, (16, 24, 3), dtype=np.uint8)
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = NAME
    exif[ExifTags.Base.Orientation] = orientation
    buffer = io.BytesIO()
    if format == "PNG":
        notes = PngImagePlugin.PngInfo()
        notes.add_text("Patient", NAME)
        notes.add_itxt("Comment", NAME, zip=True)
        Image.fromarray(pixels).save(buffer, format, exif=exif, pnginfo=notes)
    else:
        Image.fromarray(pixels).save(buffer, format, exif=exif, comment=NAME.encode(), quality=90)
    return buffer.getvalue()


def records(folder):
    return [entry for path in shard_paths(folder) for table in batches(path) for entry in from_table(table)]


@pytest.mark.parametrize("format", ["PNG", "JPEG"])
def test_notes_leave_a_file_and_its_pixels_stay(format):
    data = image(format)
    assert NAME.encode() in data
    kept = upright_image(data, "a")
    assert NAME.encode() not in kept.data and len(kept.data) < len(data)
    with Image.open(io.BytesIO(data)) as before, Image.open(io.BytesIO(kept.data)) as after:
        assert before.format == after.format == format
        assert np.array_equal(np.asarray(before), np.asarray(after))
    # A file without notes keeps every byte.
    assert upright_image(kept.data, "a").data == kept.data


def test_files_of_another_structure_are_left_as_they_are():
    for cut in (2, 10, 40):
        assert plain_jpeg(image("JPEG")[:cut]) == image("JPEG")[:cut]
        assert plain_png(image("PNG")[:cut]) == image("PNG")[:cut]


@pytest.mark.parametrize("orientation", range(2, 9))
def test_a_lying_file_becomes_an_upright_one(orientation):
    data = image("PNG", orientation)
    kept = upright_image(data, "a")
    with Image.open(io.BytesIO(data)) as stored:
        pixels = np.asarray(stored)
    turned = {
        2: pixels[:, ::-1], 3: pixels[::-1, ::-1], 4: pixels[::-1], 5: pixels.transpose(1, 0, 2),
        6: np.rot90(pixels, -1), 7: pixels[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(pixels),
    }  # fmt: skip
    assert np.array_equal(pixels_of(kept), turned[orientation])
    assert (kept.height, kept.width) == turned[orientation].shape[:2]


def test_a_lying_mask_is_set_aside_with_its_reason(tmp_path):
    for name in ("a", "b"):
        write_image(tmp_path / "set" / "images" / f"{name}.png")
    write_mask(tmp_path / "set" / "masks" / "a.png")
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    Image.open(write_mask(tmp_path / "set" / "masks" / "b.png")).save(tmp_path / "set" / "masks" / "b.png", exif=exif)
    summary = build(get_source("segmentation-pairs"), tmp_path / "set", tmp_path / "out", shards=1)
    assert (summary["kept"], summary["rejected"]) == (1, 1)
    (reasons,) = (tmp_path / "out" / "rejected").glob("*.jsonl")
    assert "orientation in EXIF" in reasons.read_text()


def table_with_names(folder, **settings):
    for number in range(6):
        write_image(folder / f"{NAME}{number}.png", number)
    rows = [
        {"image": f"{NAME}{number}.png", "caption": "A chest film.", "label": NAME, "place": "Ward 7", "mrn": NAME}
        for number in range(6)
    ]
    write_table(folder / "captions.csv", rows)
    write_json(folder / "source.json", {**OPEN, **settings})


def test_no_column_of_an_own_table_is_published_whatever_its_name(tmp_path):
    table_with_names(tmp_path / "mine")
    build(get_source("captions"), tmp_path / "mine", tmp_path / "records", shards=1)
    assert json.loads(records(tmp_path / "records")[0].extra)["columns"]["label"] == NAME
    publish(tmp_path / "records", tmp_path / "out")
    for path in (tmp_path / "out").rglob("*.parquet"):
        for table in batches(path):
            assert "SMITH" not in str(table.to_pylist()) and "Ward 7" not in str(table.to_pylist())


@pytest.mark.parametrize(
    "settings", [{"dataset": "slake"}, {"url": "github:me/mine"}, {"url": "github://me"}, {"dataset": "github:me"}]
)
def test_own_files_are_not_taken_for_published_ones(tmp_path, settings):
    table_with_names(tmp_path / "mine", **settings)
    with pytest.raises(ValueError, match="published data set|url: expected an address|none that begins with"):
        build(get_source("captions"), tmp_path / "mine", tmp_path / "out", shards=1)


def test_several_builds_are_relinked_at_once_and_nothing_is_overwritten(tmp_path):
    for name in ("one", "two"):
        table_with_names(tmp_path / name, dataset=name, redistributable="no")
        build(get_source("captions"), tmp_path / name, tmp_path / f"{name}-records", shards=1)
    built = [tmp_path / "one-records", tmp_path / "two-records"]
    publish(built, tmp_path / "published")
    total = sum(len(records(folder)) for folder in built)
    assert relink(tmp_path / "published", built, tmp_path / "out") == {"relinked": total, "missing": 0}
    assert (tmp_path / "out" / ".gitignore").read_text() == "*\n"
    with pytest.raises(ValueError, match="holds relinked records already"):
        relink(tmp_path / "published", built[0], tmp_path / "out")
    with pytest.raises(ValueError, match="expected a published folder"):
        relink(tmp_path / "nothing", built, tmp_path / "other")


@pytest.mark.parametrize("action", [["stats"], ["check", "OUT"], ["audit", "OUT"], ["publish", "OUT"]])
def test_a_folder_of_other_parquet_files_gets_one_line(tmp_path, capsys, action):
    import pyarrow
    import pyarrow.parquet as parquet

    (tmp_path / "raw").mkdir()
    parquet.write_table(pyarrow.table({"question": ["why?"]}), tmp_path / "raw" / "a.parquet")
    rest = [str(tmp_path / "out") if text == "OUT" else text for text in action[1:]]
    assert main(["data", action[0], str(tmp_path / "raw"), *rest]) == 2
    error = capsys.readouterr().err
    assert "a.parquet: expected records with the column id, found question" in error and "Traceback" not in error


def test_an_output_within_the_input_is_refused(tmp_path, capsys):
    write_image(tmp_path / "set" / "polyp" / "a.png")
    command = ["data", "build", "--source", "image-folder", str(tmp_path / "set"), str(tmp_path / "set" / "records")]
    assert main(command) == 2
    assert "choose a folder outside it" in capsys.readouterr().err


def test_a_split_folder_is_no_label(tmp_path):
    write_image(tmp_path / "set" / "train" / "a.png")
    with pytest.raises(ValueError, match="expected train/LABEL/a.png"):
        build(get_source("image-folder"), tmp_path / "set", tmp_path / "out", shards=1)


def test_tiers_are_read_with_spaces_and_checked(tmp_path, capsys):
    command = ["data", "build", "--source", "unimed-mini", str(tmp_path), str(tmp_path / "out"), "--tiers"]
    assert main([*command, "A, D"]) == 2
    assert "expected some of A, B, C, found 'D'" in capsys.readouterr().err


def test_every_frame_of_a_dicom_file_counts_whatever_the_file_is_called(tmp_path):
    frames = np.arange(3 * 40 * 36, dtype=np.uint16).reshape(3, 40, 36)
    for name, content in (("1.2.840.77", make_dicom(frames, frames=3)), ("b.dcm", make_dicom(frames[0]))):
        path = tmp_path / "set" / "series" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    (tmp_path / "set" / "series" / "notes.txt").write_text("no image")
    summary = build(get_source("dicom-series"), tmp_path / "set", tmp_path / "out", shards=1)
    # Two records for every image.
    assert (summary["kept"], summary["rejected"]) == (8, 0)
    paths = {entry.output_img[0].path for entry in records(tmp_path / "out")}
    assert paths == {"series/b.dcm", *(f"series/1.2.840.77#{frame}" for frame in range(3))}


def test_a_benchmark_cannot_write_elsewhere(tmp_path, capsys):
    table_with_names(tmp_path / "mine")
    build(get_source("captions"), tmp_path / "mine", tmp_path / "records", shards=1)
    command = ["data", "check", str(tmp_path / "records"), str(tmp_path / "out")]
    assert main([*command, "--benchmark", f"../../escaped={tmp_path / 'records'}"]) == 2
    assert "benchmarks: expected a name" in capsys.readouterr().err
    assert not (tmp_path.parent / "escaped").exists()


def test_what_a_check_or_a_model_passed_on_is_still_known_by_its_source(tmp_path):
    (tmp_path / "built").mkdir()
    write_json(tmp_path / "built" / "build.json", {"source": "unimed-mini"})
    (tmp_path / "checked").mkdir()
    write_json(tmp_path / "checked" / "qc.json", {"sources": ["unimed-mini"]})
    assert build_sources([tmp_path / "built", tmp_path / "checked"]) == ["unimed-mini"]
    assert build_sources([tmp_path / "built", tmp_path]) == ["", "unimed-mini"]


def jpeg_variants():
    data = image("JPEG")
    scan = data.index(b"\xff\xda")
    note = b"\xff\xfe" + (2 + len(NAME)).to_bytes(2, "big") + NAME.encode()
    other = note.replace(b"\xff\xfe", b"\xff\xec")
    progressive = io.BytesIO()
    Image.open(io.BytesIO(data)).save(progressive, "JPEG", progressive=True)
    scans = progressive.getvalue()
    last = scans.rindex(b"\xff\xda")
    return {
        "filling": data[:2] + b"\xff" + data[2:],
        "junk": data[:scan] + b"\x00\x12" + note + data[scan:],
        "behind the end": data + NAME.encode(),
        "another application": data[:scan] + other + data[scan:],
        "between scans": scans[:last] + note + scans[last:],
    }


@pytest.mark.parametrize("name", ["filling", "junk", "behind the end", "another application", "between scans"])
def test_notes_leave_a_jpeg_wherever_they_stand(name):
    data = jpeg_variants()[name]
    kept = upright_image(data, "a")
    assert NAME.encode() in data and NAME.encode() not in kept.data
    with Image.open(io.BytesIO(data)) as before, Image.open(io.BytesIO(kept.data)) as after:
        assert np.array_equal(np.asarray(before), np.asarray(after))


@pytest.mark.parametrize("change", [lambda data: data[:-12], lambda data: data + NAME.encode()])
def test_notes_leave_a_png_without_its_end_and_behind_it(change):
    data = change(image("PNG"))
    kept = upright_image(data, "a")
    assert NAME.encode() not in kept.data
    assert np.array_equal(pixels_of(kept), pixels_of(upright_image(image("PNG"), "a")))


def test_a_lying_image_of_16_bits_is_windowed():
    levels = np.linspace(0, 4000, 16 * 24).astype(np.uint16).reshape(16, 24)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    files = [io.BytesIO(), io.BytesIO()]
    Image.fromarray(levels).save(files[0], "PNG", exif=exif)
    Image.fromarray(levels).save(files[1], "PNG")
    lying, upright = (pixels_of(upright_image(file.getvalue(), "a")) for file in files)
    assert np.array_equal(lying, np.rot90(upright, -1)) and len(np.unique(lying)) > 100


@pytest.mark.parametrize("name", ["1.2.840.4711", "IM1.Mueller Hans", "x.dcm#3"])
def test_the_end_of_a_name_is_published_only_where_it_is_a_format(tmp_path, name):
    entry = records_of_one_caption(tmp_path)
    (shown,) = entry.input_img
    changed = entry.replace(input_img=(dataclasses.replace(shown, path=f"a/{name}"),))
    table = without_names(to_table([changed]), frozenset(), "00" * 16)
    path = table.to_pylist()[0]["input_img"][0]["path"]
    assert len(path) == 16 and "." not in path


def records_of_one_caption(tmp_path):
    table_with_names(tmp_path / "mine")
    build(get_source("captions"), tmp_path / "mine", tmp_path / "records", shards=1)
    return next(entry for entry in records(tmp_path / "records") if entry.input_img)


def test_a_name_that_no_file_can_have_is_one_rejected_row(tmp_path):
    table_with_names(tmp_path / "mine")
    rows = [{"image": "x" * 300, "caption": "A chest film."}, {"image": f"{NAME}0.png", "caption": "A chest film."}]
    write_table(tmp_path / "mine" / "captions.csv", rows)
    summary = build(get_source("captions"), tmp_path / "mine", tmp_path / "out", shards=1)
    assert summary["rejected"] == 1 and summary["kept"] > 0


def test_relinking_that_was_interrupted_is_repeated(tmp_path, monkeypatch):
    table_with_names(tmp_path / "one", redistributable="no")
    build(get_source("captions"), tmp_path / "one", tmp_path / "records", shards=1)
    publish(tmp_path / "records", tmp_path / "published")
    with monkeypatch.context() as patch:
        patch.setattr("unimedvl.unimed5m.relink.parquet_writer", interrupted(2))
        with pytest.raises(KeyboardInterrupt):
            relink(tmp_path / "published", tmp_path / "records", tmp_path / "out")
    counts = relink(tmp_path / "published", tmp_path / "records", tmp_path / "out")
    assert counts["missing"] == 0 and counts["relinked"] == len(records(tmp_path / "out")) > 0


def interrupted(at):
    """A writer of Parquet files whose call number `at` is interrupted."""
    calls = []

    def writer(*arguments):
        calls.append(arguments)
        if len(calls) == at:
            raise KeyboardInterrupt
        return parquet_writer(*arguments)

    return writer
