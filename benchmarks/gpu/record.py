"""The record of a run: one JSON file, written whole after every figure, and the table made of it."""

import json
import math
import os
import platform
import subprocess
import traceback
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

SCHEMA = "unimedvl.benchmarks.gpu"
STATUSES = ("measured", "passed", "failed", "error", "not_run")
# Parts in which an error counts as a failed comparison: an answer that was never computed is not a right one.
STRICT_PARTS = ("correctness",)
ROOT = Path(__file__).parents[2]
COMMIT_FILE = ROOT / "COMMIT"
LIBRARIES = ("torch", "triton", "transformers", "diffusers", "accelerate", "peft", "bitsandbytes", "pytest")


# The package's own writer is not used: this module runs in the parent too, which must not depend on what it measures.
def write_whole(path: Path, document: dict) -> None:
    """Replace a file by a JSON document in one step, so that a reader or a killed writer never leaves half of it."""
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    beside.write_text(json.dumps(document, indent=1, allow_nan=False) + "\n")
    os.replace(beside, path)


def new_document(settings: dict[str, Any]) -> dict[str, Any]:
    """A record without figures."""
    return {
        "schema": SCHEMA,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "settings": settings,
        "machine": None,
        "parts": {},
    }


def commit() -> str | None:
    """The commit of the code: of the checkout, or as a bundle wrote it down."""
    if COMMIT_FILE.exists():
        return COMMIT_FILE.read_text().strip()
    command = ["git", "-C", str(ROOT), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def machine(device: str) -> dict[str, Any]:
    """Device, driver and library versions. Touches the device, so it is called in a part's own process."""
    import torch

    facts: dict[str, Any] = {
        "device": platform.machine(),
        "python": platform.python_version(),
        "cuda": torch.version.cuda,
        "processors": os.cpu_count(),
    }
    for name in LIBRARIES:
        try:
            facts[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            facts[name] = None
    if device.startswith("cuda"):
        properties = torch.cuda.get_device_properties(0)
        facts |= {
            "device": properties.name,
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "capability": f"{properties.major}.{properties.minor}",
            "driver": _driver(),
        }
    return facts


def _driver() -> str | None:
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.split()
    except (OSError, subprocess.SubprocessError):
        return None
    return found[0] if found else None


class Recorder:
    """Adds the figures of one part to the record's file. Only one process writes at a time.

    Args:
        path: the record's file, already there.
        part: name of the part.
    """

    def __init__(self, path: Path, part: str):
        self.path, self.part = path, part
        self.document = json.loads(path.read_text())
        self.entry: dict[str, Any] = self.document["parts"][part]

    def save(self) -> None:
        write_whole(self.path, self.document)

    def _add(self, name: str, value: float | None, unit: str, status: str, **more: Any) -> None:
        assert status in STATUSES
        assert all(figure["name"] != name for figure in self.entry["figures"]), f"{name} is recorded twice"
        if isinstance(value, float) and not math.isfinite(value):
            more["reason"], value = f"the value is {value}", None
        self.entry["figures"].append({"name": name, "value": value, "unit": unit, "status": status} | more)
        self.save()

    def measured(self, name: str, value: float, unit: str, believed: bool = True, **detail: Any) -> None:
        """A figure that nothing judges. `believed=False`: what it timed did not agree with the plain path."""
        doubt = {} if believed else {"reason": "not to be believed: its result differs from the plain path's"}
        self._add(name, value, unit, "measured", detail=detail, **doubt)

    def comparison(self, name: str, value: float, limit: float, unit: str, **detail: Any) -> bool:
        """A figure that must not exceed a limit; NaN fails. Returns whether it passed."""
        passed = bool(value <= limit)
        more = {} if passed else {"reason": f"above {limit:.3g}"}
        self._add(name, value, unit, "passed" if passed else "failed", limit=limit, detail=detail, **more)
        return passed

    def not_run(self, name: str, reason: str) -> None:
        self._add(name, None, "", "not_run", reason=reason)

    def error(self, name: str, error: BaseException) -> None:
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0] if lines else ''}"[:300]
        self._add(name, None, "", "error", reason=reason, traceback="".join(traceback.format_exception(error))[-6000:])


def failures(document: dict[str, Any]) -> list[str]:
    """What makes the run fail: comparisons that failed, and anything of a strict part that was not compared."""
    found = []
    for part, entry in document["parts"].items():
        if part in STRICT_PARTS and entry["status"] != "done":
            found.append(f"{part}: {entry['status']}")
        for figure in entry["figures"]:
            if figure["status"] == "failed" or (part in STRICT_PARTS and figure["status"] == "error"):
                found.append(f"{part} {figure['name']}: {figure.get('reason', '')}")
    return found


def table(document: dict[str, Any]) -> str:
    """The record in words: one line per figure."""
    facts = document["machine"] or {}
    lines = [f"{facts.get('device')}, torch {facts.get('torch')}, CUDA {facts.get('cuda')}, {document['commit']}"]
    for part, entry in document["parts"].items():
        took = "" if entry["seconds"] is None else f", {entry['seconds']:.0f} s of {entry['limit_seconds']:.0f}"
        lines += ["", f"{part} ({entry['status']}{took}){': ' + entry['reason'] if entry.get('reason') else ''}"]
        for figure in entry["figures"]:
            value = "" if figure["value"] is None else f"{figure['value']:.6g} {figure['unit']}"
            reason = f"  ({figure['reason']})" if figure.get("reason") else ""
            lines.append(f"  {figure['status']:9} {figure['name']:46} {value}{reason}")
    return "\n".join(lines)
