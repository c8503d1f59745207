"""A folder of golden records, and the account of which of them were compared.

A record is one tensor of a `.safetensors` file, one leaf of a `.json` file (named by its JSON pointer) or one line of
`SHA256SUMS`. Tests hand over what the package computed; `Golden` looks up the record, judges the difference and ticks
the record off. `test_completeness.py` fails when a record was neither compared nor named in `exclusions.py`.
"""

import hashlib
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from .exclusions import EXCLUSIONS, Exclusion

# Tolerances of the fixtures' README, relative to the largest value of a tensor (or to the number itself).
TENSOR = 2e-5
AFTER_ROUND_TRIP = 1e-4
OPTIMIZER = 1e-4
LOSS = 1e-6
GRAD_NORM = 1e-5
ABSOLUTE = 1e-6
UINT8_LEVELS = 1
UINT8_FRACTION = 0.005

CHECKSUMS = "SHA256SUMS"


def _leaves(value: Any, pointer: str = "") -> Iterator[str]:
    if isinstance(value, dict) and value:
        for key, child in value.items():
            yield from _leaves(child, f"{pointer}/{escape(key)}")
    elif isinstance(value, list) and value:
        for index, child in enumerate(value):
            yield from _leaves(child, f"{pointer}/{index}")
    else:
        yield pointer


def _index_by_prefix(pointers: list[str]) -> dict[str, list[str]]:
    """The leaves at and below every pointer."""
    index: dict[str, list[str]] = {}
    for pointer in pointers:
        parts = pointer.split("/")
        for length in range(1, len(parts) + 1):
            index.setdefault("/".join(parts[:length]), []).append(pointer)
    return index


def escape(key: str) -> str:
    """A key as it is written in a JSON pointer (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")


def _unescape(part: str) -> str:
    return part.replace("~1", "/").replace("~0", "~")


class Golden:
    """Records of one folder, and what became of them in this session.

    Attributes:
        folder: where the records lie.
        device: where the model computes.
        records: names of all records of each file, in the file's order.
        compared, given: records compared with a result, and records read as an argument, as (file, name).
        mismatches: descriptions of what differed since the last `take_mismatches`.
    """

    def __init__(self, folder: Path, device: str = "cpu"):
        self.folder, self.device = folder, torch.device(device)
        self._tensors = {self._name(path): load_file(path) for path in sorted(folder.rglob("*.safetensors"))}
        self._documents = {self._name(path): json.loads(path.read_text()) for path in sorted(folder.rglob("*.json"))}
        self.records: dict[str, list[str]] = {file: list(tensors) for file, tensors in self._tensors.items()}
        self.records |= {file: list(_leaves(document)) for file, document in self._documents.items()}
        self._below = {file: _index_by_prefix(self.records[file]) for file in self._documents}
        self._checksums: dict[str, str] = {}
        if (folder / CHECKSUMS).exists():
            lines = (folder / CHECKSUMS).read_text().splitlines()
            self._checksums = {
                file.lstrip(" *"): digest for digest, _, file in (line.partition(" ") for line in lines)
            }
            self.records[CHECKSUMS] = list(self._checksums)
        self.compared: set[tuple[str, str]] = set()
        self.given: set[tuple[str, str]] = set()
        self.mismatches: list[str] = []
        self._comparisons: list[tuple[str, str, Callable[[Any], str | None]]] = []

    def _name(self, path: Path) -> str:
        return path.relative_to(self.folder).as_posix()

    # What is recorded

    def tensor_names(self, file: str, prefix: str = "") -> list[str]:
        """Names of the tensors of a file that start with a prefix; none where the file is absent."""
        return [name for name in self._tensors.get(file, {}) if name.startswith(prefix)]

    def has_tensor(self, file: str, name: str) -> bool:
        return name in self._tensors.get(file, {})

    def recorded(self, file: str, name: str) -> torch.Tensor:
        """A copy of a recorded tensor for a decision of the test itself; it counts as neither compared nor given."""
        return self._tensors[file][name].clone()

    def input(self, file: str, name: str) -> torch.Tensor:
        """A copy of a recorded tensor, to be handed to the package."""
        self.given.add((file, name))
        return self._tensors[file][name].clone()

    def value(self, file: str, pointer: str, default: Any = None) -> Any:
        """The value at a JSON pointer (a copy), or the default where there is none."""
        found = self._documents.get(file)
        for part in pointer.split("/")[1:]:
            if isinstance(found, dict) and _unescape(part) in found:
                found = found[_unescape(part)]
            elif isinstance(found, list) and int(part) < len(found):
                found = found[int(part)]
            else:
                return default
        return json.loads(json.dumps(found))

    def argument(self, file: str, pointer: str, default: Any = None) -> Any:
        """The value at a JSON pointer, to be handed to the package."""
        self.given.update((file, leaf) for leaf in self._leaves_below(file, pointer))
        return self.value(file, pointer, default)

    def _leaves_below(self, file: str, pointer: str) -> list[str]:
        return self._below[file].get(pointer, []) if file in self._below else []

    def runs(self, file: str, pointer: str, having: str | None = None) -> list[str]:
        """Names of the JSON objects in the object at a pointer; with `having`, those in which that key is not null."""
        entries = self.value(file, pointer, {})
        runs = {name: entry for name, entry in entries.items() if isinstance(entry, dict)}
        return [name for name, entry in runs.items() if having is None or entry.get(having) is not None]

    # Comparison

    def _left_out(self, file: str, name: str) -> bool:
        exclusion = self.exclusion(file, name)
        return exclusion is not None and not exclusion.given

    def compare(self, file: str, name: str, ours: torch.Tensor, relative: float = TENSOR, absolute: float = ABSOLUTE):
        """Compare a recorded tensor: integers exactly, floats by tolerance, uint8 images by level.

        With both tolerances 0 everything has to be equal.
        """
        reference = self._tensors[file].get(name)
        if reference is None:
            self.mismatches.append(f"{file} {name}: no such tensor is recorded")
            return
        if self._left_out(file, name):
            return
        self.compared.add((file, name))
        ours = ours.detach().cpu().clone()
        self._comparisons.append((file, name, partial(_difference, ours, relative=relative, absolute=absolute)))
        complaint = _difference(ours, reference, relative=relative, absolute=absolute)
        if complaint:
            self.mismatches.append(f"{file} {name}: {complaint}")

    def compare_all(
        self,
        file: str,
        prefix: str,
        ours: dict[str, torch.Tensor],
        relative: float = TENSOR,
        absolute: float = ABSOLUTE,
    ):
        """Compare every recorded tensor whose name is the prefix and a key of `ours`; the rest stay open."""
        for name, value in ours.items():
            if self.has_tensor(file, prefix + name):
                self.compare(file, prefix + name, value, relative, absolute)

    def compare_run(self, file: str, pointer: str, ours: dict[str, torch.Tensor]):
        """Compare a run of infer.json with its tensors, or with those of the run it is recorded as identical to."""
        part, run = pointer.split("/")[1:]
        self.compare_all(file, f"{run}.", ours)
        twin = self.value("infer.json", f"{pointer}/identical_to")
        if twin is not None:
            before = len(self.mismatches)
            self.compare_all(file, f"{twin}.", ours)
            self.equal("infer.json", f"{pointer}/identical_to", twin if len(self.mismatches) == before else None)

    def equal(self, file: str, pointer: str, ours: Any, relative: float = 0.0, absolute: float = 0.0):
        """Compare a JSON value and everything below it; floats may differ by the given tolerances."""
        leaves = self._leaves_below(file, pointer)
        if not leaves:
            self.mismatches.append(f"{file} {pointer}: nothing is recorded there")
            return
        if leaves == [pointer] and self._left_out(file, pointer):
            return
        self.compared.update((file, leaf) for leaf in leaves)
        judge = partial(_json_difference, ours, relative=relative, absolute=absolute)
        self._comparisons.append((file, pointer, judge))
        complaint = judge(self.value(file, pointer))
        if complaint:
            self.mismatches.append(f"{file} {pointer}{complaint}")

    def equal_all(self, file: str, pointer: str, ours: dict[str, Any], relative: float = 0.0, absolute: float = 0.0):
        """Compare every recorded key of the JSON object at a pointer that `ours` has too; the rest stay open."""
        for key, value in ours.items():
            if self._leaves_below(file, f"{pointer}/{escape(key)}"):
                self.equal(file, f"{pointer}/{escape(key)}", value, relative, absolute)

    def check_checksums(self):
        """Compare every line of `SHA256SUMS` with the file it names."""
        for file, digest in self._checksums.items():
            self.compared.add((CHECKSUMS, file))
            path = self.folder / file
            found = hashlib.sha256(path.read_bytes()).hexdigest() if path.exists() else "no such file"
            if found != digest:
                self.mismatches.append(f"{CHECKSUMS} {file}: {found} is not {digest}")

    def take_mismatches(self) -> list[str]:
        found, self.mismatches = self.mismatches, []
        return found

    def unnoticed_changes(self) -> list[str]:
        """Repeat every comparison of the session with one value of the record changed; those that still agree."""
        unnoticed = []
        for number, (file, name, judge) in enumerate(self._comparisons):
            if file in self._tensors:
                tensor = self._tensors[file][name]
                changed = changed_tensor(tensor, number % tensor.numel()) if tensor.numel() else tensor.new_ones(1)
            else:
                changed = changed_json(self.value(file, name), number)
            if judge(changed) is None:
                unnoticed.append(f"{file} {name}")
        return unnoticed

    def shares_of_tolerance(self) -> dict[str, tuple[float, str]]:
        """The largest error of a floating-point tensor in each file, as a share of what is allowed, and its name."""
        worst: dict[str, tuple[float, str]] = {}
        for file, name, judge in self._comparisons:
            if file not in self._tensors or not self._tensors[file][name].is_floating_point():
                continue
            reference, (ours,) = self._tensors[file][name].double(), judge.args
            finite = reference.isfinite()
            if ours.shape != reference.shape or not finite.any():
                continue
            allowed = judge.keywords["relative"] * reference[finite].abs().max() + judge.keywords["absolute"]
            if allowed > 0:
                share = ((ours.double() - reference)[finite].abs().max() / allowed).item()
                worst[file] = max(worst.get(file, (-1.0, "")), (share, name))
        return worst

    # Account

    def exclusion(self, file: str, name: str) -> Exclusion | None:
        """The first entry of the exclusion list that names a record."""
        for exclusion in EXCLUSIONS:
            if re.fullmatch(exclusion.files, file) and re.fullmatch(exclusion.records, name):
                return exclusion
        return None

    def status(self, file: str, name: str) -> str:
        """What became of a record: "compared", "given" (read, as the exclusion list says), "excluded", or "open"."""
        if (file, name) in self.compared:
            return "compared"
        exclusion = self.exclusion(file, name)
        if exclusion is None or (exclusion.given and (file, name) not in self.given):
            return "open"
        return "given" if exclusion.given else "excluded"

    def open_records(self) -> list[str]:
        """Records that were neither compared nor rightly excluded."""
        return [
            f"{file} {name}: " + ("never compared" if self.exclusion(file, name) is None else "no test reads it")
            for file, names in self.records.items()
            for name in names
            if self.status(file, name) == "open"
        ]

    def summary(self) -> list[str]:
        """One line per file: records compared of all, and how the others are accounted for."""
        lines = []
        for file, names in self.records.items():
            counts = Counter(self.status(file, name) for name in names)
            line = f"{file:28} compared {counts['compared']:5d}/{len(names):<5d}"
            lines.append(line + "".join(f" {kind} {counts[kind]:4d}" for kind in ("given", "excluded", "open")))
        return lines

    def exclusions_used(self) -> list[str]:
        """One line per entry of the exclusion list that represents records of this folder."""
        counts = Counter(
            self.exclusion(file, name)
            for file, names in self.records.items()
            for name in names
            if self.status(file, name) in ("given", "excluded")
        )
        return [
            f"{counts[exclusion]:5d}  {exclusion.files} {exclusion.records}: {exclusion.reason}"
            for exclusion in EXCLUSIONS
            if counts[exclusion]
        ]


def _difference(ours: torch.Tensor, reference: torch.Tensor, *, relative: float, absolute: float) -> str | None:
    if ours.shape != reference.shape:
        return f"shape {tuple(ours.shape)} is not {tuple(reference.shape)}"
    if reference.dtype == torch.uint8:
        if ours.dtype != torch.uint8:
            return f"dtype {ours.dtype} is not {reference.dtype}"
        levels = (ours.int() - reference.int()).abs()
        fraction = (levels > 0).float().mean().item()
        exact = relative == absolute == 0.0
        if levels.max().item() > (0 if exact else UINT8_LEVELS) or fraction >= UINT8_FRACTION:
            return f"{levels.max().item()} levels apart, {fraction:.2%} of the values differ"
        return None
    if not reference.is_floating_point():
        if ours.is_floating_point() or (ours.dtype == torch.bool) != (reference.dtype == torch.bool):
            return f"dtype {ours.dtype} is not {reference.dtype}"
        wrong = ours.to(reference.dtype) != reference
        if wrong.any():
            first = tuple(wrong.nonzero()[0].tolist())
            return f"{wrong.sum().item()} values differ, first at {first}: {ours[first]} is not {reference[first]}"
        return None
    if ours.is_complex() or not ours.is_floating_point():
        return f"dtype {ours.dtype} is not {reference.dtype}"
    ours, reference = ours.double(), reference.double()
    finite = reference.isfinite()
    if not torch.equal(ours[~finite], reference[~finite]):
        return "infinite values differ"
    if not finite.any():
        return None
    error = (ours - reference)[finite].abs().max().item()
    allowed = relative * reference[finite].abs().max().item() + absolute
    # Written so that NaN fails too.
    return None if error <= allowed else f"max abs error {error:.3g} is above {allowed:.3g}"


def _json_difference(ours: Any, reference: Any, *, relative: float, absolute: float) -> str | None:
    """The first difference, as "place: complaint" below the compared value."""
    if isinstance(reference, dict) and isinstance(ours, dict):
        if ours.keys() != reference.keys():
            return f": keys {sorted(ours)} are not {sorted(reference)}"
        pairs = [(escape(key), ours[key], reference[key]) for key in reference]
    elif isinstance(reference, list) and isinstance(ours, (list, tuple)):
        if len(ours) != len(reference):
            return f": {len(ours)} entries, not {len(reference)}"
        pairs = [(str(index), *pair) for index, pair in enumerate(zip(ours, reference, strict=True))]
    elif isinstance(reference, float) and isinstance(ours, (int, float)) and not isinstance(ours, bool):
        if math.isclose(ours, reference, rel_tol=relative, abs_tol=absolute):
            return None
        return f": {ours!r} is not {reference!r}, relative error {abs(ours - reference) / abs(reference or 1):.3g}"
    else:
        return None if type(ours) is type(reference) and ours == reference else f": {ours!r} is not {reference!r}"
    for key, left, right in pairs:
        complaint = _json_difference(left, right, relative=relative, absolute=absolute)
        if complaint:
            return f"/{key}{complaint}"
    return None


def changed_tensor(tensor: torch.Tensor, index: int) -> torch.Tensor:
    """A copy with one value changed, well beyond every tolerance."""
    changed = tensor.clone()
    flat = changed.view(-1)
    if tensor.dtype == torch.bool:
        flat[index] = ~flat[index]
    elif tensor.dtype == torch.uint8:
        flat[index] = flat[index] ^ 128
    elif tensor.is_floating_point():
        finite = tensor[tensor.isfinite()]
        flat[index] = 1.0 + (flat[index].nan_to_num(neginf=0.0) + 0.01 * finite.abs().max() if finite.numel() else 0.0)
    else:
        flat[index] += 1
    return changed


def changed_json(value: Any, index: int) -> Any:
    """A copy of a JSON value with one leaf below it changed."""
    if isinstance(value, (dict, list)) and value:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = keys[index % len(keys)]
        items = value if isinstance(value, dict) else dict(enumerate(value))
        changed = {**items, key: changed_json(value[key], index)}
        return changed if isinstance(value, dict) else list(changed.values())
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, (int, float)):
        return value + 1 + abs(value)
    return [0] if isinstance(value, (dict, list)) else f"{value}x"
