"""Which recipe fits the records, for the message about one that finds none."""

from collections.abc import Iterator, Mapping

from .data_recipe import GroupRecipe
from .recipe import PACKAGED, TrainingRecipe, load_recipe
from .tuning_recipe import AdapterRecipe, RecordChoice, TuningRecipe


def advice(recipe: TrainingRecipe | TuningRecipe, held: Mapping[tuple[str, str], int]) -> str:
    """A sentence that names the recipes of the package whose every group finds records.

    Args:
        recipe: the one that does not fit.
        held: numbers of records by split and task.

    Returns:
        The sentence with a space before it, or "" where no recipe of the package fits or `recipe` trains no adapter.
    """
    if recipe.adapter is None:
        return ""
    fitting = {name: other for name, other in _packaged() if _fits(other, held)}
    adapters = [name for name, other in fitting.items() if isinstance(other, TrainingRecipe)]
    tuning = [name for name, other in fitting.items() if isinstance(other, TuningRecipe) and _alike(other, recipe)]
    nearest = [_nearest(recipe.adapter, adapters)] if adapters else []
    # Another trainer is another purpose: the recipe's own comes first.
    chosen = (tuning or nearest) if isinstance(recipe, TuningRecipe) else (nearest or tuning)
    if not chosen:
        return " No recipe of the package fits these records: set the tasks yourself."
    return f" What fits these records: {' or '.join(chosen)}."


def _alike(other: TuningRecipe, recipe: TrainingRecipe | TuningRecipe) -> bool:
    """Whether both tune text, or both images; of the joint recipes, no matter."""
    return isinstance(recipe, TrainingRecipe) or (other.method == "flow_grpo") == (recipe.method == "flow_grpo")


def _packaged() -> Iterator[tuple[str, TrainingRecipe | TuningRecipe]]:
    for path in sorted(PACKAGED.glob("tuning/*.yaml")):
        recipe = load_recipe(path)
        assert isinstance(recipe, (TrainingRecipe, TuningRecipe)), "no curriculum lies there"
        yield path.relative_to(PACKAGED).as_posix(), recipe


def _fits(recipe: TrainingRecipe | TuningRecipe, held: Mapping[tuple[str, str], int]) -> bool:
    choices: list[GroupRecipe | RecordChoice] = []
    if isinstance(recipe, TrainingRecipe):
        choices.extend(recipe.data.groups)
    else:
        choices.append(recipe.train)
    return all(
        any(split == choice.split and (not choice.tasks or task in choice.tasks) for split, task in held)
        for choice in choices
    )


def _nearest(wanted: AdapterRecipe, names: list[str]) -> str:
    """Of recipes for an adapter, the one whose adapter is most like the wanted, with what to change in it."""

    def changes(name: str) -> list[str]:
        recipe = load_recipe(PACKAGED / name)
        assert isinstance(recipe, TrainingRecipe) and recipe.adapter is not None
        return [
            f"adapter.{field}={str(value).lower()}"
            for field in ("method", "vit", "quantize")
            if (value := getattr(wanted, field)) != getattr(recipe.adapter, field)
        ]

    best = min(names, key=lambda name: (len(changes(name)), name))
    return " ".join([best, *changes(best)])
