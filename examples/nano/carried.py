"""The nano's prepared records in a form that is small enough to be carried to a machine with a GPU.

    python -m examples.nano.carried --work WORK --out FOLDER [--limit-mib 30] [--weights]
    python -m examples.nano.train --budget gpu --packed FOLDER --out OUT --results RESULTS      # there

Every image is kept once, as WebP: masks without loss, others at the best quality that fits the limit. Pairs for
super-resolution follow from the image that they show and are made anew. Texts and the tokenizer are the same to the
letter. `--weights` adds the autoencoder and the ViT, which a processor has trained before. The machine needs no data
set and no network, and what comes back fits small files, written as soon as there is something.
"""

import io
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Annotated, Any

import numpy
import pyarrow
import pyarrow.parquet as parquet
from huggingface_hub import save_torch_state_dict
from PIL import Image
from safetensors.torch import load_file, save_file
from typer import Option

from unimedvl.unimed5m import tasks
from unimedvl.unimed5m.schema import Record, RecordImage, to_table
from unimedvl.unimed5m.shards import write_table
from unimedvl.unimed5m.task_images import drawn_image, pixels_of
from unimedvl.utils.command_line import run_module
from unimedvl.utils.whole_files import replacing_folder, scratch_folder

from .model import VISION_FILE
from .prepare import IMAGES, SUPER_RESOLUTION, is_image_request, shard_of, small_image, work_records

QUALITIES = (92, 88, 84, 80, 74, 68, 60)
RECORDS, IMAGE_FILE, TOKENIZER = "records.parquet", "images.parquet", "tokenizer"
SPLITS = ("train", "validation")
# Parts that may be trained before, and what of their folders goes along: no optimizer states, no float32 copies.
WEIGHTS = ("autoencoder", "vision")
TRAINED = "training.json"  # what ends such a part
PUBLISHED = ("config.json", "diffusion_pytorch_model.safetensors", VISION_FILE, TRAINED)
SHARD = "14MB"
REST, ACCOUNTS = "rest.tar.gz", "parts.json"
MIB = 1 << 20


def image_id(record: Record) -> str:
    """What records of one image share."""
    return f"{record.dataset}/{json.loads(record.extra).get('source_id', record.id)}"


def _encode(job: tuple[RecordImage, int, bool]) -> bytes:
    image, quality, lossless = job
    buffer = io.BytesIO()
    Image.fromarray(pixels_of(image)).save(buffer, format="WEBP", quality=quality, lossless=lossless, method=4)
    return buffer.getvalue()


def _decode(job: tuple[bytes, str, bool]) -> bytes:
    data, path, gray = job
    with Image.open(io.BytesIO(data)) as opened:
        pixels = numpy.asarray(opened.convert("L" if gray else "RGB"))
    made = drawn_image(pixels, path).data
    assert made is not None
    return made


def pack(work: Path, out: Path, limit: int, processes: int | None = None, weights: bool = False) -> dict[str, Any]:
    """Write records, images and tokenizer of a work folder to `out`, in at most `limit` bytes.

    Args:
        weights: whether the autoencoder and the ViT go along.

    Raises:
        ValueError: where they do not fit at the lowest quality, or where weights are wanted and not trained yet.
    """
    sources: dict[str, str] = {}
    images: dict[str, RecordImage] = {}
    masks: set[str] = set()
    rows: list[dict[str, Any]] = []
    for split in SPLITS:
        records = list(work_records(work, split))
        for record in filter(is_image_request, records):
            sources[image_id(record)] = record.output_img[0].sha256
        for record in records:
            derived = record.sub_task_type == "super_resolution" and image_id(record) in sources
            row = record.to_row()
            for column in IMAGES:
                shown = getattr(record, column)
                row[column] = [] if derived else [[image.path, image.sha256] for image in shown]
                images |= {} if derived else {image.sha256: image for image in shown}
            masks |= {image.sha256 for image in record.output_img if record.sub_task_type == "segmentation"}
            row["super_resolution_of"] = sources[image_id(record)] if derived else None
            rows.append({"split": split, "row": json.dumps(row, ensure_ascii=False)})
    names = sorted(images)
    with replacing_folder(out) as partial:
        parquet.write_table(
            pyarrow.Table.from_pylist(rows), partial / RECORDS, compression="zstd", compression_level=19
        )
        shutil.copytree(work / TOKENIZER, partial / TOKENIZER)
        if weights:
            copy_weights(work, partial)
        with ProcessPoolExecutor(processes) as pool:
            for quality in QUALITIES:
                jobs = ((images[name], quality, name in masks) for name in names)
                packed = list(pool.map(_encode, jobs, chunksize=64))
                table = pyarrow.table(
                    {
                        "sha256": names,
                        "data": packed,
                        "path": [images[name].path for name in names],
                        "gray": [pixels_of(images[name]).ndim == 2 for name in names],
                    }
                )
                parquet.write_table(table, partial / IMAGE_FILE, compression="none")
                size = sum(path.stat().st_size for path in partial.rglob("*") if path.is_file())
                print(f"quality {quality}: {size / MIB:.1f} MiB", flush=True)
                if size <= limit:
                    break
            else:
                raise ValueError(f"the records need {size / MIB:.1f} MiB, more than the limit of {limit / MIB:.0f}.")
    return {"images": len(names), "records": len(rows), "quality": quality, "bytes": size}


def copy_weights(work: Path, out: Path) -> None:
    """Copy the frozen weights of the parts that a processor has trained, with the accounts that end them.

    Raises:
        ValueError: where one is not trained yet.
    """
    for part in WEIGHTS:
        if not (work / part / TRAINED).is_file():
            raise ValueError(f"{work / part} holds no finished training: `train --only {part}` does it.")
        (out / part).mkdir(parents=True, exist_ok=True)
        for pattern in PUBLISHED:
            for path in sorted((work / part).glob(pattern)):
                shutil.copy2(path, out / part / path.name)


def hand_over(checkpoint: Path, accounts: Sequence[Path], results: Path) -> None:
    """Write a checkpoint's weights as shards, and all else as one archive, in the place of those that lie there.

    Args:
        checkpoint: folder of one safetensors file, settings and tokenizer.
        accounts: files and folders that go along.
        results: folder; only files that this function wrote are replaced.
    """
    results.mkdir(parents=True, exist_ok=True)
    with scratch_folder(results / ".partial") as partial:
        save_torch_state_dict(
            load_file(checkpoint / "model.safetensors"), partial, max_shard_size=SHARD, metadata={"format": "pt"}
        )
        with tarfile.open(partial / REST, "w:gz") as archive:
            for path in [*sorted(checkpoint.iterdir()), *accounts]:
                if path.suffix not in (".safetensors", ".py"):
                    archive.add(path, path.name)
        for old in [*results.glob("*.safetensors"), *results.glob("*.index.json")]:
            old.unlink()
        for path in sorted(partial.iterdir()):
            path.replace(results / path.name)


def take_over(handed: Path, checkpoint: Path) -> None:
    """Write the checkpoint that `hand_over` wrote into the folder `handed`, without its accounts.

    Raises:
        ValueError: where the folder holds none.
    """
    shards = sorted(handed.glob("*.safetensors"))
    if not shards or not (handed / REST).is_file():
        raise ValueError(f"{handed} holds no weights that a run has handed over.")
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    with replacing_folder(checkpoint) as partial:
        with tarfile.open(handed / REST) as archive:
            settings = [item for item in archive if item.isfile() and "/" not in item.name and item.name != ACCOUNTS]
            archive.extractall(partial, settings, filter="data")
        weights = {name: tensor for shard in shards for name, tensor in load_file(shard).items()}
        save_file(weights, partial / "model.safetensors", metadata={"format": "pt"})


def unpack(packed: Path, work: Path, processes: int | None = None) -> None:
    """Write the records and the tokenizer of a packed folder as `prepare` would.

    Raises:
        ValueError: where the folder is not packed.
    """
    if not (packed / RECORDS).is_file():
        raise ValueError(f"{packed} holds no packed records: make it with `python -m examples.nano.carried pack`.")
    table = parquet.read_table(packed / IMAGE_FILE)
    columns = [table[name].to_pylist() for name in ("data", "path", "gray")]
    with ProcessPoolExecutor(processes or os.cpu_count()) as pool:
        data = list(pool.map(_decode, zip(*columns, strict=True), chunksize=64))
    decoded = dict(zip(table["sha256"].to_pylist(), data, strict=True))
    rows = parquet.read_table(packed / RECORDS).to_pylist()
    for split in SPLITS:
        records = _records((json.loads(row["row"]) for row in rows if row["split"] == split), decoded)
        write_table(shard_of(work / "records", split), to_table(records))
    take_weights(packed, work)
    # The last thing that is written: `train` takes it for the sign that all is there.
    shutil.copytree(packed / TOKENIZER, work / TOKENIZER, dirs_exist_ok=True)


def take_weights(folder: Path, work: Path) -> list[str]:
    """Copy the parts that `copy_weights` wrote, where a run has none of its own yet; returns their names."""
    parts = [part for part in WEIGHTS if (folder / part).is_dir() and not (work / part / TRAINED).is_file()]
    for part in parts:
        shutil.copytree(folder / part, work / part, dirs_exist_ok=True)
    return parts


def _records(rows: Iterable[dict[str, Any]], decoded: dict[str, bytes]) -> Iterator[Record]:
    sharpened: dict[str, tuple[RecordImage, RecordImage]] = {}
    for row in rows:
        shown = row.pop("super_resolution_of")
        for column in IMAGES:
            row[column] = [_stored(decoded[name], path).to_row() for path, name in row[column]]
        if shown is not None:
            if shown not in sharpened:
                sharpened[shown] = _pair(_stored(decoded[shown], shown))
            row["input_img"], row["output_img"] = ([image.to_row()] for image in sharpened[shown])
        # `replace` takes the digest of what the record holds now.
        yield Record.from_row(row).replace()


def _stored(data: bytes, path: str) -> RecordImage:
    with Image.open(io.BytesIO(data)) as opened:
        width, height = opened.size
    return RecordImage(data, path, height, width)


def _pair(image: RecordImage) -> tuple[RecordImage, RecordImage]:
    """What `prepare` makes for super-resolution of an image."""
    exact = small_image(image, 1.0)
    origin = tasks.Origin("", "", "", "", "", "", "", "")
    made = tasks.super_resolution(origin, exact, SUPER_RESOLUTION, "bicubic")
    return made.input_img[0], made.output_img[0]


def main(
    work: Annotated[Path, Option(help="Folder that `prepare` has filled.")],
    out: Annotated[Path, Option(help="New folder.")],
    limit_mib: Annotated[float, Option(help="Most that it may hold.")] = 30.0,
    weights: Annotated[bool, Option("--weights", help="With the trained autoencoder and ViT.")] = False,
) -> None:
    print(json.dumps(pack(work, out, int(limit_mib * MIB), weights=weights)))


if __name__ == "__main__":
    sys.exit(run_module(main))
