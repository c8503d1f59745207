"""A recipe as the arguments of transformers' `Trainer`."""

import torch
from transformers import TrainingArguments

from ..recipe import TrainingRecipe


def training_arguments(recipe: TrainingRecipe) -> TrainingArguments:
    """Transformers' arguments of a recipe."""
    on_cpu = not torch.cuda.is_available()
    return TrainingArguments(
        output_dir=recipe.output_dir,
        max_steps=recipe.steps,
        gradient_accumulation_steps=recipe.accumulation,
        per_device_train_batch_size=1,
        max_grad_norm=recipe.optimizer.max_grad_norm,
        bf16=recipe.bf16,
        use_cpu=on_cpu,
        logging_steps=recipe.log_steps,
        logging_nan_inf_filter=False,
        disable_tqdm=True,
        save_steps=recipe.save_steps,
        # Transformers refuses to save the optimizer of a sharded model; what is saved is ours to say.
        save_only_model=recipe.parallelism == "fsdp2",
        report_to=recipe.report_to,
        remove_unused_columns=False,
        ignore_data_skip=True,
        dataloader_num_workers=recipe.data.workers,
        # The detached expert's weights are trained in name only, and get no gradient.
        ddp_find_unused_parameters="und" in recipe.freeze,
        seed=recipe.seed,
    )
