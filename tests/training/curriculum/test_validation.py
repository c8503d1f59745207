"""Validation, images, guards and what the log reports."""

import pytest
import torch
from PIL import Image

from tests.tiny_model import tiny_model
from tests.training.conftest import RANGES
from tests.training.outcomes import history
from unimedvl.training.checkpoints import checkpoints
from unimedvl.training.curriculum.metrics import peak_flops
from unimedvl.training.curriculum.parameter_groups import make_optimizer
from unimedvl.training.curriculum.validation import duration, progress_line
from unimedvl.training.recipe import OptimizerRecipe
from unimedvl.training.run import main, run

pytestmark = pytest.mark.medium


def test_a_run_is_looked_at_without_being_changed(recipe, tmp_path):
    """Validation and images are made from the averages and leave weights, losses and order alone."""
    looks = {
        "validation": {"every": 2, "batches": 2},
        "samples": {"every": 4, "prompts": ["a scan", "a mask"], "count": 2, "height": 16, "width": 24, "steps": 2},
    }
    run(recipe("plain"), [])
    run(recipe("looked", peak_tflops=1e-6, **looks), [])
    plain, looked = history(tmp_path / "plain"), history(tmp_path / "looked")
    seen = [entry for entry in looked if "validation/loss" in entry]
    assert [entry["step"] for entry in seen] == [2, 4]
    assert {"validation/ce", "validation/mse", "validation/ce/vqa", "validation/mse/text_to_image"} <= seen[0].keys()
    assert seen[0]["validation/loss"] == pytest.approx(0.25 * seen[0]["validation/ce"] + seen[0]["validation/mse"])
    rest = [{name: value for name, value in entry.items() if name != "mfu"} for entry in looked if entry not in seen]
    assert rest == plain
    assert all(entry["mfu"] > 0 for entry in looked if "loss" in entry)
    with Image.open(tmp_path / "looked" / "samples" / "step-0000004.png") as sheet:
        assert sheet.size == (2 * 24 + 4, 2 * 16 + 4)


def test_shares_padding_and_losses_are_logged(recipe, place, tmp_path):
    groups = [
        {"name": name, "path": str(place / "records"), "kinds": [kind], "weight": weight, **RANGES}
        for name, kind, weight in (("read", "image_understanding", 3), ("made", "image_generation", 1))
    ]
    run(recipe("log", steps=2, log_steps=2, data={"groups": groups, "rows_per_batch": 8}), [])
    (entry,) = [entry for entry in history(tmp_path / "log") if "loss" in entry]
    assert entry["share/read"] == pytest.approx(0.75, abs=0.1)
    shares = [value for name, value in entry.items() if name.startswith("share/modality/")]
    assert sum(shares) == pytest.approx(1.0)
    assert entry["loss"] == pytest.approx(0.25 * entry["ce"] + entry["mse"], rel=0.3)
    assert {"ce/vqa", "mse/text_to_image", "ce/modality/CXR", "padding", "grad_norm"} <= entry.keys()
    assert 0 <= entry["padding"] < 0.5


@pytest.mark.parametrize("resting", ["llm", "vit"])
def test_the_logged_rate_is_one_of_those_that_train(recipe, tmp_path, caplog, resting):
    optimizer = {"learning_rate": 2e-3, "schedule": "constant", "warmup_steps": 0, "learning_rates": {resting: 0.0}}
    with caplog.at_level("INFO"):
        run(recipe("resting", optimizer=optimizer), [])
    assert [entry["learning_rate"] for entry in history(tmp_path / "resting") if "loss" in entry] == [2e-3] * 4
    assert any(message.startswith("training 4 steps") for message in caplog.messages)


def test_a_loss_that_is_no_number_names_its_records(recipe, tmp_path, capsys):
    run(recipe("broken"), ["steps=2"])
    kept = checkpoints(tmp_path / "broken")
    # A rate this high drives the weights beyond what float32 holds.
    optimizer = {"learning_rate": 1e30, "warmup_steps": 0}
    assert main([str(recipe("diverging", optimizer=optimizer))]) == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "on the records" in line and "-train" in line and "untouched" in line
    assert checkpoints(tmp_path / "broken") == kept


def test_rates_of_modules(recipe):
    model = tiny_model()
    rates = {"vit": 1.0, "model.connector": 2.0, "model.language_model.layers.1": 3.0}
    optimizer = make_optimizer(model, OptimizerRecipe(learning_rate=4.0, learning_rates=rates))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    rate_of = {names[id(weight)]: group["lr"] for group in optimizer.param_groups for weight in group["params"]}
    for name, rate in rate_of.items():
        matches = [given for prefix, given in rates.items() if "." in prefix and name.startswith(prefix)]
        assert rate == (matches[0] if matches else 1.0 if name.startswith("model.vit_model") else 4.0), name
    with pytest.raises(ValueError, match="begins with 'model.conector'"):
        make_optimizer(model, OptimizerRecipe(learning_rates={"model.conector": 1.0}))


def test_what_a_device_can_do_is_stated_or_known():
    assert peak_flops(312.0) == 312e12
    assert torch.cuda.is_available() or peak_flops(0.0) is None


def test_lines_of_progress():
    assert duration(59.6) == "00:01:00" and duration(2 * 86400 + 3 * 3600 + 61) == "2 d 03:01:01"
    line = progress_line({"loss": 1.25, "mfu": 0.415, "padding": 0.012, "seconds_left": 3600.0}, 25, 100)
    assert line == "step 25/100 (25.0%)  loss 1.2500  MFU 41.5%  padding 1.2%  01:00:00 left"


def test_images_that_the_model_cannot_make_stop_the_run_at_its_start(recipe, tmp_path, capsys):
    samples = {"every": 100, "prompts": ["a scan"], "height": 4096, "width": 16}
    assert main([str(recipe("large", samples=samples))]) == 2
    assert "this model makes images of at most" in capsys.readouterr().err
