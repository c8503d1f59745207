"""Packs, losses, gradients, freezing, condition dropout and a short optimizer run."""

import copy

import pytest
import torch
import torch.nn.functional as F

from .records import GRAD_NORM, LOSS, OPTIMIZER, escape
from .reference import JSON, RecordImages, load_model, our_name, pad_pixels
from .training_reference import (
    FILE,
    ROWS,
    TRAIN,
    Pack,
    Sample,
    entry_size,
    find_dropout,
    forward_arguments,
    image_numbers,
    plan_blocks,
    read_sample,
)


@pytest.fixture(scope="module")
def train_images(golden) -> RecordImages:
    return RecordImages(golden, TRAIN)


@pytest.fixture
def learner(model):
    """A copy in training mode, whose weights and gradients a test may change."""
    return copy.deepcopy(model).train()


def read_pack(golden, config, images: RecordImages, name: str) -> Pack:
    """A recorded pack with its dropped conditions, if it has any."""
    count = len(golden.value(TRAIN, f"/{name}/samples"))
    samples = [read_sample(golden, f"/{name}/samples/{number}", images, config) for number in range(count)]
    if golden.value(TRAIN, f"/{name}/dropped_text_vit_vae") is None:
        return Pack(config, samples)
    return find_dropout(golden, name, config, samples)


@pytest.fixture(scope="module")
def batch(golden, model, train_images) -> Pack:
    return read_pack(golden, model.config, train_images, "batch")


def forward_inputs(golden, model, pack: Pack, images: RecordImages, name: str, seed: int):
    raw = pack.raw_timesteps(golden.argument(TRAIN, f"/{name}/python_random_and_numpy_seed"))
    return forward_arguments(model, pack, images, raw, seed, golden.argument(TRAIN, "/forward/timestep_shift"))


@pytest.fixture(scope="module")
def batch_arguments(golden, model, batch, train_images) -> dict:
    seed = golden.argument(TRAIN, "/forward/seed")
    return forward_inputs(golden, model, batch, train_images, "batch", seed)[0]


# Packs


def compare_samples(golden, pack: Pack, images: RecordImages, pointer: str):
    for number, sample in enumerate(pack.samples):
        compare_sample(golden, sample, images, f"{pointer}/{number}")


def compare_sample(golden, sample: Sample, images: RecordImages, pointer: str):
    texts = [block.token_ids for block in sample.blocks if block.grid is None]
    cells = [rows * columns for block in sample.blocks if block.grid is not None for rows, columns in [block.grid]]
    facts = {"text_ids_list": texts, "num_tokens": sum(map(len, texts)) + sum(cells)}
    golden.equal_all(TRAIN, pointer, facts)
    for step, (entry, index) in enumerate(zip(sample.plan, sample.images, strict=True)):
        if index is not None:
            place = f"{pointer}/sequence_plan/{step}"
            golden.equal_all(TRAIN, place, {"image_chw": entry_size(entry, index, images)})


def compare_pack(golden, pack: Pack, name: str, seed: int):
    golden.compare_all(FILE, f"{name}.", pack.fields())
    golden.equal_all(TRAIN, f"/{name}", pack.facts())
    raw = pack.per_latent_token(torch.tensor(pack.raw_timesteps(seed)))
    golden.compare_all(FILE, f"{name}.", {"packed_timesteps": raw})


def test_prompts_and_special_tokens(golden, model):
    """Both halves of the fixtures speak of the same tokens, and the model's configuration does too."""
    config = model.config
    special_tokens = {
        "bos_token_id": config.bos_token_id,
        "eos_token_id": config.eos_token_id,
        "start_of_image": config.vision_start_token_id,
        "end_of_image": config.vision_end_token_id,
    }
    for file in (JSON, TRAIN):
        golden.equal_all(file, "/special_tokens", special_tokens)
    for name in golden.value(TRAIN, "/prompts"):
        golden.equal(TRAIN, f"/prompts/{escape(name)}", golden.argument(JSON, f"/prompts/{escape(name)}"))
    golden.equal_all(TRAIN, "", {"vae_image_downsample": config.pixels_per_latent_token})


def test_pack(golden, model, train_images, train_pack):
    name = train_pack
    pack = read_pack(golden, model.config, train_images, name)
    compare_pack(golden, pack, name, golden.argument(TRAIN, f"/{name}/python_random_and_numpy_seed"))
    compare_samples(golden, pack, train_images, f"/{name}/samples")
    padded = pad_pixels(pack.latent_pixels(train_images))
    patches, _ = pack.patches(train_images)
    golden.compare_all(FILE, f"{name}.", {"padded_images": padded, "packed_vit_tokens": patches})
    dropped = [block.kind for sample in pack.samples for block in sample.blocks if block.dropped]
    counts = {"dropped_text_vit_vae": [dropped.count(kind) for kind in (0, 1, 2)]}
    golden.equal_all(TRAIN, f"/{name}", counts)
    compare_flex_padding(golden, pack, f"/{name}/use_flex")


def compare_flex_padding(golden, pack: Pack, pointer: str):
    """The reference's flex path knows a pack by its splits, and fills it up with one causal split."""
    if golden.value(TRAIN, pointer) is None:
        return
    lengths, modes = pack.splits()
    padding = golden.argument(TRAIN, f"{pointer}/max_num_tokens") - sum(lengths)
    facts = {
        "split_lens": [*lengths, padding],
        "attn_modes": [*modes, "causal"],
        "sample_lens": [*pack.sample_lengths(), padding],
    }
    golden.equal_all(TRAIN, pointer, facts)


def test_pack_with_video_and_labels_of_markers(golden, model, plain_pack):
    pointer = f"/{plain_pack}"
    plan = golden.argument(TRAIN, f"{pointer}/sequence_plan")
    sizes = {f"{kind}_image": golden.argument(TRAIN, f"{pointer}/{kind}_chw") for kind in ("vae", "vit")}
    entries = [entry | ({"image_chw": sizes[entry["type"]]} if entry["type"] in sizes else {}) for entry in plan]
    texts = golden.argument(TRAIN, f"{pointer}/text_ids_list")
    pack = Pack(model.config, [Sample(entries, plan_blocks(entries, texts, model.config))])
    compare_pack(golden, pack, plain_pack, golden.argument(TRAIN, f"{pointer}/numpy_seed"))


def test_merged_instructions(golden, model, train_images):
    """Two instructions as one text: which images of the row the plan's first and last image can be."""
    config = model.config
    for number in range(len(golden.value(TRAIN, "/concat_instruction", []))):
        pointer = f"/concat_instruction/{number}"
        kind, key = ROWS[golden.argument(TRAIN, f"{pointer}/sample/dataset")]
        rows = [
            image_numbers(golden.argument(TRAIN, f"/rows/{kind}/{row}/{key}"), train_images)
            for row in range(len(golden.value(TRAIN, f"/rows/{kind}")))
        ]
        plan = golden.argument(TRAIN, f"{pointer}/sample/sequence_plan")
        names = [entry["text"] for entry in plan if entry["type"] == "text"]
        texts = [golden.argument(TRAIN, f"/prompts/{escape(name)}") for name in names]
        sample = Sample(plan, plan_blocks(plan, texts, config), [None] * len(plan))
        facts = {}
        for name, loss in (("input", 0), ("target", 1)):
            steps = [step for step, entry in enumerate(plan) if entry["type"] != "text" and entry["loss"] == loss]
            fitting = [
                (place, index)
                for row in rows
                for place, index in enumerate(row)
                if all(entry_size(plan[step], index, train_images) == plan[step]["image_chw"] for step in steps)
            ]
            facts[f"image_list_index_candidates_of_{name}"] = [place for place, _ in fitting]
            for step in steps:
                sample.images[step] = fitting[0][1]
        golden.equal_all(TRAIN, pointer, facts)
        compare_sample(golden, sample, train_images, f"{pointer}/sample")


# Losses and gradients


def run_losses(golden, learner, arguments: dict, prefix: str):
    """One forward with its per-token records under a prefix."""
    output = learner(**arguments, output_hidden_states=True)
    labels = arguments["labels"][0, 1:]
    ours = {
        "last_hidden_state": output.hidden_states[-1][0],
        "ce": F.cross_entropy(output.logits, labels[labels != -100], reduction="none"),
        "mse": (output.velocity - output.flow_target) ** 2,
    }
    golden.compare_all(FILE, prefix, ours)
    return output


def losses(output) -> dict[str, float]:
    return {name: getattr(output, name).item() for name in ("loss", "ce_loss", "mse_loss")}


def gradient_norms(golden, learner, pointer: str) -> dict[str, float | None]:
    """Norm of the gradient of every recorded weight. Where the reference has none or zeros we may have either."""
    norms = {}
    for name, recorded in golden.value(TRAIN, pointer).items():
        gradient = learner.get_parameter(our_name(name)).grad
        norm = 0.0 if gradient is None else gradient.double().norm().item()
        norms[name] = None if recorded is None and norm == 0.0 else norm
    return norms


def compare_gradient_norms(golden, learner, pointer: str) -> float:
    """Compare all norms; returns the norm of the whole gradient."""
    norms = gradient_norms(golden, learner, pointer)
    for name, norm in norms.items():
        golden.equal(TRAIN, f"{pointer}/{escape(name)}", norm, relative=GRAD_NORM)
    return sum(norm**2 for norm in norms.values() if norm is not None) ** 0.5


def test_losses_and_gradients(golden, model, learner, batch, train_images):
    seed = golden.argument(TRAIN, "/forward/seed")
    arguments, draws = forward_inputs(golden, model, batch, train_images, "batch", seed)
    golden.compare_all(FILE, "fwd.", draws)
    output = run_losses(golden, learner, arguments, "fwd.")
    golden.equal_all(TRAIN, "/forward", losses(output), relative=LOSS)

    output.loss.backward()
    total = compare_gradient_norms(golden, learner, "/forward/grad_norms")
    golden.equal_all(TRAIN, "/forward", {"grad_total_norm": total}, relative=GRAD_NORM)
    for name in golden.tensor_names(FILE, "grad."):
        golden.compare(FILE, name, learner.get_parameter(our_name(name.removeprefix("grad."))).grad)


def test_reweighted_cross_entropy(golden, learner, batch, batch_arguments):
    output = learner(**batch_arguments, token_weights=batch.tensors["token_weights"])
    golden.equal_all(TRAIN, "/forward", {"ce_loss_reweighted": output.ce_loss.item()}, relative=LOSS)


@pytest.mark.parametrize("part", ["ce", "mse"])
def test_gradients_of_one_loss(golden, learner, batch_arguments, part):
    pointer = f"/grad_norms_{part}_only"
    if golden.value(TRAIN, pointer) is None:
        return
    getattr(learner(**batch_arguments), f"{part}_loss").backward()
    compare_gradient_norms(golden, learner, pointer)


def test_frozen_understanding(golden, batch_arguments):
    if golden.value(TRAIN, "/freeze_und") is None:
        return
    learner = load_model(golden, freeze_und=True).train()
    output = learner(**batch_arguments)
    golden.equal_all(TRAIN, "/freeze_und", losses(output), relative=LOSS)
    output.loss.backward()
    compare_gradient_norms(golden, learner, "/freeze_und/grad_norms")


def test_condition_dropout(golden, model, learner, train_images, dropout_pack):
    name = dropout_pack
    pack = read_pack(golden, model.config, train_images, name)
    seed = golden.argument(TRAIN, f"/{name}/forward/seed")
    arguments, draws = forward_inputs(golden, model, pack, train_images, name, seed)
    golden.compare_all(FILE, f"{name}.fwd.", draws)
    output = run_losses(golden, learner, arguments, f"{name}.fwd.")
    golden.equal_all(TRAIN, f"/{name}/forward", losses(output), relative=LOSS)


def test_optimizer_run(golden, model, learner, batch, train_images):
    """AdamW with clipping, and an average of the weights after every step."""
    pointer = "/optimizer"
    if golden.value(TRAIN, pointer) is None:
        return
    settings = {name: golden.argument(TRAIN, f"{pointer}/{name}") for name in ("lr", "betas", "eps", "weight_decay")}
    clip = golden.argument(TRAIN, f"{pointer}/clip_grad_norm")
    decay = golden.argument(TRAIN, f"{pointer}/ema_decay")
    assert golden.argument(TRAIN, f"{pointer}/kind") == "torch.optim.AdamW"
    names = golden.value(TRAIN, f"{pointer}/param_norm_after")
    weights = {name: learner.get_parameter(our_name(name)) for name in names}
    average = {name: weight.detach().clone() for name, weight in weights.items()}
    trained = [weight for weight in weights.values() if weight.requires_grad]
    optimizer = torch.optim.AdamW(trained, **settings)

    for number in range(len(golden.value(TRAIN, f"{pointer}/steps"))):
        place = f"{pointer}/steps/{number}"
        seed = golden.argument(TRAIN, f"{place}/seed")
        arguments, _ = forward_inputs(golden, model, batch, train_images, "batch", seed)
        output = learner(**arguments)
        optimizer.zero_grad()
        output.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(trained, clip)
        optimizer.step()
        with torch.no_grad():
            for name, weight in weights.items():
                average[name].lerp_(weight, 1 - decay)
        facts = {"ce": output.ce_loss.item(), "mse": output.mse_loss.item(), "loss": output.loss.item()}
        golden.equal_all(TRAIN, place, facts | {"grad_norm_before_clip": norm.item()}, relative=OPTIMIZER)

    compare_outcome(
        golden, learner, average, forward_inputs(golden, model, batch, train_images, "batch", forward_seed(golden))
    )


def forward_seed(golden) -> int:
    return golden.argument(TRAIN, "/forward/seed")


def compare_outcome(golden, learner, average: dict[str, torch.Tensor], inputs: tuple[dict, dict]):
    """Weights and averages after the optimizer run, and the losses of the recorded forward pass with them."""
    pointer = "/optimizer"
    with torch.no_grad():
        output = learner(**inputs[0])
    after = {
        "loss_on_forward_noise": output.loss.item(),
        "ce": output.ce_loss.item(),
        "mse": output.mse_loss.item(),
    }
    golden.equal_all(TRAIN, f"{pointer}/after", after, relative=OPTIMIZER)
    weights = {name: learner.get_parameter(our_name(name)) for name in average}
    for key, tensors, kind in (("param_norm_after", weights, "after"), ("ema_norm_after", average, "ema")):
        for name, tensor in tensors.items():
            place = f"{pointer}/{key}/{escape(name)}"
            golden.equal(TRAIN, place, tensor.detach().double().norm().item(), relative=OPTIMIZER)
        ours = {f"{kind}.{name}": tensor for name, tensor in tensors.items()}
        golden.compare_all(FILE, "opt.", ours, relative=OPTIMIZER)
