"""Where the figures of a file below benchmarks/results come from: the block "origin" that each of them holds.

    python -m benchmarks.origin FILE.json [--used 'one thread']

The benchmarks write it themselves; the command is for a file that was put together of several measurements, and is run
on the machine and in the checkout that made them.
"""

import datetime
import os
import platform
import subprocess
import sys
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Annotated, Any

from typer import Option

from unimedvl.utils.command_line import run_module
from unimedvl.utils.json_files import read_json, write_json

ROOT = Path(__file__).parents[1]
LIBRARIES = ("torch", "transformers", "diffusers", "accelerate", "peft", "trl", "datasets", "numpy", "pillow")
# What benchmarks write themselves is no change of what they measure.
WRITTEN = ("benchmarks/results", "docs")
CHANGED = "+changes"


def commit(root: Path = ROOT) -> str:
    """The first 12 digits of the checkout's commit, followed by "+changes" where files differ from it or are new.

    Raises:
        ValueError: if `root` lies in no git checkout with a commit.
    """
    try:
        head = _git(root, "rev-parse", "--short=12", "HEAD")
    except (OSError, subprocess.CalledProcessError) as error:
        raise ValueError(f"{root} is no git checkout: figures are kept with the commit that they are of.") from error
    others = (f":(top,exclude){name}" for name in WRITTEN)
    return head + (CHANGED if _git(root, "status", "--porcelain", "--", ":(top)", *others) else "")


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def machine(used: str = "") -> str:
    """This machine in words: architecture, cores that the process may use, GPU; then what of it was used."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    told = f"{platform.machine()}, {cores} cores, {gpu}"
    return f"{told}; {used}" if used else told


def library_versions() -> dict[str, str]:
    """Versions of Python and of the installed libraries that figures depend on."""
    found = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def origin(
    used: str = "",
    *,
    versions: Mapping[str, str] | None = None,
    kept: Mapping[str, Any] | None = None,
    root: Path = ROOT,
) -> dict[str, Any]:
    """Where figures that are measured now come from.

    Args:
        used: of the machine, such as "one thread, float32".
        versions: of another Python that measured; default: those of this one.
        kept: the origin of an earlier run of which the file keeps some figures.
        root: the checkout of the measured code.

    Returns:
        `date` (of today, UTC), `commit`, `machine` in words, `versions` by name; and where figures were kept, `kept`
        with `date` and `commit` of every run that they may be of.

    Raises:
        ValueError: if `root` lies in no git checkout with a commit.
    """
    made: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "commit": commit(root),
        "machine": machine(used),
        "versions": dict(library_versions() if versions is None else versions),
    }
    if kept:
        last = {name: kept[name] for name in ("date", "commit")}
        runs = [run for run in (last, *kept.get("kept", ())) if run["commit"] != made["commit"]]
        made |= {"kept": runs} if runs else {}
    return made


def main(
    file: Path, used: Annotated[str, Option(help="Of the machine, such as 'one thread'; nothing for all of it.")] = ""
) -> None:
    found = read_json(file, "name a file of figures")
    write_json(file, found | {"origin": origin(used)})


if __name__ == "__main__":
    sys.exit(run_module(main))
