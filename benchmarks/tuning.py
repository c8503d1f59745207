"""Does tuning learn, and what memory does it need?

    python -m benchmarks.tuning learn [--methods sft dpo grpo flow_grpo] [--seeds 0 1 2] [--model CHECKPOINT]
    python -m benchmarks.tuning memory

`learn` tunes the nano on small drawn tasks (`tuning_tasks`) and compares it on held-out pictures or prompts with the
nano itself. Every run is kept in `results/tuning.json` with its curve; `results/tuning.png` shows them. `memory` runs
one training step of every preset in a process of its own. No data set is needed.
"""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from unimedvl import UniMedVLProcessor
from unimedvl.training.adapters import load_with_adapter
from unimedvl.training.flow_grpo import FlowGRPOArguments, FlowGRPOTrainer
from unimedvl.training.tuning_recipe import AdapterRecipe

from .tuning_tasks import HELD_OUT_PROMPTS, QUESTIONS, TRAINING_PROMPTS, Slide, brightness, slide_record, slides

CHECKPOINT = Path(__file__).parents[1] / "hub_cards" / "unimedvl-nano"
RESULTS = Path(__file__).parent / "results" / "tuning.json"
HELD_OUT = 64
# What is compared: for a slide, see `text_objectives`; for a prompt, the mean reward of its images.
OBJECTIVES = {
    "sft": "log probability of the right answer, nats a token",
    "dpo": "right answer more probable than the wrong one",
    "grpo": "probability of the right answer",
    "flow_grpo": "mean grey level of the images",
}
SETTINGS: dict[str, dict[str, Any]] = {
    "sft": {"max_steps": 80, "per_device_train_batch_size": 16, "learning_rate": 3e-3},
    "dpo": {"max_steps": 40, "per_device_train_batch_size": 8, "learning_rate": 1e-3},
    "grpo": {
        "max_steps": 40,
        "per_device_train_batch_size": 32,
        "num_generations": 8,
        "max_completion_length": 6,
        "learning_rate": 2e-3,
        "beta": 0.01,
    },
    "flow_grpo": {
        "max_steps": 20,
        "prompts_per_step": 4,
        "group_size": 8,
        "num_inference_steps": 6,
        "height": 64,
        "width": 64,
        "learning_rate": 2e-3,
        "kl_weight": 0.01,
        "eval_steps": 5,
    },
}
EVALUATIONS = 2  # on the way, beside the one before


@torch.no_grad()
def log_probabilities(model, processor, shown: list[Slide], questions: list[str], answers: list[str]):
    """Summed log probability (R,) of every answer with the token that ends it, and its number of tokens (R,)."""
    rows = []
    for slide, question, answer in zip(shown, questions, answers, strict=True):
        content = [{"type": "image", "image": slide.picture}, {"type": "text", "text": question}]
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
    """The objective of a method for every held-out slide, float (R,)."""
    asked = [QUESTIONS[method](slide) for slide in held_out]
    questions, right, wrong = (list(texts) for texts in zip(*asked, strict=True))
    training = model.training
    model.eval()
    sums, counts = log_probabilities(model, processor, held_out, questions, right)
    if method == "sft":
        values = sums / counts
    elif method == "grpo":
        values = sums.exp()
    else:
        values = (sums > log_probabilities(model, processor, held_out, questions, wrong)[0]).float()
    model.train(training)
    return values.double().numpy()


class _Curve(TrainerCallback):
    def __init__(self, every: int, measure):
        self.every, self.measure, self.points = every, measure, {}

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self.every == 0:
            self.points[state.global_step] = self.measure()


def learn_text(method: str, seed: int, checkpoint: Path) -> dict[str, Any]:
    """One run of SFT, DPO or GRPO."""
    from unimedvl.training.conversations import conversation_data
    from unimedvl.training.language import language_arguments, language_trainer

    settings = SETTINGS[method]
    model = load_with_adapter(checkpoint, AdapterRecipe(experts="understanding", vit=True), torch.float32)
    processor = UniMedVLProcessor.from_pretrained(checkpoint)
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
            "use_cpu": not torch.cuda.is_available(),
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
    return {"curve": {step: values.mean() for step, values in curve.points.items()}, "values": curve.points}


def learn_images(seed: int, checkpoint: Path) -> dict[str, Any]:
    """One run of Flow-GRPO."""
    model = load_with_adapter(checkpoint, AdapterRecipe(experts="generation"), torch.float32)
    processor = UniMedVLProcessor.from_pretrained(checkpoint)
    with tempfile.TemporaryDirectory() as folder:
        trainer = FlowGRPOTrainer(
            model,
            processor,
            FlowGRPOArguments(output_dir=folder, seed=seed, **SETTINGS["flow_grpo"]),
            [{"prompt": prompt} for prompt in TRAINING_PROMPTS],
            {"brightness": (brightness, 1.0)},
            [{"prompt": prompt} for prompt in HELD_OUT_PROMPTS],
        )
        history = trainer.train()
    return {"history": history}
