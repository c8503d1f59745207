"""The suite would notice: a changed value in a copy of the folder makes it fail, by name."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

from safetensors.torch import load_file, save_file

from .records import changed_json, changed_tensor

HERE = Path(__file__).parent

# A velocity, an attention mask, a generated id, a loss and an image size: the record, and the test that reads it.
TENSORS = {
    ("gen_t2i.safetensors", ".v_"): "test_text_to_image.py",
    ("train.safetensors", ".attend_"): "test_training.py",
}
LEAVES = {
    ("infer.json", "/und/chat/ids/1"): "test_understanding.py::test_one_image",
    ("train.json", "/forward/loss"): "test_training.py",
    ("sizes.json", "/position_ids/0/extrapolate/1"): "test_components.py::test_position_ids_of_a_grid",
}


def test_changed_values_fail_by_name(golden, tmp_path):
    folder = tmp_path / "changed"
    shutil.copytree(golden.folder, folder)
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755)
    changed, tests = [], []
    for (file, part), test in TENSORS.items():
        names = [name for name in golden.tensor_names(file) if part in name]
        if names:
            tensors = load_file(folder / file)
            tensors[names[-1]] = changed_tensor(tensors[names[-1]], 0)
            save_file(tensors, folder / file)
            changed.append(f"{file} {names[-1]}")
            tests.append(test)
    for (file, pointer), test in LEAVES.items():
        if pointer in golden.records.get(file, []):
            document = json.loads((folder / file).read_text())
            *parents, last = pointer.split("/")[1:]
            place = document
            for key in parents:
                place = place[int(key) if isinstance(place, list) else key]
            last = int(last) if isinstance(place, list) else last
            place[last] = changed_json(place[last], 0)
            (folder / file).write_text(json.dumps(document))
            changed.append(f"{file} {pointer.removesuffix('/1')}")
            tests.append(test)
    assert changed

    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--golden", str(folder)]
    run = subprocess.run(
        [*command, *dict.fromkeys(str(HERE / test) for test in tests)],
        cwd=HERE.parent.parent,
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert run.returncode == 1, run.stdout + run.stderr
    lines = [line for line in run.stdout.splitlines() if " is not " in line or "above" in line or "differ" in line]
    unnoticed = [name for name in changed if not any(line.startswith(name) for line in lines)]
    assert not unnoticed, run.stdout
