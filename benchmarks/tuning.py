"""Does tuning learn, and what memory does it need?

    python -m benchmarks.tuning learn [--methods sft,dpo,grpo,flow_grpo] [--seeds 1,2,...] [--model CHECKPOINT]
    python -m benchmarks.tuning memory

`learn` tunes the nano on small drawn tasks (`tuning_tasks`) and compares it on held-out images or prompts with the
nano itself. Every run is kept in `results/tuning.json` with its curve; `results/tuning.png` shows them. `memory` runs
one training step of every preset in a process of its own. No data set is needed.
"""

import json
import statistics
import sys
import tempfile
import textwrap
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from transformers import TrainerCallback, set_seed
from transformers.utils import logging as transformers_logging
from typer import Option

from unimedvl import UniMedVLProcessor
from unimedvl.evaluation.metrics.intervals import mean_interval, student_interval
from unimedvl.training.adapters import load_with_adapter
from unimedvl.training.flow_grpo.trainer import FlowGRPOArguments, FlowGRPOTrainer
from unimedvl.training.tuning_recipe import AdapterRecipe
from unimedvl.utils.command_line import comma_separated, run_module

from .origin import origin
from .tuning_tasks import HELD_OUT_PROMPTS, QUESTIONS, TRAINING_PROMPTS, Slide, brightness, slide_record, slides

CHECKPOINT = Path(__file__).parents[1] / "hub_cards" / "unimedvl-nano"
RESULTS = Path(__file__).parent / "results" / "tuning.json"
HELD_OUT = 64
# Images are read and made with four patches or latent tokens a side, which keeps a run within minutes of one core.
SIDE = 4
# What is compared: for a slide, see `text_objectives`; for a prompt, the mean reward of its images.
OBJECTIVES = {
    "sft": "log probability of the right answer, nats a token",
    "dpo": "right answer more probable than the wrong one",
    "grpo": "probability of the right answer",
    "flow_grpo": "mean gray level of the images",
}
# GRPO's settings were chosen on two seeds among those before these.
SEEDS = {"sft": (1, 2, 3), "dpo": (1, 2, 3), "grpo": (10, 11, 12), "flow_grpo": (1, 2, 3)}
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {"max_steps": 150, "per_device_train_batch_size": 8, "learning_rate": 5e-3},
    "dpo": {"max_steps": 42, "per_device_train_batch_size": 8, "learning_rate": 2e-3},
    "grpo": {
        "max_steps": 90,
        "per_device_train_batch_size": 32,
        "num_generations": 8,
        "max_completion_length": 4,
        "learning_rate": 4e-4,  # at 1e-3 one policy of three fell to one answer
        "beta": 0.1,
    },
    "flow_grpo": {
        "max_steps": 12,
        "prompts_per_step": 4,
        "group_size": 8,
        "num_inference_steps": 5,
        "trained_steps": 2,
        "learning_rate": 2e-3,
        "kl_weight": 0.04,
    },
}
EVALUATIONS = 3  # on the way, beside the one before


@torch.no_grad()
def log_probabilities(model, processor, shown: list[Slide], questions: list[str], answers: list[str]):
    """Summed log probability (R,) of every answer with the token that ends it, and its number of tokens (R,)."""
    rows = []
    for slide, question, answer in zip(shown, questions, answers, strict=True):
        content = [{"type": "image", "image": slide.image}, {"type": "text", "text": question}]
        answered = [{"type": "text", "text": answer}]
        rows.append([{"role": "user", "content": content}, {"role": "assistant", "content": answered}])
    sums, counts = [], []
    for start in range(0, len(rows), 32):
        inputs = processor.apply_chat_template(
            rows[start : start + 32],
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
            padding_side="right",
            return_assistant_tokens_mask=True,
        )
        chosen = torch.as_tensor(inputs.pop("assistant_masks")).bool()[:, 1:]
        logits = model(**inputs).logits[:, :-1].float().log_softmax(dim=-1)
        values = logits.gather(-1, inputs["input_ids"][:, 1:, None])[..., 0]
        sums.append((values * chosen).sum(dim=1))
        counts.append(chosen.sum(dim=1))
    return torch.cat(sums), torch.cat(counts)


def text_objectives(method: str, model, processor, held_out: list[Slide]) -> np.ndarray:
    """The objective of a method on held-out slides.

    Returns:
        Float (R, 2): for every slide the objective, and whether the right answer is more probable than the wrong one.
    """
    asked = [QUESTIONS[method](slide) for slide in held_out]
    questions, right, wrong = (list(texts) for texts in zip(*asked, strict=True))
    training = model.training
    model.eval()
    sums, counts = log_probabilities(model, processor, held_out, questions, right)
    chosen = (sums > log_probabilities(model, processor, held_out, questions, wrong)[0]).float()
    model.train(training)
    objective = {"sft": sums / counts, "dpo": chosen, "grpo": sums.exp()}[method]
    return torch.stack([objective, chosen], dim=1).double().numpy()


class _Curve(TrainerCallback):
    def __init__(self, every: int, measure):
        self.every, self.measure = every, measure
        self.points: dict[int, np.ndarray] = {}

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0:
            self.points[state.global_step] = self.measure()


def learn_text(method: str, seed: int, checkpoint: Path) -> dict[int, np.ndarray]:
    """One run of SFT, DPO or GRPO; returns the objective of every held-out slide by step."""
    from unimedvl.training.language.trainers import language_arguments, language_trainer
    from unimedvl.training.language.trl_datasets import conversation_data

    settings = SETTINGS[method]
    model = load_with_adapter(checkpoint, AdapterRecipe(experts="understanding", vit=True), torch.float32)
    processor = UniMedVLProcessor.from_pretrained(checkpoint)
    transform = processor.image_processor.understanding_transform
    side = SIDE * transform["image_stride"]
    processor.image_processor.understanding_transform = {**transform, "min_image_size": side, "max_image_size": side}
    held_out = slides(HELD_OUT, seed, held_out=True)

    def measure() -> np.ndarray:
        return text_objectives(method, model, processor, held_out)

    curve = _Curve(settings["max_steps"] // EVALUATIONS, measure)
    curve.points[0] = measure()
    shown = slides(settings["max_steps"] * settings["per_device_train_batch_size"], seed, held_out=False)
    data = conversation_data([slide_record(method, slide, number) for number, slide in enumerate(shown)], method)
    with tempfile.TemporaryDirectory() as folder:
        fixed = {
            "bf16": False,
            "gradient_checkpointing": False,
            "save_strategy": "no",
            "logging_steps": 10,
            "disable_tqdm": True,
            "seed": seed,
        }
        arguments = language_arguments(method, folder, {**fixed, **settings})
        trainer = language_trainer(method, model, processor, arguments, data, rewards=["answer_match"])
        trainer.add_callback(curve)
        trainer.train()
    return curve.points


def learn_images(seed: int, checkpoint: Path) -> dict[int, np.ndarray]:
    """One run of Flow-GRPO; returns the objective of every held-out prompt by step."""
    model = load_with_adapter(checkpoint, AdapterRecipe(experts="generation"), torch.float32)
    processor = UniMedVLProcessor.from_pretrained(checkpoint)
    side = SIDE * model.config.pixels_per_latent_token
    settings = {**SETTINGS["flow_grpo"], "height": side, "width": side}
    points = {}
    with tempfile.TemporaryDirectory() as folder:
        trainer = FlowGRPOTrainer(
            model,
            processor,
            FlowGRPOArguments(output_dir=folder, seed=seed, **settings),
            [{"prompt": prompt} for prompt in TRAINING_PROMPTS],
            {"brightness": (brightness, 1.0)},
        )
        for part in range(EVALUATIONS + 1):
            if part:
                trainer.arguments.max_steps = settings["max_steps"] * part // EVALUATIONS
                trainer.train()
            values = []
            for prompt in HELD_OUT_PROMPTS:
                trainer.eval_examples = [{"prompt": prompt}]
                values.append(trainer.evaluate()["eval_brightness"])
            trainer.eval_examples = []
            points[trainer.step] = np.array(values)[:, None]
    return points


# --- Results ---------------------------------------------------------------------------------------------------------


def over_seeds(gains: list[float]) -> dict[str, Any]:
    """Mean of the seeds' gains with the 95 % interval of Student's t."""
    found = student_interval(gains) if len(gains) > 1 else None
    interval = None if found is None else [found["low"], found["high"]]
    return {"gain": statistics.fmean(gains), "interval": interval, "seeds": len(gains)}


def learn(method: str, seed: int, checkpoint: Path) -> dict[str, Any]:
    """One run as a JSON-safe dict: objective before and after, the gain with its interval, the curve."""
    started = time.process_time()
    set_seed(seed)
    points = learn_images(seed, checkpoint) if method == "flow_grpo" else learn_text(method, seed, checkpoint)
    before, after = points[0][:, 0], points[max(points)][:, 0]
    # Every slide or prompt is drawn by itself: each is a group of its own.
    gain = mean_interval((after - before).tolist(), range(len(before)))
    run = {
        "method": method,
        "seed": seed,
        "base": float(before.mean()),
        "tuned": float(after.mean()),
        "gain": gain["value"],
        "interval": [gain["low"], gain["high"]],
        "held_out": len(before),
        "curve": {str(step): float(values[:, 0].mean()) for step, values in points.items()},
        "processor_seconds": round(time.process_time() - started),
    }
    if points[0].shape[1] > 1:
        run["right_answers"] = {str(step): float(values[:, 1].mean()) for step, values in points.items()}
    return run


def summarize(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Base, tuned and gain over the seeds, by method."""
    summary = {}
    for method in OBJECTIVES:
        own = [run for run in runs if run["method"] == method]
        if own:
            means = {name: statistics.fmean(run[name] for run in own) for name in ("base", "tuned")}
            summary[method] = {"objective": OBJECTIVES[method], **means, **over_seeds([run["gain"] for run in own])}
    return summary


def draw(runs: list[dict[str, Any]], path: Path) -> None:
    """The curves of all runs, one panel a method."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(OBJECTIVES), figsize=(15, 3.2), layout="constrained")
    for axis, (method, objective) in zip(axes, OBJECTIVES.items(), strict=True):
        for run in (run for run in runs if run["method"] == method):
            axis.plot(
                [int(step) for step in run["curve"]], list(run["curve"].values()), "o-", label=f"seed {run['seed']}"
            )
        axis.set(title=method, xlabel="step", ylabel=textwrap.fill(objective, 30))
        axis.legend()
    figure.savefig(path, dpi=70)
    pyplot.close(figure)


def main(
    action: Literal["learn", "memory"],
    methods: Annotated[str, Option(metavar="A,B", help="What is trained.")] = ",".join(OBJECTIVES),
    seeds: Annotated[
        str | None, Option(metavar="A,B", help="Of every method (default: those of the stored results).")
    ] = None,
    model: Annotated[Path, Option(help="Checkpoint (default: the nano).", show_default=False)] = CHECKPOINT,
    output: Annotated[Path, Option(help="File of the results.")] = RESULTS,
) -> None:
    if unknown := sorted({*comma_separated(methods)} - {*OBJECTIVES}):
        raise ValueError(f"--methods: expected some of {', '.join(OBJECTIVES)}, found {unknown[0]!r}.")
    transformers_logging.set_verbosity_error()
    kept = json.loads(output.read_text()) if output.is_file() else {"runs": []}
    kept["origin"] = origin(kept=kept.get("origin"))
    if action == "memory":
        from .tuning_memory import measure_presets

        kept["memory"] = measure_presets()
        output.write_text(json.dumps(kept, indent=1) + "\n")
        print(json.dumps(kept["memory"], indent=1))
        return
    for method in comma_separated(methods):
        for seed in [int(word) for word in comma_separated(seeds)] or SEEDS[method]:
            run = learn(method, seed, model)
            others = [other for other in kept["runs"] if (other["method"], other["seed"]) != (method, seed)]
            kept["runs"] = sorted([*others, run], key=lambda entry: (entry["method"], entry["seed"]))
            kept["summary"] = summarize(kept["runs"])
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps(kept, indent=1) + "\n")
            print(json.dumps({name: value for name, value in run.items() if name != "curve"}), flush=True)
    draw(kept["runs"], output.with_suffix(".png"))
    print(json.dumps(kept["summary"], indent=1))


if __name__ == "__main__":
    sys.exit(run_module(main))
