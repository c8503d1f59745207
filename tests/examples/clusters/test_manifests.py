"""The cluster examples parse, hold together, and call commands, recipes and sources that exist."""

import configparser
import re
import shlex
import subprocess
from pathlib import Path

import pytest
import yaml

from unimedvl.commands.main import main
from unimedvl.training.recipe import load_recipe
from unimedvl.unimed5m.builders.registry import get_source

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "examples" / "clusters"
MANIFESTS = sorted(FOLDER.glob("*.yaml"))
RAY_JOBS = ("rayjob-records.yaml", "rayjob-serving.yaml")


def pods(value):
    """Every specification of a pod below a value."""
    if isinstance(value, dict):
        if "containers" in value:
            yield value
        for part in value.values():
            yield from pods(part)
    elif isinstance(value, list):
        for part in value:
            yield from pods(part)


def test_every_file_is_tested():
    assert {path.suffix for path in FOLDER.iterdir()} == {".yaml", ".sh"}
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    assert all(f"(../examples/clusters/{path.name})" in text for path in FOLDER.iterdir())


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.name)
def test_manifests_hold_together(path):
    manifest = yaml.safe_load(path.read_text())
    assert {"apiVersion", "kind", "metadata", "spec"} <= manifest.keys() and manifest["metadata"]["name"]
    found = list(pods(manifest))
    assert found
    for pod in found:
        volumes = {volume["name"] for volume in pod.get("volumes", [])}
        for container in pod["containers"]:
            assert {"name", "image", "resources"} <= container.keys()
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes
            for variable in container.get("env", []):
                assert isinstance(variable.get("value", ""), str), "Kubernetes takes values of variables as strings"


@pytest.mark.parametrize("name", RAY_JOBS)
def test_entry_points_are_commands(name, capsys):
    program, *words = shlex.split(yaml.safe_load((FOLDER / name).read_text())["spec"]["entrypoint"])
    assert program == "unimedvl"
    commands = [word for word in words[:2] if not word.startswith("-")]
    assert main([*commands, "--help"]) == 0
    described = capsys.readouterr().out
    assert all(word in described for word in words if word.startswith("--"))
    if "--source" in words:
        assert get_source(words[words.index("--source") + 1])


@pytest.mark.parametrize("name", RAY_JOBS)
def test_ray_jobs_run_the_ray_of_their_image(name):
    """The image is built as the page says: with Ray, in the version of constraints.txt, which KubeRay is given."""
    manifest = yaml.safe_load((FOLDER / name).read_text())
    constraints = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    assert f"ray=={manifest['spec']['rayClusterSpec']['rayVersion']}" in constraints
    text = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    ((extras, image),) = re.findall(r"podman build .*--build-arg EXTRAS=(\S+) -t (\S+) \.", text)
    assert {container["image"] for pod in pods(manifest) for container in pod["containers"]} == {image}
    described = configparser.ConfigParser()
    described.read(ROOT / "setup.cfg")
    # Commands of these jobs need what these extras bring.
    assert {"ray", "data", "serve"} <= set(extras.split(",")) <= set(described["options.extras_require"])
    recipe = (ROOT / "hub_cards" / "server" / "Containerfile").read_text(encoding="utf-8")
    assert re.search(r"^ARG EXTRAS=", recipe, re.MULTILINE) and "install --yes --no-install-recommends wget" in recipe


def test_training_is_started_alike_under_slurm_and_jobset(tmp_path):
    script = FOLDER / "slurm.sh"
    assert subprocess.run(["bash", "-n", script], capture_output=True, text=True).stderr == ""
    text = script.read_text()
    (pod,) = pods(yaml.safe_load((FOLDER / "jobset.yaml").read_text()))
    arguments = pod["containers"][0]["args"]
    assert "-m unimedvl.training.run" in text and arguments[arguments.index("-m") + 1] == "unimedvl.training.run"
    recipe, *changes = arguments[arguments.index("unimedvl.training.run") + 1 :]
    assert recipe in text
    assert load_recipe(ROOT / "training" / "recipes" / recipe, changes)


def test_the_slurm_script_starts_one_launcher_on_every_node(tmp_path):
    """Run with Slurm's commands standing in: what `srun` would start, with the first node as the meeting point."""
    for name, body in {"scontrol": "printf 'node1\\nnode2\\n'", "srun": 'printf "%s\\n" "$@"'}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{body}\n")
        (tmp_path / name).chmod(0o755)
    variables = {"SLURM_JOB_NODELIST": "node[1-2]", "SLURM_NNODES": "2", "SLURM_JOB_ID": "7"}
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", **variables}
    command = ["bash", FOLDER / "slurm.sh", "recipe.yaml", "steps=3"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    assert words[0] == "torchrun" and words[words.index("--nnodes") + 1] == "2"
    assert words[words.index("--rdzv-endpoint") + 1] == "node1:29500"
    assert words[-3:] == ["unimedvl.training.run", "recipe.yaml", "steps=3"]
