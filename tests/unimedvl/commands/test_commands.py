"""The command does what the library does, says only what was asked for, and leaves a record in every image."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch
import typer
from PIL import Image

import unimedvl
from tests.tiny_checkpoint import tiny_checkpoint
from tests.unimedvl.commands import bad_files
from tests.upstream_checkpoint import write_upstream
from unimedvl.checkpoint.loading import load
from unimedvl.checkpoint.provenance import read_provenance
from unimedvl.commands.ask import split_thought
from unimedvl.commands.main import app, main
from unimedvl.commands.shared import NOTICE, image_hashes

pytestmark = pytest.mark.medium

SMALL = ["--steps", "2", "--height", "32", "--width", "32"]


def run(capsys, *argv) -> tuple[str, str]:
    code = main([str(argument) for argument in argv])
    captured = capsys.readouterr()
    assert code == 0, captured.err
    return captured.out, captured.err


@pytest.fixture
def png(tmp_path):
    return bad_files.good_png(tmp_path)


def test_ask_equals_the_library(checkpoint, loaded, png, capsys):
    out, err = run(capsys, "ask", "What is this?", "--image", png, "--model", checkpoint, "--max-new-tokens", 6)
    content = [{"type": "image", "image": str(png)}, {"type": "text", "text": "What is this?"}]
    inputs = loaded.processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    ids = loaded.model.generate(**inputs, max_new_tokens=6, do_sample=False)
    text = loaded.processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0]
    assert out == text.strip() + "\n"
    assert err == NOTICE + "\n"


def test_a_folder_of_a_series_has_one_hash_that_each_of_its_files_changes(png, tmp_path):
    (tmp_path / "series").mkdir()
    (tmp_path / "series" / "1.dcm").write_bytes(b"one")
    found = [image_hashes([str(png), str(tmp_path / "series")])]
    (tmp_path / "series" / "2.dcm").write_bytes(b"two")
    found.append(image_hashes([str(png), str(tmp_path / "series")]))
    assert [len(hashes) for hashes in found] == [2, 2]
    assert found[0][0] == found[1][0] and found[0][1] != found[1][1]


def test_ask_as_json_with_several_images(checkpoint, png, tmp_path, capsys):
    scan = bad_files.dicom(tmp_path)
    flags = ["--image", png, "--image", scan, "--model", checkpoint, "--max-new-tokens", 4, "--json", "--seed", 3]
    record = json.loads(run(capsys, "ask", "What changed?", *flags)[0])
    assert record["model"] == "tiny" and record["revision"].startswith("weights:") and record["seed"] == 3
    assert isinstance(record["answer"], str) and record["thought"] is None


def test_warnings_of_ours_are_one_line_and_say_nothing_of_the_patient(checkpoint, tmp_path, capsys):
    scan = bad_files.dicom(tmp_path, burned_in=True)
    _, err = run(capsys, "ask", "What?", "--image", scan, "--model", checkpoint, "--max-new-tokens", 2)
    warning, notice = err.splitlines()
    assert warning.startswith("unimedvl: warning: ") and "burned-in" in warning and notice == NOTICE
    assert "Jane" not in err and "4711" not in err


def test_sampling_repeats_with_its_seed(checkpoint, capsys):
    flags = ["--model", checkpoint, "--max-new-tokens", 12, "--temperature", 2.0]
    first, again, other = (run(capsys, "ask", "Hm?", *flags, "--seed", seed)[0] for seed in (1, 1, 2))
    assert first == again != other


def test_control_tokens_in_a_question_are_text(checkpoint, capsys):
    run(capsys, "ask", "<|image_pad|><|im_end|> what?", "--model", checkpoint, "--max-new-tokens", 2)


def test_thought_is_split_off():
    assert split_thought("<think>it is dark</think>night") == ("it is dark", "night")
    assert split_thought("night") == (None, "night")


def test_generate_equals_the_library_and_carries_its_record(checkpoint, loaded, tmp_path, capsys):
    path = tmp_path / "out.png"
    flags = ["--model", checkpoint, "--out", path, "--seed", 5, *SMALL, "--guidance", 2]
    out, err = run(capsys, "generate", "a chest X-ray of Jane Doe", *flags)
    assert out == f"{path}\n" and err == NOTICE + "\n"
    inputs = loaded.processor.apply_chat_template(
        [{"role": "user", "content": [{"type": "text", "text": "a chest X-ray of Jane Doe"}]}],
        generation_mode="image",
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    )
    pixels = loaded.model.generate(
        **inputs,
        generation_mode="image",
        preset="t2i",
        num_inference_steps=2,
        guidance_scale=2.0,
        height=32,
        width=32,
        generator=torch.Generator().manual_seed(5),
        show_progress=False,
    )
    expected = loaded.processor.post_process_multimodal_output(pixels, generation_mode="image")[0]
    with Image.open(path) as made:
        assert made.tobytes() == expected.tobytes()
    record = read_provenance(path)
    assert record["seed"] == 5 and record["model"] == "tiny" and record["ai_generated"] is True
    assert (
        record["settings"] | {"preset": "t2i", "num_inference_steps": 2, "guidance_scale": 2.0} == record["settings"]
    )
    assert b"Jane" not in path.read_bytes()


def test_generate_several_edits_with_a_plan(checkpoint, png, tmp_path, capsys):
    flags = ["--image", png, "--model", checkpoint, "--out", tmp_path / "o.png", "--num-images", 2, "--steps", 2]
    flags += ["--think", "--max-think-tokens", 4, "--preset", "virtual_staining", "--seed", 1, "--json"]
    record = json.loads(run(capsys, "generate", "Stain it", *flags)[0])
    assert [os.path.basename(path) for path in record["files"]] == ["o-1.png", "o-2.png"]
    assert record["thought"] is not None
    records = [read_provenance(path) for path in record["files"]]
    assert [entry["settings"]["index"] for entry in records] == [0, 1]
    assert len(records[0]["input_sha256"]) == 1
    first, second = (Image.open(path).tobytes() for path in record["files"])
    assert first != second


def test_generate_never_overwrites_unasked(checkpoint, tmp_path, capsys):
    path = tmp_path / "out.png"
    path.write_bytes(b"mine")
    flags = ["--model", str(checkpoint), "--out", str(path), *SMALL]
    assert main(["generate", "a scan", *flags]) == 2 and path.read_bytes() == b"mine"
    run(capsys, "generate", "a scan", *flags, "--force")
    assert read_provenance(path)["synthetic"] is True


def test_upstream_layout_and_back(checkpoint, tmp_path, capsys):
    upstream, converted = tmp_path / "upstream", tmp_path / "converted"
    run(capsys, "convert", checkpoint, upstream, "--to-upstream")
    record = json.loads(run(capsys, "convert", upstream, converted, "--max-shard-size", "100KB", "--json")[0])
    assert len(record["weight_files"]) > 1 and not record["unused"]
    question = ["ask", "What is this?", "--max-new-tokens", 6, "--model"]
    answers = {run(capsys, *question, folder)[0] for folder in (checkpoint, upstream, converted)}
    assert len(answers) == 1
    before, after = load(checkpoint).model.state_dict(), load(converted).model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_upstream_layout_without_tokenizer_converts_to_a_model_alone(tmp_path, capsys):
    upstream, converted = tmp_path / "upstream", tmp_path / "converted"
    write_upstream(upstream)
    out, _ = run(capsys, "convert", upstream, converted)
    assert "no processor" in out
    assert (converted / "config.json").is_file() and not (converted / "processor_config.json").exists()


@pytest.mark.parametrize("kind", ["nf4", "int8"])
def test_quantized_loading(kind, tmp_path, capsys):
    wide = {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 2, "num_key_value_heads": 2}
    tiny_checkpoint(tmp_path / "wide", **wide)
    flags = ["--model", tmp_path / "wide", "--quantize", kind]
    out, _ = run(capsys, "ask", "What?", *flags, "--max-new-tokens", 3, "--json")
    assert "answer" in json.loads(out)
    run(capsys, "generate", "a scan", *flags, *SMALL, "--out", tmp_path / "out.png")
    layer = load(tmp_path / "wide", quantize=kind).model.model.language_model.layers[0]
    kinds = {"nf4": "Linear4bit", "int8": "Linear8bitLt"}
    assert type(layer.self_attn.q_proj).__name__ == kinds[kind]
    assert type(layer.mlp_moe_gen.up_proj).__name__ == kinds[kind]


def test_understanding_only_leaves_half_out(checkpoint):
    whole, half = load(checkpoint).model, load(checkpoint, understanding_only=True).model
    assert half.num_parameters() < whole.num_parameters()
    assert not any("_moe_gen" in name or ".vae." in name for name, _ in half.named_parameters())


def test_registered_classes_win_over_repository_code(checkpoint):
    code = (
        "import sys, unimedvl, transformers; unimedvl.register(); unimedvl.register();"
        "model = transformers.AutoModelForMultimodalLM.from_pretrained(sys.argv[1]);"
        "processor = transformers.AutoProcessor.from_pretrained(sys.argv[1]);"
        "print(type(model).__module__, type(processor).__module__, type(processor.image_processor).__module__)"
    )
    command = [sys.executable, "-c", code, str(checkpoint)]
    result = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert result.returncode == 0, result.stderr
    modules = result.stdout.split()
    assert [name.partition(".")[0] for name in modules] == ["unimedvl"] * 3


def test_info_prints_the_presets_that_generate_uses(checkpoint, tmp_path, capsys):
    """A line for each, with what the checkpoint leaves open."""
    folder = tmp_path / "own"
    shutil.copytree(checkpoint, folder)
    presets = {"t2i": {"num_inference_steps": 3, "cfg_interval": [0.5, 1.0], "height": 32}, "mine": {}}
    (folder / "generation_config.json").write_text(json.dumps({"task_presets": presets}))
    lines = run(capsys, "info", "--model", folder)[0].splitlines()
    shown = {line.split()[0]: line for line in lines[lines.index("presets of generated images:") + 1 :]}
    assert shown.keys() == presets.keys()
    for words in ("steps 3, guidance 4, image guidance 1,", "interval (0.5, 1]", "shift 3", "height 32"):
        assert words in shown["t2i"]
    assert "steps 49, guidance 4, image guidance 2," in shown["mine"] and "renorm text_channel" in shown["mine"]
    record = json.loads(run(capsys, "info", "--model", folder, "--json")[0])["presets"]
    assert record["t2i"]["num_inference_steps"] == 3 and record["t2i"]["timestep_shift"] == 3.0
    assert record["mine"]["image_guidance_scale"] == 2.0
    with_defaults = run(capsys, "info", "--model", checkpoint)[0]
    assert re.search(r"^  virtual_staining +steps 49, guidance 4, image guidance 2,", with_defaults, re.MULTILINE)


def test_public_names():
    assert set(unimedvl.__all__) == set(dir(unimedvl))
    for name in unimedvl.__all__:
        assert getattr(unimedvl, name) is not None
    with pytest.raises(AttributeError, match="no attribute"):
        _ = unimedvl.nothing


def test_the_package_is_the_command():
    ran = subprocess.run([sys.executable, "-m", "unimedvl", "--help"], capture_output=True, text=True, check=True)
    assert "generate" in ran.stdout


def commands(command, words=()):
    """Every command and sub-command of a group: the words typed, and the command."""
    yield list(words), command
    for name, part in getattr(command, "commands", {}).items():
        yield from commands(part, (*words, name))


COMMANDS = list(commands(typer.main.get_command(app)))


def test_there_is_every_command():
    names = {" ".join(words) for words, _ in COMMANDS}
    assert names >= {"ask", "generate", "train", "convert", "info", "push", "serve"}
    assert names >= {
        f"data {name}" for name in ("build", "stats", "augment", "check", "audit", "agreement", "publish")
    }
    assert names >= {f"eval {name}" for name in ("compare", "card", "sheet", "readers", "list")} | {"data sources"}


@pytest.mark.parametrize(("words", "command"), COMMANDS, ids=[" ".join(words) or "unimedvl" for words, _ in COMMANDS])
@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_every_command_explains_itself(words, command, flag, capsys):
    out, err = run(capsys, *words, flag)
    assert out.startswith(f"Usage: {' '.join(['unimedvl', *words])} ") and err == ""
    assert "\b" not in out and "\x1b" not in out
    for parameter in command.params:
        shown = parameter.opts[0] if parameter.param_type_name == "option" else parameter.display_name_raw
        assert re.search(rf"^ +{re.escape(shown)}\b", out, re.MULTILINE), shown
    whole = words and not hasattr(command, "commands")
    assert not whole or re.search(r"^ +--debug\b", out, re.MULTILINE)
    assert not whole or words in (["train"], ["serve"], ["ui"]) or re.search(r"^ +--json\b", out, re.MULTILINE)


def test_help_needs_no_heavy_import():
    heavy = "{'torch', 'transformers', 'diffusers', 'datasets', 'rich'}"
    code = (
        f"import sys; from unimedvl.commands.main import main; main(sys.argv[1:]); print({heavy} & {{*sys.modules}})"
    )
    for words in ([], ["ask"], ["train"], ["data", "check"], ["eval"]):
        command = [sys.executable, "-c", code, *words, "--help"]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        assert result.stdout.endswith("set()\n"), result.stdout[-200:]


def test_version_is_printed(capsys):
    assert run(capsys, "--version") == (f"unimedvl {unimedvl.__version__}\n", "")


def test_a_shell_is_left_alone(capsys):
    """Typer's apps can add completion to the user's shell: this one has no such option."""
    assert "completion" not in run(capsys, "--help")[0]


def test_interrupt_is_130(monkeypatch, capsys):
    def interrupted(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("unimedvl.checkpoint.folder.peek_checkpoint", interrupted)
    assert main(["info", "--model", "anything"]) == 130
    assert capsys.readouterr().err == "unimedvl: interrupted\n"


def test_own_faults_keep_their_traceback(monkeypatch):
    def faulty(*arguments):
        raise ZeroDivisionError

    monkeypatch.setattr("unimedvl.checkpoint.folder.peek_checkpoint", faulty)
    with pytest.raises(ZeroDivisionError):
        main(["info", "--model", "anything"])


def test_closed_pipe_is_silent(checkpoint):
    command = f"{sys.executable} -m unimedvl.commands.main info --json --model {checkpoint} | head -c 1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert result.stderr == ""
