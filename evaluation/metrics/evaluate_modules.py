"""What every `evaluate` module here is made of: a class around a plain function, documented by its docstring.

A module is a folder with a file of the same name, whose class names the function and the columns it takes; `readmes`
writes the folder's card. The functions live in this package, so that a module needs `unimedvl` to be installed.
"""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import datasets
import evaluate

IMAGE, TEXT = datasets.Image(), datasets.Value("string")
IMAGES = datasets.List(IMAGE)
REAL, INTEGER = datasets.Value("float64"), datasets.Value("int64")
SECTIONS = ("Args", "Returns", "Raises", "Source")


def documentation(function: Callable[..., Any]) -> dict[str, str]:
    """A function's docstring by its parts: "" for what comes before the first section, and each of `SECTIONS`."""
    found, name = {"": ""}, ""
    for line in (inspect.getdoc(function) or "").splitlines():
        section = re.fullmatch(rf"({'|'.join(SECTIONS)}):", line)
        if section:
            name = section[1]
            found[name] = ""
        else:
            found[name] += line + "\n"
    return {name: inspect.cleandoc(text) for name, text in found.items()}


class MetricModule(evaluate.Metric):
    """An `evaluate` metric around a function.

    A module's file reaches this class through `evaluate_modules`: `evaluate` takes the first metric that a file names
    for the file's own.

    Attributes:
        title: of the card.
        function: takes the columns, and options by keyword.
        columns: {argument: feature} of what comes in rows.
    """

    title: ClassVar[str]
    function: ClassVar[Callable[..., dict[str, Any]]]
    columns: ClassVar[Mapping[str, Any]]

    def _info(self) -> evaluate.MetricInfo:
        text = documentation(self.function)
        return evaluate.MetricInfo(
            description=text[""],
            inputs_description=f"Args:\n{text['Args']}\n\nReturns:\n{text['Returns']}",
            citation=text["Source"],
            features=datasets.Features(dict(self.columns)),
        )

    def _compute(self, **arguments: Any) -> dict[str, Any]:
        return self.function(**arguments)
