"""The bring-up script on a few drawn pictures: every stage runs, nothing excluded is read, the checkpoint loads."""

import io
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image, ImageDraw

from unimedvl.loading import load
from unimedvl.training.nano import batches, evaluate, samples, tokenizer, train
from unimedvl.training.nano.samples import load_rows


def cell(image: Image.Image) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def drawn(colour: str, shape: str, size: tuple[int, int]) -> tuple[Image.Image, Image.Image]:
    """A filled ellipse or rectangle on black, and its mask of indices."""
    picture, mask = Image.new("RGB", size), Image.new("L", size)
    box = (size[0] // 4, size[1] // 4, 3 * size[0] // 4, 3 * size[1] // 4)
    getattr(ImageDraw.Draw(picture), shape)(box, fill=colour)
    getattr(ImageDraw.Draw(mask), shape)(box, fill=1)
    return picture, mask


def record(modality: str, colour: str, shape: str, size=(80, 64), **values) -> dict:
    picture, mask = drawn(colour, shape, size)
    empty = {"label": "", "submodality": "", "target_kind": "", "mask_classes": "", "report": "", "qa": None}
    pictures = {"image": cell(picture), "mask": None, "target_image": None}
    if values.pop("masked", False):
        pictures["mask"] = cell(mask)
        empty["mask_classes"] = json.dumps({"1": "fetal head"})
    if values.pop("paired", False):
        pictures["target_image"] = cell(picture.convert("L").convert("RGB"))
        empty["target_kind"] = "FLAIR MRI"
    return {**empty, **pictures, "modality": modality, **values}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mini")
    question = {"question": "is there a mass?", "answer": "no", "answer_type": "yes_no", "official_split": "train"}
    modality = {**question, "question": "what imaging modality was used?", "answer": "ct"}
    sources = {
        ("tier_A", "hc18"): [record("US", "grey", "ellipse", masked=True)] * 3,
        ("tier_A", "tcia-brain-tumor-progression"): [record("MRI", "red", "rectangle", (64, 64), paired=True)] * 3,
        ("tier_A", "vqa-rad"): [record("RAD", "white", "rectangle", (60, 90), qa=[question, modality])] * 2,
        ("tier_A", "skimage"): [record("HIS", "pink", "ellipse")],
        ("tier_B", "lc25000-lung"): [record("HIS", "purple", "ellipse", (64, 64), label="lung adenocarcinoma")] * 3,
        ("tier_C", "busi"): [record("US", "blue", "ellipse", label="benign")],
    }
    for (tier, source), records in sources.items():
        (folder / tier / source).mkdir(parents=True)
        rows = [{**row, "source": source} for row in records]
        # The columns' types do not depend on the rows of one source.
        schema = pyarrow.schema(
            [(name, pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])) for name in PICTURES]
            + [("qa", pyarrow.list_(pyarrow.struct([(key, pyarrow.string()) for key in question])))]
            + [(name, pyarrow.string()) for name in rows[0] if name not in (*PICTURES, "qa")]
        )
        for split in ("train", "validation"):
            table = pyarrow.Table.from_pylist(rows, schema=schema)
            pyarrow.parquet.write_table(table, folder / tier / source / f"{split}.parquet")
    return folder


PICTURES = ("image", "mask", "target_image")


@pytest.fixture(scope="module")
def checkpoint(data, tmp_path_factory):
    out = tmp_path_factory.mktemp("nano") / "checkpoint"
    threads = torch.get_num_threads()
    train.main(["--data", str(data), "--out", str(out), "--vae-steps", "3", "--steps", "2", "--threads", "1"])
    torch.set_num_threads(threads)
    return out


def test_excluded_sources_and_tier_c_are_not_read(data):
    rows = load_rows(data, "train")
    assert {row.source for row in rows} == {"hc18", "tcia-brain-tumor-progression", "vqa-rad", "lc25000-lung"}
    assert len(rows) == 11


def test_questions_about_an_unstated_modality_are_left_out(data):
    (questions,) = {tuple(row.questions) for row in load_rows(data, "train") if row.modality == "RAD"}
    assert questions == (("is there a mass?", "no"),)


def test_missing_data_names_the_remedy(tmp_path):
    with pytest.raises(ValueError, match="--data"):
        load_rows(tmp_path, "train")


def test_tokenizer_round_trips_any_text(data, tmp_path):
    trained = tokenizer.train_tokenizer(samples.corpus(load_rows(data, "train")), tmp_path, vocab_size=400)
    text = "Pneumothorax, 3.5 cm – µm 日本\n\tend"
    assert trained.decode(trained.encode(text)) == text
    ids = [trained.convert_tokens_to_ids(token) for token in tokenizer.SPECIAL_TOKENS]
    assert ids == list(range(len(trained) - 8, len(trained)))


def test_checkpoint_answers_and_draws(checkpoint, data):
    model, processor, _ = load(checkpoint)
    picture = drawn("grey", "ellipse", (80, 64))[0]
    assert len(evaluate.ask(model, processor, [picture, picture], "What is this?")) == 2
    assert [image.size for image in evaluate.draw(model, processor, "A sonogram.", 2, seed=0)] == [(64, 64)] * 2
    assert evaluate.modality_accuracy(model, processor, load_rows(data, "validation"), "Which?")["total"] == 9


def test_finished_stages_are_reused(checkpoint, data, capsys):
    train.main(["--data", str(data), "--out", str(checkpoint), "--threads", "1"])
    assert capsys.readouterr().out.count("reused") == 3


def test_training_pictures_equal_the_processor(checkpoint, data):
    """The whole-picture view of an example is what the processor feeds the ViT and the autoencoder."""
    model, processor, _ = load(checkpoint)
    row = next(row for row in load_rows(data, "train") if row.source == "hc18")
    (example,) = batches.make_examples([row], model.model.vae, model.config.pixels_per_latent_token, views=1)
    inputs = processor.image_processor([row.image], generation_mode="image", return_tensors="pt")
    image = example.picture.image
    block = batches.Block(
        batches.BlockKind.VIT, grid=(image.height // train.VIT_PATCH, image.width // train.VIT_PATCH)
    )
    batch = batches.collate([batches.Sample([block], images=[image])], model.config)
    torch.testing.assert_close(batch["pixel_values"], inputs["pixel_values"], rtol=0, atol=0)
    assert torch.equal(batch["image_grid_thw"], inputs["image_grid_thw"])
    (latent,) = model.model.encode_latents(list(inputs["latent_pixel_values"]), sample_mode="mode")
    torch.testing.assert_close(example.picture.mean, latent)


@pytest.mark.parametrize(
    ("answer", "codes"),
    [
        ("Magnetic resonance imaging (MRI)", {"MRI"}),
        ("Optical coherence tomography (OCT)", {"OCT"}),
        ("Computed tomography (CT)", {"CT"}),
        ("Chest X-ray (radiograph) or ultrasound", {"CXR", "US"}),
        ("no", set()),
    ],
)
def test_modalities_named(answer, codes):
    assert evaluate.modalities_named(answer) == codes


def test_every_answer_names_its_own_modality():
    for code, name in samples.MODALITY_NAMES.items():
        assert evaluate.modalities_named(name) == {code}


def test_dropout_keeps_images_and_blocks_together(checkpoint, data):
    """Whatever is dropped, a batch holds exactly the pixels and latents of its placeholders."""
    model, processor, _ = load(checkpoint)
    vae, unit = model.model.vae, model.config.pixels_per_latent_token
    examples = batches.make_examples(load_rows(data, "train"), vae, unit, views=2)
    maker = batches.SampleMaker(examples, processor.tokenizer, model.config, seed=1)
    drawn_samples = [maker.editing() for _ in range(60)]
    dropped = [[block.dropped for block in sample.blocks[:3]] for sample in drawn_samples]
    assert [True, True, False] in dropped and [False, False, True] in dropped and [False, True, False] in dropped
    batch = batches.collate(drawn_samples, model.config)
    kinds = batch["mm_token_type_ids"]
    assert int((kinds == 1).sum()) == batch["pixel_values"].shape[0]
    assert (
        int((kinds >= 2).sum()) == sum(latent[0].numel() for latent in batch["latent_values"]) // train.LATENT_PATCH**2
    )
    assert np.isfinite(model(**batch).loss.item())
