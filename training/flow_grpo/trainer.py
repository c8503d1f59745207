"""Flow-GRPO: group-relative policy optimization of the image generator with rewards by name (arXiv 2505.05470).

For every prompt a group of images is sampled by the SDE of `policy`; an image's advantage is its reward against
the mean of its group; every step of its path is made more or less likely by the clipped ratio of PPO, and a KL term
holds the policy near the model it started from. With PEFT the reference is the model without its adapter.
"""

import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from unimedvl.modeling_unimedvl.flow_unimedvl import FlowSettings
from unimedvl.modeling_unimedvl.image_requests_unimedvl import target_grids
from unimedvl.modeling_unimedvl.sampling_unimedvl import FlowSampler
from unimedvl.utils.json_files import read_json

from ..adapters import bare_model
from ..checkpoints import checkpoints, keep_newest, whole_folder
from .policy import ImagePrompts, Rollout, log_probability, policy_loss, sample_trajectory, sde_step

logger = logging.getLogger(__name__)

Example = Mapping[str, Any]
Reward = Callable[[Sequence[Image.Image], Sequence[Example]], Sequence[float]]


@dataclass
class FlowGRPOArguments:
    """Settings of a run.

    Attributes:
        output_dir: checkpoints and `history.jsonl`.
        max_steps: rollouts, each followed by `num_minibatches` optimizer steps.
        prompts_per_step, group_size: prompts of a rollout over all processes, and images per prompt.
        num_inference_steps: of the sampler; Flow-GRPO trains with 10.
        noise_level: exploration of the SDE, 0.7 in Flow-GRPO.
        timestep_shift: of the sampler; the model's own if None.
        height, width: pixels of the images.
        trained_steps: how many of the sampling steps are trained on in a rollout, drawn anew each time; all if None.
        num_minibatches: optimizer steps per rollout.
        clip_range: of the probability ratio. Log probabilities are means over an image's numbers, so ratios stay
            close to 1 and the range is far smaller than in language models.
        kl_weight: weight of the KL divergence from the reference.
        learning_rate, weight_decay, max_grad_norm: AdamW's.
        save_steps: rollouts between checkpoints.
        eval_steps: rollouts between evaluations of the held-out examples; only before and after if 0.
        seed: of prompts and noise.
    """

    output_dir: str
    max_steps: int = 100
    prompts_per_step: int = 4
    group_size: int = 8
    num_inference_steps: int = 10
    noise_level: float = 0.7
    timestep_shift: float | None = None
    height: int = 512
    width: int = 512
    trained_steps: int | None = None
    num_minibatches: int = 1
    clip_range: float = 1e-4
    kl_weight: float = 0.04
    learning_rate: float = 3e-4
    weight_decay: float = 1e-4
    max_grad_norm: float = 1.0
    save_steps: int = 20
    eval_steps: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("max_steps", 1),
            ("prompts_per_step", 1),
            ("group_size", 2),
            ("num_inference_steps", 2),
            ("num_minibatches", 1),
            ("save_steps", 1),
            ("eval_steps", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}.")
        if self.noise_level <= 0:
            raise ValueError(
                f"noise_level must be above 0, not {self.noise_level}: without noise nothing is explored."
            )
        if self.trained_steps is not None and not 1 <= self.trained_steps <= self.num_inference_steps:
            raise ValueError(
                f"trained_steps must lie between 1 and num_inference_steps ({self.num_inference_steps}), "
                f"not {self.trained_steps}."
            )


def group_advantages(rewards: torch.Tensor, group_size: int) -> torch.Tensor:
    """Rewards (R,), groups in succession, to advantages (R,): distance from the group's mean in its deviations.

    A group of equal rewards has nothing to teach and gets zeros.
    """
    groups = rewards.reshape(-1, group_size)
    centered = groups - groups.mean(dim=1, keepdim=True)
    return (centered / (groups.std(dim=1, keepdim=True) + 1e-4)).flatten()


class FlowGRPOTrainer:
    """Trains the parameters that require gradients.

    Args:
        model: `UniMedVLForConditionalGeneration`, or a `PeftModel` around one (see `adapters`).
        processor: its processor.
        arguments: see `FlowGRPOArguments`.
        train_examples: dicts with `prompt`, optionally `images` (input images), and whatever the rewards read.
        rewards: functions by name with their weights, `{name: (function, weight)}`. A function takes the images and
            their examples and gives one number each.
        eval_examples: held-out examples for `evaluate`.

    Raises:
        ValueError: without examples, rewards or trainable parameters.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        arguments: FlowGRPOArguments,
        train_examples: Sequence[Example],
        rewards: Mapping[str, tuple[Reward, float]],
        eval_examples: Sequence[Example] = (),
    ):
        if not train_examples:
            raise ValueError("train_examples is empty: give at least one prompt.")
        if not rewards:
            raise ValueError("rewards is empty: name at least one reward.")
        self.accelerator = Accelerator()
        if arguments.prompts_per_step % self.accelerator.num_processes:
            raise ValueError(
                f"prompts_per_step ({arguments.prompts_per_step}) must be a multiple of the number of processes "
                f"({self.accelerator.num_processes})."
            )
        self.model = model.to(self.accelerator.device).eval()
        self.processor, self.arguments = processor, arguments
        self.train_examples, self.eval_examples = list(train_examples), list(eval_examples)
        self.rewards = dict(rewards)
        self.parameters = {name: value for name, value in model.named_parameters() if value.requires_grad}
        if not self.parameters:
            raise ValueError("The model has no trainable parameter: add an adapter or unfreeze a part.")
        self.policy = bare_model(model)
        self.reference: Any = None
        if not isinstance(model, PeftModel) and arguments.kl_weight > 0:
            self.reference = deepcopy(model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.parameters.values(), lr=arguments.learning_rate, weight_decay=arguments.weight_decay
        )
        shift = arguments.timestep_shift
        config = self.policy.config
        settings = FlowSettings.unguided(
            arguments.num_inference_steps, config.timestep_shift if shift is None else shift
        )
        self.sampler = FlowSampler(self.policy, settings)
        self.reference_sampler = FlowSampler(self.reference or self.policy, settings)
        (self.grid,) = target_grids(config, 1, arguments.height, arguments.width)
        self.step = 0

    # --- Rollouts ----------------------------------------------------------------------------------------------------

    def image_prompts(self, examples: Sequence[Example], images_per_prompt: int) -> ImagePrompts:
        """What the images of the examples are made from."""
        conversations = []
        for example in examples:
            content = [{"type": "image", "image": image} for image in example.get("images", ())]
            content.append({"type": "text", "text": example["prompt"]})
            conversations.append([{"role": "user", "content": content}])
        processed = self.processor.apply_chat_template(
            conversations,
            generation_mode="image",
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            padding=True,
            padding_side="left",
        )
        return ImagePrompts.from_inputs(self.policy, processed, self.grid, images_per_prompt)

    def score(self, tokens: Sequence[torch.Tensor], examples: Sequence[Example]) -> dict[str, torch.Tensor]:
        """Decode images and reward them.

        Args:
            tokens: latent tokens (T, L) of each of R images.
            examples: what each image was made from.

        Returns:
            Rewards, float32 (R,), by name, and their weighted sum under "reward".

        Raises:
            ValueError: naming the reward function whose values are not R finite numbers.
        """
        pixels = self.sampler.decode(list(tokens), [self.grid] * len(tokens))
        images = self.processor.post_process_multimodal_output(pixels, generation_mode="image")
        scores = {}
        for name, (function, _) in self.rewards.items():
            values = torch.as_tensor(function(images, examples), dtype=torch.float32)
            if values.shape != (len(images),) or not bool(values.isfinite().all()):
                raise ValueError(f"The reward {name!r} must give one finite number for each of {len(images)} images.")
            scores[name] = values
        scores["reward"] = torch.stack([weight * scores[name] for name, (_, weight) in self.rewards.items()]).sum(0)
        return scores

    def rollout(self) -> Rollout:
        """Sample and score a group of images for each prompt of the present step."""
        arguments, accelerator = self.arguments, self.accelerator
        draw = torch.Generator().manual_seed(arguments.seed * 1_000_003 + self.step)
        chosen = torch.randint(len(self.train_examples), (arguments.prompts_per_step,), generator=draw).tolist()
        own = chosen[accelerator.process_index :: accelerator.num_processes]
        seed = int(torch.randint(2**31, (), generator=draw)) + accelerator.process_index
        noise = torch.Generator().manual_seed(seed)
        examples = [self.train_examples[index] for index in own]
        prompts = self.image_prompts(examples, arguments.group_size)
        trajectory = sample_trajectory(self.sampler, prompts, arguments.noise_level, noise)
        repeated = [example for example in examples for _ in range(arguments.group_size)]
        return Rollout(prompts, trajectory, self.score(list(trajectory.states[-1]), repeated), draw)

    # --- Learning ----------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def _reference_velocities(self, rollout: Rollout, steps: list[int]) -> dict[int, torch.Tensor]:
        """The reference's velocity (R, T, L) at the states of a rollout, by the number of the step."""
        with self.model.disable_adapter() if isinstance(self.model, PeftModel) else nullcontext():
            conditions = rollout.prompts.prepare(self.reference_sampler)
            return {index: rollout.velocity(self.reference_sampler, conditions, index) for index in steps}

    def _learn(self, rollout: Rollout, advantages: torch.Tensor) -> dict[str, float]:
        arguments, trajectory = self.arguments, rollout.trajectory
        order = torch.randperm(arguments.num_inference_steps, generator=rollout.generator)
        steps = order[: arguments.trained_steps].tolist()
        times = trajectory.times.tolist()
        references = self._reference_velocities(rollout, steps) if arguments.kl_weight > 0 else {}
        totals = {"loss": 0.0, "kl": 0.0, "clipped": 0.0, "grad_norm": 0.0}
        # Steps of the path, not rows, are dealt out: every minibatch holds whole groups.
        parts = [steps[number :: arguments.num_minibatches] for number in range(arguments.num_minibatches)]
        for part in filter(None, parts):
            for index in part:
                state, reached = trajectory.states[index], trajectory.states[index + 1]
                span = (times[index], times[index + 1], arguments.noise_level, times[1])
                # Read anew for each step: backward passes through what the policy reads too.
                predicted = rollout.velocity(self.sampler, rollout.prompts.prepare(self.sampler), index)
                mean, deviation = sde_step(state, predicted, *span)
                ratio = (log_probability(reached, mean, deviation) - trajectory.log_probabilities[index]).exp()
                loss = policy_loss(ratio, advantages, arguments.clip_range).mean()
                divergence = torch.zeros(())
                if arguments.kl_weight > 0:
                    reference, _ = sde_step(state, references[index], *span)
                    divergence = ((mean - reference) ** 2).mean() / (2 * deviation**2)
                ((loss + arguments.kl_weight * divergence) / len(part)).backward()
                totals["loss"] += loss.item() / len(steps)
                totals["kl"] += divergence.item() / len(steps)
                totals["clipped"] += ((ratio - 1).abs() > arguments.clip_range).float().mean().item() / len(steps)
            for parameter in self.parameters.values():
                if parameter.grad is not None:
                    parameter.grad = self.accelerator.reduce(parameter.grad, reduction="mean")
            norm = nn.utils.clip_grad_norm_(self.parameters.values(), arguments.max_grad_norm)
            if not bool(norm.isfinite()):
                raise ValueError(
                    f"The gradient is not finite at step {self.step}: lower learning_rate or noise_level; "
                    f"the last checkpoint in {arguments.output_dir} is untouched."
                )
            totals["grad_norm"] += norm.item() / len(parts)
            self.optimizer.step()
            self.optimizer.zero_grad(set_to_none=True)
        return totals

    def train(self) -> list[dict[str, float]]:
        """Run up to `max_steps`, resuming from the newest checkpoint in `output_dir` if there is one.

        Returns:
            The history: one dict a rollout with rewards, KL, share of clipped ratios and grad norm, and
            `eval_*` where an evaluation was made.
        """
        arguments = self.arguments
        folder = Path(arguments.output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        history = self._resume()
        started, first = time.perf_counter(), self.step
        if self.step == 0 and self.eval_examples:
            history.append({"step": 0, **self.evaluate()})
        while self.step < arguments.max_steps:
            rollout = self.rollout()
            scores, device = rollout.scores, rollout.trajectory.states.device
            learned = self._learn(rollout, group_advantages(scores["reward"], arguments.group_size).to(device))
            self.step += 1
            gathered = {
                name: self.accelerator.gather(values.to(self.accelerator.device)) for name, values in scores.items()
            }
            entry = {"step": self.step, **{name: values.mean().item() for name, values in gathered.items()}, **learned}
            last = self.step == arguments.max_steps
            if self.eval_examples and (last or (arguments.eval_steps and self.step % arguments.eval_steps == 0)):
                entry |= self.evaluate()
            history.append(entry)
            elapsed = time.perf_counter() - started
            left = elapsed / (self.step - first) * (arguments.max_steps - self.step)
            if self.accelerator.is_main_process:
                logger.info("step %d of %d, %.0f s left: %s", self.step, arguments.max_steps, left, json.dumps(entry))
            if last or self.step % arguments.save_steps == 0:
                self._save(history)
        return history

    @torch.no_grad()
    def evaluate(self, images_per_prompt: int = 4) -> dict[str, float]:
        """Mean rewards of the held-out examples, as `eval_*`, with fixed noise and the ODE sampler of `generate`."""
        totals: dict[str, list[torch.Tensor]] = {}
        arguments = self.arguments
        size = arguments.prompts_per_step
        for start in range(0, len(self.eval_examples), size):
            examples = self.eval_examples[start : start + size]
            repeated = [example for example in examples for _ in range(images_per_prompt)]
            conditions = self.image_prompts(examples, images_per_prompt).prepare(self.sampler)
            generator = torch.Generator().manual_seed(start)
            shape = (*conditions.shape, self.policy.config.latent_dim)
            tokens = self.sampler.sample(conditions, list(torch.randn(shape, generator=generator)))
            for name, values in self.score(tokens, repeated).items():
                totals.setdefault(name, []).append(values)
        return {f"eval_{name}": torch.cat(values).mean().item() for name, values in totals.items()}

    # --- Checkpoints -------------------------------------------------------------------------------------------------

    def _save(self, history: list[dict[str, float]]) -> None:
        """Write the trainable weights, the optimizer's state and the history; whole or not at all.

        Raises:
            ValueError: if the disk refuses, in every process.
        """
        output = Path(self.arguments.output_dir)
        with whole_folder(output / f"checkpoint-{self.step}") as partial:
            if self.accelerator.is_main_process:
                self._write(partial, history)
        if self.accelerator.is_main_process:
            keep_newest(output, 2)

    def _write(self, folder: Path, history: list[dict[str, float]]) -> None:
        save_file(
            {name: value.detach().contiguous() for name, value in self.parameters.items()},
            folder / "weights.safetensors",
        )
        names = list(self.parameters)
        moments = {
            f"{names[index]}/{key}": value.contiguous()
            for index, state in self.optimizer.state_dict()["state"].items()
            for key, value in state.items()
        }
        save_file(moments, folder / "optimizer.safetensors")
        state = {"step": self.step, "arguments": asdict(self.arguments)}
        (folder / "state.json").write_text(json.dumps(state, indent=1))
        (folder / "history.json").write_text(json.dumps(history, indent=1))

    def _resume(self) -> list[dict[str, float]]:
        found = checkpoints(self.arguments.output_dir)
        if not found:
            return []
        folder = found[-1]
        state = read_json(folder / "state.json", "remove the folder to resume from the checkpoint before it")
        kept = {name for name in asdict(self.arguments) if name not in ("max_steps", "save_steps", "output_dir")}
        different = sorted(name for name in kept if state["arguments"].get(name) != getattr(self.arguments, name))
        if different:
            raise ValueError(
                f"{folder} was made with other settings ({', '.join(different)}): choose another output_dir or the "
                "same settings."
            )
        try:
            weights, moments = (load_file(folder / f"{name}.safetensors") for name in ("weights", "optimizer"))
        except SafetensorError as error:
            raise ValueError(f"{folder} is damaged ({error}): remove it to resume from the one before.") from error
        if weights.keys() != self.parameters.keys():
            raise ValueError(f"{folder} holds other parameters than this model trains: choose another output_dir.")
        with torch.no_grad():
            for name, value in weights.items():
                self.parameters[name].copy_(value)
        saved = self.optimizer.state_dict()
        saved["state"] = {
            index: {key: moments[f"{name}/{key}"] for key in ("step", "exp_avg", "exp_avg_sq")}
            for index, name in enumerate(self.parameters)
            if f"{name}/step" in moments
        }
        self.optimizer.load_state_dict(saved)
        self.step = state["step"]
        return json.loads((folder / "history.json").read_text())
