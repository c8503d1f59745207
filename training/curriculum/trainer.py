"""The curriculum's trainer: transformers' `Trainer` with two losses, packed data, averaged weights, exact resuming."""

import hashlib
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..adapters import bare_model, save_model
from ..checkpoints import (
    check_names,
    check_settings,
    gather,
    keep_newest,
    load_optimizer,
    load_tensors,
    optimizer_steps,
    optimizer_tensors,
    random_state,
    save_tensors,
    set_random_state,
    stored_tensors,
    whole_folder,
)
from ..data.collate import BatchInfo, to_device
from ..data.dataset import PackedRecords
from ..data.posterior_cache import LatentCache, scaled_latents
from ..recipe import StageRecipe, TrainingRecipe
from .acceleration import accelerate_model
from .ema import AverageWeights, WeightAverage
from .metrics import Operations, StepMetrics, peak_flops
from .parameter_groups import (
    freeze_parts,
    make_optimizer,
    make_schedule,
    training_settings,
    with_training_settings,
)
from .sharding import is_sharded, save_whole, undistributed
from .trainer_arguments import training_arguments
from .validation import ProgressLines, Validation, sample_sheet, save_sheet
from .watch import StepWatch


class UniMedVLTrainer(Trainer):
    """Trains a model on packed records.

    Both losses are divided by their true token counts over the whole accumulation window and all processes, so
    neither the split into micro-batches nor the number of processes changes a step. Checkpoints are whole or absent
    and hold weights, averages, optimizer, schedule, all generators and the place in the data; resuming from one gives
    the same bits as never having stopped.

    Args:
        model: `UniMedVLForConditionalGeneration`, in float32 for training; sharded or not.
        recipe: see `TrainingRecipe`.
        data: the packed records of this process.
        processor: saved with every checkpoint.
        cache: the autoencoder posteriors' cache that `data` uses.
        validation: what is validated on, if anything is.
    """

    def __init__(
        self,
        model: nn.Module,
        recipe: TrainingRecipe,
        data: PackedRecords,
        processor: Any,
        cache: LatentCache | None = None,
        validation: Validation | None = None,
    ):
        self.recipe, self.records, self.cache, self.validation = recipe, data, cache, validation
        self.processor, self.folder = processor, Path(recipe.output_dir)
        self.settings_before = training_settings(model.config)
        freeze_parts(model, recipe.freeze)
        if not is_sharded(model):
            accelerate_model(bare_model(model), recipe)
        config: Any = model.config
        config.ce_loss_weight, config.mse_loss_weight = recipe.ce_weight, recipe.mse_weight
        self.planner_state: dict[str, Any] | None = None
        # A chain over the ids of all records trained on, in their order.
        self.order = ""
        self.step_metrics = StepMetrics()
        self.operations, self.peak = Operations(model), peak_flops(recipe.peak_tflops)
        self.watch = StepWatch(recipe.spike_factor, recipe.output_dir)
        self._observed = -1
        self._since = time.perf_counter()
        self._begun: tuple[int, float] | None = None
        super().__init__(model=model, args=training_arguments(recipe), train_dataset=data, processing_class=processor)
        # After the model has moved to its device.
        self.average = WeightAverage(model, recipe.ema_decay) if recipe.ema_decay else None
        # Each micro-batch's loss is a part of the window's, not a mean of its own.
        self.loss_is_scaled_for_ga = True
        for callback in (PrinterCallback, ProgressCallback):
            self.remove_callback(callback)
        self.add_callback(AverageWeights(self))
        self.add_callback(ProgressLines)

    @property
    def bare(self) -> Any:
        """The model without what Accelerate puts around it."""
        return self.accelerator.unwrap_model(self.model)

    # --- Data --------------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        # Accelerate would deal the stream out a second time: every process takes its own part already.
        return DataLoader(
            self.records,
            batch_size=None,
            num_workers=self.args.dataloader_num_workers,
            # From pinned memory a micro-batch goes to the device while it works on the one before.
            pin_memory=self.args.device.type == "cuda",
            # Its workers' seed would otherwise be drawn from the global generator once more at every resuming.
            generator=torch.Generator(),
        )

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], Any]:
        """The micro-batches of a step, and the number of tokens that carry each loss in all of them, everywhere."""
        batches = [next(epoch_iterator) for _ in range(num_batches)]
        for batch in batches:
            if "refused" in batch:
                raise ValueError(batch["refused"])
        infos: list[BatchInfo] = [batch["info"] for batch in batches]
        samples = [sample for info in infos for sample in info.samples]
        counts = [sum(sample.label_tokens for sample in samples), sum(sample.flow_tokens for sample in samples)]
        shared: list[Any] = counts
        if self.args.world_size > 1:
            # They stay on the device: nobody has to know them but the loss.
            sent = torch.tensor(counts).to(device, non_blocking=True)
            shared = list(self.accelerator.reduce(sent, reduction="sum").unbind())
        self.step_metrics.count(infos)
        self.step_metrics.totals["operations"] += sum(map(self.operations, batches))
        ids = " ".join(f"{sample.record_id}/{sample.epoch}" for sample in samples)
        self.order = hashlib.sha256(f"{self.order} {ids}".encode()).hexdigest()
        self.planner_state = infos[-1].state
        return batches, {"labels": shared[0], "flow": shared[1]}

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        return to_device(inputs, self.args.device)

    # --- Losses ------------------------------------------------------------------------------------------------------

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """The part of the window's loss that one micro-batch contributes, times the number of processes, over which
        gradients are averaged."""
        assert isinstance(num_items_in_batch, dict)
        inputs = dict(inputs)
        info: BatchInfo = inputs.pop("info")
        if self.cache is not None and info.latent_inputs:
            inputs["latent_values"] = scaled_latents(bare_model(self.bare), info.latent_inputs, self.cache)
        output = model(
            **inputs,
            num_items_in_batch=num_items_in_batch["labels"],
            num_flow_tokens_in_batch=num_items_in_batch["flow"],
            skip_logits=True,
        )
        self.watch.add_loss(output.loss, info)
        self.step_metrics.add_losses(output, inputs, info)
        loss = output.loss * self.args.world_size
        return (loss, output) if return_outputs else loss

    def _get_grad_norm(self, model, grad_norm=None):
        norm = super()._get_grad_norm(model, grad_norm)
        norm = norm.full_tensor() if isinstance(norm, DTensor) else norm
        self.watch.end_step(self.state.global_step + 1, norm)
        return norm

    # --- Logs --------------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        if "loss" in logs:
            now = time.perf_counter()
            means, totals = self.step_metrics.close()
            seconds = now - self._since
            logs |= means | {"tokens_per_second": totals["tokens"] / seconds}
            if self.peak is not None:
                logs["mfu"] = totals["operations"] / seconds / (self.peak * self.args.world_size)
            if self._begun is not None and self.state.global_step > self._begun[0]:
                pace = (now - self._begun[1]) / (self.state.global_step - self._begun[0])
                logs["seconds_left"] = pace * (self.args.max_steps - self.state.global_step)
            self._begun = self._begun or (self.state.global_step, now)
            self._since = now
        # An endless stream has no epochs; the share of the run takes their place, also after resuming.
        self.state.epoch = self.state.global_step / self.args.max_steps
        super().log(logs, start_time)

    def _get_learning_rate(self) -> float:
        # transformers logs that of the first group, which may be one that stays frozen.
        assert self.lr_scheduler is not None
        return float(max(self.lr_scheduler.get_last_lr()))

    def _maybe_log_save_evaluate(self, tr_loss, grad_norm, model, *args, **kwargs):
        # Before anything is saved: what a checkpoint's history holds does not depend on when the run was stopped.
        if self.control.should_log or self.control.should_save or self.control.should_training_stop:
            self.watch.read()
        self._observe(model)
        super()._maybe_log_save_evaluate(tr_loss, grad_norm, model, *args, **kwargs)

    def _observe(self, model: nn.Module) -> None:
        step = self.state.global_step
        if step == self._observed:
            return
        validate = self.validation is not None and step % self.recipe.validation.every == 0
        sample = self.recipe.samples.every and step % self.recipe.samples.every == 0
        if not (validate or sample):
            return
        self._observed = step
        bare, generators, begun = self.bare, random_state(), time.perf_counter()
        if self.average is not None:
            self.average.exchange(bare)
        bare.eval()
        try:
            if validate:
                assert self.validation is not None
                due = self.control.should_log
                self.log(self.validation(bare, self.args.device))
                # Transformers takes any log entry for the one that was due.
                self.control.should_log = due
            if sample and (self.args.should_save or is_sharded(bare)):
                with self.compute_loss_context_manager():
                    sheet = sample_sheet(bare, self.processing_class, self.recipe.samples)
                if self.args.should_save:
                    save_sheet(sheet, self.folder / "samples", step)
        finally:
            bare.train()
            if self.average is not None:
                self.average.exchange(bare)
            set_random_state(generators)
        self._since += time.perf_counter() - begun

    # --- Optimizer ---------------------------------------------------------------------------------------------------

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            trained = model or self.model
            assert trained is not None
            self.optimizer = make_optimizer(trained, self.recipe.optimizer)
        return self.optimizer

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None):
        if self.lr_scheduler is None:
            chosen: Any = optimizer or self.optimizer
            self.lr_scheduler = make_schedule(
                getattr(chosen, "optimizer", chosen), self.recipe.optimizer, num_training_steps
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler

    def _bare_optimizer(self) -> torch.optim.Optimizer:
        assert self.optimizer is not None
        return getattr(self.optimizer, "optimizer", self.optimizer)

    def _names(self) -> dict[int, str]:
        return {id(parameter): name for name, parameter in self.bare.named_parameters()}

    # --- Checkpoints -------------------------------------------------------------------------------------------------

    def _weights(self) -> dict[str, torch.Tensor]:
        """Weights by "weights.NAME" and averages by "average.NAME", as a checkpoint holds them; of an adapter's run
        those that are trained, since the base does not change."""
        state = dict(self.bare.state_dict())
        if self.recipe.adapter is not None:
            state = {name: state[name] for name, weight in self.bare.named_parameters() if weight.requires_grad}
        tensors = {f"weights.{name}": tensor for name, tensor in state.items()}
        return tensors | (self.average.tensors() if self.average is not None else {})

    def _save_checkpoint(self, model, trial) -> None:
        folder = self.folder / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        optimizer, names = self._bare_optimizer(), self._names()
        assert self.lr_scheduler is not None
        states, orders, planners = gather(random_state()), gather(self.order), gather(self.planner_state)
        schedule = {name: value for name, value in self.lr_scheduler.state_dict().items() if name != "lr_lambdas"}
        with whole_folder(folder) as partial:
            save_tensors(self._weights() | optimizer_tensors(optimizer, names), partial)
            if self.args.should_save:
                self._save_settings(partial)
                self.state.save_to_json(str(partial / "trainer_state.json"))
                progress = {
                    # The last process took the stream's last micro-batch of this step.
                    "planner": planners[-1],
                    "random": states,
                    "order": orders,
                    "schedule": schedule,
                    "optimizer_steps": optimizer_steps(optimizer, names),
                    "recent": list(self.watch.recent),
                    "world": self.args.world_size,
                    "settings": self.records.settings(),
                }
                (partial / "progress.json").write_text(json.dumps(progress))
        if self.args.should_save:
            keep_newest(self.folder, self.recipe.keep_checkpoints)
        self.accelerator.wait_for_everyone()

    def _save_settings(self, folder: Path) -> None:
        with undistributed(self.bare.config):
            self.bare.config.save_pretrained(folder)
        self.bare.generation_config.save_pretrained(folder)
        self.processor.save_pretrained(folder)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        folder = Path(resume_from_checkpoint)
        tensors = self._weights()
        check_names(folder, tensors)
        progress = self._progress(folder)
        check_settings(folder, progress.get("settings", {}), self.records.settings())
        load_tensors(tensors, folder)
        self.planner_state = progress["planner"]
        self.watch.recent.extend(progress["recent"])
        if len(progress["order"]) == self.args.world_size:
            self.order = progress["order"][self.args.process_index]
        self.records.load_state_dict(self.planner_state)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None:
            return
        folder = Path(checkpoint)
        progress = self._progress(folder)
        optimizer = self._bare_optimizer()
        load_optimizer(optimizer, self._names(), folder, progress["optimizer_steps"])
        assert self.lr_scheduler is not None
        # The functions themselves come from the recipe.
        schedule = progress["schedule"] | {"lr_lambdas": [None] * len(progress["schedule"]["base_lrs"])}
        self.lr_scheduler.load_state_dict(schedule)
        for group, learning_rate in zip(optimizer.param_groups, self.lr_scheduler.get_last_lr(), strict=True):
            group["lr"] = learning_rate

    def carry(self, found: list[Path], stage: StageRecipe) -> None:
        """Start from the averages, and the moments if asked, of the stage before, where both stages train a weight."""
        if not found:
            return
        stored = stored_tensors(found[-1])
        if self.average is not None:
            tensors = {name: tensor for name, tensor in self.average.tensors().items() if name in stored}
            load_tensors(tensors, found[-1])
        if stage.optimizer == "carried":
            steps = self._progress(found[-1])["optimizer_steps"]
            self.create_optimizer()
            load_optimizer(self._bare_optimizer(), self._names(), found[-1], steps, strict=False)

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

    def resume(self, checkpoint: Path | None) -> None:
        """Train from a checkpoint, or from the start, to the last step."""
        if checkpoint is not None:
            state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
            if state.global_step >= self.args.max_steps:
                # Stopped between its last step and its finished model; transformers would do one step more.
                self._load_from_checkpoint(str(checkpoint))
                return
        self.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))

    def save_stage(self, folder: str | Path, average: bool) -> None:
        """Write the finished model with its processor, from the averaged weights if asked; every process calls it."""
        chosen = self.average if average else None
        bare = self.bare
        if chosen is not None:
            chosen.exchange(bare)
        # How this run trains is nothing of the weights: whoever trains the finished model says it anew.
        with whole_folder(folder) as partial, with_training_settings(bare.config, self.settings_before):
            if is_sharded(bare):
                with undistributed(bare.config):
                    save_whole(bare, partial)
            elif self.args.should_save:
                save_model(bare, partial)
            if self.args.should_save:
                self.processor.save_pretrained(partial)
        if chosen is not None:
            chosen.exchange(bare)
