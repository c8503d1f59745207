"""Recipes: YAML files that say everything about a run, and curricula that chain them."""

import dataclasses
import difflib
import importlib.util
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import yaml

from .data_recipe import DataRecipe, GroupRecipe, check_shift
from .tuning_recipe import AdapterRecipe, TuningRecipe

# OmegaConf is imported where YAML is read: who makes recipes in Python, as on a bare GPU machine, does without it.
if TYPE_CHECKING:
    from omegaconf import DictConfig

PARTS = ("llm", "vit", "vae", "others")
SCHEDULES = ("constant", "cosine")
PARALLELISMS = ("ddp", "fsdp2")
ATTENTIONS = ("sdpa", "flex_attention", "eager")
CHECKPOINTING_POLICIES = ("full", "selective")
REPORTS = ("tensorboard", "trackio", "wandb")
CARRIED_WEIGHTS = ("model", "ema")
CARRIED_OPTIMIZERS = ("fresh", "carried")
PACKAGED = Path(__file__).with_name("recipes")

Recipe = TypeVar("Recipe")


@dataclass
class OptimizerRecipe:
    """AdamW and its schedule; the defaults are upstream's.

    Attributes:
        learning_rate: of all parts that `learning_rates` does not name.
        learning_rates: by part: "llm", "vit", "vae", "others" (connector, projections, time embedding); or by the
            beginning of weights' names, "model.connector": the longest one that fits counts.
        schedule: "constant" or "cosine" (down to `min_learning_rate`), after a linear warm-up from 0.
        warmup_steps: of the warm-up.
        betas, eps, weight_decay, max_grad_norm: AdamW's, and the norm that gradients are clipped to.
    """

    learning_rate: float = 1e-4
    learning_rates: dict[str, float] = field(default_factory=dict)
    schedule: str = "constant"
    warmup_steps: int = 2000
    min_learning_rate: float = 1e-7
    betas: list[float] = field(default_factory=lambda: [0.9, 0.95])
    eps: float = 1e-15
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        _one_of("optimizer.schedule", [self.schedule], SCHEDULES)
        if len(self.betas) != 2:
            raise ValueError(f"optimizer.betas must be two numbers, not {len(self.betas)}.")
        _one_of("optimizer.learning_rates", [name for name in self.learning_rates if "." not in name], PARTS)


@dataclass
class ValidationRecipe:
    """Losses on records that are not trained on, without condition dropout and with the same noise every time.

    Attributes:
        every: steps between validations; none if 0.
        batches: micro-batches of one, over all processes.
        groups: what is read; the training groups' records of `split` if empty.
        split: see `groups`.
    """

    every: int = 0
    batches: int = 8
    groups: list[GroupRecipe] = field(default_factory=list)
    split: str = "validation"

    def __post_init__(self) -> None:
        _not_negative("validation", self, "every")
        if self.batches < 1:
            raise ValueError(f"validation.batches must be 1 or more, not {self.batches}.")


@dataclass
class SamplesRecipe:
    """Images made along the way, one file for each time: a row for every prompt.

    Attributes:
        every: steps between them; none if 0.
        prompts: texts to make images of.
        count: images of each prompt, with seeds 0, 1, ...
        height, width: of the images, in pixels.
        steps: of the sampler.
    """

    every: int = 0
    prompts: list[str] = field(default_factory=list)
    count: int = 4
    height: int = 512
    width: int = 512
    steps: int = 24

    def __post_init__(self) -> None:
        _not_negative("samples", self, "every")
        for name in ("count", "height", "width", "steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"samples.{name} must be 1 or more, not {getattr(self, name)}.")
        if self.every and not self.prompts:
            raise ValueError("samples.prompts is empty: name texts to make images of, or set samples.every to 0.")


@dataclass
class TrainingRecipe:
    """One stage.

    Attributes:
        model: checkpoint to start from, a folder or a name on the Hub.
        output_dir: checkpoints, logs, and the finished model.
        data: what is read.
        steps: optimizer steps.
        adapter: train this adapter on a frozen base instead of the weights themselves; none if absent.
        accumulation: micro-batches per step and process.
        freeze: parts that are not trained: "llm", "vit", "vae", or "und", the understanding expert, whose weights
            stay in the optimizer without gradients, as upstream.
        ce_weight, mse_weight: of the two losses.
        timestep_shift: of the training times of groups that name none, above 0, above 1 for more noise.
        ema_decay: of the average of the weights, after each step; no average if 0.
        optimizer: see `OptimizerRecipe`.
        bf16: compute in bfloat16 beside float32 weights.
        gradient_checkpointing: recompute activations in the backward pass.
        checkpointing_policy: what is recomputed: "full", whole layers, or "selective", all but matrix products and
            attention, at more memory and almost no more work.
        attention: kernels of attention: "sdpa", "flex_attention" (for GPUs), or "eager".
        compile: compile every layer of the language model and of the ViT as a region (`torch.compile`); with
            `gradient_checkpointing` not where attention is "sdpa", which leaves the region.
        parallelism: of several processes: "ddp", each with the whole model, or "fsdp2", each with its share.
        peak_tflops: what a device can do in bfloat16, to log the share that is used (MFU); looked up if 0.
        save_steps, keep_checkpoints: steps between checkpoints, and how many are kept.
        log_steps: steps between log lines.
        report_to: "tensorboard", "trackio", "wandb", or nothing.
        spike_factor: stop when the loss of a step exceeds this many times the median of the last hundred; never if 0.
        validation, samples: see `ValidationRecipe` and `SamplesRecipe`.
        seed: of everything.
    """

    model: str
    output_dir: str
    data: DataRecipe
    steps: int
    adapter: AdapterRecipe | None = None
    accumulation: int = 1
    freeze: list[str] = field(default_factory=lambda: ["vae"])
    ce_weight: float = 0.25
    mse_weight: float = 1.0
    timestep_shift: float = 1.0
    ema_decay: float = 0.995
    optimizer: OptimizerRecipe = field(default_factory=OptimizerRecipe)
    bf16: bool = True
    gradient_checkpointing: bool = False
    checkpointing_policy: str = "full"
    attention: str = "sdpa"
    compile: bool = False
    parallelism: str = "ddp"
    peak_tflops: float = 0.0
    save_steps: int = 2000
    keep_checkpoints: int = 2
    log_steps: int = 10
    report_to: list[str] = field(default_factory=list)
    spike_factor: float = 0.0
    validation: ValidationRecipe = field(default_factory=ValidationRecipe)
    samples: SamplesRecipe = field(default_factory=SamplesRecipe)
    seed: int = 4396

    def __post_init__(self) -> None:
        _one_of("freeze", self.freeze, ("llm", "vit", "vae", "und"))
        _one_of("parallelism", [self.parallelism], PARALLELISMS)
        _one_of("report_to", self.report_to, REPORTS)
        _one_of("attention", [self.attention], ATTENTIONS)
        _one_of("checkpointing_policy", [self.checkpointing_policy], CHECKPOINTING_POLICIES)
        for name in self.report_to:
            if importlib.util.find_spec(name) is None:
                raise ValueError(f"report_to: {name} is not installed; `pip install {name}`, or leave it out.")
        if self.adapter is not None and self.parallelism == "fsdp2":
            raise ValueError("An adapter trains under parallelism: ddp; fsdp2 spreads whole models only.")
        if self.compile and self.gradient_checkpointing and self.attention == "sdpa":
            raise ValueError(
                "compile with gradient_checkpointing needs attention: flex_attention, or leave one of the two out: "
                "recomputed layers are compiled as one graph, and sdpa attends outside of it."
            )
        _not_negative("", self, "spike_factor")
        check_shift("timestep_shift", self.timestep_shift)
        for name in ("steps", "accumulation", "save_steps", "keep_checkpoints", "log_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 or more, not {getattr(self, name)}.")
        if not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay must lie in [0, 1), not {self.ema_decay}.")


@dataclass
class StageRecipe:
    """A stage of a curriculum.

    Attributes:
        name: folder of the stage within the curriculum's.
        recipe: its file, relative to the curriculum's file. The recipe's `output_dir`, and its `model` from the second
            stage on, are the curriculum's business.
        weights: what it starts from: the "model" or the "ema" of the stage before. The stage's own average starts from
            the average of the stage before either way.
        optimizer: whether AdamW's moments are the stage before's or "fresh"; the schedule is always the stage's own.
    """

    name: str
    recipe: str
    weights: str = "ema"
    optimizer: str = "fresh"

    def __post_init__(self) -> None:
        _one_of("weights", [self.weights], CARRIED_WEIGHTS)
        _one_of("optimizer", [self.optimizer], CARRIED_OPTIMIZERS)


@dataclass
class CurriculumRecipe:
    """Stages one after the other (paper, section 3.2).

    Attributes:
        model: checkpoint that the first stage starts from.
        output_dir: one folder per stage in it.
        stages: in order.
    """

    model: str
    output_dir: str
    stages: list[StageRecipe]

    def __post_init__(self) -> None:
        if not self.stages:
            raise ValueError("stages is empty: name at least one.")


def _not_negative(section: str, recipe: Any, name: str) -> None:
    if getattr(recipe, name) < 0:
        raise ValueError(f"{section}{'.' if section else ''}{name} must be 0 or more, not {getattr(recipe, name)}.")


def _one_of(name: str, values: Iterable[str], allowed: Iterable[str]) -> None:
    for value in values:
        if value not in allowed:
            raise ValueError(f"{name} must be of {', '.join(allowed)}, not {value!r}{_nearest(value, allowed)}")


def _nearest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else "."


def find_recipe(path: str | Path) -> Path:
    """A recipe's file: as named, or the one that comes with the package ("unimedvl-14b/curriculum.yaml").

    Raises:
        ValueError: if there is neither, naming what the package has.
    """
    for place in (Path(path), PACKAGED / path):
        if place.is_file():
            return place
    packaged = sorted(found.relative_to(PACKAGED).as_posix() for found in PACKAGED.glob("*/*.yaml"))
    raise ValueError(f"{path} is no file, and no recipe of this package: {', '.join(packaged)}.")


def load_recipe(path: str | Path, overrides: Iterable[str] = ()) -> TrainingRecipe | CurriculumRecipe | TuningRecipe:
    """Read a recipe or a curriculum.

    Args:
        path: a YAML file; one with the key `stages` is a curriculum, one with `method` a `TuningRecipe`. OmegaConf
            reads it: "${optimizer.learning_rate}" is another key's value, "${oc.env:HOME}" a variable's.
        overrides: "key=value" with dots into sections and numbers into lists, values in YAML:
            "optimizer.learning_rate=1e-5", "data.groups.0.weight=2". A curriculum takes those for its own keys.

    Raises:
        ValueError: in one sentence, for a file that is no recipe, an unknown key (with the nearest one that exists), a
            missing one, or a value of the wrong type.
    """
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    path = find_recipe(path)
    try:
        values = OmegaConf.load(path)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    except OmegaConfBaseException as error:
        raise ValueError(f"{path}: {error.full_key}: {_sentence(error)}") from error
    except OSError as error:
        raise ValueError(f"{path} must hold keys and values: {_sentence(error)}") from error
    if not isinstance(values, DictConfig):
        raise ValueError(f"{path} must hold keys and values.")
    kind = CurriculumRecipe if "stages" in values else TuningRecipe if "method" in values else TrainingRecipe
    overrides = list(overrides) if kind is not CurriculumRecipe else split_overrides(overrides)[0]
    for override in overrides:
        _override(values, override)
    recipe = from_mapping(kind, values, str(path))
    assert isinstance(recipe, (TrainingRecipe, CurriculumRecipe, TuningRecipe))
    return recipe


def split_overrides(overrides: Iterable[str]) -> tuple[list[str], list[str]]:
    """Divide overrides into those of the curriculum's own keys and those for its stages."""
    own = {item.name for item in dataclasses.fields(CurriculumRecipe)}
    parts: tuple[list[str], list[str]] = ([], [])
    for text in overrides:
        parts[text.partition("=")[0].partition(".")[0] not in own].append(text)
    return parts


def _override(values: "DictConfig", text: str) -> None:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    name, separator, value = text.partition("=")
    if not separator or not name:
        raise ValueError(f"{text!r} is no override: write key=value, with dots into sections.")
    try:
        # A section replaces the one that is there; `merge_with_dotlist` would mix the two.
        OmegaConf.update(values, name, OmegaConf.from_dotlist([f"value={value}"])["value"], merge=False)
    except yaml.YAMLError as error:
        raise ValueError(f"{text!r}: the value is not YAML: {' '.join(str(error).split())}") from error
    except (OmegaConfBaseException, ValueError, IndexError) as error:
        raise ValueError(f"{text!r}: {_sentence(error)}") from error


def from_mapping(kind: type[Recipe], values: "dict[Any, Any] | DictConfig", where: str) -> Recipe:
    """An object of a dataclass from nested dicts and lists; OmegaConf checks and converts the values.

    Raises:
        ValueError: naming `where` and the key.
    """
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    key: Any = None
    try:
        given = values if isinstance(values, DictConfig) else OmegaConf.create(values)
        config = OmegaConf.structured(kind)
        # One key after the other: of a list inside a list, OmegaConf's own errors do not say whose it is.
        for key in given:
            config.merge_with(OmegaConf.masked_copy(given, [key]))
        key = None
        recipe = OmegaConf.to_object(config)
    except (OmegaConfBaseException, ValueError) as error:
        place = "" if key is None else f"{getattr(error, 'full_key', None) or key}: "
        raise ValueError(f"{where}: {place}{_sentence(error)}") from error
    assert isinstance(recipe, kind)
    return recipe


def _sentence(error: Exception) -> str:
    """The first line of an error; OmegaConf's further lines name types of its own."""
    line = str(error).splitlines()[0]
    return line if line.endswith((".", "?")) else f"{line}."
