"""Every metric is an `evaluate` module that loads by path, without a network, and has a card."""

import ast
import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import evaluate
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from unimedvl.evaluation.metrics.evaluate_modules import documentation
from unimedvl.evaluation.metrics.readmes import card, module_class, module_names

pytestmark = pytest.mark.medium

METRICS = Path(__file__).parents[3] / "evaluation" / "metrics"
NAMES = sorted(path.name for path in METRICS.iterdir() if (path / f"{path.name}.py").is_file())
IMAGES = [Image.new("RGB", (16, 16), (shade, 80, 40)) for shade in (0, 90, 200, 250)]
CALLS = {
    "vqa_accuracy": ({"predictions": ["yes"], "references": ["Yes"]}, "accuracy"),
    "report_text": ({"predictions": ["clear"], "references": ["clear"], "scores": ["rouge"]}, "rouge_l"),
    "clinical_text": ({"predictions": ["clear"], "references": ["clear"], "weights": {}}, "count"),
    "image_distribution": ({"predictions": IMAGES, "references": IMAGES, "extractor": "pixels-1"}, "fid"),
    "image_quality": ({"predictions": IMAGES, "references": IMAGES[::-1]}, "psnr"),
    "segmentation": ({"predictions": IMAGES, "references": IMAGES}, "dice"),
    "counterfactual": ({"predictions": [0.2, 0.9], "references": [0, 1]}, "auroc"),
    "memorization": ({"predictions": [IMAGES], "references": [IMAGES], "held_out": [IMAGES]}, "copies"),
    "diversity": ({"predictions": IMAGES, "references": IMAGES}, "vendi"),
    "reader_study": ({"predictions": [1.0, 5.0], "references": [0, 1]}, "auroc"),
}


def test_the_list_is_whole():
    assert {*CALLS, "image_text_score"} == set(NAMES)


@pytest.mark.parametrize("name", CALLS)
def test_loads_by_path_and_computes(name, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    metric = evaluate.load(str(METRICS / name), cache_dir=str(tmp_path), experiment_id=name)
    assert metric.description and metric.citation and metric.inputs_description and metric.features
    arguments, wanted = CALLS[name]
    assert wanted in metric.compute(**arguments)


@pytest.mark.parametrize("name", NAMES)
def test_the_card_is_what_the_docstring_says(name):
    """`python -m unimedvl.evaluation.metrics.readmes` has been run."""
    assert (METRICS / name / "README.md").read_text(encoding="utf-8") == card(name)


def test_the_generator_covers_every_module():
    assert module_names() == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_names_every_argument_and_a_source(name):
    function = module_class(name).function
    said = documentation(function)
    named = re.findall(r"^(\w+):", said["Args"], re.MULTILINE)
    assert named == list(inspect.signature(function).parameters)
    assert said[""] and said["Returns"] and said["Source"]


def test_the_plain_functions_need_neither_evaluate_nor_datasets_nor_the_rest_of_the_package():
    """Rewards import them where the benchmarks' libraries are missing."""
    modules = [
        path.stem for path in METRICS.glob("*.py") if path.stem not in ("__init__", "evaluate_modules", "readmes")
    ]
    code = "; ".join(f"import unimedvl.evaluation.metrics.{module}" for module in modules)
    code += "; import sys; print(*(name for name in sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(ran.stdout.split())
    assert not loaded & {"evaluate", "datasets", "sacrebleu", "torchvision", "matplotlib"}
    ours = {name for name in loaded if name.startswith("unimedvl.") and name.count(".") > 1}
    allowed = ("unimedvl.evaluation", "unimedvl.utils")
    assert not {name for name in ours if not name.startswith((*allowed,))}


@pytest.mark.parametrize("name", NAMES)
def test_the_call_on_the_card_is_one_that_the_module_takes(name):
    card_data = ModelCard.load(METRICS / name / "README.md")
    assert {"evaluate", "metric"} <= set(card_data.data.tags) and card_data.data.license == "apache-2.0"
    (code,) = re.findall(r"```python\n(.*?)```", card_data.text, re.DOTALL)
    calls = [node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call)]
    (load,) = [call for call in calls if ast.unparse(call.func) == "evaluate.load"]
    assert Path(load.args[0].value).parts[-2:] == (METRICS.name, name)
    (compute,) = [call for call in calls if ast.unparse(call.func) == "metric.compute"]
    given = {keyword.arg for keyword in compute.keywords}
    options = inspect.signature(module_class(name).function).parameters
    assert set(module_class(name).columns) <= given <= set(options) and not compute.args


def test_no_folder_gets_to_ask_whether_its_code_may_run(tmp_path, monkeypatch):
    from unimedvl.evaluation.metrics.classifiers import load_classifier
    from unimedvl.evaluation.metrics.image_features import load_feature_extractor
    from unimedvl.evaluation.metrics.image_text import load_image_text_encoder

    def asked(*_):
        raise AssertionError("asked on the terminal")

    monkeypatch.setattr("builtins.input", asked)
    names = ("AutoConfig", "AutoModel", "AutoModelForImageClassification", "AutoProcessor", "AutoImageProcessor")
    text = json.dumps({"model_type": "strange", "auto_map": {name: f"code.{name}" for name in names}})
    for name in ("config.json", "preprocessor_config.json", "processor_config.json"):
        (tmp_path / name).write_text(text)
    folder = str(tmp_path)
    for load in (load_feature_extractor, load_image_text_encoder, lambda path: load_classifier(path, "x")):
        with pytest.raises(ValueError, match="code") as caught:
            load(folder)
        assert "\n" not in str(caught.value)


def test_missing_clinical_packages_get_one_line(tmp_path):
    from unimedvl.evaluation.metrics.clinical_models import SCORERS, load_scorer

    for name in SCORERS:
        with pytest.raises(ValueError, match=f"{name} needs the package .*pip install") as caught:
            load_scorer(name, str(tmp_path))
        assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="choose among"):
        load_scorer("bertscore", str(tmp_path))
