"""What other programs do with the processor: standard keywords, saved settings, hashes, planning (D4, D5, D13)."""

import collections
import io
import types

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets.fingerprint import Hasher
from datasets.utils._dill import dump
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoProcessor
from transformers.processing_utils import AudioKwargs, ImagesKwargs, TextKwargs, VideosKwargs

from tests.tiny_checkpoint import tiny_processor
from unimedvl.checkpoint.folder import NANO_DIRECTORY
from unimedvl.processing.image_processing_unimedvl import UniMedVLImageProcessor
from unimedvl.processing.processing_unimedvl import UniMedVLProcessor

CHAT = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is this?"}]}]


PROCESSOR = tiny_processor()


@pytest.fixture
def processor() -> UniMedVLProcessor:
    return PROCESSOR


@pytest.fixture(scope="module")
def remote():
    """The shipped processor as remote code."""
    return AutoProcessor.from_pretrained(NANO_DIRECTORY, trust_remote_code=True)


def image(width: int = 40, height: int = 30) -> Image.Image:
    levels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def assert_equal(left, right):
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def standard_keywords() -> list[str]:
    """What transformers lets callers say of videos and audio, and of nothing else."""
    other = {*VideosKwargs.__annotations__, *AudioKwargs.__annotations__} - {*ImagesKwargs.__annotations__}
    return sorted(other - {*TextKwargs.__annotations__} | {"load_audio_from_video"})


@pytest.mark.parametrize("keyword", standard_keywords())
def test_d4_what_is_said_of_videos_and_audio_means_nothing(processor, keyword):
    def encoded(**kwargs):
        options = {"tokenize": True, "return_dict": True, "return_tensors": "pt", "images": [image()]}
        return processor.apply_chat_template(CHAT, **options, **kwargs)

    assert_equal(encoded(), encoded(**{keyword: False}))
    assert_equal(encoded(), encoded(processor_kwargs={keyword: 3}))
    text = processor.apply_chat_template(CHAT)
    plain = processor(images=[image()], text=text, return_tensors="pt")
    assert_equal(plain, processor(images=[image()], text=text, return_tensors="pt", videos_kwargs={keyword: 1}))


def test_d4_what_is_said_of_images_is_not_ignored(processor):
    with pytest.raises(ValueError, match="do_rescale: not an argument"):
        processor(text="a", do_rescale=False)


def test_d5_the_remote_class_is_pickled_by_its_name(remote):
    stream = io.BytesIO()
    dump(type(remote), stream)
    assert len(stream.getvalue()) < 1000
    stream = io.BytesIO()
    dump(type(remote.image_processor), stream)
    assert len(stream.getvalue()) < 1000
    assert Hasher.hash(remote) == Hasher.hash(AutoProcessor.from_pretrained(NANO_DIRECTORY, trust_remote_code=True))


def test_d5_map_with_the_remote_processor_is_cached(remote, tmp_path):
    data = Dataset.from_dict({"text": ["a chest film", "a slide"]})
    data.save_to_disk(tmp_path / "data")

    def files() -> list[str]:
        data = Dataset.load_from_disk(tmp_path / "data")
        mapped = data.map(lambda row: {"ids": remote(text=row["text"])["input_ids"][0]})
        assert mapped[0]["ids"] == remote.tokenizer("a chest film")["input_ids"]
        return [entry["filename"] for entry in mapped.cache_files]

    assert files() == files() != []


def test_d13_another_backend_is_refused_in_a_sentence(remote):
    for loader in (AutoProcessor, UniMedVLProcessor, UniMedVLImageProcessor):
        options = {"trust_remote_code": True} if loader is AutoProcessor else {}
        with pytest.raises(ValueError, match="works with PIL alone; leave backend out"):
            loader.from_pretrained(NANO_DIRECTORY, backend="torchvision", **options)
    loaded = AutoProcessor.from_pretrained(NANO_DIRECTORY, trust_remote_code=True, backend="pil")
    assert loaded.image_processor.to_dict() == remote.image_processor.to_dict()


def test_d13_what_the_tokenizer_was_saved_with_holds(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    type(processor.tokenizer).from_pretrained(tmp_path, padding="max_length", max_length=117).save_pretrained(tmp_path)
    loaded = UniMedVLProcessor.from_pretrained(tmp_path)
    text = processor.apply_chat_template(CHAT)
    kept = loaded(images=[image()], text=text, return_tensors="pt")
    assert kept["input_ids"].shape == kept["mm_token_type_ids"].shape == (1, 117)
    alone = processor(images=[image()], text=text, return_tensors="pt")
    length = alone["input_ids"].shape[1]
    assert torch.equal(kept["input_ids"][:, -length:], alone["input_ids"])
    assert_equal(loaded(images=[image()], text=text, return_tensors="pt", padding=True), alone)
    assert loaded(images=[image()], text=text, max_length=120, return_tensors="pt")["input_ids"].shape == (1, 120)


@pytest.mark.parametrize("group", ["text_kwargs", "images_kwargs"])
def test_d13_a_keyword_given_twice_is_refused(processor, group):
    name, value = {"text_kwargs": ("padding", "max_length"), "images_kwargs": ("patch_size", 6)}[group]
    with pytest.raises(ValueError, match=f"{name}: given twice, once in {group}"):
        processor(text="a", **{name: value, group: {name: value}})
    # What holds in common gives way.
    common = {"padding": "max_length", "max_length": 5}
    common = processor(text="a", return_tensors="pt", max_length=9, common_kwargs=common)
    assert common["input_ids"].shape == (1, 9)


@pytest.mark.parametrize(
    ("beside", "within"),
    [
        ({"padding": "max_length"}, {"padding": True}),
        ({"return_tensors": "pt"}, {"return_tensors": "np"}),
        ({"images": []}, {"images": []}),
    ],
)
def test_d13_a_keyword_given_beside_and_within_processor_kwargs_is_refused(processor, beside, within):
    with pytest.raises(ValueError, match="given twice, once in processor_kwargs"):
        processor.apply_chat_template(CHAT, tokenize=True, **beside, processor_kwargs=within)


def test_messages_may_be_objects_such_as_those_of_clients(processor):
    """transformers 5.24 takes them as well."""
    text = types.SimpleNamespace(type="text", text="What is this?", annotations=None)
    shown = types.SimpleNamespace(type="image", image=image())
    objects = [types.SimpleNamespace(role="user", content=[shown, text], name=None)]
    dicts = [{"role": "user", "content": [{"type": "image", "image": image()}, {"type": "text", "text": text.text}]}]
    options = {"tokenize": True, "return_dict": True, "return_tensors": "pt"}
    expected = processor.apply_chat_template(dicts, **options)
    assert_equal(processor.apply_chat_template(objects, **options), expected)
    assert_equal(processor.apply_chat_template([objects], **options), expected)
    mappings = [collections.UserDict(message) for message in dicts]
    assert_equal(processor.apply_chat_template(mappings, **options), expected)


@given(st.integers(1, 200), st.integers(1, 200), st.sampled_from([None, "direct", "chain"]))
@settings(max_examples=60, deadline=None)
def test_d13_tokens_of_an_image_are_counted_without_it(width, height, pipeline):
    processor = PROCESSOR
    text = processor.apply_chat_template(CHAT)
    encoded = processor(images=[image(width, height)], text=text, pipeline=pipeline, return_tensors="pt")
    planned = processor._get_num_multimodal_tokens([(height, width), (30, 40)], pipeline=pipeline)
    assert planned.num_image_tokens[0] == int(encoded["mm_token_type_ids"].sum())
    assert planned.num_image_patches[0] == len(encoded["pixel_values"])
    assert len(planned.num_image_tokens) == 2
