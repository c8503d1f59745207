"""What the GPU script needs on a machine without a network: a small copy of the code, and wheels.

    python -m benchmarks.gpu.bundle wheels [--python 3.12]     # into .wheels/, which git ignores
    python -m benchmarks.gpu.bundle copy DIR                    # code, golden records and .wheels/ into DIR
    bash DIR/benchmarks/gpu/run.sh                              # there

The machine brings torch 2.11 or newer with its CUDA libraries, NumPy, Pillow, PyYAML, tqdm, psutil, pyarrow, pandas
and typer; the wheels are what it has in older versions or not at all, at the versions of constraints.txt.
"""

import argparse  # typer may be missing on the machine
import base64
import hashlib
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from .record import COMMIT_FILE, ROOT, commit

WHEELS = ROOT / ".wheels"
LIMIT_BYTES = 60 << 20
PINNED = (
    "transformers",
    "huggingface_hub",
    "tokenizers",
    "safetensors",
    "diffusers",
    "accelerate",
    "peft",
    "bitsandbytes",
    "pytest",
    # For training from records (examples/nano/run.sh).
    "datasets",
    "omegaconf",
)
# Needs of the above that constraints.txt does not name.
NEWEST = (
    "dill",
    "multiprocess",
    "httpx2",
    "httpcore2",
    "truststore",
    "idna",
    "click",
    "importlib_metadata",
    "zipp",
    "regex",
)
PLATFORMS = tuple(f"manylinux_2_{minor}_x86_64" for minor in (34, 31, 28, 27, 24, 17)) + ("manylinux2014_x86_64",)
# bitsandbytes ships one library for each accelerator; a GPU of today needs those of CUDA 13, a rehearsal the CPU's.
KEPT_LIBRARIES = re.compile(r"libbitsandbytes_(cpu|cuda13\d)\.so$")
CODE = (
    "benchmarks/__init__.py",
    "benchmarks/gpu",
    "benchmarks/operations.py",
    "constraints.txt",
    "modeling_unimedvl",
    "processing",
    "training",
    "unimed5m",
    "unimedvl",
    "tests/__init__.py",
    "tests/conftest.py",
    "evaluation",
    "tests/tiny.py",
    "tests/golden",
)


def requirements() -> list[str]:
    """The wheels to get, with their versions where constraints.txt has them."""
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    versions = dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))
    return [f"{name}=={versions[name]}" for name in PINNED] + list(NEWEST)


def download(folder: Path, python: str) -> None:
    """Get every wheel for an x86-64 Linux machine with that Python, and cut what none of its devices loads."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    platforms = [argument for platform in PLATFORMS for argument in ("--platform", platform)]
    target = ["--python-version", python, "--implementation", "cp", *platforms]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*command, *target, "--dest", str(folder), *requirements()], check=True)
    for wheel in folder.glob("bitsandbytes-*.whl"):
        slim(wheel)


def slim(wheel: Path) -> None:
    """Write a wheel anew without the libraries of other accelerators, and its list of files accordingly."""
    beside = wheel.with_suffix(".part")
    rows: list[str] = []
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(beside, "w", zipfile.ZIP_DEFLATED) as new:
        record = next(name for name in old.namelist() if name.endswith(".dist-info/RECORD"))
        for name in old.namelist():
            if name == record or (name.endswith(".so") and not KEPT_LIBRARIES.search(name)):
                continue
            content = old.read(name)
            digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
            rows.append(f"{name},sha256={digest},{len(content)}")
            new.writestr(old.getinfo(name), content)
        new.writestr(record, "\n".join([*rows, f"{record},,"]) + "\n")
    beside.replace(wheel)


def copy(folder: Path) -> None:
    """A copy of what a run needs. Links stay links, as they are in a checkout."""
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: name a new folder.")
    skip = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in [*CODE, *([WHEELS.name] if WHEELS.exists() else [])]:
        source, target = ROOT / name, folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target, symlinks=True, ignore=skip)
        else:
            shutil.copy2(source, target)
    (folder / COMMIT_FILE.name).write_text(f"{commit()}\n")


def size_of(folder: Path) -> int:
    """Bytes of the files in a folder."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu.bundle",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(dest="action", required=True)
    actions.add_parser("wheels").add_argument("--python", default="3.12")
    actions.add_parser("copy").add_argument("folder", type=Path)
    chosen = parser.parse_args()
    folder = WHEELS if chosen.action == "wheels" else chosen.folder
    if chosen.action == "wheels":
        download(folder, chosen.python)
    else:
        copy(folder)
    size = size_of(folder)
    print(f"{folder}: {size / 2**20:.1f} MiB")
    return 0 if size <= LIMIT_BYTES else 1


if __name__ == "__main__":
    sys.exit(main())
