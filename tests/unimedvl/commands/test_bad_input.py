"""Bad input is refused: one clear line and exit code 2 from the command, a ValueError with a remedy from Python.

Every case runs both ways. The command runs inside this process, so that hundreds of refusals take seconds; a few run
as a real process at the end, where stray output of libraries would show.
"""

import inspect
import math
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.unimedvl.commands import bad_files
from unimedvl import load_medical_image
from unimedvl.checkpoint.loading import Loaded, load
from unimedvl.checkpoint.provenance import check_output_path
from unimedvl.commands.main import main

pytestmark = pytest.mark.medium


def refused(argv: list, capfd) -> str:
    """Run the command; returns its one line on stderr after checking that there was nothing else."""
    capfd.readouterr()
    code = main([str(argument) for argument in argv])
    out, err = capfd.readouterr()
    assert code == 2, (code, out, err)
    assert out == ""
    assert err.startswith("unimedvl: ") and err.count("\n") == 1 and err.endswith("\n"), err
    line = err.removeprefix("unimedvl: ").strip()
    assert len(line.split()) >= 4 and "Traceback" not in line and " object at 0x" not in line, line
    return line


def check_message(error: BaseException, pattern: str) -> None:
    message = str(error)
    assert re.search(pattern, message), message
    assert "\n" not in message.strip(), message


# ---------------------------------------- image files

# Builder of the file, options of the command, options of `load_medical_image`, what the message says.
IMAGES: list[tuple[Callable[[Path], Path], list[str], dict, str]] = [
    (bad_files.empty_file, [], {}, "is empty"),
    (bad_files.truncated_png, [], {}, "truncated or damaged"),
    (bad_files.truncated_jpeg, [], {}, "truncated or damaged"),
    (bad_files.damaged_png, [], {}, "truncated or damaged|not an image"),
    (bad_files.png_bomb, [], {}, "pixels"),
    (bad_files.large_png, [], {}, "pixels"),
    (bad_files.zip_bomb, [], {}, "archive"),
    (bad_files.gzip_bomb, [], {}, "archive"),
    (bad_files.text_as_png, [], {}, "not an image"),
    (bad_files.pdf, [], {}, "not an image"),
    (bad_files.svg, [], {}, "not an image"),
    (bad_files.video, [], {}, "not an image"),
    (bad_files.postscript, [], {}, "not an image"),
    (bad_files.pickled_image, [], {}, "pickle"),
    (bad_files.object_array, [], {}, "Python objects"),
    (bad_files.nan_array, [], {}, "(?i)nan|finite"),
    (bad_files.volume_array, [], {}, "shape"),
    (bad_files.empty_array, [], {}, "pixel|empty|size"),
    (bad_files.truncated_nifti, [], {}, "truncated or damaged"),
    (bad_files.truncated_dicom, [], {}, "truncated or damaged"),
    (bad_files.dicom_report, [], {}, "holds no image"),
    (bad_files.nifti_4d, [], {}, "frames"),
    (bad_files.nifti, ["--plane", "oblique"], {"plane": "oblique"}, "axial"),
    (bad_files.nifti, ["--slice", "99"], {"slice_index": 99}, "slice"),
    (bad_files.nifti, ["--slice", "-1"], {"slice_index": -1}, "slice"),
    (bad_files.dicom, ["--frame", "3"], {"frame": 3}, "frame"),
    (bad_files.dicom, ["--plane", "axial"], {"plane": "axial"}, "NIfTI"),
    (bad_files.dicom, ["--window", "40", "0"], {"window": (40, 0)}, "window"),
    (bad_files.dicom, ["--window", "nan", "400"], {"window": (math.nan, 400)}, "window"),
    (bad_files.good_png, ["--frame", "1"], {"frame": 1}, "frame"),
    (bad_files.good_png, ["--slice", "1"], {"slice_index": 1}, "NIfTI"),
    (lambda folder: folder / "missing.png", [], {}, "check the path"),
    (lambda folder: folder, [], {}, "directory"),
    (lambda folder: "http://example.invalid/a.png", [], {}, "URL"),
    (lambda folder: "https://example.invalid/a.png", [], {}, "URL"),
    (lambda folder: "file:///etc/hostname", [], {}, "URL"),
]


@pytest.mark.parametrize("case", IMAGES, ids=lambda case: f"{case[0].__name__}{''.join(case[1])}")
def test_image_is_refused(case, checkpoint, tmp_path, capfd):
    build, flags, options, pattern = case
    source = build(tmp_path)
    with pytest.raises(ValueError) as caught:
        load_medical_image(str(source), **options)
    check_message(caught.value, pattern)
    for command in (["ask", "what?"], ["generate", "change it", "--out", tmp_path / "out.png"]):
        line = refused([*command, "--model", checkpoint, "--image", source, *flags], capfd)
        assert re.search(pattern, line), line
        assert "Jane" not in line and "4711" not in line
    assert not (tmp_path / "sprung").exists(), "a pickle was opened"
    assert not (tmp_path / "out.png").exists()


# ---------------------------------------- checkpoints

CHECKPOINTS: list[tuple[Callable[[Path], None], str]] = [
    (bad_files.without_config, "config.json is missing"),
    (bad_files.broken_config, "not valid JSON"),
    (bad_files.list_config, "JSON object"),
    (bad_files.other_model_type, "qwen2"),
    (bad_files.truncated_weights, "not a whole safetensors file"),
    (bad_files.empty_weights, "not a whole safetensors file"),
    (bad_files.pickled_weights, "not a whole safetensors file"),
    (bad_files.only_pickles, "pickled weights"),
    (bad_files.no_weights, "is missing"),
    (bad_files.missing_shard, "is missing"),
    (bad_files.index_without_map, "weight_map"),
    (bad_files.missing_tensor, r"missing \(model.language_model.norm.weight\)"),
    (bad_files.misshapen_tensor, r"misshapen \(lm_head.weight"),
    (bad_files.unknown_tensor, r"unknown \(stranger\)"),
    (bad_files.whole_numbers, r"another type \(lm_head.weight I64\)"),
    (bad_files.no_tokenizer, "tokenizer"),
    (bad_files.broken_tokenizer, "tokenizer"),
    (bad_files.impossible_sizes, "no model can be built"),
    (bad_files.odd_heads, "misshapen|no model can be built"),
    (bad_files.wrong_field_type, "cannot be used|no model can be built"),
]


@pytest.mark.parametrize("case", CHECKPOINTS, ids=lambda case: case[0].__name__)
def test_checkpoint_is_refused(case, checkpoint, tmp_path, capfd):
    spoil, pattern = case
    directory = bad_files.copy_of(checkpoint, tmp_path)
    spoil(directory)
    with pytest.raises(ValueError) as caught:
        load(directory)
    check_message(caught.value, pattern)
    line = refused(["generate", "a scan", "--model", directory, "--out", tmp_path / "out.png"], capfd)
    assert re.search(pattern, line), line
    assert not bad_files.spring_trap(directory).exists(), "a pickle was opened"


# Arguments of the command, arguments of `load`, what the message says.
NAMES: list[tuple[list[str], dict, str]] = [
    (["--model", "no/such/folder"], {"model": "no/such/folder"}, "no folder"),
    (["--model", "./nowhere"], {"model": "./nowhere"}, "no folder"),
    (["--model", "bad id!"], {"model": "bad id!"}, "no folder"),
    (["--model", "owner/name"], {"model": "owner/name"}, "cannot be downloaded"),
    (["--model", __file__], {"model": __file__}, "is a file"),
    (["--revision", "main"], {"revision": "main"}, "no revisions"),
    (["--dtype", "float8"], {"dtype": "float8"}, "float8"),
    (["--device", "cuda:77"], {"device": "cuda:77"}, "not available"),
    (["--device", "abacus"], {"device": "abacus"}, "not available"),
    (["--quantize", "int1"], {"quantize": "int1"}, "int1"),
    (["--quantize", "nf4"], {"quantize": "nf4"}, "multiples of 64"),
]


@pytest.mark.parametrize("case", NAMES, ids=lambda case: " ".join(case[0])[-30:])
def test_name_is_refused(case, checkpoint, capfd, monkeypatch):
    flags, options, pattern = case
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError) as caught:
        load(**{"model": checkpoint, **options})
    check_message(caught.value, pattern)
    line = refused(["ask", "what?", "--model", checkpoint, *flags], capfd)
    assert re.search(pattern, line), line


# ---------------------------------------- settings

# Flags of `unimedvl generate`, arguments of `model.generate`, what the message says.
SETTINGS: list[tuple[list[str], dict, str]] = [
    (["--preset", "xray"], {"preset": "xray"}, "preset"),
    (["--renorm", "local"], {"cfg_renorm_type": "local"}, "cfg_renorm_type"),
    (["--steps", "0"], {"num_inference_steps": 0}, "num_inference_steps"),
    (["--steps", "-5"], {"num_inference_steps": -5}, "num_inference_steps"),
    (["--guidance", "nan"], {"guidance_scale": math.nan}, "guidance_scale"),
    (["--guidance", "inf"], {"guidance_scale": math.inf}, "guidance_scale"),
    (["--guidance", "-1"], {"guidance_scale": -1.0}, "guidance_scale"),
    (["--image-guidance", "nan"], {"image_guidance_scale": math.nan}, "image_guidance_scale"),
    (["--shift", "0"], {"timestep_shift": 0.0}, "timestep_shift"),
    (["--height", "33", "--width", "32"], {"height": 33}, "multiple"),
    (["--height", "0", "--width", "32"], {"height": 0}, "height"),
    (["--height", "-32", "--width", "32"], {"height": -32}, "height"),
    (["--height", "32", "--width", "32000"], {"width": 32_000}, "8 to 96 pixels"),
    (["--height", "32"], {"width": None}, "together"),
    (["--num-images", "0"], {"num_images_per_prompt": 0}, "num.images"),
    (["--num-images", "-2"], {"num_images_per_prompt": -2}, "num.images"),
    (["--think", "--max-think-tokens", "0"], {"think": True, "max_think_tokens": 0}, "max_(think|new)_tokens"),
]


@pytest.mark.parametrize("case", SETTINGS, ids=lambda case: "".join(case[0]))
def test_generation_setting_is_refused(case, checkpoint, loaded, tmp_path, capfd):
    flags, options, pattern = case
    inputs = prompt(loaded, "a scan")
    with pytest.raises(ValueError) as caught:
        loaded.model.generate(**inputs, **{"height": 32, "width": 32, **options}, generation_mode="image")
    check_message(caught.value, pattern)
    flags = flags if "--height" in flags else ["--height", "32", "--width", "32", *flags]
    line = refused(["generate", "a scan", "--model", checkpoint, "--out", tmp_path / "out.png", *flags], capfd)
    assert re.search(pattern, line), line
    assert list(tmp_path.iterdir()) == []


# Flags of `unimedvl ask`, arguments of `model.generate` in text mode, what the message says.
TEXT_SETTINGS: list[tuple[list[str], dict, str]] = [
    (["--max-new-tokens", "0"], {"max_new_tokens": 0}, "max_new_tokens"),
    (["--max-new-tokens", "-3"], {"max_new_tokens": -3}, "max_new_tokens"),
    (["--temperature", "0"], {"do_sample": True, "temperature": 0.0}, "temperature"),
    (["--temperature", "-1"], {"do_sample": True, "temperature": -1.0}, "temperature"),
    (["--temperature", "nan"], {"do_sample": True, "temperature": math.nan}, "temperature"),
]


@pytest.mark.parametrize("case", TEXT_SETTINGS, ids=lambda case: "".join(case[0]))
def test_text_setting_is_refused(case, checkpoint, loaded, capfd):
    flags, options, pattern = case
    inputs = prompt(loaded, "what?", "text")
    with pytest.raises(ValueError) as caught:
        loaded.model.generate(**inputs, **options)
    assert re.search(pattern, str(caught.value)), caught.value
    line = refused(["ask", "what?", "--model", checkpoint, *flags], capfd)
    assert re.search(pattern, line), line


# ---------------------------------------- output paths

OUTPUTS: list[tuple[str, str]] = [
    ("out.jpg", "PNG"),
    ("out", "PNG"),
    ("nowhere/out.png", "does not exist"),
    ("taken.png", "already exists"),
    ("folder.png", "is a folder"),
    ("/proc/version/out.png", "does not exist"),
]


@pytest.mark.parametrize("case", OUTPUTS, ids=lambda case: case[0])
def test_output_path_is_refused(case, checkpoint, tmp_path, capfd):
    name, pattern = case
    (tmp_path / "taken.png").write_bytes(b"mine")
    (tmp_path / "folder.png").mkdir()
    path = os.path.join(tmp_path, name)
    with pytest.raises(ValueError) as caught:
        check_output_path(path)
    check_message(caught.value, pattern)
    line = refused(["generate", "a scan", "--model", checkpoint, "--out", path], capfd)
    assert re.search(pattern, line), line
    assert (tmp_path / "taken.png").read_bytes() == b"mine"


# ---------------------------------------- only from Python or command


def prompt(loaded: Loaded, text: str, mode: str = "image") -> dict:
    return loaded.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": text}]}],
        generation_mode=mode,
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )


def test_processor_refuses_wrong_conversations(loaded):
    image = bad_files.image()
    placeholders = "<|vision_start|><|image_pad|><|vision_end|>"
    for call, pattern in [
        (lambda: loaded.processor(text=placeholders * 2 + "what?", images=[image]), "2.*but 1 images"),
        (lambda: loaded.processor(text="what?", images=[image]), "0.*but 1 images"),
        (lambda: loaded.processor(text=placeholders, images=["missing.png"]), "check the path"),
        (lambda: loaded.processor(text="what?", generation_mode="video"), "generation_mode"),
        (lambda: loaded.processor(text="", images=None), "non-empty"),
        (lambda: loaded.processor(text="what?", vidoes=[]), "vidoes"),
        (lambda: loaded.processor.apply_chat_template([{"role": "user", "content": 3}], tokenize=True), "content"),
    ]:
        with pytest.raises(ValueError) as caught:
            call()
        check_message(caught.value, pattern)


def test_model_refuses_impossible_ids_and_inputs(loaded):
    inputs = prompt(loaded, "a scan", "text")
    vocabulary = loaded.model.config.text_config.vocab_size
    for bad_id in (vocabulary, vocabulary + 1000, -1):
        ids = inputs["input_ids"].clone()
        ids[0, 1] = bad_id
        with pytest.raises(ValueError) as caught:
            loaded.model.generate(**{**inputs, "input_ids": ids}, max_new_tokens=2)
        check_message(caught.value, "id")
    with pytest.raises(ValueError, match="generation_mode"):
        loaded.model.generate(**inputs, generation_mode="video")
    with pytest.raises(ValueError, match="generator"):
        loaded.model.generate(
            **prompt(loaded, "a scan"),
            generation_mode="image",
            height=32,
            width=32,
            generator=[torch.Generator(), torch.Generator()],
        )


COMMAND_LINES: list[tuple[list[str], str]] = [
    ([], r"Missing command \(see unimedvl --help\)"),
    (["dance"], "No such command 'dance'"),
    (["pusch"], "No such command 'pusch'. Did you mean 'push'"),
    (["ask"], r"Missing argument 'question' \(see unimedvl ask --help\)"),
    (["ask", "what?", "--loud"], "No such option: --loud"),
    (["ask", "what?", "--max-new-token", "3"], "No such option: --max-new-token .*--max-new-tokens"),
    (["ask", "what?", "more?"], r"unexpected extra argument\(s\) \(more\?\)"),
    (["ask", "what?", "--window", "40"], r"'--window' requires 2 arguments \(see unimedvl ask --help\)"),
    (["ask", "what?", "--window", "low", "high"], "'--window'.*number"),
    (["ask", "what?", "--seed"], "'--seed' requires an argument"),
    (["ask", "what?", "--think=yes"], "'--think' does not take a value"),
    (["ask", "  "], "question is empty"),
    (["ask", "what?", "--seed", "-1"], "seed"),
    (["ask", "what?", "--seed", str(2**64)], "seed"),
    (["ask", "what?", "--frame", "1"], "--image"),
    (["generate", "a scan"], "--out"),
    (["generate", "", "--out", "a.png"], "prompt is empty"),
    (["generate", "a scan", "--out", "a.png", "--steps", "ten"], "'--steps'.*integer"),
    (["convert", "nowhere", "target"], "nowhere"),
    (["push", "nowhere", "owner/name"], "nowhere"),
    (["info", "--model", "nowhere"], "nowhere"),
    (["data"], r"Missing command \(see unimedvl data --help\)"),
    (["data", "check", "out"], "Missing argument 'RECORDS'"),
    (["data", "check", "records", "out", "--enforce", "some"], ": 'some' is not one of 'captions', 'all', 'none'"),
    (["data", "build", "source", "out"], "Missing option '--source'"),
    (["eval", "compare", "a"], "Missing argument 'B'"),
    (["eval", "compares", "a", "b"], "Did you mean 'compare'"),
]


@pytest.mark.parametrize("case", COMMAND_LINES, ids=lambda case: " ".join(case[0]) or "nothing")
def test_command_line_is_refused(case, checkpoint, tmp_path, capfd, monkeypatch):
    argv, pattern = case
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    line = refused(argv, capfd)
    assert re.search(pattern, line), line
    assert list(tmp_path.iterdir()) == []


def test_every_bad_file_is_a_case():
    """All that `bad_files` makes in a folder is refused by a test above; the trap only watches for opened pickles."""
    makers = set()
    for name, function in inspect.getmembers(bad_files, inspect.isfunction):
        parameters = list(inspect.signature(function).parameters.values())
        needed = [parameter.name for parameter in parameters if parameter.default is parameter.empty]
        if function.__module__ == bad_files.__name__ and needed in (["folder"], ["directory"]):
            makers.add(name)
    cases = {maker.__name__ for maker, *_ in (*IMAGES, *CHECKPOINTS)}
    assert makers - {"spring_trap"} <= cases


@pytest.mark.parametrize("spoil", [bad_files.truncated_weights, bad_files.missing_tensor, bad_files.broken_tokenizer])
def test_real_process_prints_one_line(spoil, checkpoint, tmp_path):
    directory = bad_files.copy_of(checkpoint, tmp_path)
    spoil(directory)
    command = [sys.executable, "-m", "unimedvl.commands.main", "ask", "what?", "--model", str(directory)]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert result.stdout == "" and result.stderr.count("\n") == 1, result.stderr


def test_debug_shows_the_traceback(capfd):
    assert main(["info", "--model", "./nowhere", "--debug"]) == 2
    assert "Traceback" in capfd.readouterr().err
