"""The sources through the `datasets` library: configurations, Parquet, the same rows for any number of processes."""

import datasets
import pytest

from unimedvl.unimed5m.builders import UniMed5M, get_source, list_sources
from unimedvl.unimed5m.schema import Record, features

from . import fixtures_scans, fixtures_texts


def prepared(folder, output, cache, name, **options):
    builder = UniMed5M(config_name=name, data_dir=str(folder), cache_dir=str(cache))
    builder.download_and_prepare(str(output), file_format="parquet", **options)
    return builder


def test_every_source_and_task_has_a_configuration():
    names = {config.name for config in UniMed5M.BUILDER_CONFIGS}
    assert {source.name for source in list_sources()} <= names
    assert {"busi-segmentation", "busi-diagnosis", "pubmedvision-text-to-image"} <= names


def test_prepared_parquet_holds_the_records(tmp_path):
    folder, output = tmp_path / "kvasir", tmp_path / "out"
    fixtures_scans.isic2018(folder)
    prepared(folder, output, tmp_path / "cache", "isic2018")
    files = {split: f"{output}/unimed5m-{split}*.parquet" for split in ("train", "validation", "test")}
    loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(tmp_path / "read"))
    assert {split: len(part) for split, part in loaded.items()} == {"train": 2, "validation": 1, "test": 1}
    assert loaded["train"].features == features()
    assert loaded["train"][0]["input_img"][0]["image"].size == (40, 36)
    raw = [row for part in loaded.values() for row in part.cast(features(decode=False))]
    expected = {record.id: record for record in get_source("isic2018").records(folder)}
    assert {row["id"]: Record.from_row(row) for row in raw} == expected


def test_one_task_and_several_processes(tmp_path):
    folder = tmp_path / "busi"
    fixtures_scans.busi(folder)
    rows = []
    for processes in (1, 2):
        place = tmp_path / str(processes)
        builder = prepared(folder, place / "out", place / "cache", "busi-segmentation", num_proc=processes)
        assert sum(split.num_examples for split in builder.info.splits.values()) == 3
        files = sorted(str(path) for path in (place / "out").glob("*.parquet"))
        loaded = datasets.load_dataset("parquet", data_files=files, cache_dir=str(place / "read"), split="train")
        assert set(loaded["sub_task_type"]) == {"segmentation"}
        rows.append(sorted(loaded["id"]))
    assert rows[0] == rows[1]


def test_text_sources_need_no_images(tmp_path):
    fixtures_texts.bigbio_pubmed_qa(tmp_path / "qa")
    builder = prepared(tmp_path / "qa", tmp_path / "out", tmp_path / "cache", "bigbio-pubmed-qa")
    assert builder.info.splits["train"].num_examples == 2 and builder.info.splits["test"].num_examples == 1


def test_missing_data_dir_gets_one_line(tmp_path):
    builder = UniMed5M(config_name="busi", cache_dir=str(tmp_path))
    with pytest.raises(ValueError, match="busi: expected data_dir with .*, found none"):
        builder.download_and_prepare(str(tmp_path / "out"), file_format="parquet")
