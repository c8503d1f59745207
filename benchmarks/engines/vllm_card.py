"""vLLM beside our own forward pass: tokens, positions and log probabilities of the same prompts.

    python -m benchmarks.engines.vllm_card PYTHON

PYTHON is the interpreter of vLLM's own environment. The card `benchmarks/results/engines/vllm.json` holds the same of
two checkpoints, the shipped one and a random one whose attention scores are so large that another mask shows: vLLM's
Transformers backend with the checkpoint alone, with this package's plugin, and the OpenAI server. On a GPU the same
command checks the mask that is used there.

Shape legend: B batch (1), S sequence.
"""

import argparse
import configparser
import json
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from benchmarks.engines.environments import CARDS, CHECKPOINT, ROOT, environment_of, write_card
from benchmarks.engines.vllm_serve import ask, serve_command, served
from unimedvl import UniMedVLForConditionalGeneration, UniMedVLProcessor
from unimedvl.modeling_unimedvl.blocks_unimedvl import block_layout, rope_position_ids
from unimedvl.modeling_unimedvl.engines_unimedvl import CAUSAL_IMAGES

ENGINE = "vllm"
RESULT = CARDS / f"{ENGINE}.json"
PROCESS = Path(__file__).with_name("vllm_process.py")
SHARP = "random, large attention scores"
# What vLLM's CPU kernels take (`vllm/v1/attention/backends/cpu_attn.py`).
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
# Who attends to whom in an image: as vLLM does on a CPU, as its Transformers backend asks, as UniMedVL does.
MASKS = ("causal", "patches", "blocks")
NOT_VERIFIED = (
    "bidirectional attention inside images, which needs a GPU (Triton, FlexAttention or FlashAttention): run this "
    "command there, which then expects the mask `patches`, and with the plugin `blocks`",
    "bfloat16, quantized weights, tensor parallelism and LoRA in vLLM",
)


def expected_mask(device: str, plugin: bool) -> str:
    """What vLLM is known, or on a GPU expected, to do inside images: one of `MASKS`."""
    if device == "cpu":
        return "causal"
    return "blocks" if plugin else "patches"


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
    """Who attends to whom, bool (1, 1, S, S): causal, and by `mask` (see `MASKS`) in both directions inside images.

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


def image_spans(prompt_ids: list[int], config: Any, markers: bool) -> list[list[int]]:
    """First and last token of each image of a prompt, with or without its markers."""
    ids = torch.tensor(prompt_ids)
    starts = (ids == config.vision_start_token_id).nonzero()[:, 0].tolist()
    ends = (ids == config.vision_end_token_id).nonzero()[:, 0].tolist()
    inward = 0 if markers else 1
    return [[start + inward, end - inward] for start, end in zip(starts, ends, strict=True)]


def run_process(python: str, job: dict, folder: Path, path: Sequence[Path] = ()) -> dict:
    """Answers of vLLM to a job, see `vllm_process.py`, and how often it warned of `CAUSAL_IMAGES`.

    Raises:
        RuntimeError: with the end of its output, if vLLM fails.
    """
    (folder / "job.json").write_text(json.dumps(job))
    done = subprocess.run(
        [python, str(PROCESS), str(folder / "job.json"), str(folder / "result.json")],
        env=environment_of(folder, path=path, gpu=True),
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"vLLM failed:\n{done.stdout[-4000:]}\n{done.stderr[-4000:]}")
    return json.loads((folder / "result.json").read_text()) | {"warnings": done.stderr.count(CAUSAL_IMAGES)}


def plugin_folder(folder: Path) -> Path:
    """A folder for PYTHONPATH in which vLLM finds this package's plugin as if the package were installed."""
    settings = configparser.ConfigParser()
    settings.read(ROOT / "setup.cfg")
    found = folder / "plugin"
    metadata = found / "unimedvl-0.dist-info"
    metadata.mkdir(parents=True)
    group = "vllm.general_plugins"
    (metadata / "entry_points.txt").write_text(f"[{group}]\n{settings['options.entry_points'][group].strip()}\n")
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: unimedvl\nVersion: 0\n")
    (found / "unimedvl").symlink_to(ROOT / "unimedvl")
    return found


def compare(
    python: str,
    checkpoint: Path,
    folder: Path,
    plugin: bool = False,
    max_tokens: int = 8,
) -> dict:
    """Answers of vLLM and of our forward pass to the example conversations.

    Args:
        python: interpreter of an environment with vLLM.
        checkpoint: a folder that `save_pretrained` of model and processor wrote.
        folder: where files are put.
        plugin: let vLLM find this package's plugin; without, its Transformers backend has the checkpoint alone.
        max_tokens: tokens of an answer.

    Returns:
        `vllm`, the report of the process, `mask`, what it is expected to do inside images, `ours`, the answers of
        our pass with that mask, `spans`, where images lie, and `distances`: by mask and prompt, how far the log
        probabilities of vLLM's tokens are from ours.
    """
    folder.mkdir(exist_ok=True)
    processor = UniMedVLProcessor.from_pretrained(checkpoint)
    model = UniMedVLForConditionalGeneration.from_pretrained(checkpoint, dtype=torch.float32).eval()
    prompts, inputs = [], []
    for number, conversation in enumerate(example_conversations()):
        text: Any = processor.apply_chat_template(conversation, add_generation_prompt=True)
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
        "options": {} if plugin else {"model_impl": "transformers"},
    }
    report = run_process(python, job, folder, [plugin_folder(folder)] if plugin else [])
    mask = expected_mask(report["device"], plugin)
    ours = [our_answer(model, entry, mask, max_tokens) for entry in inputs]
    distances = {
        name: [
            distance(our_answer(model, entry, name, max_tokens, theirs["ids"]), theirs)
            for entry, theirs in zip(inputs, report["alone"], strict=True)
        ]
        for name in MASKS
    }
    return {
        "vllm": report,
        "mask": mask,
        "ours": ours,
        "spans": [image_spans(answer["prompt_ids"], model.config, markers=plugin) for answer in ours],
        "distances": distances,
        "has images": [bool(prompt["images"]) for prompt in prompts],
    }


def distance(one: dict, other: dict) -> float:
    """Largest difference of the log probabilities of the same tokens."""
    pairs = zip(one["log_probabilities"], other["log_probabilities"], strict=True)
    return max(abs(first - second) for first, second in pairs)


def verdicts(found: dict, sharp: bool) -> dict[str, bool]:
    """What holds of a comparison, by name.

    Args:
        found: what `compare` returned.
        sharp: whether attention scores are so large that another mask shows, which is no matter of training.
    """
    mask = found["mask"]
    theirs, ours = found["vllm"]["alone"], found["ours"]
    pairs = list(zip(ours, theirs, strict=True))
    images = [number for number, has in enumerate(found["has images"]) if has]
    others = [name for name in MASKS if name != mask]
    held = {
        "token counts and ids of prompts equal": all(a["prompt_ids"] == b["prompt_ids"] for a, b in pairs),
        "position ids equal": all(a["positions"] == b["positions"] for a, b in pairs),
        "spans to attend in both directions equal": found["vllm"]["bidirectional spans asked for"]
        and all(b["spans"] == spans for b, spans in zip(theirs, found["spans"], strict=True)),
        "greedy tokens equal": all(a["ids"] == b["ids"] for a, b in pairs),
        "greedy tokens of a batch equal those of single prompts": all(
            a["ids"] == b["ids"] for a, b in zip(theirs, found["vllm"]["together"], strict=True)
        ),
        "log probabilities within 0.001": max(found["distances"][mask]) < 1e-3,
        "one warning of a causal mask inside images, where there is one": found["vllm"]["warnings"]
        == (mask == "causal"),
    }
    if sharp:
        held["other masks are more than 0.01 away"] = all(
            found["distances"][name][number] > 1e-2 for name in others for number in images
        )
    return held


def card_of(found: dict, sharp: bool) -> dict:
    """Figures and verdicts of a comparison, see `verdicts`."""
    images = [number for number, has in enumerate(found["has images"]) if has]
    return {
        "model class": found["vllm"]["model class"],
        "device": found["vllm"]["device"],
        "mask inside images": found["mask"],
        "prompts": len(found["ours"]),
        "tokens of an answer": len(found["ours"][0]["ids"]),
        "largest difference of log probabilities, by our mask": {
            name: {
                "text": max(value for number, value in enumerate(values) if number not in images),
                "images": max(values[number] for number in images),
            }
            for name, values in found["distances"].items()
        },
        "verified": verdicts(found, sharp),
    }


def served_card(python: str, checkpoint: Path, folder: Path, found: dict, *more: str) -> dict:
    """Whether the OpenAI server answers a comparison's conversations as our forward pass does.

    Args:
        python, checkpoint, folder: as of `compare`.
        found: what `compare` returned for the backend alone.
        *more: arguments of the server.
    """
    folder.mkdir(exist_ok=True)
    end = json.loads((checkpoint / "config.json").read_text())["eos_token_id"]
    equal_prompts, equal_answers = True, True
    with served(python, checkpoint, folder, *more) as client:
        for conversation, ours in zip(example_conversations(), found["ours"], strict=True):
            prompt_ids, ids = ask(client, conversation, len(ours["ids"]))
            length = ours["ids"].index(end) + 1 if end in ours["ids"] else len(ours["ids"])
            equal_prompts &= prompt_ids == ours["prompt_ids"]
            equal_answers &= ids == ours["ids"][:length]
    return {"verified": {"prompts of the template equal": equal_prompts, "greedy tokens equal": equal_answers}}


def checked(python: str, checkpoint: Path, folder: Path, sharp: bool) -> dict[str, Any]:
    """Figures and verdicts of a checkpoint: of the backend alone, with the plugin, and of the server.

    Args:
        python, checkpoint: as of `compare`.
        folder: receives everything, an existing folder.
        sharp: as of `verdicts`.
    """
    alone = compare(python, checkpoint, folder / "alone")
    with_plugin = compare(python, checkpoint, folder / "with-plugin", plugin=True)
    return {
        "head size": head_size(checkpoint),
        "Transformers backend": card_of(alone, sharp),
        "plugin": card_of(with_plugin, sharp),
        "OpenAI server": served_card(python, checkpoint, folder / "served", alone),
    }


def main() -> None:
    from tests.tiny_checkpoint import sharp_checkpoint

    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("python", help="interpreter of vLLM's environment")
    python = parser.parse_args().python
    figure: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as scratch:
        sharp = Path(scratch) / "sharp"
        sharp_checkpoint(sharp)
        for name, checkpoint in ((SHARP, sharp), (CHECKPOINT.name, CHECKPOINT)):
            # Compilers of vLLM take no spaces in the names of their caches.
            folder = Path(scratch) / f"{checkpoint.name}-run"
            folder.mkdir()
            figure[name] = checked(python, checkpoint, folder, sharp=name == SHARP)
    right = all(
        holds
        for block in figure.values()
        for part in ("Transformers backend", "plugin", "OpenAI server")
        for holds in block[part]["verified"].values()
    )
    figure["not verified"] = NOT_VERIFIED
    command = "python -m benchmarks.engines.vllm_card PYTHON"
    engine_command = " ".join(serve_command("python", Path("CHECKPOINT"), 8000))
    print(write_card(ENGINE, python, command, engine_command, figure, right, used=""))
    if not right:
        sys.exit(json.dumps(figure, indent=1))


if __name__ == "__main__":
    main()
