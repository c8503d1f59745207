"""Write the cards of the `evaluate` modules from the docstrings of the functions that they wrap.

python -m unimedvl.evaluation.metrics.readmes
"""

import importlib
import inspect
from pathlib import Path

from unimedvl.evaluation.metrics.evaluate_modules import MetricModule, documentation

HERE = Path(__file__).resolve().parent
CARD = """---
title: {title}
tags:
- evaluate
- metric
license: apache-2.0
---
# {title}

{description}

## Use

```python
import evaluate

metric = evaluate.load("evaluation/metrics/{name}")  # a path: no network is needed
metric.compute({arguments})
```

Arguments:

{inputs}

Returns {returns}

This is `{place}`, written as a module of `evaluate`: the package `unimedvl` must be installed.
Research use only: no score here says that a model is fit for clinical use.

Source: {source}
"""


def module_names() -> list[str]:
    """Names of the folders that are `evaluate` modules."""
    return sorted(path.parent.name for path in HERE.glob("*/*.py") if path.stem == path.parent.name)


def module_class(name: str) -> type[MetricModule]:
    """The class of a module."""
    module = importlib.import_module(f"unimedvl.evaluation.metrics.{name}.{name}")
    ((_, found),) = inspect.getmembers(module, inspect.isclass)
    assert issubclass(found, MetricModule)
    return found


def arguments_of(text: str) -> str:
    """A docstring's `Args` as a list of Markdown."""
    lines = ["- `{}`: {}".format(*line.split(": ", 1)) if line[:1].strip() else line[2:] for line in text.splitlines()]
    return "\n".join(lines)


def card(name: str) -> str:
    """The card of a module, Markdown."""
    metric = module_class(name)
    text = documentation(metric.function)
    parameters = inspect.signature(metric.function).parameters.values()
    needed = [parameter.name for parameter in parameters if parameter.default is inspect.Parameter.empty]
    return CARD.format(
        title=metric.title,
        name=name,
        description=text[""],
        arguments=", ".join(f"{argument}={argument}" for argument in needed),
        inputs=arguments_of(text["Args"]),
        returns=text["Returns"],
        place=f"{metric.function.__module__}.{metric.function.__name__}",
        source=text["Source"],
    )


def main() -> None:
    """Write every card."""
    for name in module_names():
        (HERE / name / "README.md").write_text(card(name), encoding="utf-8")


if __name__ == "__main__":
    main()
