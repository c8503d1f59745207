"""Train the bring-up nano from scratch on the mini data set: tokenizer, autoencoder, then the whole model.

    python -m unimedvl.training.nano.train --data FOLDER --out CHECKPOINT [--stage tokenizer|vae|mot|all]

Stages whose result lies in the work folder are reused, so an interrupted run goes on with the next stage. The losses
are those of `UniMedVLForConditionalGeneration.forward`. Rows of `samples.EXCLUDED_SOURCES` are never read.
"""

import argparse
import json
import math
import os
import time
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from unimedvl.modeling_unimedvl.configuration_unimedvl import UniMedVLConfig, UniMedVLVAEConfig
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration
from unimedvl.modeling_unimedvl.published_layout_unimedvl import default_generation_config
from unimedvl.processing.image_processing_unimedvl import UniMedVLImageProcessor
from unimedvl.processing.processing_unimedvl import UniMedVLProcessor

from .autoencoder import train_autoencoder
from .batches import SIDE, SampleMaker, collate, image_transform, make_examples
from .samples import corpus, load_rows
from .tokenizer import train_tokenizer

LATENT_PATCH = 2
VIT_PATCH = 8
TABLE_SIDE = 16  # position tables reach 128 pixels
TEXT_CONFIG = {
    "hidden_size": 192,
    "intermediate_size": 512,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 2048,
    "initializer_range": 0.04,
}
VISION_CONFIG = {
    "hidden_size": 128,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "image_size": SIDE,
    "patch_size": VIT_PATCH,
}
BATCH = {"understanding": 16, "text_to_image": 20, "editing": 6}  # samples of each kind in one optimiser step
LEARNING_RATE = 2e-3
WARM_UP = 50
EMA_DECAY = 0.998
VIEWS = 3


def build_config(tokenizer: PreTrainedTokenizerBase, vae_config: dict) -> UniMedVLConfig:
    """The nano's configuration; `vae_config` holds the fields of the trained autoencoder."""
    known = UniMedVLVAEConfig().autoencoder_arguments()
    ids = {
        "bos_token_id": "<|im_start|>",
        "eos_token_id": "<|im_end|>",
        "pad_token_id": "<|endoftext|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
        "image_token_id": "<|image_pad|>",
        "latent_token_id": "<|vision_pad|>",
    }
    return UniMedVLConfig(
        text_config={**TEXT_CONFIG, "vocab_size": len(tokenizer), "pad_token_id": None},
        vision_config=VISION_CONFIG,
        vae_config={**{name: vae_config[name] for name in known if name in vae_config}, "sample_size": SIDE},
        latent_patch_size=LATENT_PATCH,
        max_latent_size=TABLE_SIDE,
        vit_max_num_patch_per_side=TABLE_SIDE,
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in ids.items()},
    )


def build_processor(tokenizer: PreTrainedTokenizerBase, config: UniMedVLConfig) -> UniMedVLProcessor:
    """Processor whose pictures have the sizes of training: longer side `SIDE` in every mode."""
    image_processor = UniMedVLImageProcessor(
        patch_size=VIT_PATCH,
        understanding_transform=image_transform(VIT_PATCH),
        vae_transform=image_transform(config.pixels_per_latent_token),
        vit_transform=image_transform(VIT_PATCH),
    )
    return UniMedVLProcessor(image_processor, tokenizer)


def nano_presets(presets: dict) -> dict:
    """The task presets with the nano's sampling settings: its size, and fewer steps, which suffice at 64 pixels."""
    changed = {name: {**values, "num_inference_steps": 24, "timestep_shift": 1.0} for name, values in presets.items()}
    changed["t2i"] |= {"height": SIDE, "width": SIDE, "cfg_interval": [0.0, 1.0]}
    return changed


def learning_rate(step: int, progress: float) -> float:
    """Linear warm-up times a cosine that falls to a hundredth as `progress` goes from 0 to 1."""
    return LEARNING_RATE * min(1.0, (step + 1) / WARM_UP) * (0.505 + 0.495 * math.cos(math.pi * progress))


def train_model(
    model: UniMedVLForConditionalGeneration,
    maker: SampleMaker,
    steps: int,
    minutes: float | None = None,
    report_every: int = 50,
) -> dict:
    """Train in place; the model ends with the moving average of its weights.

    Each step draws one micro-batch of every kind (`BATCH`); the flow loss is the mean over all noised tokens of the
    step. With `minutes`, the run ends by then even if steps are left, and the learning rate follows the clock.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    decayed = [parameter for parameter in parameters if parameter.ndim == 2]
    plain = [parameter for parameter in parameters if parameter.ndim != 2]
    groups = [{"params": decayed, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95))
    average = [parameter.detach().clone() for parameter in parameters]
    model.train()
    model.model.vae.eval()
    started, tokens, sums = time.perf_counter(), 0, {}
    for step in range(steps):
        elapsed = time.perf_counter() - started
        progress = step / steps if minutes is None else max(step / steps, elapsed / (60 * minutes))
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, progress)
        batches = {}
        for kind, count in BATCH.items():
            batches[kind] = collate([getattr(maker, kind)() for _ in range(count)], model.config)
        noised = sum(int((batch["mm_token_type_ids"] == 3).sum()) for batch in batches.values())
        optimizer.zero_grad(set_to_none=True)
        for kind, batch in batches.items():
            with torch.autocast("cpu", torch.bfloat16):
                output = model(**batch, num_flow_tokens_in_batch=noised)
            output.loss.backward()
            share = int((batch["mm_token_type_ids"] == 3).sum()) / noised
            value = output.ce_loss if kind == "understanding" else output.mse_loss / share
            sums[kind] = sums.get(kind, 0.0) + value.item()
            tokens += int((batch["sample_ids"] >= 0).sum())
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        decay = min(EMA_DECAY, (1 + step) / (10 + step))
        torch._foreach_lerp_(average, [parameter.detach() for parameter in parameters], 1 - decay)
        if (step + 1) % report_every == 0 or step + 1 == steps:
            elapsed = time.perf_counter() - started
            losses = "  ".join(f"{kind} {total / report_every:.4f}" for kind, total in sums.items())
            left = elapsed * (1 / max((step + 1) / steps, elapsed / (60 * minutes) if minutes else 0) - 1)
            speed = f"{tokens / elapsed:.0f} tokens/s"
            print(f"model {step + 1}/{steps}  {losses}  {speed}, {left:.0f} s left", flush=True)
            sums = {}
    with torch.no_grad():
        torch._foreach_copy_(parameters, average)
    model.eval()
    return {"steps": step + 1, "seconds": time.perf_counter() - started, "tokens": tokens}


def stage_tokenizer(arguments, work: Path) -> dict:
    rows = load_rows(arguments.data, "train")
    tokenizer = train_tokenizer(corpus(rows), work / "tokenizer")
    return {"entries": len(tokenizer)}


def stage_vae(arguments, work: Path) -> dict:
    rows, validation = (load_rows(arguments.data, split, short_side=2 * SIDE) for split in ("train", "validation"))
    _, record = train_autoencoder(
        rows, validation, work / "autoencoder", steps=arguments.vae_steps, seed=arguments.seed
    )
    return record


def stage_mot(arguments, work: Path) -> dict:
    tokenizer = AutoTokenizer.from_pretrained(work / "tokenizer")
    autoencoder = AutoencoderKL.from_pretrained(work / "autoencoder").eval()
    config = build_config(tokenizer, dict(autoencoder.config))
    torch.manual_seed(arguments.seed)
    model = UniMedVLForConditionalGeneration(config)
    model.model.vae.load_state_dict(autoencoder.state_dict())
    rows = load_rows(arguments.data, "train")
    examples = make_examples(rows, autoencoder, config.pixels_per_latent_token, VIEWS, arguments.seed)
    maker = SampleMaker(examples, tokenizer, config, arguments.seed)
    record = train_model(model, maker, arguments.steps, arguments.minutes)
    record["parameters"] = sum(parameter.numel() for parameter in model.parameters())
    model.generation_config = default_generation_config(config)
    model.generation_config.task_presets = nano_presets(model.generation_config.task_presets)
    model.save_pretrained(arguments.out)
    build_processor(tokenizer, config).save_pretrained(arguments.out)
    return record


STAGES = {"tokenizer": stage_tokenizer, "vae": stage_vae, "mot": stage_mot}


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default=os.environ.get("UNIMED_MINI"), help="data folder (default: $UNIMED_MINI)")
    parser.add_argument("--out", required=True, help="folder of the checkpoint")
    parser.add_argument("--work", help="folder of the tokenizer, the autoencoder and the log (default: OUT-work)")
    parser.add_argument("--stage", choices=[*STAGES, "all"], default="all")
    parser.add_argument("--vae-steps", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=1250, help="steps of the last stage")
    parser.add_argument("--minutes", type=float, help="end the last stage by then")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args(argv)
    if not arguments.data:
        parser.error("give the folder of the mini data set with --data or in UNIMED_MINI")
    torch.set_num_threads(arguments.threads)
    work = Path(arguments.work or f"{arguments.out.rstrip('/')}-work")
    work.mkdir(parents=True, exist_ok=True)
    log = work / "training.json"
    records = json.loads(log.read_text()) if log.is_file() else {}
    for name in STAGES if arguments.stage == "all" else [arguments.stage]:
        if arguments.stage == "all" and name in records:
            print(f"{name}: done before, reused", flush=True)
            continue
        wall, cpu = time.perf_counter(), time.process_time()
        record = STAGES[name](arguments, work)
        record |= {"wall_seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        records[name] = record | {"threads": arguments.threads, "seed": arguments.seed}
        log.write_text(json.dumps(records, indent=2) + "\n")
        print(f"{name}: {json.dumps(records[name])}", flush=True)


if __name__ == "__main__":
    main()
