"""Small record folders with every kind of sample, drawn from numbers."""

import io
from pathlib import Path

import numpy as np
from PIL import Image

from unimedvl.unimed5m.schema import Record, RecordImage, Turn, to_table
from unimedvl.unimed5m.shards import write_table

MAIN_TASKS = {
    "vqa": "image_understanding",
    "dialogue": "text_only",
    "text_to_image": "image_generation",
    "segmentation": "multimodal_input_output",
    "counterfactual": "counterfactual_generation",
}
MODALITIES = ("CXR", "MRI", "HIS")


def image(seed: int, width: int = 40, height: int = 32) -> RecordImage:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return RecordImage(buffer.getvalue(), f"{seed}.png", height, width)


def record(task: str, number: int, split: str = "train", turns: list[tuple[str, str]] | None = None) -> Record:
    """One record of a task; sizes and words vary with `number`."""
    width, height = 24 + 8 * (number % 3), 24 + 8 * (number % 2)
    words = " ".join(["shadow", "bright", "left", "scan"][: 1 + number % 4])
    made = {
        "vqa": ([image(number, width, height)], [], [("human", "<image> what is it?"), ("gpt", words)]),
        "dialogue": ([], [], [("human", f"name {words}"), ("gpt", f"it is {words}")]),
        "text_to_image": ([], [image(number, width, height)], [("human", words), ("gpt", "here <image>")]),
        "segmentation": (
            [image(number, width, height)],
            [image(number + 1000, width, height)],
            [("human", f"<image> find the {words}"), ("gpt", "the mask: <image>")],
        ),
        "counterfactual": (
            [image(number, width, height)],
            [image(number + 1000, width, height)],
            [("human", f"<image> add a {words}"), ("gpt", f"<image> there is a {words}")],
        ),
    }[task]
    inputs, outputs, message = made
    return Record(
        id=f"{task}-{number}-{split}",
        main_task_type=MAIN_TASKS[task],
        sub_task_type=task,
        modality=MODALITIES[number % 3],
        dataset="drawn",
        input_img=inputs,
        output_img=outputs,
        message=[Turn(role, value) for role, value in turns or message],
        license="CC0-1.0",
        license_tier="A",
        redistributable="yes",
        provenance="drawn for a test",
        split=split,
        group_id=f"{split}-{task}-{number}",
    )


def write_folder(folder: Path, counts: dict[str, int], split: str = "train") -> Path:
    """A folder with `counts[task]` records of every task."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    for task, count in counts.items():
        records = [record(task, number, split) for number in range(count)]
        write_table(folder / "data" / f"{split}-{task}.parquet", to_table(records))
    return folder
