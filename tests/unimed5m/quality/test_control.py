"""Quality control from end to end on drawn records: reasons, counts, leakage, contamination, scores."""

import json
import struct
import zlib
from dataclasses import replace
from pathlib import Path

import datasets
import numpy
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from unimedvl.unimed5m.quality.alignment import Alignment, AlignmentModels, Selection
from unimedvl.unimed5m.quality.coarse import CoarseFilter, Verdict
from unimedvl.unimed5m.quality.control import QualitySettings, quality_control
from unimedvl.unimed5m.quality.duplicates import FingerprintTable, close_pairs, find_drops, neighbors
from unimedvl.unimed5m.schema import ARROW_SCHEMA, RecordImage
from unimedvl.unimed5m.shards import shard_paths, write_table

from .toy_models import ColorCaptioner, ColorScorer, WordEncoder
from .toy_records import all_bytes, caption, drawn, faulty_records, record, write_shards

pytestmark = pytest.mark.medium

EXPECTED = {
    "undecodable": 2,
    "too_small": 1,
    "text_too_short": 1,
    "text_too_long": 1,
    "duplicate": 1,
    "leak_group": 1,
    "leak_image": 1,
    "contaminated_image": 1,
}


def ledger(folder: Path) -> dict[str, str]:
    rows = [row for path in sorted((folder / "dropped").glob("*.parquet")) for row in pq.read_table(path).to_pylist()]
    assert all(row["stage"] and row["detail"] for row in rows)
    return {row["id"]: row["reason"] for row in rows}


def kept_ids(folder: Path) -> list[str]:
    return [
        name
        for path in sorted((folder / "data").glob("*.parquet"))
        for name in pq.read_table(path, columns=["id"])["id"].to_pylist()
    ]


@pytest.fixture(scope="module")
def checked(tmp_path_factory) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("control")
    records = write_shards(folder / "records", faulty_records())
    write_shards(folder / "benchmark", [record(900, drawn(900, file_format="JPEG"), split="test")], shards=1)
    settings = QualitySettings(benchmarks={"bench": str(folder / "benchmark")})
    return folder / "checked", quality_control(records, folder / "checked", settings)


def test_every_fault_is_dropped_for_its_own_reason(checked):
    folder, _ = checked
    found = ledger(folder)
    assert {name: reason for name, reason in found.items() if not name.startswith(reason)} == {}
    counts = {reason: list(found.values()).count(reason) for reason in found.values()}
    assert counts == EXPECTED


def test_kept_and_dropped_make_up_what_was_read(checked):
    folder, summary = checked
    assert summary["read"] == 50
    assert summary["kept"] + summary["dropped"] == summary["read"]
    for stage in summary["stages"]:
        assert stage["kept"] + sum(stage["dropped"].values()) == stage["read"]
    assert sorted([*kept_ids(folder), *ledger(folder)]) == sorted(entry.id for entry in faulty_records())
    assert json.loads((folder / "qc.json").read_text()) == summary


def test_damaged_records_are_in_quarantine_whole(checked):
    folder, _ = checked
    rows = [row for path in (folder / "quarantine").glob("*.parquet") for row in pq.read_table(path).to_pylist()]
    assert {row["id"] for row in rows} == {"undecodable-cut", "undecodable-text"}
    assert {row["input_img"][0]["image"]["bytes"] for row in rows} >= {b"this is no image at all"}


def test_kept_records_are_untouched_and_load(checked):
    folder, _ = checked
    originals = {entry.id: entry.to_row() for entry in faulty_records()}
    for path in sorted((folder / "data").glob("*.parquet")):
        for row in pq.read_table(path).to_pylist():
            assert row == originals[row["id"]]
    loaded = datasets.load_dataset("parquet", data_dir=str(folder / "data"), split="train", streaming=True)
    assert next(iter(loaded))["input_img"][0]["image"].size == (136, 136)


def test_reporting_keeps_what_decodes(tmp_path):
    records = write_shards(tmp_path / "records", faulty_records())
    settings = QualitySettings(CoarseFilter(enforce="none"), duplicates=False)
    summary = quality_control(records, tmp_path / "checked", settings)
    assert summary["stages"][0]["dropped"] == {"undecodable": 2}
    assert summary["reported_only"] == {"text_too_long": 1, "text_too_short": 1, "too_small": 1}
    assert summary["kept"] == 48


def test_a_damaged_file_says_nothing_of_its_content(tmp_path, capfd, caplog):
    """A DICOM file and a text header in the place of an image: kept in quarantine, named nowhere."""
    dicom = b"\0" * 128 + b"DICM" + b"\x10\x00\x10\x00PN\x0c\x00Doe^Jane 123 "
    note = b"P2 Doe^Jane 123 Doe^Jane 123 " * 9
    held = [record(number, RecordImage(data, "x.png", 136, 136)) for number, data in enumerate((dicom, note))]
    records = write_shards(tmp_path / "records", [*held, record(2)], shards=1)
    with caplog.at_level(0):
        assert quality_control(records, tmp_path / "checked")["dropped"] == 2
    for part in ("dropped", "decisions", "measures", "receipts"):
        files = [path for path in (tmp_path / "checked" / part).rglob("*") if path.is_file()]
        assert files and not any(b"Doe" in path.read_bytes() for path in files)
    rows = pq.read_table(tmp_path / "checked" / "dropped" / "shard-00000.parquet").to_pylist()
    assert not any("Doe" in row["detail"] for row in rows)
    assert rows[0]["detail"] == "image 0: no image format that Pillow knows"
    assert "Doe" not in "".join(capfd.readouterr()) + caplog.text
    kept = pq.read_table(tmp_path / "checked" / "quarantine" / "shard-00000.parquet")
    assert [row["input_img"][0]["image"]["bytes"] for row in kept.to_pylist()] == [dicom, note]


def test_cut_files_are_said_to_be_cut():
    for file_format in ("PNG", "JPEG"):
        data = drawn(1, file_format=file_format).data
        for part in (0.3, 0.6, 0.95):
            verdict = CoarseFilter().judge(
                record(1, RecordImage(data[: int(len(data) * part)], "x", 136, 136)).to_row()
            )
            assert verdict == Verdict("undecodable", "image 0: the file is cut short")


def test_wrong_bytes_that_still_decode_are_found(tmp_path):
    whole = drawn(1, file_format="BMP").data
    row = record(1, drawn(1, file_format="BMP"), sub_task_type="vqa").to_row()
    row["input_img"][0]["image"]["bytes"] = whole[:-1] + bytes([whole[-1] ^ 1])
    write_table(tmp_path / "records" / "a.parquet", pa.Table.from_pylist([row], schema=ARROW_SCHEMA))
    summary = quality_control(tmp_path / "records", tmp_path / "checked")
    assert summary["stages"][0]["dropped"] == {"altered": 1}
    assert pq.read_metadata(tmp_path / "checked" / "quarantine" / "a.parquet").num_rows == 1


def test_results_stay_out_of_git(checked):
    assert (checked[0] / ".gitignore").read_text() == "*\n"


def test_only_caption_records_are_dropped_by_default():
    small = record(1, drawn(1, side=64))
    judge = CoarseFilter()
    assert judge.enforces(small.to_row()) and not judge.enforces({**small.to_row(), "sub_task_type": "vqa"})


@pytest.mark.parametrize(
    ("length", "reason"), [(9, "text_too_short"), (10, None), (1024, None), (1025, "text_too_long")]
)
def test_text_limits_count_characters_without_placeholders(length, reason):
    row = record(1, message=(caption("x" * length)[1],)).to_row()
    row["message"][0]["value"] = "<image>" + row["message"][0]["value"]
    verdict = CoarseFilter().judge(row)
    assert (verdict.reason if verdict else None) == reason


@pytest.mark.parametrize(("side", "reason"), [(127, "too_small"), (128, None)])
def test_shorter_side_limit(side, reason):
    verdict = CoarseFilter().judge(record(1, drawn(1, side=side)).to_row())
    assert (verdict.reason if verdict else None) == reason


def test_oversized_images_are_refused_by_their_header():
    verdict = CoarseFilter(max_pixels=136 * 136 - 1).judge(record(1).to_row())
    assert verdict is not None and verdict.reason == "too_many_pixels"


def test_a_bomb_has_too_many_pixels_and_is_not_damaged():
    """A header that Pillow itself refuses; only its size is known to be wrong."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 40_000, 40_000, 8, 0, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    bomb += struct.pack(">I", 100) + b"IDAT" + bytes(100)
    verdict = CoarseFilter().judge(record(1, RecordImage(bomb, "x.png", 40_000, 40_000)).to_row())
    assert verdict == Verdict("too_many_pixels", "image 0: more than 20000000")


def aligned_settings(**selection) -> QualitySettings:
    models = AlignmentModels(ColorCaptioner(), WordEncoder(), ColorScorer())
    return QualitySettings(
        alignment=Alignment(lambda: models, "toy"), duplicates=False, selection=Selection(**selection)
    )


def test_alignment_keeps_the_better_half_and_its_texts(tmp_path):
    colors = ("red", "green", "blue", "gray")
    records = []
    for number in range(24):
        shown = colors[number % 4]
        told = shown if number % 2 == number // 12 else colors[(number + 1) % 4]
        image = drawn(number, color=shown)
        records.append(record(number, image, modality="CT", message=caption(f"A field tinted {told} all over.")))
    folder = write_shards(tmp_path / "records", records)
    summary = quality_control(folder, tmp_path / "checked", aligned_settings(scope="global"))
    assert summary["scored"] == 24 and summary["stages"][2]["dropped"] == {"poorly_aligned": 12}
    truth = {entry.id for number, entry in enumerate(records) if number % 2 == number // 12}
    assert set(kept_ids(tmp_path / "checked")) == truth
    row = pq.read_table(next((tmp_path / "checked" / "data").glob("*.parquet"))).to_pylist()[0]
    assert row["quality"]["s_final"] == pytest.approx(0.5 * row["quality"]["s"] + row["quality"]["m"], abs=2e-5)
    assert row["quality"]["scope"] == "global"
    assert row["message"] == next(entry for entry in records if entry.id == row["id"]).to_row()["message"]


def test_alignment_may_only_report(tmp_path):
    tinted = drawn(2, color="red")
    small = drawn(3, side=64, color="red")
    records = [
        record(1, tinted, message=caption("A field tinted red all over.")),
        record(2, tinted, message=caption("A field tinted blue all over.")),
        record(3, small, message=caption("A field tinted green all over.")),
    ]
    folder = write_shards(tmp_path / "records", records, shards=1)
    settings = aligned_settings(scope="global", keep=0.3, report=True)
    summary = quality_control(folder, tmp_path / "checked", replace(settings, coarse=CoarseFilter(enforce="none")))
    assert (summary["kept"], summary["scored"]) == (3, 3)
    assert summary["reported_only"] == {"poorly_aligned": 2, "too_small": 1}
    decisions = pq.read_table(tmp_path / "checked" / "decisions" / "shard-00000.parquet").to_pylist()
    assert [row["reported"] for row in decisions] == [None, "poorly_aligned", "too_small, poorly_aligned"]


def test_patients_of_a_benchmark_are_kept_out():
    table = FingerprintTable(
        ids=["a", "b", "c", "d"], splits=["train", "validation", "train", "test"],
        groups=["d/1", "d/2", "other/1", "d/1"], contents=list("wxyz"), texts=[1, 2, 3, 4],
        images=[[], [], [], []],
    )  # fmt: skip
    assert find_drops(table, [("bench", 3, 4)]) == {0: ("contaminated_group", "bench: d")}


def test_held_out_and_unscored_records_are_not_ranked(tmp_path):
    tinted = drawn(2, color="red")
    records = [
        record(1, tinted, split="validation", message=caption("Nothing of that kind here.")),
        record(2, tinted, sub_task_type="segmentation"),
        record(3, tinted, message=caption("A field tinted red all over.")),
        record(4, tinted, message=caption("A field tinted blue all over.")),
    ]
    folder = write_shards(tmp_path / "records", records, shards=1)
    summary = quality_control(folder, tmp_path / "checked", aligned_settings(scope="global"))
    assert summary["scored"] == 3
    assert kept_ids(tmp_path / "checked") == [records[0].id, records[1].id, records[2].id]


def test_checking_again_changes_nothing_and_new_settings_take_hold(tmp_path):
    records = write_shards(tmp_path / "records", faulty_records())
    quality_control(records, tmp_path / "checked")
    before = all_bytes(tmp_path / "checked")
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "checked" / "data").iterdir()}
    quality_control(records, tmp_path / "checked")
    assert all_bytes(tmp_path / "checked") == before
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "checked" / "data").iterdir()} == times
    again = quality_control(records, tmp_path / "checked", QualitySettings(CoarseFilter(enforce="none")))
    assert again["kept"] > json.loads(before["qc.json"])["kept"]


def test_close_pairs_finds_every_pair_within_the_distance():
    generator = numpy.random.default_rng(0)
    codes = generator.integers(0, 2**63, size=60, dtype=numpy.uint64).tolist()
    for code in codes[:20]:
        for _ in range(3):
            flips = generator.choice(64, size=generator.integers(0, 10), replace=False)
            codes.append(code ^ sum(1 << int(bit) for bit in flips))
    found = {(int(a), int(b)) for left, right in close_pairs(codes, 6) for a, b in zip(left, right, strict=True)}
    expected = {
        (a, b) for b in range(len(codes)) for a in range(b) if (codes[a] ^ codes[b]).bit_count() <= 6
    }  # fmt: skip
    assert found == expected


def shaded(correlation: float, gain: float = 1.0, offset: float = 0.0) -> bytes:
    """A 16x16 thumbnail that correlates so much with `shaded(1.0)`."""
    rows, columns = numpy.mgrid[:16, :16]
    # Two patterns of mean 0 and equal length at a right angle to each other.
    pattern, other = numpy.where(columns % 2, 1.0, -1.0), numpy.where(rows % 2, 1.0, -1.0)
    mixed = correlation * pattern + (1 - correlation**2) ** 0.5 * other
    return numpy.rint(128 + offset + gain * 60 * mixed).clip(0, 255).astype(numpy.uint8).tobytes()


@pytest.mark.parametrize(
    ("thumbnail", "same"),
    [
        (shaded(1.0), True),
        (shaded(0.98), True),
        (shaded(1.0, gain=0.5, offset=30), True),  # darker or flatter is still the same image
        (shaded(0.96), False),
        (shaded(0.0), False),
        (shaded(-1.0), False),
    ],
)
def test_equal_hashes_are_one_image_only_if_the_thumbnails_correlate(thumbnail, same):
    """Perceptual hashes confuse standard views such as frontal chest films; thumbnails correlate at 0.97 or more."""
    first = shaded(1.0)
    pixels = [numpy.frombuffer(data, dtype=numpy.uint8).astype(float) for data in (first, thumbnail)]
    assert (numpy.corrcoef(*pixels)[0, 1] >= 0.97) == same
    # Hashes differ in 2 bits of 64; a record of the training split, one of the test split, and a third hash far away.
    table = FingerprintTable(
        ids=["a", "b", "c"], splits=["train", "test", "train"], groups=["d/1", "d/2", "d/3"], contents=list("xyz"),
        texts=[1, 2, 3], images=[[0], [1], [2]], hashes=[0b101, 0b110, 2**63 - 1],
        thumbnails=[first, thumbnail, first],
    )  # fmt: skip
    assert neighbors(table) == ({0: {1}, 1: {0}} if same else {})
    assert find_drops(table) == ({0: ("leak_image", "same image as b in test")} if same else {})


def test_masks_and_texts_without_images_do_not_leak():
    table = FingerprintTable(
        ids=["a", "b"], splits=["train", "test"], groups=[("d", "1"), ("d", "2")], contents=["x", "y"],
        texts=[1, 1], images=[[], []],
    )  # fmt: skip
    assert find_drops(table) == {}
    assert find_drops(table, [("bench", 1, 2)])[0][0] == "contaminated_text"


def test_a_folder_without_shards_is_refused(tmp_path):
    with pytest.raises(ValueError, match="expected Parquet shards"):
        quality_control(tmp_path, tmp_path / "out")


def test_a_patient_in_two_data_sets_is_on_one_side(tmp_path):
    rows = [
        record(1, split="test", group_id="cxr/p1", dataset="reports"),
        record(2, split="train", group_id="cxr/p1", dataset="questions"),
        record(3, split="train", group_id="cxr/p2", dataset="questions"),
    ]
    write_shards(tmp_path / "records", rows)
    quality_control(tmp_path / "records", tmp_path / "checked")
    assert ledger(tmp_path / "checked") == {"toy-00002": "leak_group"}


def test_several_folders_are_checked_as_one(tmp_path):
    """Built folders name their shards alike; duplicates and leaks are found across them."""
    for name, rows in (
        ("first", [record(1), record(2, split="test")]),
        ("second", [record(1, id="again", group_id="group-1"), record(3), record(4, group_id="group-2")]),
    ):
        write_shards(tmp_path / name / "data", rows, shards=1)
    folders = [tmp_path / "first", tmp_path / "second"]
    summary = quality_control(folders, tmp_path / "checked")
    assert (summary["read"], summary["kept"]) == (5, 3)
    assert ledger(tmp_path / "checked") == {"again": "duplicate", "toy-00004": "leak_group"}
    names = [path.name for path in sorted((tmp_path / "checked" / "data").glob("*.parquet"))]
    assert names == ["first-shard-00000.parquet", "second-shard-00000.parquet"]
    with pytest.raises(ValueError, match="given twice"):
        quality_control([folders[0], folders[0]], tmp_path / "other")


def test_a_benchmark_s_own_training_records_contaminate_nothing(tmp_path):
    rows = [record(1), record(2, split="validation"), record(3, split="test")]
    write_shards(tmp_path / "records", rows, shards=1)
    benchmark = {"own": str(tmp_path / "records")}
    quality_control(tmp_path / "records", tmp_path / "checked", QualitySettings(benchmarks=benchmark))
    assert ledger(tmp_path / "checked") == {}
    write_shards(tmp_path / "train_only", [record(1)], shards=1)
    settings = QualitySettings(benchmarks={"whole": str(tmp_path / "train_only")})
    quality_control(tmp_path / "records", tmp_path / "decontaminated", settings)
    assert ledger(tmp_path / "decontaminated") == {"toy-00001": "contaminated_group"}


def test_counts_of_an_earlier_check_never_stand_beside_newer_records(tmp_path, monkeypatch):
    from unimedvl.unimed5m.quality import control

    write_shards(tmp_path / "records", [record(1), record(2, drawn(2, side=40))], shards=1)
    quality_control(tmp_path / "records", tmp_path / "checked", QualitySettings(CoarseFilter("none")))

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(control, "summarize", killed)
    with pytest.raises(KeyboardInterrupt):
        quality_control(tmp_path / "records", tmp_path / "checked")
    with pytest.raises(ValueError, match="unfinished"):
        shard_paths(tmp_path / "checked")


def test_a_folder_with_other_files_is_left_alone(tmp_path):
    write_shards(tmp_path / "records", [record(1)], shards=1)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / ".gitignore").write_text("build/\n")
    with pytest.raises(ValueError, match="holds other files; choose a new folder"):
        quality_control(tmp_path / "records", tmp_path / "mine")
    assert (tmp_path / "mine" / ".gitignore").read_text() == "build/\n"
