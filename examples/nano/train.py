"""The whole chain of the nano in one command: what a budget allows, resumed where it was stopped, at any kill.

    python -m examples.nano.train --budget cpu|gpu --records BUILT --out OUT [--minutes N] [--dry-run] [--only PART]
                                  [--weights FOLDER] [--results FOLDER] [--bf16]

BUILT holds the records of `unimedvl data build --source unimed-mini`; `--packed FOLDER` takes in its place what
`examples.nano.carried` has written, with the autoencoder and the ViT where that was given them. The parts are
`autoencoder` and `vision` (side by side where the budget says so), and one for each stage of
`recipes/unimedvl-nano/curriculum.yaml`; each ends in frozen weights from which the next one starts (the ViT's and the
stages' in bfloat16), and in a row of OUT/parts.json: seconds, seconds of processors, device, steps, memory.
`--minutes` stops between two checkpoints when the time is up; the same command resumes. `--dry-run` does a few steps
of everything, to see that it runs. `--only` does the autoencoder or the ViT alone; `--weights` takes both, and the
last stage that was handed over, from a folder in which an earlier run left them. OUT/nano is the published folder;
`--results FOLDER` keeps the newest weights of the stages in a few small files besides. `--bf16` multiplies matrices of
the stages in bfloat16 (master weights stay in float32), which helps on a processor that has instructions for it and is
20 times slower on one that has not.
"""

import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import yaml
from typer import Option

from unimedvl.checkpoint.loading import load, load_processor
from unimedvl.training.checkpoints import checkpoints, whole_folder
from unimedvl.training.recipe import CurriculumRecipe, TrainingRecipe, from_mapping, load_recipe
from unimedvl.training.run import FINISHED
from unimedvl.utils.claims import claim_folder
from unimedvl.utils.command_line import run_module
from unimedvl.utils.digests import hash_file
from unimedvl.utils.json_files import read_json, write_json

from .carried import TRAINED, hand_over, take_over, take_weights, unpack
from .model import RECIPES, VISION_FILE
from .processes import stop, use_of
from .release import release, save_rounded

BUDGETS = RECIPES / "unimedvl-nano" / "budgets.yaml"
DRY_STEPS = 20
POLL_SECONDS = 1.0
NOTE_SECONDS = 15.0


@dataclass
class Budget:
    """What a budget allows; `recipes/unimedvl-nano/budgets.yaml`.

    Attributes:
        device: "cpu" or "cuda".
        processes: of a stage.
        side_by_side: whether the autoencoder and the ViT are trained at the same time, on one core each.
        autoencoder, vision: arguments of their commands, by name; `teacher` is true or false.
        stages: by name of the stage, what replaces values of its recipe ("key=value").
        every_stage: the same for all stages.
        rehearsal: the same, where a processor rehearses a budget for a GPU.
        curriculum: the file that names the stages.
    """

    device: str
    processes: int = 1
    side_by_side: bool = False
    autoencoder: dict[str, Any] = field(default_factory=dict)
    vision: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, list[str]] = field(default_factory=dict)
    every_stage: list[str] = field(default_factory=list)
    rehearsal: list[str] = field(default_factory=list)
    curriculum: str = str(RECIPES / "unimedvl-nano" / "curriculum.yaml")


@dataclass
class Part:
    """A piece of the chain.

    Attributes:
        name: in `parts.json`.
        command: what does it.
        done: the file whose presence says that it is done.
        artifact: the weights that it ends in.
        environment: added to the environment of the command.
        steps: that a stage takes.
    """

    name: str
    command: list[str]
    done: Path
    artifact: Path
    environment: dict[str, str] = field(default_factory=dict)
    steps: int = 0


def read_budget(name: str, path: Path = BUDGETS) -> Budget:
    """A budget of the recipe.

    Raises:
        ValueError: for a name that the file does not have, or values that are no budget.
    """
    found = yaml.safe_load(path.read_text())
    if name not in found:
        raise ValueError(f"{path} has no budget {name!r}: choose from {', '.join(found)}.")
    return from_mapping(Budget, found[name], f"{path}: {name}")


def rehearsed(budget: Budget) -> Budget:
    """A GPU's budget as a processor can do a few steps of it."""
    small = [
        {name: value for name, value in part.items() if name != "batch"}
        for part in (budget.autoencoder, budget.vision)
    ]
    return dataclasses.replace(
        budget,
        device="cpu",
        autoencoder=small[0],
        vision=small[1],
        every_stage=[*budget.every_stage, *budget.rehearsal],
    )


def arguments(values: dict[str, Any]) -> list[str]:
    """Options of a command line; true and false are flags."""
    texts = []
    for name, value in values.items():
        option = name.replace("_", "-")
        texts += [f"--{'' if value else 'no-'}{option}"] if isinstance(value, bool) else [f"--{option}", str(value)]
    return texts


class Chain:
    """The parts of a run, and what is written of them.

    Args:
        budget: see `Budget`.
        out: folder of the run.
        dry_run: a few steps of everything.
        deadline: `time.monotonic()` at which the work stops.
    """

    def __init__(self, budget: Budget, out: Path, dry_run: bool = False, deadline: float = float("inf")):
        self.budget, self.out, self.dry_run, self.deadline = budget, out, dry_run, deadline
        self.work = out / "work"

    @property
    def notes(self) -> dict[str, Any]:
        """What `parts.json` holds."""
        path = self.out / "parts.json"
        return read_json(path) if path.is_file() else {}

    def note(self, name: str, **values: Any) -> None:
        """Add to a part's row of `parts.json`."""
        notes = self.notes
        notes.setdefault(name, {"seconds": 0.0}).update(values)
        write_json(self.out / "parts.json", notes)

    def run(self, parts: Sequence[Part]) -> None:
        """Do parts side by side, those that are not done yet.

        Raises:
            ValueError: where a command fails.
            TimeUp: when the deadline comes first.
        """
        parts = [part for part in parts if not part.done.is_file()]
        (self.out / "logs").mkdir(exist_ok=True)
        begun, noted = time.monotonic(), time.monotonic()
        rows = {part.name: self.notes.get(part.name, {}) for part in parts}
        peaks = {name: row.get("peak_memory_mib", 0) for name, row in rows.items()}
        processors: dict[str, float] = {}
        running: dict[str, subprocess.Popen] = {}
        try:
            for part in parts:
                print(f"{part.name}: {' '.join(part.command)}", flush=True)
                with (self.out / "logs" / f"{part.name}.log").open("ab") as log:
                    running[part.name] = subprocess.Popen(
                        part.command, stdout=log, stderr=log, env=os.environ | part.environment
                    )
            while running:
                time.sleep(POLL_SECONDS)
                now = time.monotonic()
                ended = {name for name, process in running.items() if process.poll() is not None}
                for name, process in running.items():
                    memory, seconds = use_of(process.pid)
                    peaks[name] = max(peaks[name], memory)
                    processors[name] = max(processors.get(name, 0.0), seconds)
                if ended or now - noted > NOTE_SECONDS:
                    noted = now
                    for name in running:
                        self.note(
                            name,
                            seconds=round(rows[name].get("seconds", 0.0) + now - begun, 1),
                            processor_seconds=round(rows[name].get("processor_seconds", 0.0) + processors[name], 1),
                            peak_memory_mib=peaks[name],
                            device=device_name(self.budget),
                        )
                for name in ended:
                    code = running.pop(name).returncode
                    if code:
                        raise ValueError(f"{name} ended with status {code}: see {self.out / 'logs' / name}.log.")
                if running and now > self.deadline:
                    raise TimeUp
        finally:
            for process in running.values():
                stop(process)


class TimeUp(Exception):
    """The time that a run was given has passed."""


def device_name(budget: Budget) -> str:
    """What the work runs on, in words."""
    return torch.cuda.get_device_name() if budget.device == "cuda" else f"{os.cpu_count()} CPU cores"


def weights_parts(chain: Chain) -> list[Part]:
    """The autoencoder and the ViT."""
    vision = dict(chain.budget.vision)
    if vision.pop("teacher", False):
        vision["teacher"] = chain.work / "teacher"
    parts = []
    for name, file, values in (
        ("autoencoder", "diffusion_pytorch_model.safetensors", chain.budget.autoencoder),
        ("vision", VISION_FILE, vision),
    ):
        folder, steps = chain.work / name, {"steps": DRY_STEPS} if chain.dry_run else {}
        command = [sys.executable, "-m", f"examples.nano.{name}", "--work", str(chain.work), "--out", str(folder)]
        command += arguments({**values, **steps, "device": chain.budget.device})
        environment = threads(2 if chain.budget.side_by_side else 1)
        parts.append(Part(name, command, folder / TRAINED, folder / file, environment))
    return parts


def threads(sharing: int) -> dict[str, str]:
    """The environment of each of so many commands that share the machine."""
    return {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // sharing))}


def stage_part(chain: Chain, name: str, recipe: Path, start: Path) -> Part:
    """One stage of the curriculum, from the artifact of the part before."""
    output = chain.out / "stages" / name
    overrides = [f"model={start}", f"output_dir={output}", f"data.path={chain.work / 'records'}"]
    overrides += [*chain.budget.every_stage, *chain.budget.stages.get(name, [])]
    if chain.dry_run:
        overrides += [f"steps={DRY_STEPS}", f"save_steps={DRY_STEPS // 2}"]
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(chain.budget.processes)]
    single = chain.budget.processes == 1
    command = [sys.executable, *([] if single else launcher), "-m", "unimedvl.training.run", str(recipe), *overrides]
    return Part(
        name,
        command,
        output / FINISHED["ema"] / "model.safetensors",
        output / FINISHED["ema"] / "model.safetensors",
        threads(chain.budget.processes),
        load_steps(recipe, overrides),
    )


def load_steps(recipe: Path, overrides: list[str]) -> int:
    """Steps of a stage."""
    found = load_recipe(recipe, overrides)
    if not isinstance(found, TrainingRecipe):
        raise ValueError(f"{recipe} is no stage: name a recipe of a training.")
    return found.steps


def samples_drawn(output: Path) -> int:
    """Samples that a finished stage has drawn, of all processes."""
    return sum(read_json(checkpoints(output)[-1] / "progress.json")["planner"]["drawn"])


def freeze(finished: Path, artifact: Path) -> None:
    """Write what a stage ended in as the next one starts from it, and as it is published (see `save_rounded`)."""
    model = load(finished, dtype="float32", device="cpu").model
    artifact.parent.mkdir(exist_ok=True)
    with whole_folder(artifact) as partial:
        save_rounded(model, load_processor(finished), partial)


def run_chain(
    chain: Chain,
    records: Path | None,
    packed: Path | None = None,
    only: str | None = None,
    results: Path | None = None,
    weights: Path | None = None,
) -> Path:
    """Everything that is not done yet; returns the published folder.

    Args:
        records: built ones, of which the chain makes its own.
        packed: the chain's own ones, carried here.
        only: "autoencoder" or "vision", where nothing else is to be done but records; returns its weights then.
        results: gets the weights of every stage in the place of those before, see `hand_over`.
        weights: folder of a trained autoencoder and ViT (`copy_weights`), perhaps of a stage by its name
            (`hand_over`), and of `parts.json` of their run.
    """
    path = Path(chain.budget.curriculum)
    curriculum = load_recipe(path)
    if not isinstance(curriculum, CurriculumRecipe):
        raise ValueError(f"{path} names no stages: give a curriculum.")
    out, work, python = chain.out, chain.work, [sys.executable, "-m", "examples.nano.prepare"]
    source = str(records) if records is not None else "unread"
    made = work / "tokenizer" / "tokenizer.json"
    if packed is not None and not made.is_file():
        unpack(packed, work)
    chain.run([Part("records", [*python, "--records", source, "--out", str(work)], made, made)])
    if weights is not None:
        accounts = read_json(weights / "parts.json")
        take_weights(weights, work)
        for name, row in accounts.items():
            if "sha256" in row and name not in chain.notes:
                chain.note(name, **row)
    parts = [part for part in weights_parts(chain) if only in (None, part.name)]
    for together in [parts] if chain.budget.side_by_side else [[part] for part in parts]:
        chain.run(together)
        for part in together:
            finish(chain, part, read_json(part.done))
    if only is not None:
        return parts[0].artifact
    folders = ["--autoencoder", str(work / "autoencoder"), "--vision", str(work / "vision")]
    start = [*python, "--records", source, "--out", str(work), *folders]
    made = work / "start" / "processor_config.json"  # the last file that is written
    chain.run([Part("start", start, made, made)])
    before, stages = work / "start", curriculum.stages
    for number, stage in enumerate(curriculum.stages, 1):
        if weights is not None and (weights / stage.name).is_dir():
            before, stages = out / "artifacts" / stage.name, curriculum.stages[number:]
            if not before.is_dir():
                take_over(weights / stage.name, before)
    for stage in stages:
        part = stage_part(chain, stage.name, path.parent / stage.recipe, before)
        before = out / "artifacts" / stage.name
        if not (before / "model.safetensors").is_file():
            chain.run([part])
            freeze(part.artifact.parent, before)
            measured = {"steps": part.steps, "samples": samples_drawn(chain.out / "stages" / stage.name)}
            finish(chain, dataclasses.replace(part, artifact=before / "model.safetensors"), measured)
        if results is not None:
            hand_over(before, [out / "parts.json", out / "logs"], results)
    release(before, out / "nano")
    return out / "nano"


def finish(chain: Chain, part: Part, measured: dict[str, Any]) -> None:
    """Complete the row of a part that is done."""
    if "sha256" not in chain.notes.get(part.name, {}):
        measured = {name: value for name, value in measured.items() if name != "device"}  # which `run` has noted
        chain.note(part.name, **measured, sha256=hash_file(part.artifact), bytes=part.artifact.stat().st_size)
        print(f"{part.name}: {json.dumps(chain.notes[part.name])}", flush=True)


def main(
    budget: Annotated[Literal["cpu", "gpu"], Option(help="What the parts may take: budgets.yaml.")],
    out: Annotated[Path, Option(help="Folder of the run.")],
    records: Annotated[Path | None, Option(help="Folder of built unimed-mini records.")] = None,
    packed: Annotated[Path | None, Option(help="Folder of `examples.nano.carried`, in their place.")] = None,
    minutes: Annotated[float | None, Option(help="Stop after so many; the same command resumes.")] = None,
    dry_run: Annotated[bool, Option("--dry-run", help="A few steps of everything.")] = False,
    only: Annotated[Literal["autoencoder", "vision"] | None, Option(help="Do this part alone.")] = None,
    results: Annotated[Path | None, Option(help="Folder for the newest weights in small files.")] = None,
    weights: Annotated[Path | None, Option(help="Folder of a trained autoencoder and ViT.")] = None,
    bf16: Annotated[bool, Option("--bf16", help="Stages multiply matrices in bfloat16.")] = False,
) -> None:
    """Train the nano from records to the published folder."""
    chosen = read_budget(budget)
    if chosen.device == "cuda" and not torch.cuda.is_available():
        if not dry_run:
            raise ValueError("--budget gpu needs a GPU; with --dry-run a processor rehearses it.")
        chosen = rehearsed(chosen)
    if bf16:
        chosen = dataclasses.replace(chosen, every_stage=[*chosen.every_stage, "bf16=true"])
    prepared = (out / "work" / "tokenizer" / "tokenizer.json").is_file()
    if records is None and packed is None and not prepared:
        raise ValueError(f"give the folder of built records with --records: {out} holds none yet.")
    claim_folder(out, {"budget": budget, "dry_run": dry_run}, mark="run.json", kind="run")
    deadline = float("inf") if minutes is None else time.monotonic() + 60 * minutes
    try:
        print(run_chain(Chain(chosen, out, dry_run, deadline), records, packed, only, results, weights))
    except TimeUp:
        print(f"stopped after {minutes:g} minutes: the same command resumes from the last checkpoints.")


if __name__ == "__main__":
    sys.exit(run_module(main))
