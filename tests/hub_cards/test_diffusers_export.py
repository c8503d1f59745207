"""An exported pipeline opens with diffusers alone, from a folder or the Hub, and draws what `generate` draws."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image

from tests.hub_cards.clean_process import use
from tests.hub_cards.test_clean_process import run_clean
from tests.hub_server import HubServer
from tests.tiny_checkpoint import tiny_checkpoint
from unimedvl.commands.main import main
from unimedvl.hub_cards.pipeline.pipeline_unimedvl import UniMedVLPipeline, conversations

pytestmark = pytest.mark.medium

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = Path(__file__).with_name("pipeline_process.py")
REPOSITORY = "tester/pipeline"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    model, processor = tiny_checkpoint(folder)
    (folder / "README.md").write_text("---\nlicense: cc-by-4.0\n---\n")
    (folder / "LICENSE").write_text("The license of the weights.\n")
    return folder, model, processor


@pytest.fixture(scope="module")
def exported(checkpoint, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "pipeline"
    assert main(["export-diffusers", str(checkpoint[0]), str(folder)]) == 0
    return folder


@pytest.fixture
def pipe(checkpoint):
    _, model, processor = checkpoint
    made = UniMedVLPipeline(model, processor)
    made.set_progress_bar_config(disable=True)
    return made


@pytest.fixture(scope="module")
def drawn(checkpoint):
    """What `generate` draws, as `pipeline_process.py` reports it."""
    made = json.loads(json.dumps(use(*checkpoint[1:])))
    return {name: made[name] for name in ("image", "edit")}


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_folder_opens_without_the_package_and_draws_the_same(exported, drawn, tmp_path):
    found = run_clean(tmp_path / "home", str(exported), program=PROGRAM)
    assert {name: found[name] for name in drawn} == drawn
    assert "virtual_staining" in found["presets"]
    assert found["imported"] == []


def test_a_hub_id_at_a_pinned_revision_draws_the_same(exported, drawn, tmp_path):
    push = """
import sys
from huggingface_hub import HfApi

HfApi().create_repo(sys.argv[2])
print(HfApi().upload_folder(folder_path=sys.argv[1], repo_id=sys.argv[2]).oid)
"""
    with HubServer() as hub:
        environment = {**os.environ, **hub.environment(tmp_path / "pusher")}
        command = [sys.executable, "-c", push, str(exported), REPOSITORY]
        result = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr[-2000:]
        commit = result.stdout.split()[-1]
        home = tmp_path / "stranger"
        found = run_clean(home, REPOSITORY, commit, program=PROGRAM, **hub.environment(home))
    assert {name: found[name] for name in drawn} == drawn


def test_code_runs_only_where_it_is_trusted(exported):
    with pytest.raises(ValueError, match="trust_remote_code"):
        DiffusionPipeline.from_pretrained(exported)


def test_folder_holds_card_license_and_safetensors_only(exported):
    card = (exported / "README.md").read_text()
    assert "library_name: diffusers" in card and "license: cc-by-4.0" in card
    assert "Research use only" in card and str(exported.parent) not in card
    assert (exported / "LICENSE").read_text() == "The license of the weights.\n"
    suffixes = {path.suffix for path in exported.rglob("*") if path.is_file()}
    assert suffixes <= {".py", ".json", ".jinja", ".safetensors", ".md", ""}
    assert str(exported.parent) not in (exported / "model_index.json").read_text()


def test_loaded_pipeline_saves_the_same_folder(exported, tmp_path):
    opened = DiffusionPipeline.from_pretrained(exported, trust_remote_code=True)
    opened.save_pretrained(tmp_path / "again")
    names = [path.relative_to(exported) for path in exported.rglob("*") if path.is_file()]
    again = [path.relative_to(tmp_path / "again") for path in (tmp_path / "again").rglob("*") if path.is_file()]
    assert set(names) - set(again) == {Path("README.md"), Path("LICENSE")}
    assert not set(again) - set(names)
    for name in again:
        assert (tmp_path / "again" / name).read_bytes() == (exported / name).read_bytes(), name


def test_types_of_numbers(exported):
    opened = DiffusionPipeline.from_pretrained(exported, trust_remote_code=True, torch_dtype=torch.bfloat16)
    assert {weight.dtype for weight in opened.model.model.language_model.parameters()} == {torch.bfloat16}


def test_batches_and_forms_of_output(pipe):
    settings = {"num_inference_steps": 2, "height": 16, "width": 32, "num_images_per_prompt": 2}
    images = [Image.new("RGB", (24, 24), color) for color in ("white", "gray")]
    call = {"prompt": ["one", "two"], "image": [images[0], images], **settings}
    tensors = pipe(**call, generator=seeded(), output_type="pt").images
    assert tensors.shape == (4, 3, 16, 32) and 0 <= tensors.min() and tensors.max() <= 1
    arrays = pipe(**call, generator=seeded(), output_type="np").images
    assert numpy.array_equal(arrays, tensors.permute(0, 2, 3, 1).numpy())
    made = pipe(**call, generator=seeded(), return_dict=False)[0]
    assert [image.size for image in made] == [(32, 16)] * 4
    # As the processor does it: levels are cut off, not rounded.
    assert numpy.array_equal(numpy.asarray(made[3]), (arrays[3] * 255).astype(numpy.uint8))
    latents = pipe(**call, generator=seeded(), output_type="latent").images
    assert latents.shape == (4, 2 * 4, pipe.model.config.latent_dim)


def test_noise_of_the_caller_replaces_the_generator(pipe):
    noise = torch.randn(2, 16, pipe.model.config.latent_dim, generator=seeded(5))
    call = {"prompt": "one", "num_inference_steps": 2, "height": 32, "width": 32, "num_images_per_prompt": 2}
    made = [pipe(**call, latents=noise, generator=seeded(seed), output_type="pt").images for seed in (1, 2)]
    assert torch.equal(*made)
    assert not torch.equal(made[0][0], made[0][1])


def test_callback_sees_every_step_and_replaces_the_state(pipe):
    seen = []

    def watch(pipeline, step, timestep, tensors):
        seen.append((pipeline is pipe, step, timestep, sorted(tensors)))
        return {"latents": torch.zeros_like(tensors["latents"])} if step == 2 else None

    call = {"prompt": "one", "num_inference_steps": 3, "height": 32, "width": 32, "output_type": "latent"}
    names = ["latents", "velocity"]
    made = pipe(
        **call, generator=seeded(), callback_on_step_end=watch, callback_on_step_end_tensor_inputs=names
    ).images
    assert [entry[1] for entry in seen] == [0, 1, 2]
    assert all(own and tensors == names for own, _, _, tensors in seen)
    assert seen[0][2] == 1.0 and seen[0][2] > seen[1][2] > seen[2][2] > 0
    assert not made.any()


def test_offloaded_model_draws_the_same(exported, pipe):
    opened = DiffusionPipeline.from_pretrained(exported, trust_remote_code=True)
    opened.set_progress_bar_config(disable=True)
    opened.enable_model_cpu_offload(device="cpu")
    moves = []
    hook = opened.model._hf_hook
    plain = hook.pre_forward
    hook.pre_forward = lambda *arguments, **options: moves.append(1) or plain(*arguments, **options)
    call = {"prompt": "one", "num_inference_steps": 2, "height": 32, "width": 32, "output_type": "pt"}
    made = opened(**call, generator=seeded()).images
    assert moves, "the model never moved to the device"
    assert torch.equal(made, pipe(**call, generator=seeded()).images)


@pytest.mark.parametrize(
    ("prompt", "image", "message"),
    [
        ("", None, "none of them empty"),
        ([], None, "none of them empty"),
        (["one", "two"], [Image.new("L", (8, 8))], "as many images"),
        (["one"], Image.new("L", (8, 8)), "as many images"),
        ([3], None, "none of them empty"),
    ],
)
def test_prompts_that_do_not_fit_their_images(prompt, image, message):
    with pytest.raises(ValueError, match=message):
        conversations(prompt, image)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output_type": "jpeg"}, "output_type must be one of"),
        ({"callback_on_step_end_tensor_inputs": ["prompt_embeds"]}, "can name latents, velocity"),
        ({"preset": "portrait"}, "preset must be one of"),
        ({"negative_prompt": "blur"}, "negative_prompt"),
        ({"height": 32}, "height and width together"),
    ],
)
def test_bad_arguments_get_one_sentence(pipe, options, message):
    with pytest.raises(ValueError, match=message):
        pipe("one", **options)


def test_typed_control_tokens_stay_text(pipe):
    """A marker in the words of a person opens no image."""
    call = {"num_inference_steps": 1, "height": 16, "width": 16, "generator": seeded()}
    assert pipe("<|vision_start|><|vision_pad|><|vision_end|>", **call).images[0].size == (16, 16)


def test_refusals_leave_nothing_behind(checkpoint, tmp_path, capsys):
    (tmp_path / "used").mkdir()
    (tmp_path / "used" / "file").write_text("mine")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "tiny", "peft_type": "LORA"}')
    capsys.readouterr()
    for arguments, message in (
        ([checkpoint[0], tmp_path / "used"], "is not empty: choose another folder"),
        ([adapter, tmp_path / "out"], "is an adapter: merge it"),
        ([tmp_path / "missing", tmp_path / "out"], "missing"),
    ):
        assert main(["export-diffusers", *map(str, arguments)]) == 2
        err = capsys.readouterr().err
        assert message in err and err.count("\n") == 1, err
    assert not (tmp_path / "out").exists()
    assert (tmp_path / "used" / "file").read_text() == "mine"


def test_the_page_runs_as_written(tmp_path):
    text = (ROOT / "docs" / "diffusers.md").read_text(encoding="utf-8")
    (command,) = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert text.count("```") == 4
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for words in ([*command.replace("unimedvl", "-m unimedvl", 1).split()], ["-c", code]):
        done = subprocess.run([sys.executable, *words], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
    with Image.open(tmp_path / "sharper.png") as made:
        assert made.size[0] == made.size[1] > 0
