"""The records hold through the trainer: its accumulation, clipping, optimizer, schedule, averages and data path."""

import copy

import pytest
import torch
from torch.utils.data import IterableDataset
from transformers import TrainerCallback

from tests.tiny import make_tokenizer
from unimedvl.modeling_unimedvl.blocks_unimedvl import BlockKind
from unimedvl.modeling_unimedvl.plans_unimedvl import PackPlan
from unimedvl.training.curriculum.trainer import UniMedVLTrainer
from unimedvl.training.data.collate import BatchInfo, Collator, SampleInfo
from unimedvl.training.data.sequences import SampleImage, TrainingSample
from unimedvl.training.data_recipe import DataRecipe, GroupRecipe
from unimedvl.training.recipe import OptimizerRecipe, TrainingRecipe
from unimedvl.unimed5m.schema import Record, RecordImage, Turn

from .records import GRAD_NORM, LOSS, OPTIMIZER
from .reference import RecordImages, load_model, our_name
from .test_training import (
    compare_gradient_norms,
    compare_outcome,
    forward_inputs,
    forward_seed,
    read_pack,
)
from .training_reference import TRAIN, Pack


class RecordedBatches(IterableDataset):
    """Micro-batches of the records, as `PackedRecords` gives its own."""

    def __init__(self, pack: Pack, arguments: list[dict]):
        self.pack, self.arguments = pack, arguments

    def settings(self):
        return {"recorded": self.pack.sample_lengths()}

    def __iter__(self):
        lengths = self.pack.sample_lengths()
        owners, labels = self.pack.tensors["sample_ids"][0], self.pack.tensors["labels"][0] != -100
        samples = [
            SampleInfo(
                f"sample-{number}",
                "recorded",
                "none",
                "all",
                0,
                0,
                int((labels & (owners == number)).sum()),
                int(((self.pack.kinds == BlockKind.NOISED) & (owners == number)).sum()),
                length,
            )
            for number, length in enumerate(lengths)
        ]
        for arguments in self.arguments:
            info = BatchInfo(samples, sum(lengths), {})
            yield {**arguments, "plan": PackPlan.from_batch(arguments), "info": info}


class GradientNorms(TrainerCallback):
    """Compares gradients before the optimizer uses them."""

    def __init__(self, golden, pointer: str):
        self.golden, self.pointer, self.total = golden, pointer, None

    def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
        self.total = compare_gradient_norms(self.golden, model, self.pointer)


@pytest.fixture(scope="module")
def train_images(golden) -> RecordImages:
    return RecordImages(golden, TRAIN)


@pytest.fixture(scope="module")
def batch(golden, model, train_images) -> Pack:
    return read_pack(golden, model.config, train_images, "batch")


@pytest.fixture
def train(tmp_path):
    """Trains on recorded micro-batches; returns the trainer and the log entries of its steps."""

    def train(learner, pack, arguments, callbacks=(), freeze=("vae",), accumulation=1, **changes):
        optimizer = {"learning_rate": 1e-3, "warmup_steps": 0, "max_grad_norm": 1e9, **changes.pop("optimizer", {})}
        recipe = TrainingRecipe(
            model="recorded",
            output_dir=str(tmp_path / "out"),
            data=DataRecipe([GroupRecipe("all", "recorded")]),
            steps=len(arguments) // accumulation,
            accumulation=accumulation,
            freeze=list(freeze),
            ce_weight=1.0,
            bf16=False,
            log_steps=1,
            optimizer=OptimizerRecipe(**optimizer),
            **changes,
        )
        trainer = UniMedVLTrainer(learner, recipe, RecordedBatches(pack, arguments), make_tokenizer())
        for callback in callbacks:
            trainer.add_callback(callback)
        trainer.train()
        return trainer, [entry for entry in trainer.state.log_history if "ce" in entry]

    return train


def test_losses_and_gradient_norms(golden, model, batch, train_images, train):
    inputs, _ = forward_inputs(golden, model, batch, train_images, "batch", forward_seed(golden))
    norms = GradientNorms(golden, "/forward/grad_norms")
    _, (entry,) = train(copy.deepcopy(model), batch, [inputs], [norms])
    golden.equal_all(TRAIN, "/forward", {"ce_loss": entry["ce"], "mse_loss": entry["mse"]}, relative=LOSS)
    golden.equal_all(TRAIN, "/forward", {"grad_total_norm": entry["grad_norm"]}, relative=GRAD_NORM)


def test_the_same_batch_twice_in_one_step_changes_nothing(golden, model, batch, train_images, train):
    """True means over the accumulation window: the reference's sum of two means would double the gradients."""
    inputs, _ = forward_inputs(golden, model, batch, train_images, "batch", forward_seed(golden))
    _, (entry,) = train(copy.deepcopy(model), batch, [inputs, inputs], accumulation=2)
    golden.equal_all(TRAIN, "/forward", {"grad_total_norm": entry["grad_norm"]}, relative=GRAD_NORM)


def test_frozen_understanding(golden, batch, train_images, train):
    learner = load_model(golden)
    inputs, _ = forward_inputs(golden, learner, batch, train_images, "batch", forward_seed(golden))
    train(learner, batch, [inputs], [GradientNorms(golden, "/freeze_und/grad_norms")], freeze=("vae", "und"))


def test_condition_dropout(golden, model, train_images, train, dropout_pack):
    pack = read_pack(golden, model.config, train_images, dropout_pack)
    seed = golden.argument(TRAIN, f"/{dropout_pack}/forward/seed")
    inputs, _ = forward_inputs(golden, model, pack, train_images, dropout_pack, seed)
    _, (entry,) = train(copy.deepcopy(model), pack, [inputs])
    facts = {"ce_loss": entry["ce"], "mse_loss": entry["mse"]}
    golden.equal_all(TRAIN, f"/{dropout_pack}/forward", facts, relative=LOSS)


def test_optimizer_steps_and_averages(golden, model, batch, train_images, train):
    pointer = "/optimizer"
    names = ("betas", "eps", "weight_decay")
    settings = {name: golden.argument(TRAIN, f"{pointer}/{name}") for name in names}
    settings |= {
        "learning_rate": golden.argument(TRAIN, f"{pointer}/lr"),
        "max_grad_norm": golden.argument(TRAIN, f"{pointer}/clip_grad_norm"),
    }
    count = len(golden.value(TRAIN, f"{pointer}/steps"))
    seeds = [golden.argument(TRAIN, f"{pointer}/steps/{number}/seed") for number in range(count)]
    inputs = [forward_inputs(golden, model, batch, train_images, "batch", seed)[0] for seed in seeds]
    learner = copy.deepcopy(model)
    decay = golden.argument(TRAIN, f"{pointer}/ema_decay")
    trainer, entries = train(learner, batch, inputs, optimizer=settings, ema_decay=decay)
    for number, entry in enumerate(entries):
        facts = {"ce": entry["ce"], "mse": entry["mse"], "grad_norm_before_clip": entry["grad_norm"]}
        golden.equal_all(TRAIN, f"{pointer}/steps/{number}", facts, relative=OPTIMIZER)
    average = {
        name: trainer.average.averages.get(our_name(name), learner.get_parameter(our_name(name)))
        for name in golden.value(TRAIN, f"{pointer}/param_norm_after")
    }
    final = forward_inputs(golden, model, batch, train_images, "batch", forward_seed(golden))
    compare_outcome(golden, learner, average, final)


@pytest.mark.parametrize("dropped", [False, True])
def test_the_collator_makes_the_recorded_packs(golden, model, train_images, dropped):
    """Blocks and images of the recorded samples through the training's own collator."""
    name = "batch_dropout" if dropped else "batch"
    pack = read_pack(golden, model.config, train_images, name)
    row = [recorded_sample(golden, sample, train_images, number) for number, sample in enumerate(pack.samples)]
    ours = Collator(model.config, seed=0)([row], 4096, {})
    for field in ("input_ids", "mm_token_type_ids", "position_ids", "block_ids", "sample_ids", "labels"):
        assert torch.equal(ours[field], pack.tensors[field]), field
    patches, grids = pack.patches(train_images)
    assert torch.equal(ours["image_grid_thw"], grids)
    torch.testing.assert_close(ours["pixel_values"], patches, rtol=0, atol=0)
    pixels = pack.latent_pixels(train_images)
    assert ours["latent_image_sizes"].tolist() == [list(image.shape[1:]) for image in pixels]
    for padded, image in zip(ours["latent_pixel_values"], pixels, strict=True):
        assert torch.equal(padded[:, : image.shape[1], : image.shape[2]], image)
    noised = [block.kind == BlockKind.NOISED for block in pack.latent_blocks()]
    assert [bool(time > 0) for time in ours["flow_timesteps"]] == noised


def recorded_sample(golden, sample, images: RecordImages, number: int) -> tuple[TrainingSample, Record]:
    """A recorded sample as the training's own layouts would pass it."""
    entries, held = [], []
    for block, index in zip(sample.blocks, sample.images, strict=True):
        if block.grid is None or block.dropped:
            continue
        latent = block.kind != BlockKind.VIT
        cell = images.processor.vae_transform["image_stride"] if latent else images.processor.patch_size
        size = (block.grid[1] * cell, block.grid[0] * cell)
        entries.append(SampleImage(False, len(held), (size,), latent))
        data = images.files[index].read_bytes()
        width, height = read_size(images, index)
        held.append(RecordImage(data, f"{len(held)}.png", height, width))
    record = Record(
        id=f"sample-{number}",
        main_task_type="image_understanding",
        sub_task_type="recorded",
        modality="CXR",
        dataset="golden",
        input_img=held,
        output_img=[],
        message=[Turn("human", "recorded"), Turn("gpt", "recorded")],
        license="CC0-1.0",
        license_tier="A",
        redistributable="yes",
        provenance="golden fixtures",
        split="train",
        group_id=f"sample-{number}",
    )
    blocks = TrainingSample(record.id, "recorded", "CXR", "all", 0, sample.blocks, entries)
    return blocks, record


def read_size(images: RecordImages, index: int) -> tuple[int, int]:
    from PIL import Image

    with Image.open(images.files[index]) as opened:
        return opened.size
