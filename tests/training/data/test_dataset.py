"""Packed micro-batches: what a sample learns depends on itself alone, and the stream on the recipe alone."""

import itertools

import pytest
import torch
from torch.utils.data import DataLoader

from tests.tiny_checkpoint import tiny_checkpoint
from tests.training.record_folders import image, record, write_folder
from unimedvl.modeling_unimedvl.flow_unimedvl import shift_timesteps
from unimedvl.modeling_unimedvl.plans_unimedvl import PackPlan, map_tensors
from unimedvl.training.data.collate import Collator
from unimedvl.training.data.dataset import PackedRecords, RecordGroup
from unimedvl.training.data.packing import SampleKey
from unimedvl.training.data.posterior_cache import LatentCache, autoencoder_fingerprint, scaled_latents
from unimedvl.training.data_recipe import ConditionDropout, DataRecipe, GroupRecipe, ImageRange
from unimedvl.unimed5m.schema import RecordImage

COUNTS = {"vqa": 9, "dialogue": 5, "text_to_image": 6, "segmentation": 7, "counterfactual": 4}
RANGES = {"vae": ImageRange(16, 48), "vit": ImageRange(12, 36), "understanding": ImageRange(12, 48)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("records"), COUNTS)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    model, processor = tiny_checkpoint(tmp_path_factory.mktemp("model"))
    return model.train(), processor


@pytest.fixture
def make(folder, checkpoint):
    """A data set over the folder."""
    model, processor = checkpoint

    def make(
        rank=0,
        world=1,
        cache=None,
        tasks=("vqa", "dialogue", "text_to_image", "segmentation", "counterfactual"),
        shifts=None,
        shift=None,
        draws=1,
        **changes,
    ):
        shifts = shifts or {}
        groups = [
            GroupRecipe(task, str(folder), tasks=[task], timestep_shift=shifts.get(task), flow_draws=draws, **RANGES)
            for task in tasks
        ]
        settings = {
            "pack_tokens": 220,
            "rows_per_batch": 2,
            "open_packs": 3,
            "condition_dropout": ConditionDropout(0.3, 0.2, 0.2),
        }
        recipe = DataRecipe(groups, **{**settings, **changes})

        def encode(text):
            return processor.tokenizer.encode(text, add_special_tokens=False)

        opened = [RecordGroup(group) for group in recipe.groups]
        return PackedRecords(opened, recipe, encode, model.config, 7, rank, world, shift, cache)

    return make


def arguments(batch):
    return {name: value for name, value in batch.items() if name != "info"}


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name, value in left.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, right[name]), name
        elif isinstance(value, PackPlan):
            assert map_tensors(value, torch.Tensor.tolist) == map_tensors(right[name], torch.Tensor.tolist), name
        elif isinstance(value, list):
            assert all(torch.equal(one, other) for one, other in zip(value, right[name], strict=True)), name
        else:
            assert value == right[name], name


def take(data, count):
    return list(itertools.islice(data, count))


def losses(model, batch):
    """Sums of both losses, so that batches can be added up."""
    output = model(**arguments(batch), num_items_in_batch=1, num_flow_tokens_in_batch=1)
    return torch.stack([output.ce_loss, output.mse_loss])


def single_batches(data, packs):
    """Every sample of some packs in a micro-batch of its own."""
    for pack in packs:
        for key in pack.keys:
            sample = data.sample(key)
            yield data.collate([[(sample, data.groups[key.group].record(key.index))]], sample.num_tokens, {})


def test_packed_equals_unpacked_in_losses_and_gradients(make, checkpoint):
    model, data = checkpoint[0], make()
    packs = next(data.plan())
    model.zero_grad()
    together = losses(model, data.batch(packs))
    together.sum().backward()
    packed = {name: value.grad.clone() for name, value in model.named_parameters() if value.grad is not None}
    model.zero_grad()
    alone = torch.zeros(2)
    for batch in single_batches(data, packs):
        batch = arguments(batch)
        output = model(**batch, num_items_in_batch=1, num_flow_tokens_in_batch=1)
        parts = [part for part in (output.ce_loss, output.mse_loss) if part is not None]
        sum(parts).backward()
        alone += torch.stack(
            [part.detach() if part is not None else torch.zeros(()) for part in (output.ce_loss, output.mse_loss)]
        )
    torch.testing.assert_close(alone, together.detach(), rtol=1e-5, atol=1e-5)
    for name, value in model.named_parameters():
        if name in packed:
            scale = packed[name].abs().max().clamp(min=1.0)
            assert ((value.grad - packed[name]).abs().max() / scale) < 1e-5, name


def test_no_token_of_a_sample_reaches_another_ones_loss(make, checkpoint):
    model, data = checkpoint[0], make(rows_per_batch=1)
    batch = next(iter(data))
    samples = batch["sample_ids"][0]
    assert len(batch["info"].samples) >= 3

    def per_sample(changed):
        with torch.no_grad():
            output = model(**arguments(changed))
        labeled = (changed["labels"] != -100)[0]
        rows = torch.nn.functional.cross_entropy(
            output.logits.float(), changed["labels"][0][labeled], reduction="none"
        )
        error = ((output.velocity - output.flow_target) ** 2).mean(dim=-1)
        noised = samples[changed["mm_token_type_ids"][0] == 3]
        return {
            number: (rows[samples[labeled] == number].sum().item(), error[noised == number].sum().item())
            for number in range(len(batch["info"].samples))
        }

    before = per_sample(batch)
    for victim in range(len(batch["info"].samples)):
        changed = dict(batch)
        text = (samples == victim) & (batch["mm_token_type_ids"][0] == 0) & (batch["block_ids"][0] < 0)
        place = torch.nonzero(text)[1, 0]
        changed["input_ids"] = batch["input_ids"].clone()
        changed["input_ids"][0, place] = (changed["input_ids"][0, place] + 5) % 100
        after = per_sample(changed)
        for number in before:
            if number != victim:
                assert after[number] == before[number]


def test_a_group_moves_the_times_of_its_own_images_towards_noise(make):
    tasks = ("text_to_image", "segmentation")
    plain = take(make(tasks=tasks, shift=1.0), 3)
    moved = take(make(tasks=tasks, shift=2.0, shifts={"segmentation": 8.0}), 3)
    for before, after in zip(plain, moved, strict=True):
        made = [info.task for info in before["info"].samples]
        times, later = (batch["flow_timesteps"][batch["flow_timesteps"] > 0] for batch in (before, after))
        assert len(times) == len(made) and {"text_to_image", "segmentation"} == set(made)
        for time, shifted, task in zip(times, later, made, strict=True):
            own = 8.0 if task == "segmentation" else 2.0
            torch.testing.assert_close(shifted, shift_timesteps(time, own))


@pytest.mark.parametrize("task", ["text_to_image", "segmentation", "counterfactual"])
def test_draws_of_one_image_are_learned_as_if_each_were_alone(make, checkpoint, task):
    whole = {"condition_dropout": ConditionDropout(0.0, 0.0, 0.0)}
    model, data, single = checkpoint[0], make(tasks=(task,), draws=3, **whole), make(tasks=(task,), **whole)
    key, stored = SampleKey(0, 1, 0), data.groups[0].record(1)
    one, many = (arguments(part.collate([[(part.sample(key), stored)]], 400, {})) for part in (single, data))
    clean = len(one["flow_timesteps"]) - 1
    times = many["flow_timesteps"]
    assert torch.equal(times[: clean + 1], one["flow_timesteps"]) and len(times.unique()) == 3 + min(clean, 1)
    size = len(one["flow_noise"])
    with torch.no_grad():
        found = model(**many)
        velocities = found.velocity.split(size)
        for number, velocity in enumerate(velocities):
            alone = {
                "flow_timesteps": torch.cat([times[:clean], times[clean + number, None]]),
                "flow_noise": many["flow_noise"][number * size : (number + 1) * size],
                "vae_noise": [*many["vae_noise"][:clean], many["vae_noise"][clean + number]],
            }
            expected = model(**{**one, **alone})
            torch.testing.assert_close(velocity, expected.velocity, rtol=0, atol=1e-5)
            torch.testing.assert_close(found.ce_loss, expected.ce_loss)


def test_noise_and_time_of_a_record_are_drawn_anew_each_epoch_and_by_its_own_seed(make, checkpoint):
    data = make(tasks=("text_to_image",))
    stored = data.groups[0].record(0)

    def drawn(epoch, seed):
        sample = data.sample(SampleKey(0, 0, epoch))
        batch = Collator(checkpoint[0].config, seed)([[(sample, stored)]], sample.num_tokens, {})
        return [batch["flow_noise"], batch["flow_timesteps"], batch["vae_noise"][0]]

    first, again, later, other = drawn(0, 7), drawn(0, 7), drawn(1, 7), drawn(0, 8)
    for values in zip(first, again, later, other, strict=True):
        assert torch.equal(values[0], values[1])
        assert not torch.equal(values[0], values[2]) and not torch.equal(values[0], values[3])
    # Draws of the standard normal law, not of a narrower one and not the same for neighbors.
    noise = torch.cat([drawn(epoch, 7)[0].flatten() for epoch in range(40)])
    assert abs(noise.mean().item()) < 4 / len(noise) ** 0.5
    assert noise.var().item() == pytest.approx(1, abs=4 * (2 / len(noise)) ** 0.5)


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_one_stream(make, world):
    whole = take(make(), 6)
    parts = [take(make(rank=rank, world=world), 6 // world) for rank in range(world)]
    for number, batch in enumerate(whole):
        assert_equal(arguments(batch), arguments(parts[number % world][number // world]))


def test_workers_give_the_stream_in_order(make):
    expected = take(make(), 7)
    given = take(DataLoader(make(), batch_size=None, num_workers=2, multiprocessing_context="fork"), 7)
    for one, other in zip(expected, given, strict=True):
        assert_equal(arguments(one), arguments(other))
        assert one["info"].state == other["info"].state


@pytest.mark.parametrize("stop", [1, 4])
def test_the_stream_resumes_from_a_state(make, stop):
    whole = take(make(), stop + 3)
    again = make()
    again.load_state_dict(whole[stop - 1]["info"].state)
    for one, other in zip(whole[stop:], take(again, 3), strict=True):
        assert_equal(arguments(one), arguments(other))


@pytest.mark.parametrize("tasks", [("vqa",), ("dialogue",), ("text_to_image",), ("segmentation", "counterfactual")])
def test_packs_of_any_kind_alone_are_legal(make, checkpoint, tasks):
    model = checkpoint[0]
    batch = next(iter(make(tasks=tasks)))
    output = model(**arguments(batch))
    output.loss.backward()
    assert torch.isfinite(output.loss)
    info = batch["info"]
    assert sum(sample.label_tokens for sample in info.samples) == int((batch["labels"] != -100).sum())
    assert sum(sample.flow_tokens for sample in info.samples) == int((batch["mm_token_type_ids"] == 3).sum())
    assert sum(sample.num_tokens for sample in info.samples) == int((batch["sample_ids"] >= 0).sum())


def test_cached_latents_equal_encoded_ones_and_are_read_back(make, checkpoint, tmp_path):
    model = checkpoint[0]
    plain = take(make(), 3)
    fingerprint = autoencoder_fingerprint(model)
    for round_number in range(2):
        cache = LatentCache(tmp_path, fingerprint)
        for batch, expected in zip(take(make(cache=cache), 3), plain, strict=True):
            inputs = batch["info"].latent_inputs
            if round_number == 1:
                assert all(item.pixels is None for item in inputs)
            latents = scaled_latents(model, inputs, cache)
            with torch.no_grad():
                cached = model(**arguments(batch), latent_values=latents)
                encoded = model(**arguments(expected))
            torch.testing.assert_close(cached.loss, encoded.loss)


def test_a_torn_cache_file_is_made_again(make, checkpoint, tmp_path):
    model = checkpoint[0]
    cache = LatentCache(tmp_path, "x")
    batch = next(iter(make(cache=cache)))
    first = scaled_latents(model, batch["info"].latent_inputs, cache)
    for path in tmp_path.rglob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:40])
    again = next(iter(make(cache=cache)))
    for one, other in zip(first, scaled_latents(model, again["info"].latent_inputs, cache), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    "broken, message",
    [
        (RecordImage(b"no image", "a.png", 32, 40), "vqa-1-train: a.png cannot be read"),
        (RecordImage(image(5, 24, 24).data, "a.png", 32, 40), "24 x 24 pixels, its record says 40 x 32"),
        (RecordImage(None, "a.png", 32, 40, "00"), "relink"),
    ],
)
def test_a_broken_image_names_its_record(make, checkpoint, broken, message):
    data = make()
    wrong = record("vqa", 1)
    object.__setattr__(wrong, "input_img", [broken])
    sample = data.layouts[0](wrong, 0)
    for epoch in range(5):  # the image may be dropped in one of them
        sample = data.layouts[0](wrong, epoch)
        if sample.images:
            break
    with pytest.raises(ValueError, match=message):
        Collator(checkpoint[0].config, 0)([[(sample, wrong)]], 100, {})


def test_an_empty_group_says_where_to_look(folder):
    with pytest.raises(ValueError, match="Group 'none'.*holds no train record"):
        RecordGroup(GroupRecipe("none", str(folder), tasks=["report"]))
