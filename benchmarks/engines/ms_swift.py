"""ms-swift tunes the shipped checkpoint by LoRA for a few steps, and PEFT puts what it saved on our own model.

    python -m benchmarks.engines.ms_swift PYTHON

PYTHON is the interpreter of ms-swift's own environment.
"""

import json
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from PIL import Image, ImageDraw

from unimedvl import UniMedVLForConditionalGeneration, UniMedVLProcessor

from .environments import CHECKPOINT, ROOT, Ran, check_and_write, run

PLUGIN = ROOT / "training" / "engines" / "ms_swift_plugin.py"
# The understanding half's linear layers; a whole checkpoint has others of the same names in the generation expert.
TARGETS = r".*language_model\.layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj)"
# The adapter of this step is kept, and one more step reports the loss that ms-swift has with it.
STEPS = 20
QUESTION = "Which shape is shown?"
ANSWERS = ("a square", "an orange circle")
# Between ms-swift's loss and ours, of the same weights and conversations: float32 in another order.
TOLERANCE = 1e-4


def write_conversations(folder: Path) -> list[dict[str, Any]]:
    """Write conversations in ms-swift's format, with an image each, to `conversations.jsonl`, and return them."""
    rows = []
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(8):
        image = Image.new("RGB", (64 + 8 * (number % 3), 64), (10, 10, 10))
        draw = ImageDraw.Draw(image)
        (draw.ellipse if number % 2 else draw.rectangle)((16, 16, 48, 48), fill=(200, 60 + 20 * number, 60))
        path = folder / f"{number}.png"
        image.save(path)
        asked = {"role": "user", "content": f"<image>{QUESTION}"}
        rows.append(
            {"messages": [asked, {"role": "assistant", "content": ANSWERS[number % 2]}], "images": [str(path)]}
        )
    lines = (json.dumps(row) + "\n" for row in rows)
    (folder / "conversations.jsonl").write_text("".join(lines), encoding="utf-8")
    return rows


def tune(python: str, folder: Path) -> tuple[list[float], Path, Ran]:
    """The loss of every step of ms-swift's own command, the adapter before the last step, and the command."""
    out = folder / "out"
    options: dict[str, Any] = {
        "model": CHECKPOINT,
        "external_plugins": PLUGIN,
        "dataset": folder / "conversations.jsonl",
        "tuner_type": "lora",
        "target_regex": TARGETS,
        "lora_rank": 8,
        "lora_dropout": 0,
        "learning_rate": 2e-3,
        "max_steps": STEPS + 1,
        "per_device_train_batch_size": 8,
        "gradient_accumulation_steps": 1,
        "logging_steps": 1,
        "save_steps": STEPS,
        "split_dataset_ratio": 0,
        "torch_dtype": "float32",
        "use_hf": "true",
        "add_version": "false",
        "output_dir": out,
    }
    arguments = [str(part) for name, value in options.items() for part in (f"--{name}", value)]
    done = run(python, ["-m", "swift.cli.main", "sft", *arguments], folder / "work", path=())
    last = out / f"checkpoint-{STEPS + 1}" / "trainer_state.json"
    history = json.loads(last.read_text(encoding="utf-8"))["log_history"]
    return [entry["loss"] for entry in history if "loss" in entry], out / f"checkpoint-{STEPS}", done


def own_losses(rows: list[dict[str, Any]], adapter: Path) -> tuple[float, float]:
    """Our loss of the same conversations, mean over the answers' tokens, without and with the adapter."""
    processor = UniMedVLProcessor.from_pretrained(CHECKPOINT)
    model = UniMedVLForConditionalGeneration.from_pretrained(CHECKPOINT).eval()
    conversations = []
    for row in rows:
        content = [{"type": "image", "image": row["images"][0]}, {"type": "text", "text": QUESTION}]
        answer = [{"type": "text", "text": row["messages"][1]["content"]}]
        conversations.append([{"role": "user", "content": content}, {"role": "assistant", "content": answer}])
    inputs: Any = processor.apply_chat_template(
        conversations,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        return_assistant_tokens_mask=True,
        processor_kwargs={"padding": True},
    )
    said = inputs.pop("assistant_masks")
    inputs["labels"] = inputs["input_ids"].masked_fill(said == 0, -100)
    with torch.inference_mode():
        before = float(model(**inputs).ce_loss)
        after = float(PeftModel.from_pretrained(model, str(adapter)).eval()(**inputs).ce_loss)
    return before, after


def checked(python: str, folder: Path) -> tuple[dict[str, Any], bool, Ran]:
    """The figures of a run, whether they are as they should be, and the command.

    Args:
        folder: receives everything, an existing folder.
    """
    rows = write_conversations(folder)
    losses, adapter, done = tune(python, folder)
    before, after = own_losses(rows, adapter)
    figure = {
        "steps before the adapter was saved": len(losses) - 1,
        "loss of the first step": round(losses[0], 4),
        "our loss without the adapter": round(before, 4),
        "loss of the step after the adapter was saved": round(losses[-1], 4),
        "our loss with the adapter, by PEFT on the whole checkpoint": round(after, 4),
    }
    same = abs(losses[0] - before) < TOLERANCE * before and abs(losses[-1] - after) < TOLERANCE * after
    return figure, same and len(losses) == STEPS + 1 and after < 0.8 * before, done


if __name__ == "__main__":
    check_and_write("ms-swift", "ms_swift", "interpreter of ms-swift's environment", __doc__, checked)
