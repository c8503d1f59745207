"""Drawn records in shards, with every kind of fault that quality control looks for."""

import io
from pathlib import Path

import numpy
import pyarrow as pa
from PIL import Image

from unimedvl.unimed5m.pipeline import write_table
from unimedvl.unimed5m.schema import ARROW_SCHEMA, Record, RecordImage, Turn

COLORS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (40, 60, 200), "gray": (120, 120, 120)}


def drawn(seed: int, side: int = 136, color: str | None = None, file_format: str = "PNG") -> RecordImage:
    """A smooth random image of its own for each seed, tinted where a color is given."""
    generator = numpy.random.default_rng(seed)
    field = generator.integers(0, 256, size=(6, 6, 3)).astype(numpy.uint8)
    image = Image.fromarray(field).resize((side, side), Image.Resampling.BICUBIC)
    if color is not None:
        image = Image.blend(image, Image.new("RGB", image.size, COLORS[color]), 0.75)
    buffer = io.BytesIO()
    image.save(buffer, file_format)
    return RecordImage(buffer.getvalue(), f"images/{seed}.png", side, side)


def record(number: int, image: RecordImage | None = None, **changes) -> Record:
    fields = {
        "id": f"toy-{number:05d}",
        "main_task_type": "image_understanding",
        "sub_task_type": "caption",
        "modality": "CT" if number % 3 else "MRI",
        "dataset": "toy",
        "input_img": (image or drawn(number),),
        "output_img": (),
        "message": (Turn("human", "<image>\nDescribe it."), Turn("gpt", f"A smooth field, number {number}.")),
        "license": "CC0",
        "license_tier": "A",
        "redistributable": "yes",
        "provenance": "drawn here",
        "split": "train",
        "group_id": f"group-{number}",
    }
    return Record(**{**fields, **changes})


def caption(text: str) -> tuple[Turn, Turn]:
    return (Turn("human", "<image>\nDescribe it."), Turn("gpt", text))


def write_shards(folder: Path, records: list[Record], shards: int = 3) -> Path:
    """Records in `shards` files of nearly equal length, in order."""
    edges = [round(len(records) * number / shards) for number in range(shards + 1)]
    for number in range(shards):
        rows = [entry.to_row() for entry in records[edges[number] : edges[number + 1]]]
        write_table(folder / f"shard-{number:05d}.parquet", pa.Table.from_pylist(rows, schema=ARROW_SCHEMA))
    return folder


def faulty_records() -> list[Record]:
    """Forty sound records and one or two with each fault; the faults' ids name the reason they must get."""
    records = [record(number) for number in range(40)]
    whole = drawn(100)
    assert whole.data is not None
    cut = RecordImage(whole.data[: len(whole.data) // 2], "cut.png", 136, 136)
    garbage = RecordImage(b"this is no image at all", "note.png", 136, 136)
    records += [
        record(100, cut, id="undecodable-cut"),
        record(101, garbage, id="undecodable-text"),
        record(102, drawn(102, side=100), id="too_small"),
        record(103, id="text_too_short", message=(Turn("human", "<image>"), Turn("gpt", "A scan."))),
        record(104, id="text_too_long", message=caption("long " * 300)),
        record(105, drawn(7, file_format="JPEG"), id="duplicate", message=records[7].message),
        record(106, drawn(106), id="leak_group", group_id="held-out"),
        record(107, drawn(107), id="validation-kept", group_id="held-out", split="validation"),
        record(108, drawn(107, file_format="JPEG"), id="leak_image"),
        record(109, drawn(900), id="contaminated_image"),
    ]
    return records


class ToySource:
    """A source of the faulty and 300 sound records, some of which must not be passed on."""

    name = "toy"

    def fingerprint(self, root: Path) -> str:
        return "toy"

    def records(self, root, split=None, shard=(0, 1), problem=None):
        # A build refuses a group on both sides of a split; the other faults are left to the quality control.
        yield from [entry for entry in faulty_records() if entry.id != "leak_group"][shard[0] :: shard[1]]
        for number in range(200 + shard[0], 500, shard[1]):
            terms = {"redistributable": "no", "dataset": "closed"} if number % 7 == 0 else {}
            yield record(number, sub_task_type=("caption", "vqa", "report")[number % 3], **terms)


def all_bytes(folder: Path) -> dict[str, bytes]:
    """Every file below a folder by its relative path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
