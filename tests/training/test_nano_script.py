"""The nano's steps on a few drawn pictures: what is left out, what is learnt from, and that every step runs."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoTokenizer
from transformers.models.qwen2.modeling_qwen2 import apply_rotary_pos_emb

from unimedvl.modeling_unimedvl.configuration_unimedvl import UniMedVLVAEConfig
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLModel
from unimedvl.processing.unimed5m import tasks
from unimedvl.processing.unimed5m.pictures import drawn_picture
from unimedvl.processing.unimed5m.schema import IMAGE_PLACEHOLDER, to_table
from unimedvl.processing.unimed5m.shards import write_table
from unimedvl.training.nano import (
    ablation,
    autoencoder,
    evaluate,
    pictures_made,
    prepare,
    release,
    sheet,
    tokenizer,
    vision,
)
from unimedvl.training.nano.intervals import mean_interval, wilson_interval
from unimedvl.training.nano.model import build_config, initialise_attention, nano_presets
from unimedvl.training.recipe import CurriculumRecipe, TrainingRecipe, load_recipe
from unimedvl.training.run import run

RECIPES = prepare.Path(prepare.__file__).parents[1] / "recipes" / "unimedvl-nano"
SOURCES = (
    ("A", "hc18", "US", "obstetric ultrasound", "", 3),
    ("A", "nih-chestxray14-subset", "CXR", "frontal chest radiograph", "pneumonia", 4),
    ("B", "lc25000-lung", "HIS", "H&E histopathology image", "lung adenocarcinoma", 4),
    ("A", "vqa-rad", "RAD", "radiology image", "", 2),
    ("A", "skimage", "CFP", "colour fundus photograph", "", 2),
    ("C", "busi", "US", "breast ultrasound", "benign", 2),
)


def drawn(number: int, size=(72, 56)):
    pixels = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    return drawn_picture(pixels, f"{number}.png")


def built_records(split: str):
    """A few records of every kind, as a build makes them."""
    for tier, source, modality, description, label, count in SOURCES:
        for number in range(count):
            name = f"{source}-{split}-{number}"
            extra = {"source_id": name, "submodality": description, "anatomy": "part"}
            extra |= {"label": label} if label else {}
            origin = tasks.Origin(
                source, name, name, split, modality, "CC0-1.0", "yes", "drawn for a test", description, tier, extra
            )
            picture = drawn(sum(map(ord, name)))
            if source == "vqa-rad":
                yield tasks.vqa(origin, [picture], "is there a mass?", ("yes", "no")[number % 2], "0")
                yield tasks.vqa(origin, [picture], "what organ is this?", "lung", "1")
                continue
            yield tasks.caption(origin, [picture], f"Here is a {description}.")
            yield tasks.text_to_image(origin, picture, f"a {description}")
            yield tasks.super_resolution(origin, picture, 2, "bicubic")
            if label:
                yield tasks.diagnosis(origin, picture, label)
            if source == "hc18":
                classes = np.zeros((56, 72), dtype=np.uint8)
                classes[10:40, 20:50] = 1
                yield tasks.segmentation(origin, picture, classes, [1], "fetal head")


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    folder = tmp_path_factory.mktemp("built")
    for split in ("train", "validation"):
        write_table(folder / "data" / f"{split}-0.parquet", to_table(built_records(split)))
    return folder


@pytest.fixture(scope="module")
def work(built, tmp_path_factory):
    work = tmp_path_factory.mktemp("nano") / "work"
    prepare.main(["--records", str(built), "--out", str(work), "--vocabulary", "400"])
    # Few groups are never held out: the held-out part is drawn from the validation split instead.
    records = [item for record in prepare.read_records(built, "validation") for item in prepare.nano_records(record)]
    write_table(work / "records" / "data" / "validation-00000-of-00001.parquet", to_table(records))
    return work


def training_records(work):
    (path,) = (work / "records" / "data").glob("train-*.parquet")
    return [record for table in prepare.batches(path) for record in map(prepare.Record.from_row, table.to_pylist())]


def test_excluded_sources_tier_c_and_validation_are_not_read(work):
    records = training_records(work)
    assert {record.dataset for record in records} == {"hc18", "nih-chestxray14-subset", "lc25000-lung", "vqa-rad"}
    assert all("validation" not in record.group_id for record in records)
    assert len({record.id for record in records}) == len(records)
    for record in records:
        record.validate()


def test_pictures_keep_the_sides_that_the_model_reads(work):
    for record in training_records(work):
        for picture in (*record.input_img, *record.output_img):
            exact = record.sub_task_type == "super_resolution"
            assert (picture.width, picture.height) == ((64, 48) if exact else (88, 66))


def test_answers_are_short_and_images_come_without_words(work):
    for record in training_records(work):
        answer = record.message[-1].value
        if record.output_img:
            assert answer == IMAGE_PLACEHOLDER
        elif record.sub_task_type == "diagnosis":
            assert answer == json.loads(record.extra)["label"]
        elif record.sub_task_type == "modality":
            assert answer == tasks.MODALITY_NAMES[record.modality]


def test_conversations_ask_every_question_once_in_several_orders(work):
    records = training_records(work)
    talks = [r for r in records if r.sub_task_type == "conversation" and r.dataset == "nih-chestxray14-subset"]
    assert len(talks) == 4 * prepare.CONVERSATION_ORDERS
    orders = set()
    for talk in talks:
        questions = [turn.value for turn in talk.message if turn.role == "human"]
        assert [IMAGE_PLACEHOLDER in question for question in questions] == [True, False, False]
        orders.add(tuple(turn.value for turn in talk.message if turn.role == "gpt"))
    assert len(orders) > 2
    single = [r for r in records if r.dataset == "lc25000-lung" and r.sub_task_type == "caption"]
    assert list(prepare.conversations(single[:1])) == []


def test_held_out_groups_are_whole_and_few(built):
    (record, *_) = prepare.read_records(built, "train")
    many = {record.dataset: {str(number) for number in range(400)}}
    chosen = [dataclasses.replace(record, group_id=str(number)) for number in range(400)]
    held = [prepare._held_out(item, many) for item in chosen]
    assert 10 <= sum(held) <= 45
    assert held == [prepare._held_out(item, many) for item in chosen]
    assert not prepare._held_out(chosen[held.index(True)], {record.dataset: {"one"}})


def test_tokenizer_round_trips_any_text(tmp_path):
    trained = tokenizer.train_tokenizer(["What imaging modality is this?", "chest X-ray"] * 9, tmp_path, 400)
    text = "Pneumothorax, 3.5 cm – µm 日本\n\tend"
    assert trained.decode(trained.encode(text)) == text
    ids = [trained.convert_tokens_to_ids(token) for token in tokenizer.SPECIAL_TOKENS]
    assert ids == list(range(len(trained) - 8, len(trained)))


@pytest.fixture(scope="module")
def finished(work, tmp_path_factory):
    """Every step, as short as can be."""
    vision.main(["--work", str(work), "--out", str(work / "vision"), "--steps", "4"])
    autoencoder.main(["--work", str(work), "--out", str(work / "autoencoder"), "--steps", "3"])
    start = ["--autoencoder", str(work / "autoencoder"), "--vision", str(work / "vision")]
    prepare.main(["--records", "unread", "--out", str(work), *start])
    recipe = {
        "model": str(work / "start"),
        "output_dir": str(work / "trained"),
        "steps": 2,
        "bf16": False,
        "optimizer": {"warmup_steps": 1},
        "data": {
            "pack_tokens": 400,
            "groups": [
                {"name": name, "path": str(work / "records"), "tasks": names, **sizes()}
                for name, names in (("read", ["conversation"]), ("make", ["text_to_image", "segmentation"]))
            ],
        },
    }
    path = tmp_path_factory.mktemp("recipe") / "nano.yaml"
    path.write_text(json.dumps(recipe))
    return run(path, [])


def sizes():
    return {name: {"min_side": 64, "max_side": 64} for name in ("vae", "vit", "understanding")} | {
        "augmentation": {"crop": 0.8, "flip_horizontal": True}
    }


@pytest.mark.slow
def test_every_step_runs_and_the_checkpoint_is_measured(finished, work, built, monkeypatch):
    monkeypatch.setattr(pictures_made, "JUDGE_STEPS", 20)
    monkeypatch.setattr(pictures_made, "PER_MODALITY", 1)
    monkeypatch.setattr(pictures_made, "PER_CLASS", 1)
    monkeypatch.setattr(evaluate, "BATCH", 16)
    nano = evaluate.Nano(str(finished), {"num_inference_steps": 3})
    records = list(prepare.read_records(built, "validation"))
    results = evaluate.evaluate(nano, records, work, most=2)
    assert results["modality, 6 classes"]["total"] == 11
    assert results["segmentation, Dice: fetal head"]["total"] == 3
    assert results["VQA-RAD closed"]["total"] == 2
    assert set(results["4x super-resolution"]["ssim"]) == {"nano", "bicubic", "autoencoder", "gain over bicubic"}
    assert results["text to image: modality recognised"]["total"] == 6
    for name, value in results.items():
        if "interval" in value:
            low, high = value["interval"]
            assert low <= value["value"] <= high, name


def test_training_pictures_equal_the_processor(finished, work):
    """A record's picture of the exact size is what the processor feeds the ViT and the autoencoder."""
    nano = evaluate.Nano(str(finished))
    picture = drawn(3)
    shown = nano.processor.image_processor([evaluate.rgb(picture)], generation_mode="image", return_tensors="pt")
    small = evaluate.rgb(prepare.small_picture(picture, 1.0))
    again = nano.processor.image_processor([small], generation_mode="image", return_tensors="pt")
    torch.testing.assert_close(shown["pixel_values"], again["pixel_values"], rtol=0, atol=0.02)
    assert evaluate.seen(picture).size == small.size == (64, 48)


def test_masks_are_seen_as_their_pictures_are():
    """Picture and mask have the same crop, turn and mirror: a picture that is its own mask stays so."""
    generator = torch.Generator().manual_seed(0)
    masks = torch.zeros(6, vision.CANVAS, vision.CANVAS, dtype=torch.uint8)
    masks[:, 8:40, 20:60] = 255
    sizes = torch.tensor([[66.0, 88.0]] * 6)
    pictures = vision.Pictures(masks[:, None].repeat(1, 3, 1, 1), sizes, torch.zeros(6).long(), ["HIS"] * 6, ["x"] * 6)
    for chosen in (None, generator):
        images, seen = vision.masked_views(pictures, masks, torch.arange(6), chosen)
        assert images.shape == (6, 3, 64, 64) and seen.shape == (6, 64, 64)
        sharp = (seen < 0.01) | (seen > 0.99)
        assert torch.equal((images[:, 0] > 0)[sharp], (seen > 0.5)[sharp]) and 0.05 < float(seen.mean()) < 0.5


def test_the_mask_map_puts_pixels_where_their_patches_are(finished):
    vit = evaluate.Nano(str(finished)).model.model.vit_model
    model = vision.CaptionChoice(vit, captions=2, kinds=3)
    width = vit.config.hidden_size
    with torch.no_grad():
        model.mask_head.weight.zero_()
        model.mask_head.bias.copy_(torch.arange(3 * vision.VIT_PATCH**2))
    features = torch.zeros(2, 64, width)
    scores = model.masks(features, torch.tensor([2, 0]))
    offset = 2 * vision.VIT_PATCH**2
    assert scores[0, 8, 16] == offset and scores[0, 9, 17] == offset + vision.VIT_PATCH + 1
    assert scores[1, 0, 1] == 1.0
    wanted = (scores > scores.mean(dim=(1, 2), keepdim=True)).float()
    assert vision.mask_loss(wanted * 40 - 20, wanted) < 0.01 < 1.0 < vision.mask_loss(20 - wanted * 40, wanted)


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
    for name, start in (("aligned", initialise_attention), ("plain", lambda language_model: None)):
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
        inputs = layer.layer_norm1(vit.embeddings(torch.zeros(len(PLACES), 3 * vision.VIT_PATCH**2), PLACES))
        heads = (len(PLACES), layer.self_attn.num_heads, -1)
        projections = (layer.self_attn.q_proj, layer.self_attn.k_proj)
        found.append(attended(*(projection(inputs).view(heads).transpose(0, 1) for projection in projections)))
    assert found[0] > 0.2 > 0.05 > found[1]


def test_the_untrained_checkpoints_have_these_starts(finished, work, tmp_path):
    shutil.copytree(work / "tokenizer", tmp_path / "tokenizer")
    prepare.prepare_start(tmp_path, str(work / "autoencoder"), None, 0)
    starts = (work / "start", tmp_path / "start", ablation.make_start(work, tmp_path, 1))
    models = [evaluate.Nano(str(folder)).model.model for folder in starts]
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
    with pytest.raises(ValueError, match="started from another checkpoint"):
        prepare.keep_start(tmp_path, tmp_path)
    (tmp_path / "start.json").unlink()
    with pytest.raises(ValueError, match="started from another checkpoint"):
        prepare.keep_start(work, tmp_path)


def test_a_release_holds_the_stages_weights_the_nanos_presets_and_what_was_written_beside_them(finished, tmp_path):
    (tmp_path / "README.md").write_text("card")
    (tmp_path / "left.bin").write_text("of the release before")
    with pytest.raises(ValueError, match="no published model"):
        release.release(finished, tmp_path)
    (tmp_path / "config.json").write_text('{"my": "application"}')
    with pytest.raises(ValueError, match="no published model"):
        release.release(finished, tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "unimedvl"}')
    with pytest.raises(ValueError, match="the checkpoint .* itself"):
        release.release(finished, finished)
    release.main(["--model", str(finished), "--out", str(tmp_path)])
    stage, released = (evaluate.Nano(str(folder)).model for folder in (finished, tmp_path))
    weights = released.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in stage.state_dict().items())
    presets = released.generation_config.task_presets
    assert presets == nano_presets(presets) and presets["t2i"]["height"] == 64
    assert (tmp_path / "README.md").read_text() == "card" and not (tmp_path / "left.bin").exists()


def test_a_sheet_of_edits_holds_generated_pictures_only_unless_asked(finished, work, tmp_path):
    arguments = ["--model", str(finished), "--kind", "edits", "--out", str(tmp_path / "made.png")]
    with pytest.raises(SystemExit):
        sheet.main(arguments)
    sheet.main([*arguments, "--work", str(work)])
    nano, side = evaluate.Nano(str(finished)), 64 * sheet.SCALE
    with Image.open(tmp_path / "made.png") as made:
        rows = made.height / (sheet.CAPTION + side + sheet.MARGIN)
    # The drawn records hold one of the edits, fetal heads.
    assert rows == 1
    assert sheet.edit_sheet(nano, work, with_inputs=True).height == 3 * made.height


UPRIGHT = {"CXR", "RAD", "nih-chestxray14-subset", "covid-chestxray", "vqa-rad"}


def test_the_shipped_recipes_are_read():
    curriculum = load_recipe(RECIPES / "curriculum.yaml")
    assert isinstance(curriculum, CurriculumRecipe)
    for stage in curriculum.stages:
        recipe = load_recipe(RECIPES / stage.recipe)
        assert isinstance(recipe, TrainingRecipe)
        assert sum(group.weight for group in recipe.data.groups) == pytest.approx(1.0, abs=1e-3)
        for group in recipe.data.groups:
            shown = {*group.modalities, *group.sources}
            # Tasks of one modality each, which is none of the upright ones.
            assert shown or group.tasks[0] in ("cross_modal", "counterfactual", "virtual_staining", "dialogue")
            assert not (group.augmentation.flip_horizontal and UPRIGHT & shown), group.name


def test_intervals():
    assert wilson_interval(0, 10)[0] == 0.0 and wilson_interval(10, 10)[1] == pytest.approx(1.0)
    low, high = wilson_interval(50, 100)
    assert low == pytest.approx(0.404, abs=1e-3) and high == pytest.approx(0.596, abs=1e-3)
    assert mean_interval([1.0, 1.0, 1.0]) == (1.0, 1.0)
    low, high = mean_interval(list(np.linspace(0, 1, 50)))
    assert low < 0.5 < high


def test_measures():
    black, white = Image.new("RGB", (16, 16)), Image.new("RGB", (16, 16), "white")
    half = Image.new("RGB", (16, 16))
    half.paste(white.crop((0, 0, 8, 16)), (0, 0))
    assert evaluate.dice(black, black) == 1.0 and evaluate.dice(black, white) == 0.0
    assert evaluate.dice(half, white) == pytest.approx(2 / 3)
    assert evaluate.ssim(half, half) == pytest.approx(1.0)
    assert evaluate.psnr(black, white) == pytest.approx(0.0)
