"""vLLM beside our own forward pass: tokens, positions and log probabilities of the same prompts.

    UNIMEDVL_VLLM_PYTHON=VENV/bin/python python -m benchmarks.engines.vllm_card [--checkpoint FOLDER] [--mask blocks]

writes the verification card `benchmarks/results/engines/vllm.json`.

Shape legend: B batch (1), S sequence.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from unimedvl import UniMedVLForConditionalGeneration, UniMedVLProcessor
from unimedvl.modeling_unimedvl.blocks_unimedvl import block_layout, rope_position_ids

ROOT = Path(__file__).resolve().parents[2]
RESULT = ROOT / "benchmarks/results/engines/vllm.json"
PROCESS = Path(__file__).with_name("vllm_process.py")
NANO = ROOT / "hub_cards/unimedvl-nano"
PYTHON = "UNIMEDVL_VLLM_PYTHON"
# What vLLM's kernels for processors take (`vllm/v1/attention/backends/cpu_attn.py`).
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
# Who attends to whom in an image: as vLLM does on a processor, as the Transformers backend asks, as UniMedVL does.
MASKS = ("causal", "patches", "blocks")


def head_size(checkpoint: Path) -> int:
    """Channels of a head of a checkpoint's language model."""
    text = json.loads((checkpoint / "config.json").read_text())["text_config"]
    return text.get("head_dim") or text["hidden_size"] // text["num_attention_heads"]


def example_image(height: int, width: int, seed: int) -> Image.Image:
    """A smooth random RGB image."""
    levels = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(levels).resize((width, height), Image.Resampling.BICUBIC)


def example_conversations() -> list[list[dict]]:
    """Questions without, with one and with several images, of several turns too."""

    def user(*items: Any) -> dict:
        content = [
            {"type": "text", "text": item} if isinstance(item, str) else {"type": "image", "image": item}
            for item in items
        ]
        return {"role": "user", "content": content}

    first, second, third = example_image(40, 64, 0), example_image(64, 48, 1), example_image(96, 96, 2)
    answer = {"role": "assistant", "content": "An opacity in the left lower lobe."}
    return [
        [user("What is abnormal in this chest radiograph?")],
        [user("The heart is enlarged."), answer, user("Where is it?")],
        [user(first, "What is abnormal in this chest radiograph?")],
        [user(first, second, "Which of the two is larger?"), answer, user("Compare with this one.", third)],
        [user("A slice of the brain.", second, "Are the ventricles symmetric?")],
    ]


def image_mask(kinds_BS: torch.Tensor, mask: str) -> torch.Tensor:
    """Who attends to whom, bool (1, 1, S, S): causal, and by `mask` (see `MASKS`) in both directions inside of images.

    Args:
        kinds_BS: `mm_token_type_ids` of one prompt and its answer.
        mask: one of `MASKS`.
    """
    length = kinds_BS.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    if mask == "causal":
        return causal[None, None]
    blocks = block_layout(kinds_BS).block_ids_BS[0]
    if mask == "patches":
        blocks = torch.where(kinds_BS[0] > 0, blocks, -1)
    same = (blocks[:, None] == blocks[None, :]) & (blocks[:, None] >= 0)
    return (causal | same)[None, None]


@torch.no_grad()
def our_answer(model: Any, inputs: dict, mask: str, max_tokens: int, forced: list[int] | None = None) -> dict:
    """Greedy tokens of our forward pass over the whole sequence, without a cache.

    Args:
        model: a `UniMedVLForConditionalGeneration`.
        inputs: of one prompt, as the processor returns them.
        mask: one of `MASKS`.
        max_tokens: tokens to write; the end of a turn is a token like others.
        forced: tokens to write instead, whose log probabilities are wanted.

    Returns:
        `prompt_ids`, `ids`, `log_probabilities` of each token, and `positions` of all tokens but the last.
    """
    ids, kinds = inputs["input_ids"], inputs["mm_token_type_ids"]
    images = {name: inputs[name] for name in ("pixel_values", "image_grid_thw") if name in inputs}
    prompt, chosen, log_probabilities = ids[0].tolist(), [], []
    for step in range(max_tokens):
        logits = model(
            input_ids=ids,
            mm_token_type_ids=kinds,
            attention_mask=image_mask(kinds, mask),
            use_cache=False,
            logits_to_keep=1,
            **images,
        ).logits[0, -1]
        token = int(logits.argmax()) if forced is None else forced[step]
        chosen.append(token)
        log_probabilities.append(float(logits.log_softmax(-1)[token]))
        ids = torch.cat([ids, torch.tensor([[token]])], dim=1)
        kinds = torch.cat([kinds, torch.zeros_like(kinds[:, :1])], dim=1)
    positions = rope_position_ids(block_layout(kinds[:, :-1]))[0].tolist()
    return {"prompt_ids": prompt, "ids": chosen, "log_probabilities": log_probabilities, "positions": positions}


def run_process(python: str, job: dict, folder: Path, environment: dict[str, str] | None = None) -> dict:
    """Answers of vLLM to a job, see `vllm_process.py`.

    Raises:
        RuntimeError: with the end of its output, if vLLM fails.
    """
    (folder / "job.json").write_text(json.dumps(job))
    isolated = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, str(PROCESS), str(folder / "job.json"), str(folder / "result.json")],
        env={**isolated, "HF_HUB_OFFLINE": "1", "HF_HOME": str(folder / "cache"), **(environment or {})},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"vLLM failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return json.loads((folder / "result.json").read_text())


def compare(
    python: str,
    checkpoint: Path,
    folder: Path,
    mask: str = "causal",
    max_tokens: int = 8,
    options: dict[str, Any] | None = None,
    environment: dict[str, str] | None = None,
) -> dict:
    """Answers of vLLM and of our forward pass to the example conversations.

    Args:
        python: interpreter of an environment with vLLM.
        checkpoint: a folder that `save_pretrained` of model and processor wrote.
        folder: where files are put.
        mask: what our forward pass does inside of images, one of `MASKS`.
        max_tokens: tokens of an answer.
        options: further arguments of `vllm.LLM`.
        environment: further variables for vLLM.

    Returns:
        `vllm`, the report of the process, `ours`, the answers, and `other masks`: by mask, how far the log
        probabilities of vLLM's tokens are from ours.
    """
    processor = UniMedVLProcessor.from_pretrained(checkpoint)
    model = UniMedVLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    prompts, inputs = [], []
    for number, conversation in enumerate(example_conversations()):
        text = processor.apply_chat_template(conversation, add_generation_prompt=True)
        items = [item for message in conversation for item in message["content"] if isinstance(item, dict)]
        images = [item["image"] for item in items if item["type"] == "image"]
        paths = [folder / f"{number}-{index}.png" for index in range(len(images))]
        for image, path in zip(images, paths, strict=True):
            image.save(path)
        prompts.append({"text": text, "images": [str(path) for path in paths]})
        inputs.append(dict(processor(images=images or None, text=text, return_tensors="pt")))
    job = {
        "checkpoint": str(checkpoint),
        "prompts": prompts,
        "max_tokens": max_tokens,
        "max_model_len": min(2048, model.config.text_config.max_position_embeddings),
        "options": options or {},
    }
    report = run_process(python, job, folder, environment)
    ours = [our_answer(model, entry, mask, max_tokens) for entry in inputs]
    distances = {
        name: [
            distance(our_answer(model, entry, name, max_tokens, theirs["ids"]), theirs)
            for entry, theirs in zip(inputs, report["alone"], strict=True)
        ]
        for name in MASKS
    }
    return {"vllm": report, "ours": ours, "distances": distances, "has images": [bool(p["images"]) for p in prompts]}


def distance(one: dict, other: dict) -> float:
    """Largest difference of the log probabilities of the same tokens."""
    pairs = zip(one["log_probabilities"], other["log_probabilities"], strict=True)
    return max(abs(first - second) for first, second in pairs)


def verdicts(found: dict, mask: str) -> dict[str, bool]:
    """What holds of a comparison, by name."""
    theirs, ours = found["vllm"]["alone"], found["ours"]
    pairs = list(zip(ours, theirs, strict=True))
    images = [number for number, has in enumerate(found["has images"]) if has]
    others = [name for name in MASKS if name != mask]
    return {
        "token counts and ids of prompts equal": all(a["prompt_ids"] == b["prompt_ids"] for a, b in pairs),
        "position ids equal": all(a["positions"] == b["positions"] for a, b in pairs),
        "greedy tokens equal": all(a["ids"] == b["ids"] for a, b in pairs),
        "greedy tokens of a batch equal those of single prompts": all(
            a["ids"] == b["ids"] for a, b in zip(theirs, found["vllm"]["together"], strict=True)
        ),
        "log probabilities within 0.001": max(found["distances"][mask]) < 1e-3,
        "other masks are more than 0.01 away": all(
            found["distances"][name][number] > 1e-2 for name in others for number in images
        ),
    }


def card_of(found: dict, mask: str, checkpoint: Path | None) -> dict:
    """The verification card of a comparison."""
    images = [number for number, has in enumerate(found["has images"]) if has]
    report, device = found["vllm"], found["vllm"]["device"]
    return {
        "engine": "vLLM, Transformers backend" if ":Transformers" in report["model class"] else "vLLM, plugin",
        "versions": report["versions"],
        "device": device,
        "command": f"{PYTHON}=... python -m benchmarks.engines.vllm_card --mask {mask}"
        + (f" --checkpoint {checkpoint}" if checkpoint else ""),
        "checkpoint": str(checkpoint.name) if checkpoint else "random, head size 32, large attention scores",
        "mask inside of images": mask,
        "figures": {
            "prompts": len(found["ours"]),
            "tokens of an answer": len(found["ours"][0]["ids"]),
            "largest difference of log probabilities, by mask of ours": {
                name: {
                    "text": max(value for number, value in enumerate(values) if number not in images),
                    "images": max(values[number] for number in images),
                }
                for name, values in found["distances"].items()
            },
        },
        "verified": verdicts(found, mask),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--python", default=os.environ.get(PYTHON), help=f"interpreter with vLLM; default: ${PYTHON}")
    parser.add_argument("--checkpoint", type=Path, help="folder; default: a random model with large attention scores")
    parser.add_argument("--mask", choices=MASKS, default="causal", help="what vLLM is expected to do inside of images")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args()
    if not arguments.python:
        parser.error(f"set {PYTHON} or pass --python: the interpreter of an environment with vLLM")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        checkpoint = arguments.checkpoint
        if checkpoint is None:
            from tests.tiny_checkpoint import sharp_checkpoint

            checkpoint = folder / "checkpoint"
            sharp_checkpoint(checkpoint)
        found = compare(arguments.python, checkpoint.resolve(), folder, arguments.mask)
    card = card_of(found, arguments.mask, checkpoint if arguments.checkpoint else None)
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(card, indent=1) + "\n")
    print(json.dumps(card, indent=1))
    sys.exit(0 if all(card["verified"].values()) else 1)


if __name__ == "__main__":
    main()
