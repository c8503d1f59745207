"""The audit sheet goes out, comes back filled, and its numbers are right."""

import csv
import re
from collections import Counter

import numpy
import pytest

from unimedvl.unimed5m.quality.audit import (
    DIMENSIONS,
    agreement,
    evaluate,
    read_scores,
    report,
    stratified_sample,
    write_sheet,
)

from .toy_records import drawn, record, write_shards


def fill(path, value) -> None:
    """Fill a sheet with `value(record index, dimension)`."""
    with path.open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for index, row in enumerate(rows):
        row.update({name: value(index, name) for name in DIMENSIONS})
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def sheets(tmp_path):
    records = [record(number) for number in range(30)]
    write_shards(tmp_path / "records", records)
    ids = write_sheet(tmp_path / "records", tmp_path / "audit", size=12, experts=3)
    return ids, [tmp_path / "audit" / f"scores-expert-{number}.csv" for number in (1, 2, 3)]


def test_sheet_shows_every_sampled_record(sheets):
    ids, paths = sheets
    page = (paths[0].parent / "audit.html").read_text()
    assert len(ids) == 12 and page.count("<img ") == 12 and page.count("<article>") == 12
    assert all(name in page for name in ids)
    assert "&lt;image&gt;" in page
    with paths[0].open(newline="") as file:
        numbers = {row["id"]: row["number"] for row in csv.DictReader(file)}
    for name in ids:
        assert re.search(rf"<h2>{numbers[name]}\. [^\n]*<code>{name}<", page), "the sheet's numbers are the page's"
    assert (paths[0].parent / ".gitignore").read_text() == "*\n"


def test_page_distinguishes_given_images_from_answers(tmp_path):
    pair = record(1, drawn(1), output_img=(drawn(2),), sub_task_type="super_resolution")
    write_sheet(write_shards(tmp_path / "records", [pair], shards=1), tmp_path / "audit", size=1, experts=1)
    page = (tmp_path / "audit" / "audit.html").read_text()
    assert re.findall(r"<figure><img [^>]*><figcaption>(\w+)<", page) == ["given", "answer"]


def test_shards_without_a_sampled_record_are_passed_over(tmp_path):
    write_shards(tmp_path / "records", [record(number) for number in range(9)], shards=3)
    assert len(write_sheet(tmp_path / "records", tmp_path / "audit", size=1, experts=1)) == 1


def test_sample_follows_the_modalities():
    labels = ["CT"] * 700 + ["MRI"] * 250 + ["OCT"] * 49 + ["US"]
    counts = Counter(labels[index] for index in stratified_sample(labels, 100))
    assert sum(counts.values()) == 100 and counts["US"] == 1
    assert abs(counts["CT"] - 70) <= 1 and abs(counts["MRI"] - 25) <= 1 and abs(counts["OCT"] - 5) <= 1
    assert stratified_sample(labels, 100) == stratified_sample(labels, 100)
    assert stratified_sample(["a", "b"], 9) == [0, 1]
    assert len(stratified_sample(["a", "b", "c", "d"], 2)) == 2


def test_perfect_scores_pass_with_defined_nones(sheets):
    ids, paths = sheets
    for path in paths:
        fill(path, lambda index, name: DIMENSIONS[name][0])
    result = report(paths, paths[0].parent / "audit.json")
    assert result["mean_quality"] == 1.0 and result["passes"] and result["records"] == len(ids)
    assert result["alpha_quality"] is None
    assert result["correlation"]["completeness"]["professionalism"] is None


def test_means_agreement_and_correlation(sheets):
    _, paths = sheets

    def value(expert):
        return lambda index, name: 1 if name == "modality_match" else (index % 6 if name != "completeness" else "")

    for expert, path in enumerate(paths):
        fill(path, value(expert))
    result = report(paths, paths[0].parent / "audit.json")
    assert result["dimensions"]["factual_accuracy"] == {"mean": 2.5, "mean_normalized": 0.5, "alpha": 1.0}
    assert result["dimensions"]["completeness"] == {"mean": None, "mean_normalized": None, "alpha": None}
    assert result["mean_quality"] == pytest.approx((1 + 5 * 0.5) / 6, abs=1e-6) and not result["passes"]
    assert result["correlation"]["factual_accuracy"]["professionalism"] == 1.0
    assert result["alpha_quality"] == 1.0


def test_agreement_equals_the_published_example():
    # Krippendorff's "Computing Krippendorff's alpha-reliability" (2011), example C: interval alpha 0.849.
    nan = numpy.nan
    ratings = numpy.array(
        [
            [1, 2, 3, 3, 2, 1, 4, 1, 2, nan, nan, nan],
            [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, nan, 3],
            [nan, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, nan],
            [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, nan],
        ]
    )
    assert agreement(ratings) == pytest.approx(0.849, abs=5e-4)


def test_disagreement_lowers_agreement():
    generator = numpy.random.default_rng(0)
    scores = generator.integers(0, 2, size=(5, 40, len(DIMENSIONS))).astype(float)
    result = evaluate(scores)
    assert abs(result["alpha_quality"]) < 0.2
    assert all(abs(entry["alpha"]) < 0.2 for entry in result["dimensions"].values())


@pytest.mark.parametrize(("text", "message"), [("6", "from 0 to 5"), ("good", "found 'good'"), ("-1", "from 0 to 5")])
def test_scores_out_of_range_name_their_place(sheets, text, message):
    ids, paths = sheets
    fill(paths[0], lambda index, name: text if (index, name) == (3, "completeness") else "1")
    with pytest.raises(ValueError, match=message) as caught:
        read_scores(paths[:1])
    assert ids[3] in str(caught.value) and "completeness" in str(caught.value)


def test_sheets_of_different_audits_are_refused(sheets):
    _, paths = sheets
    lines = paths[1].read_text().splitlines()
    paths[1].write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(ValueError, match="other records"):
        read_scores(paths[:2])
    paths[1].write_text("id,comment\nx,\n")
    with pytest.raises(ValueError, match="expected the column modality_match"):
        read_scores(paths[1:2])


def test_filled_sheets_are_never_written_over(sheets, tmp_path):
    _, paths = sheets
    write_sheet(tmp_path / "records", tmp_path / "audit", size=12, experts=3)
    filled = paths[0].read_text().replace(",,,,,,,,", ",1,5,5,5,5,5,5,", 1)
    paths[0].write_text(filled)
    with pytest.raises(ValueError, match="is filled or of another audit; choose a new folder"):
        write_sheet(tmp_path / "records", tmp_path / "audit", size=12, experts=3)
    assert paths[0].read_text() == filled


def test_sheets_that_would_count_wrongly_are_refused(sheets, tmp_path):
    _, paths = sheets
    with pytest.raises(ValueError, match="the same score sheet is given twice"):
        read_scores([paths[0], paths[0]])
    lines = paths[0].read_text().splitlines()
    paths[0].write_text("\n".join([*lines, lines[1]]) + "\n")
    with pytest.raises(ValueError, match="is in two lines; keep one"):
        read_scores(paths)
    paths[0].write_text("\n".join([lines[0], lines[1].replace(",,,,,,,,", ",0.5,,,,,,,", 1), *lines[2:]]) + "\n")
    with pytest.raises(ValueError, match="modality_match: expected 0 or 1, found '0.5'"):
        read_scores(paths)
    paths[0].write_bytes("\n".join(lines).replace(",,,,,,,,", ",1,5,5,5,5,5,5,süß", 1).encode("latin-1"))
    with pytest.raises(ValueError, match="scores-expert-1.csv is not UTF-8"):
        read_scores(paths)
    with pytest.raises(ValueError, match="1 record and 1 expert or more"):
        write_sheet(tmp_path / "records", tmp_path / "none", size=-3, experts=0)
