"""The curriculum's trainer: transformers' `Trainer` with two losses, packed data, averaged weights, exact resuming."""

import json
import logging
import shutil
import statistics
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader
from transformers import Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from unimedvl.modeling_unimedvl.blocks_unimedvl import is_flow_target

from .adapters import bare_model
from .checkpoints import checkpoints, load_optimizer, random_state, save_optimizer, set_random_state, whole_folder
from .collate import BatchInfo
from .dataset import PackedRecords
from .ema import WeightAverage
from .latents import LatentCache, scaled_latents
from .optimisation import freeze_parts, make_optimizer, make_schedule
from .recipe import TrainingRecipe

logger = logging.getLogger(__name__)

_LOSS_ROWS = 1024  # labels whose losses are looked at together, so that no second copy of all logits is made


class _AverageWeights(TrainerCallback):
    def __init__(self, trainer: "UniMedVLTrainer"):
        self.trainer = trainer

    def on_optimizer_step(self, args, state, control, **kwargs):
        if self.trainer.average is not None:
            self.trainer.average.update(self.trainer.accelerator.unwrap_model(self.trainer.model))


def training_arguments(recipe: TrainingRecipe) -> TrainingArguments:
    """Transformers' arguments of a recipe."""
    on_cpu = not torch.cuda.is_available()
    checkpointing: dict[str, Any] = {}
    if recipe.gradient_checkpointing:
        checkpointing = {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": False}}
    return TrainingArguments(
        output_dir=recipe.output_dir,
        max_steps=recipe.steps,
        gradient_accumulation_steps=recipe.accumulation,
        per_device_train_batch_size=1,
        max_grad_norm=recipe.optimizer.max_grad_norm,
        bf16=recipe.bf16,
        use_cpu=on_cpu,
        **checkpointing,
        logging_steps=recipe.log_steps,
        logging_nan_inf_filter=False,
        save_steps=recipe.save_steps,
        save_total_limit=recipe.keep_checkpoints,
        report_to=recipe.report_to,
        remove_unused_columns=False,
        ignore_data_skip=True,
        dataloader_num_workers=recipe.data.workers,
        ddp_find_unused_parameters=False,
        seed=recipe.seed,
    )


class UniMedVLTrainer(Trainer):
    """Trains a model on packed records.

    Both losses are divided by their true token counts over the whole accumulation window and all processes, so
    neither the split into micro-batches nor the number of processes changes a step. Checkpoints are whole or absent
    and hold weights, averages, optimiser, schedule, all generators and the place in the data; going on from one gives
    the same bits as never having stopped.

    Args:
        model: `UniMedVLForConditionalGeneration`, in float32 for training.
        recipe: see `TrainingRecipe`.
        data: the packed records of this process.
        processor: saved with every checkpoint.
        cache: of posteriors, the one that `data` uses.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: TrainingRecipe,
        data: PackedRecords,
        processor: Any,
        cache: LatentCache | None = None,
    ):
        self.recipe, self.cache = recipe, cache
        freeze_parts(model, recipe.freeze)
        model.config.ce_loss_weight, model.config.mse_loss_weight = recipe.ce_weight, recipe.mse_weight
        self.planner_state: dict[str, Any] | None = None
        self._recent: deque[float] = deque(maxlen=100)
        self._window: list[BatchInfo] = []
        self._sums: dict[str, list[float]] = {}
        self._since = time.perf_counter()
        super().__init__(model=model, args=training_arguments(recipe), train_dataset=data, processing_class=processor)
        # After the model has moved to its device.
        self.average = WeightAverage(model, recipe.ema_decay) if recipe.ema_decay else None
        # Each micro-batch's loss is a part of the window's, not a mean of its own.
        self.loss_is_scaled_for_ga = True
        self.add_callback(_AverageWeights(self))

    # --- Data --------------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        # Accelerate would deal the stream out a second time: every process takes its own part already.
        return DataLoader(
            self.train_dataset,
            batch_size=None,
            num_workers=self.args.dataloader_num_workers,
            # Its workers' seed would else be drawn from the global generator once more at every resuming.
            generator=torch.Generator(),
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], dict[str, int]]:
        """The micro-batches of a step, and the number of tokens that carry each loss in all of them, everywhere."""
        batches = [next(epoch_iterator) for _ in range(num_batches)]
        self._window = [batch["info"] for batch in batches]
        samples = [sample for info in self._window for sample in info.samples]
        counts = torch.tensor(
            [sum(sample.label_tokens for sample in samples), sum(sample.flow_tokens for sample in samples)],
            device=device,
        )
        labels, flow = self.accelerator.reduce(counts, reduction="sum").tolist()
        tokens, capacity = (
            sum(sample.num_tokens for sample in samples),
            sum(info.capacity for info in self._window),
        )
        self._add("tokens", tokens, 1.0)
        self._add("padding", capacity - tokens, capacity)
        # The last process took the stream's last micro-batch of this step.
        last = self._window[-1].state
        if self.args.world_size > 1:
            shared = [last]
            torch.distributed.broadcast_object_list(shared, src=self.args.world_size - 1)
            last = shared[0]
        self.planner_state = last
        return batches, {"labels": labels, "flow": flow}

    # --- Losses ------------------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The part of the window's loss that one micro-batch contributes, times the number of processes, over which
        gradients are averaged."""
        assert isinstance(num_items_in_batch, dict)
        inputs = dict(inputs)
        info: BatchInfo = inputs.pop("info")
        if self.cache is not None and info.latent_inputs:
            bare = bare_model(self.accelerator.unwrap_model(model))
            inputs["latent_values"] = scaled_latents(bare, info.latent_inputs, self.cache)
        output = model(
            **inputs,
            num_items_in_batch=num_items_in_batch["labels"],
            num_flow_tokens_in_batch=num_items_in_batch["flow"],
        )
        self._guard(output.loss, info)
        self._note(output, inputs, info, num_items_in_batch)
        loss = output.loss * self.args.world_size
        return (loss, output) if return_outputs else loss

    def _guard(self, loss: torch.Tensor, info: BatchInfo) -> None:
        if not bool(torch.isfinite(loss)):
            names = ", ".join(sample.record_id for sample in info.samples)
            raise ValueError(
                f"The loss is {loss.item()} at step {self.state.global_step + 1} on the records {names}; the last "
                f"checkpoint in {self.args.output_dir} is untouched."
            )

    @torch.no_grad()
    def _note(self, output: Any, inputs: dict[str, Any], info: BatchInfo, counts: dict[str, int]) -> None:
        """Add the micro-batch to the sums of the next log line: losses of each task and modality."""
        first, number_of_row = [], 0
        for row in range(inputs["sample_ids"].shape[0]):
            first.append(number_of_row)
            number_of_row += sum(sample.row == row for sample in info.samples)
        samples = inputs["sample_ids"] + torch.tensor(first, device=inputs["sample_ids"].device)[:, None]
        labelled = inputs["labels"][:, 1:] != -100
        losses = [
            F.cross_entropy(logits.float(), labels, reduction="none")
            for logits, labels in zip(
                output.logits.detach().split(_LOSS_ROWS),
                inputs["labels"][:, 1:][labelled].split(_LOSS_ROWS),
                strict=True,
            )
            if len(labels)
        ]
        if losses:
            self._add_by_sample("ce", torch.cat(losses), samples[:, 1:][labelled], info)
        noised = is_flow_target(inputs["mm_token_type_ids"])
        if output.velocity is not None and bool(noised.any()):
            errors = (output.velocity.detach().float() - output.flow_target.float()).square().mean(dim=-1)
            self._add_by_sample("mse", errors, samples[noised], info)

    def _add_by_sample(self, loss: str, values: torch.Tensor, owners: torch.Tensor, info: BatchInfo) -> None:
        count = len(info.samples)
        sums = torch.zeros(count, device=values.device).index_add_(0, owners, values).tolist()
        counts = torch.bincount(owners, minlength=count).tolist()
        for sample, total, tokens in zip(info.samples, sums, counts, strict=True):
            if tokens:
                for name in (loss, f"{loss}/{sample.task}", f"{loss}/modality/{sample.modality}"):
                    self._add(name, total, tokens)

    def _add(self, name: str, value: float, weight: float) -> None:
        sums = self._sums.setdefault(name, [0.0, 0.0])
        sums[0] += value
        sums[1] += weight

    def training_step(self, model, inputs, num_items_in_batch=None):
        loss = super().training_step(model, inputs, num_items_in_batch)
        self._step_loss = getattr(self, "_step_loss", 0.0) + loss.item() / self.args.world_size
        if self.accelerator.sync_gradients:
            self._check_spike(self._step_loss)
            self._step_loss = 0.0
        return loss

    def _check_spike(self, loss: float) -> None:
        factor = self.recipe.spike_factor
        if factor and len(self._recent) == self._recent.maxlen and loss > factor * statistics.median(self._recent):
            names = ", ".join(sample.record_id for info in self._window for sample in info.samples)
            raise ValueError(
                f"The loss jumped to {loss:.4g} at step {self.state.global_step + 1}, {factor:g} times its median, on "
                f"the records {names}; the last checkpoint in {self.args.output_dir} is untouched."
            )
        self._recent.append(loss)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            now = time.perf_counter()
            gathered = [self._sums]
            if self.args.world_size > 1:
                gathered = [{} for _ in range(self.args.world_size)]
                torch.distributed.all_gather_object(gathered, self._sums)
            for name in sorted({name for sums in gathered for name in sums}):
                total, weight = (sum(sums.get(name, [0.0, 0.0])[place] for sums in gathered) for place in (0, 1))
                if name == "tokens":
                    logs["tokens_per_second"] = total / (now - self._since)
                else:
                    logs[name] = total / weight
            self._sums, self._since = {}, now
        # An endless stream has no epochs; the share of the run takes their place, also after resuming.
        self.state.epoch = self.state.global_step / self.args.max_steps
        super().log(logs, start_time)

    # --- Optimiser ---------------------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            self.optimizer = make_optimizer(model or self.model, self.recipe.optimizer)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        if self.lr_scheduler is None:
            chosen = optimizer or self.optimizer
            self.lr_scheduler = make_schedule(
                getattr(chosen, "optimizer", chosen), self.recipe.optimizer, num_training_steps
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _names(self) -> dict[int, str]:
        bare = self.accelerator.unwrap_model(self.model)
        return {id(parameter): name for name, parameter in bare.named_parameters()}

    # --- Checkpoints -------------------------------------------------------------------------------------------------

    def _save_checkpoint(self, model, trial) -> None:
        folder = Path(self.args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        states = [random_state()]
        if self.args.world_size > 1:
            gathered: list[Any] = [None] * self.args.world_size
            torch.distributed.all_gather_object(gathered, states[0])
            states = gathered
        if self.args.should_save:
            with whole_folder(folder) as partial:
                self._save(str(partial))
                if self.average is not None:
                    self.average.save(partial / "average.safetensors")
                assert self.optimizer is not None and self.lr_scheduler is not None
                optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
                save_optimizer(optimizer, self._names(), partial / "optimizer.safetensors")
                schedule = {
                    name: value for name, value in self.lr_scheduler.state_dict().items() if name != "lr_lambdas"
                }
                self.state.save_to_json(str(partial / "trainer_state.json"))
                progress = {
                    "planner": self.planner_state,
                    "random": states,
                    "schedule": schedule,
                    "recent": list(self._recent),
                    "world": self.args.world_size,
                }
                (partial / "progress.json").write_text(json.dumps(progress))
            for old in checkpoints(self.args.output_dir)[: -self.recipe.keep_checkpoints]:
                shutil.rmtree(old)
        self.accelerator.wait_for_everyone()

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        folder = Path(resume_from_checkpoint)
        if self.average is not None:
            self.average.load(folder / "average.safetensors")
        progress = self._progress(folder)
        self.planner_state = progress["planner"]
        self._recent.extend(progress["recent"])
        self.train_dataset.load_state_dict(self.planner_state)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        assert self.optimizer is not None and self.lr_scheduler is not None
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        load_optimizer(optimizer, self._names(), folder / "optimizer.safetensors")
        schedule = self._progress(folder)["schedule"]
        # The functions themselves come from the recipe.
        schedule["lr_lambdas"] = [None] * len(schedule["base_lrs"])
        self.lr_scheduler.load_state_dict(schedule)
        for group, rate in zip(optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = rate

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            states = self._progress(Path(checkpoint))["random"]
            if len(states) == self.args.world_size:
                set_random_state(states[self.args.process_index])

    def _load_scaler(self, checkpoint: str | None) -> None:
        """Nothing: bfloat16 needs no scaler."""

    @staticmethod
    def _progress(folder: Path) -> dict[str, Any]:
        return json.loads((folder / "progress.json").read_text())

    def save_stage(self, folder: str | Path, average: bool) -> None:
        """Write the finished model with its processor, from the averaged weights if asked."""
        chosen = self.average if average else None
        bare = self.accelerator.unwrap_model(self.model)
        if chosen is not None:
            chosen.exchange(bare)
        if self.args.should_save:
            with whole_folder(folder) as partial:
                bare.save_pretrained(partial)
                self.processing_class.save_pretrained(partial)
        if chosen is not None:
            chosen.exchange(bare)
        self.accelerator.wait_for_everyone()
