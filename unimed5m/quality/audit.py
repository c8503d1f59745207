"""Expert audit: a stratified sample as a reviewable sheet, the experts' scores read back, their agreement.

Paper, section 3.1 and appendix A.4.1: five experts score 200 records, sampled in proportion to the modalities, on
seven dimensions; modality match is 0 or 1, the other six are 0 to 5; a record's quality is the mean of its dimensions.
The paper states neither how 0-5 becomes a mean "of 0.85 or more" nor an agreement coefficient: here every dimension is
divided by its largest score, and agreement is Krippendorff's alpha (interval), which allows for records that an expert
left out.
"""

import csv
import io
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy
import pyarrow as pa

from unimedvl.utils.claims import keep_out_of_git
from unimedvl.utils.json_files import write_json
from unimedvl.utils.whole_files import replacing, write_text

from ..pages import data_address, render_page
from ..pipeline import batches, shard_paths
from ..task_images import open_stored_image
from .image_reading import stored_bytes

DIMENSIONS = {
    "modality_match": (1, "Does the text name the modality that the image shows? 0 or 1"),
    "factual_accuracy": (5, "Is every statement true of the image? 0 to 5"),
    "completeness": (5, "Is everything of importance mentioned? 0 to 5"),
    "position_quantity_accuracy": (5, "Are places, sides, sizes and counts right? 0 to 5"),
    "professionalism": (5, "Are terms and style those of a specialist? 0 to 5"),
    "planning_coherence": (5, "Does a stated plan or order of thought hold together? 0 to 5"),
    "clinical_reasoning": (5, "Could a clinician have written it? 0 to 5")}  # fmt: skip
PASS_MEAN = 0.85
COLUMNS = ("id", "main_task_type", "sub_task_type", "modality", "dataset", "input_img", "output_img", "message")


def stratified_sample(labels: Sequence[str], size: int, seed: int = 0) -> list[int]:
    """Indices of `size` entries (all, if there are fewer), in proportion to the labels' frequencies, sorted.

    Every label that occurs gets at least one place while places last; the rest go by largest remainder (Hamilton).
    """
    places: dict[str, list[int]] = defaultdict(list)
    for index, label in enumerate(labels):
        places[label].append(index)
    size = min(size, len(labels))
    share = {label: size * len(members) / len(labels) for label, members in places.items()}
    order = sorted(places, key=lambda label: (-len(places[label]), label))
    quota = {label: min(len(places[label]), max(1, int(share[label]))) for label in order}
    for label in reversed(order):
        while sum(quota.values()) > size and quota[label] > (1 if len(order) <= size else 0):
            quota[label] -= 1
    by_remainder = sorted(order, key=lambda label: (-(share[label] - int(share[label])), label))
    while sum(quota.values()) < size:
        for label in by_remainder:
            if quota[label] < len(places[label]) and sum(quota.values()) < size:
                quota[label] += 1
    generator = numpy.random.default_rng(seed)
    chosen: list[int] = []
    for label in sorted(places):
        chosen += generator.permutation(places[label])[: quota[label]].tolist()
    return sorted(chosen)


def write_sheet(
    records: str | Path, output: str | Path, size: int = 200, experts: int = 5, seed: int = 0
) -> list[str]:
    """Sample records by modality and write `audit.html` and one `scores-expert-N.csv` per expert; returns the ids.

    The experts read the page and fill the seven columns of their file; `read_scores` reads the files back.

    Raises:
        ValueError: for a size or number of experts below 1, or where `output` holds something else: filled sheets are
            never written over.
    """
    if size < 1 or experts < 1:
        raise ValueError(f"an audit needs 1 record and 1 expert or more, found size {size} and {experts} experts.")
    paths, output = shard_paths(records), Path(output)
    labels = [
        label for path in paths for batch in batches(path, ("modality",)) for label in batch["modality"].to_pylist()
    ]
    chosen = set(stratified_sample(labels, size, seed))
    rows, place = [], 0
    for path in paths:
        for batch in batches(path, COLUMNS):
            wanted = pa.array([number for number in range(batch.num_rows) if place + number in chosen], pa.int64())
            rows += batch.take(wanted).to_pylist()
            place += batch.num_rows
    keep_out_of_git(output)
    sheet = _empty_sheet([row["id"] for row in rows])
    for path in sorted(output.glob("scores-expert-*.csv")):
        if path.read_bytes() != sheet:
            raise ValueError(f"{path} is filled or of another audit; choose a new folder for the sheets.")
    write_text(output / "audit.html", _page(rows))
    for expert in range(1, experts + 1):
        with replacing(output / f"scores-expert-{expert}.csv") as partial:
            partial.write_bytes(sheet)
    return [row["id"] for row in rows]


def _empty_sheet(ids: Sequence[str]) -> bytes:
    text = io.StringIO(newline="")
    writer = csv.writer(text)
    writer.writerow(["number", "id", *DIMENSIONS, "comment"])
    writer.writerows([number, name, *[""] * len(DIMENSIONS), ""] for number, name in enumerate(ids, 1))
    return text.getvalue().encode()


def _page(rows: Sequence[Mapping[str, Any]]) -> str:
    records = [
        {
            **row,
            "images": [
                (label, _shown(image))
                for label, images in (("given", row["input_img"]), ("answer", row["output_img"]))
                for image in images or ()
            ],
        }
        for row in rows
    ]
    return render_page("audit", records=records, dimensions=DIMENSIONS)


def _shown(source_image: Mapping[str, Any]) -> dict[str, str]:
    data = stored_bytes(source_image)
    if data is None:
        return {"address": "", "missing": f"image not stored: {source_image['path'] or ''}"}
    try:
        image = open_stored_image(data)
    except ValueError:
        return {"address": "", "missing": "image does not decode"}
    image.thumbnail((640, 640))
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"address": data_address(buffer.getvalue())}


def read_scores(paths: Sequence[str | Path]) -> tuple[list[str], numpy.ndarray]:
    """Filled sheets as (ids, scores); scores are float (experts, records, dimensions), nan where left empty.

    Raises ValueError, naming file, record and column, for a missing column, an unknown record, a score out of range,
    or one sheet given twice.
    """
    if not paths:
        raise ValueError("expected one filled score sheet per expert, found none.")
    if len({Path(path).resolve() for path in paths}) != len(paths):
        raise ValueError("the same score sheet is given twice; name each expert's sheet once.")
    tables = [_read_sheet(Path(path)) for path in paths]
    ids = list(tables[0])
    scores = numpy.full((len(tables), len(ids), len(DIMENSIONS)), numpy.nan)
    for expert, (path, table) in enumerate(zip(paths, tables, strict=True)):
        if set(table) != set(ids):
            raise ValueError(f"{path} holds other records than {paths[0]}; use the sheets of one audit.")
        for index, name in enumerate(ids):
            scores[expert, index] = table[name]
    return ids, scores


def _read_sheet(path: Path) -> dict[str, list[float]]:
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8; save the sheet as CSV UTF-8") from error
    with io.StringIO(text, newline="") as file:
        reader = csv.DictReader(file)
        missing = [name for name in ("id", *DIMENSIONS) if name not in (reader.fieldnames or ())]
        if missing:
            raise ValueError(
                f"{path}: expected the column {missing[0]}, found {', '.join(reader.fieldnames or ['nothing'])}."
            )
        scores: dict[str, list[float]] = {}
        for row in reader:
            if row["id"] in scores:
                raise ValueError(f"{path}: the record {row['id']} is in two lines; keep one.")
            scores[row["id"]] = [_score(path, row, name) for name in DIMENSIONS]
        return scores


def _score(path: Path, row: Mapping[str, str], name: str) -> float:
    text, highest = (row[name] or "").strip(), DIMENSIONS[name][0]
    if not text:
        return float("nan")
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= highest:
        raise ValueError(f"{path}: {row['id']}: {name}: expected a number from 0 to {highest}, found {text!r}.")
    if highest == 1 and value not in (0.0, 1.0):
        raise ValueError(f"{path}: {row['id']}: {name}: expected 0 or 1, found {text!r}.")
    return value


def evaluate(scores: numpy.ndarray) -> dict[str, Any]:
    """Means, agreement and correlation of scores (experts, records, dimensions).

    Returns "mean_quality" (over records; all dimensions in [0, 1]), "passes" (>= 0.85), per dimension "mean" (in its
    own units), "mean_normalized" and "alpha", "alpha_quality" for the records' overall quality, and "correlation":
    Pearson's r between dimensions over records, experts averaged. Numbers that are not defined (no variance, one
    expert) are None.
    """
    largest = numpy.array([highest for highest, _ in DIMENSIONS.values()], dtype=float)
    unit = scores / largest
    by_record = _nanmean(unit, axis=0)
    quality = _nanmean(by_record, axis=1)
    result: dict[str, Any] = {
        "experts": scores.shape[0],
        "records": scores.shape[1],
        "mean_quality": _number(_nanmean(quality, axis=0)),
        "alpha_quality": agreement(_nanmean(unit, axis=2)),
        "dimensions": {},
        "correlation": {},
    }
    result["passes"] = result["mean_quality"] is not None and result["mean_quality"] >= PASS_MEAN
    for place, name in enumerate(DIMENSIONS):
        mean = _number(_nanmean(scores[:, :, place].ravel(), axis=0))
        result["dimensions"][name] = {
            "mean": mean,
            "mean_normalized": None if mean is None else round(mean / largest[place], 6),
            "alpha": agreement(scores[:, :, place]),
        }
        result["correlation"][name] = {
            other: _pearson(by_record[:, place], by_record[:, number]) for number, other in enumerate(DIMENSIONS)
        }
    return result


def agreement(ratings: numpy.ndarray) -> float | None:
    """Krippendorff's alpha for interval data of ratings (experts, records), nan where missing; None if undefined."""
    import krippendorff

    pairable = ratings[:, (~numpy.isnan(ratings)).sum(axis=0) >= 2]
    if not pairable.size or numpy.nanmin(pairable) == numpy.nanmax(pairable):
        return None
    return _number(krippendorff.alpha(reliability_data=pairable, level_of_measurement="interval"))


def _nanmean(values: numpy.ndarray, axis: int) -> numpy.ndarray:
    present = ~numpy.isnan(values)
    count = present.sum(axis=axis)
    total = numpy.where(present, values, 0.0).sum(axis=axis)
    return numpy.where(count > 0, total / numpy.maximum(count, 1), numpy.nan)


def _pearson(a: numpy.ndarray, b: numpy.ndarray) -> float | None:
    both = ~(numpy.isnan(a) | numpy.isnan(b))
    if both.sum() < 2 or a[both].std() == 0 or b[both].std() == 0:
        return None
    return _number(numpy.corrcoef(a[both], b[both])[0, 1])


def _number(value: Any) -> float | None:
    return None if numpy.isnan(value) else round(float(value), 6)


def report(paths: Sequence[str | Path], output: str | Path) -> dict[str, Any]:
    """Read filled sheets, evaluate them and write the result as JSON to `output`."""
    _, scores = read_scores(paths)
    write_json(output, evaluate(scores))
    return json.loads(Path(output).read_text(encoding="utf-8"))
