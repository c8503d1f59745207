"""The paper's three architectures run from folders: alone as in company, repeatably, and through the command."""

import json
import logging

import numpy
import pyarrow.parquet as pq
import pytest
import torch
from transformers import AutoTokenizer, BertModel, SiglipModel, SiglipProcessor

from unimedvl.commands.main import main
from unimedvl.unimed5m.quality.encoders import (
    TransformersCaptioner,
    TransformersImageTextEncoder,
    TransformersTextEncoder,
    is_unverified,
    text_prefix,
)
from unimedvl.unimed5m.quality.models import ModelPaths
from unimedvl.unimed5m.task_images import open_stored_image

from .local_models import save_e5, save_medgemma, save_medsiglip
from .toy_records import drawn, record, write_shards


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("models")
    return {
        "captioner": save_medgemma(root / "medgemma-27b-it"),
        "text": save_e5(root / "e5-large-v2"),
        "images": save_medsiglip(root / "medsiglip-448"),
    }


@pytest.fixture(scope="module")
def images():
    colors = ("red", "green", "blue")
    return [open_stored_image(drawn(number, color=name).data) for number, name in enumerate(colors)]


def test_text_vector_is_the_mean_of_real_tokens(folders):
    path = folders["text"]
    tokenizer, model = AutoTokenizer.from_pretrained(path), BertModel.from_pretrained(path).eval()
    texts = ["a red field", "scan", "a green field tinted blue", "scan"]
    vectors = TransformersTextEncoder(str(path), prefix="query: ").encode(texts)
    for text, vector in zip(texts, vectors, strict=True):
        with torch.no_grad():
            hidden = model(**tokenizer("query: " + text, return_tensors="pt")).last_hidden_state[0].mean(dim=0)
        numpy.testing.assert_allclose(vector, (hidden / hidden.norm()).numpy(), atol=1e-5)


@pytest.mark.parametrize(
    ("path", "prefix"),
    [
        ("intfloat/e5-large-v2", "query: "),
        ("/models/multilingual-E5-base/", "query: "),
        ("/models/e5_large", "query: "),
        ("all-MiniLM-L6-v2", ""),
        ("/models/site5/plain", ""),
    ],
)
def test_e5_gets_its_prefix(path, prefix):
    assert text_prefix(path) == prefix


def test_prefix_comes_from_the_name_unless_it_is_given(folders):
    paths = [str(folders[name]) for name in ("text", "images", "captioner")]
    assert ModelPaths(*paths)().text_encoder.prefix == "query: "
    given = ModelPaths(*paths, text_prefix="passage: ")
    assert given().text_encoder.prefix == "passage: "
    assert given.describe() != ModelPaths(*paths).describe()


def test_image_text_score_is_the_cosine_of_the_model(folders, images):
    path = folders["images"]
    texts = ["a red field", "scan", "blue"]
    encoder = TransformersImageTextEncoder(str(path))
    scores = encoder.similarity(images, texts)
    model, processor = SiglipModel.from_pretrained(path).eval(), SiglipProcessor.from_pretrained(path)
    inputs = processor(text=texts, images=images, padding="max_length", max_length=64, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits_per_image.diagonal()
    expected = (logits - model.logit_bias.detach()) / model.logit_scale.detach().exp()
    numpy.testing.assert_allclose(scores, expected.numpy(), atol=1e-5)
    numpy.testing.assert_allclose(encoder.similarity(images[1:2], ["scan"]), scores[1:2], atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_captions_depend_on_the_image_alone(folders, images, dtype):
    captioner = TransformersCaptioner(str(folders["captioner"]), max_new_tokens=8, dtype=dtype)
    torch.manual_seed(1)
    together = captioner.caption(images, 5)
    torch.manual_seed(2)
    assert captioner.caption(images[1:2], 5) == together[1:2]
    assert [len(captions) for captions in together] == [5, 5, 5]
    assert len({text for captions in together for text in captions}) > 5, "draws and images differ"
    assert captioner.caption(images[:1], 1)[0] == together[0][:1], "the greedy caption comes first"
    assert max(len(text.split()) for captions in together for text in captions) <= 8, "the request is no caption"


def test_drawing_captions_leaves_the_random_state_alone(folders, images):
    captioner = TransformersCaptioner(str(folders["captioner"]), max_new_tokens=2)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    captioner.caption(images[:1], 3)
    assert torch.equal(torch.rand(4), expected)


def test_check_runs_the_three_from_their_folders(folders, tmp_path, capsys, caplog):
    records = write_shards(tmp_path / "records", [record(number) for number in range(8)], shards=2)
    words = ["--text-encoder", folders["text"], "--image-text-encoder", folders["images"], "--captioner",
             folders["captioner"], "--captions", 2, "--scope", "global", "--json"]  # fmt: skip
    with caplog.at_level(logging.WARNING):
        assert not main(["data", "check", str(records), str(tmp_path / "checked"), *map(str, words)])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (summary["scored"], summary["kept"]) == (8, 4)
    assert summary["stages"][2]["dropped"] == {"poorly_aligned": 4}
    for path in (tmp_path / "checked" / "data").glob("*.parquet"):
        for row in pq.read_table(path).to_pylist():
            quality = row["quality"]
            assert quality["s_final"] == pytest.approx(0.5 * quality["s"] + quality["m"], abs=2e-5)
    assert sum("unverified" in entry.getMessage() for entry in caplog.records) == 3
    words += ["--enforce", "none", "--dtype", "bfloat16"]
    assert not main(["data", "check", str(records), str(tmp_path / "reported"), *map(str, words)])
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert summary["kept"] == 8 and summary["reported_only"] == {"poorly_aligned": 4}
    assert "bfloat16" in summary["settings"]["alignment"]["models"]


@pytest.mark.parametrize("path", ["google/medgemma-27b-it", "/models/E5-large-v2", "google/medsiglip-448"])
def test_models_never_run_here_are_marked(path):
    assert is_unverified(path) and not is_unverified("all-MiniLM-L6-v2")


def test_weights_that_are_not_safetensors_are_refused(folders, tmp_path):
    for file in folders["text"].iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    torch.save(BertModel.from_pretrained(folders["text"]).state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(OSError, match="safetensors"):
        TransformersTextEncoder(str(tmp_path))
