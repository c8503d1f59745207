"""The common tests of the installed transformers, taken from its source distribution.

The package index has that archive for every release; nothing of it is copied into this project. It is downloaded once
for each version, into the user's cache folder.
"""

import functools
import importlib
import os
import subprocess
import sys
import tarfile
import tempfile
import types
import unittest
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import transformers
from PIL import Image

from tests.transformers_suite.not_applicable import OTHER_VERSIONS

PACKAGE = "transformers_tests"
# Mixins that the common tests derive from and that the archive does not hold.
ABSENT = {"exporters.test_export": "ExportTesterMixin", "generation.test_utils": "GenerationTesterMixin"}


def downloaded_tests() -> Path:
    """The `tests` folder of the source distribution of the installed version; skips the module where there is none."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "unimedvl-tests"
    kept = cache / f"transformers-{transformers.__version__}"
    if not kept.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as scratch:
            requirement = f"transformers=={transformers.__version__}"
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "transformers"]
            done = subprocess.run(
                [*command, "--no-build-isolation", "--dest", scratch, requirement], capture_output=True, text=True
            )
            archives = list(Path(scratch).glob("transformers-*.tar.gz"))
            if done.returncode or not archives:
                last = (done.stderr.strip().splitlines() or ["no archive"])[-1]
                pytest.skip(f"the package index gives no source of {requirement}: {last}", allow_module_level=True)
            with tarfile.open(archives[0]) as archive:
                archive.extractall(scratch, filter="data")
            try:
                (Path(scratch) / archives[0].name.removesuffix(".tar.gz") / "tests").rename(kept)
            except OSError:
                assert kept.is_dir(), "nobody but a test beside this one puts a folder there"
    return kept


def common_tests(name: str) -> Any:
    """Import a module of the common tests, for example `test_modeling_common`; skips where it cannot be had."""
    folder = downloaded_tests()
    if PACKAGE not in sys.modules:
        package = types.ModuleType(PACKAGE)
        package.__path__ = [str(folder)]
        sys.modules[PACKAGE] = package
        for path, mixin in ABSENT.items():
            parent = f"{PACKAGE}.{path.partition('.')[0]}"
            sys.modules[parent] = types.ModuleType(parent)
            module = types.ModuleType(f"{PACKAGE}.{path}")
            setattr(module, mixin, type(mixin, (), {}))
            sys.modules[module.__name__] = module
        # A script of their continuous integration, which maps addresses to files that it has fetched before.
        fetch: Any = types.ModuleType("fetch_hub_objects_for_ci")
        fetch.url_to_local_path = lambda url: str(drawn_image()) if url.endswith((".png", ".jpg")) else url
        sys.modules.setdefault(fetch.__name__, fetch)
    return importlib.import_module(f"{PACKAGE}.{name}")


@functools.cache
def drawn_image() -> Path:
    """A file with an image in place of those that the common tests show."""
    path = Path(tempfile.mkdtemp(prefix="unimedvl-tests-")) / "image.png"
    Image.linear_gradient("L").resize((90, 60)).convert("RGB").save(path)
    return path


def is_tested_version() -> bool:
    """Whether the installed transformers is that of constraints.txt."""
    constraints = Path(__file__).parents[2] / "constraints.txt"
    return f"transformers=={transformers.__version__}" in constraints.read_text().splitlines()


def leave_out(reasons: Mapping[str, str]) -> Callable[[type], type]:
    """Skip tests that do not apply to this model, each with its reason.

    Args:
        reasons: by name of a test, or by its start and a star for all cases of a parameterized test.

    Raises:
        AssertionError: if there is no test of that name under the tested version of transformers, so that the list
            cannot outlive its tests.
    """

    def decorated(case: type) -> type:
        names = [name for name in dir(case) if name.startswith("test_")]
        others = OTHER_VERSIONS.get(".".join(transformers.__version__.split(".")[:2]), {}).get(case.__name__, {})
        for given, reason in {**reasons, **others}.items():
            start = given.removesuffix("*")
            matching = [name for name in names if name == given or (start != given and name.startswith(start))]
            assert matching or not is_tested_version(), f"no test {given} in {case.__name__}: remove it from the list"
            for name in matching:
                setattr(case, name, unittest.skip(reason)(getattr(case, name)))
        return case

    return decorated
