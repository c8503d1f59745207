"""What a process imports: nothing for the package alone, diffusers to make images, PEFT where it is asked for."""

from pathlib import Path

import pytest

from benchmarks.start import (
    CHECKPOINT,
    LOAD_OURS,
    ONE_TOKEN,
    measure_program,
    programs,
    run_program,
    unused_packages,
    write_inputs,
)

REFUSE_DIFFUSERS = """
import sys
class RefuseDiffusers:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "diffusers":
            raise ModuleNotFoundError("No module named 'diffusers'", name=name)
sys.meta_path.insert(0, RefuseDiffusers())
"""


@pytest.fixture(scope="module")
def by_kind(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder: Path = tmp_path_factory.mktemp("start")
    write_inputs(folder)
    return programs(folder)


def test_the_package_alone_imports_no_library(by_kind: dict[str, str]):
    roots = {name.partition(".")[0] for name in measure_program(by_kind["unimedvl"])[1]}
    assert "unimedvl" in roots and not roots & {"torch", "transformers", "numpy", "PIL", "huggingface_hub"}


@pytest.mark.medium
@pytest.mark.parametrize("kind", ["understanding only", "ask"])
def test_understanding_imports_nothing_it_has_no_use_for(by_kind: dict[str, str], kind: str):
    modules = measure_program(by_kind[kind])[1]
    assert "unimedvl.modeling_unimedvl.modeling_unimedvl" in modules
    assert unused_packages(modules) == []
    unrelated = ("unimedvl.evaluation", "unimedvl.training", "unimedvl.unimed5m")
    assert not [name for name in modules if name.startswith(unrelated)]


@pytest.mark.medium
def test_the_whole_model_imports_diffusers(by_kind: dict[str, str]):
    assert "diffusers" in unused_packages(measure_program(by_kind["whole model"])[1])


@pytest.mark.medium
def test_without_diffusers_the_model_understands_and_says_what_images_need():
    refused = f"""
try:
    unimedvl.UniMedVLForConditionalGeneration.from_pretrained({str(CHECKPOINT)!r})
except ModuleNotFoundError as error:
    print(error)
"""
    understood = f"{LOAD_OURS}({str(CHECKPOINT)!r}, visual_gen=False); print({ONE_TOKEN}.shape[1])"
    printed = run_program(f"{REFUSE_DIFFUSERS}\n{understood}\n{refused}").splitlines()
    assert printed[0] == "5" and len(printed) == 2
    assert "pip install diffusers" in printed[1] and "visual_gen=False" in printed[1]
