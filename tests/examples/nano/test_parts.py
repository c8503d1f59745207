"""The parts that no recipe trains, and what the curriculum starts from."""

import shutil

import pytest
import torch
from transformers import AutoTokenizer
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from examples.nano import ablation, asking, autoencoder, image_crops, prepare, record_images, resumable_loop, vision
from examples.nano.model import VIT_PATCH, build_config, initialize_attention
from unimedvl.modeling_unimedvl.configuration_unimedvl import UniMedVLVAEConfig
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLModel

pytestmark = pytest.mark.medium


class Stopped(Exception):
    """In the place of a kill: nothing of the loop gets to know."""


def stopping(function, calls):
    """The function until it has been called so often."""
    left = iter(range(calls))

    def call(*arguments):
        if next(left, None) is None:
            raise Stopped
        return function(*arguments)

    return call


def whole_and_stopped(train, module, name, folder):
    """What a training gives that was not stopped, and one that was stopped after a checkpoint, within one, and beside
    one of which a part got lost."""
    whole, stopped = train(folder / "whole"), folder / "stopped"
    for place, function, calls, kept in (
        (module, name, 6, {"checkpoint-4", "checkpoint-6"}),
        (resumable_loop, "write_json", 0, {"checkpoint-4", "checkpoint-6"}),
        (module, name, 3, {"checkpoint-6", "checkpoint-8"}),
    ):
        with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
            patch.setattr(place, function, stopping(getattr(place, function), calls))
            train(stopped)
        assert {checkpoint.name for checkpoint in stopped.glob("checkpoint-*")} == kept
    cut = stopped / "checkpoint-8" / "state.json"
    cut.write_bytes(cut.read_bytes()[:-40])
    # As a kill within the removal of an older one leaves it; and what is not ours to remove.
    (stopped / ".checkpoint-4.removed" / "shards").mkdir(parents=True)
    (stopped / "checkpoint-4").mkdir()
    (stopped / "checkpoint-notes.txt").write_text("of the user")
    return whole, train(folder / "stopped")


def same(first, second):
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


@pytest.mark.parametrize("part", ["vision", "autoencoder"])
def test_a_part_that_was_stopped_resumes_as_if_it_had_not_been(part, work, tmp_path, monkeypatch):
    monkeypatch.setattr(resumable_loop, "EVERY", 2)

    def train(folder, count=11):
        if part == "vision":
            return vision.pretrain(work, folder, count, batch=2)
        recipe = autoencoder.LatentRecipe(channels=(8, 16, 16, 16), noise=0.2)
        return autoencoder.train_autoencoder(work, folder, count, batch_size=1, recipe=recipe)

    patched = (vision, "random_views") if part == "vision" else (autoencoder, "random_crops")
    (whole, measured), (resumed, measured_then) = whole_and_stopped(train, *patched, tmp_path)
    assert same(whole.state_dict(), resumed.state_dict())
    assert {**measured, "seconds": 0} == {**measured_then, "seconds": 0}
    finished, _ = train(tmp_path / "stopped")
    assert same(whole.state_dict(), finished.state_dict())
    kept = tmp_path / "stopped" / "checkpoint-11"
    names = {path.name for path in kept.parent.glob("*checkpoint-*")}
    assert names == {"checkpoint-4", "checkpoint-10", "checkpoint-11", "checkpoint-notes.txt"}
    with pytest.raises(ValueError, match="was made with another value of steps"):
        train(tmp_path / "stopped", 12)
    changed = tmp_path / "changed"
    shutil.copytree(work, changed, ignore=shutil.ignore_patterns("vision", "autoencoder", "trained"))
    records = list(prepare.work_records(work, "train"))
    prepare.write_table(prepare.shard_of(changed / "records", "train"), prepare.to_table(records[1:]))
    work = changed
    with pytest.raises(ValueError, match="was made with another value of train"):
        train(tmp_path / "stopped")
    (kept / "state.json").write_text("{" * (kept / "state.json").stat().st_size)
    with pytest.raises(ValueError, match="is damaged, or of another model: choose another --out, or remove"):
        train(tmp_path / "stopped")


PLACES = (torch.arange(8)[:, None] * 16 + torch.arange(8)).flatten()  # of 8 x 8 patches in a table of 16 x 16


def nano_config(work):
    return build_config(AutoTokenizer.from_pretrained(work / "tokenizer"), UniMedVLVAEConfig().to_dict())


def attended(queries, keys):
    """Share of tokens (heads, tokens, width) that attend most to their own place."""
    own = (queries @ keys.transpose(1, 2)).argmax(dim=-1) == torch.arange(queries.shape[1])
    return own.float().mean().item()


def test_attention_starts_at_the_same_place_of_an_input_image(work):
    """Noised tokens find the clean tokens of their own place, 80 tokens before, many times as often as by chance."""
    config = nano_config(work)
    found = {}
    for name, start in (("aligned", initialize_attention), ("plain", lambda language_model: None)):
        torch.manual_seed(0)
        model = UniMedVLModel(config)
        start(model.language_model)
        layer = model.language_model.layers[0]
        attention = layer.self_attn
        embeddings = model.latent_pos_embed.pos_embed[PLACES]
        clean, noised = layer.input_layernorm(embeddings + 0.1 * torch.randn(2, *embeddings.shape))
        heads = (1, len(PLACES), -1, attention.head_dim)
        turned = []
        # All tokens of an image have one RoPE id.
        for tokens, position in (
            (attention.q_norm_moe_gen(attention.q_proj_moe_gen(noised).view(heads)), 90),
            (attention.k_norm(attention.k_proj(clean).view(heads)), 10),
        ):
            cos, sin = model.language_model.rotary_emb(tokens, torch.full((1, len(PLACES)), position))
            turned.append(apply_rotary_pos_emb(tokens, tokens, cos, sin, unsqueeze_dim=2)[0][0].transpose(0, 1))
        found[name] = attended(*turned)
    assert found["aligned"] > 0.1 > 0.05 > found["plain"]


def test_a_patch_starts_by_attending_to_itself(work):
    torch.manual_seed(0)
    found = []
    for vit in (vision.untrained(work), UniMedVLModel(nano_config(work)).vit_model):
        layer = vit.encoder.layers[0]
        inputs = layer.layer_norm1(vit.embeddings(torch.zeros(len(PLACES), 3 * VIT_PATCH**2), PLACES))
        heads = (len(PLACES), layer.self_attn.num_heads, -1)
        projections = (layer.self_attn.q_proj, layer.self_attn.k_proj)
        found.append(attended(*(projection(inputs).view(heads).transpose(0, 1) for projection in projections)))
    assert found[0] > 0.2 > 0.05 > found[1]


def test_the_untrained_checkpoints_have_these_starts(finished, work, tmp_path):
    shutil.copytree(work / "tokenizer", tmp_path / "tokenizer")
    prepare.prepare_start(tmp_path, str(work / "autoencoder"), None, 0)
    starts = (work / "start", tmp_path / "start", ablation.make_start(work, tmp_path, 1))
    models = [asking.Nano(str(folder)).model.model for folder in starts]
    for model in models:
        attention = model.language_model.layers[0].self_attn
        for projection in (attention.q_proj, attention.q_proj_moe_gen, attention.k_proj_moe_gen):
            assert torch.equal(projection.weight, attention.k_proj.weight)
    pretrained, bare, pretrained_too = (model.vit_model.state_dict() for model in models)
    assert all(torch.equal(pretrained_too[name], value) for name, value in pretrained.items())
    query, key = (bare[f"encoder.layers.0.self_attn.{name}_proj.weight"] for name in "qk")
    assert torch.equal(query, key)


def test_runs_of_another_start_are_not_taken_for_these(finished, work, tmp_path):
    prepare.keep_start(work, tmp_path)
    prepare.keep_start(work, tmp_path)
    (tmp_path / "start").mkdir()
    (tmp_path / "start" / "model.safetensors").write_bytes(b"other weights")
    with pytest.raises(ValueError, match="holds another series of runs .different: the untrained checkpoint"):
        prepare.keep_start(tmp_path, tmp_path)
    (tmp_path / "start.json").unlink()
    with pytest.raises(ValueError, match="is not empty and holds no series of runs"):
        prepare.keep_start(work, tmp_path)


def test_records_without_a_held_out_part_are_reported_before_the_work(work, tmp_path):
    shutil.copytree(work / "records", tmp_path / "records")
    prepare.write_table(prepare.shard_of(tmp_path / "records", "validation"), prepare.to_table([]))
    for part in (image_crops.read_images, lambda *place: record_images.read_images(*place, [])):
        with pytest.raises(ValueError, match="holds no image of its validation part"):
            part(tmp_path, "validation")


@pytest.mark.parametrize("steps", [1, 2, 3, 9, 10, 20, 21, 40, 400])
@pytest.mark.parametrize("rising", [0.05, 0.1])
def test_a_rate_of_any_number_of_steps_rises_once_to_its_height_and_falls(steps, rising):
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight], lr=1e-3)
    schedule = resumable_loop.one_cycle(optimizer, 1e-3, steps, rising)
    rates = [schedule.get_last_lr()[0]]
    for _ in range(steps):
        optimizer.step()
        schedule.step()
        rates.append(schedule.get_last_lr()[0])
    rates.pop()  # after the last step
    top = rates.index(max(rates))
    assert rates[:top] == sorted(rates[:top]) and rates[top:] == sorted(rates[top:], reverse=True)
    if steps > 2:
        assert max(rates) == pytest.approx(1e-3, rel=0.02) and rates[-1] < 1e-4 and top <= max(1, rising * steps)
