"""Every command and snippet of docs/*.md is run as a reader runs it, or a table here names why it is not.

What is not run is held against the real parser: the command, its options, its recipe with the overrides, its sources
and benchmarks exist. A page that is not named here runs whole.
"""

import json
import os
import re
from contextlib import ExitStack
from pathlib import Path

import pytest
import yaml

from tests.docs import preparations
from tests.docs.checks import check, check_span
from tests.docs.running import Place, was_printed
from tests.docs.snippets import PAGES, ROOT, Snippet, snippets, spans

# Pages that a test of their own runs.
OWN_TESTS = {
    "diffusers.md": "tests/hub_cards/test_diffusers_export.py",
    "hub.md": "tests/hub_cards/test_hub_page.py",
    "quickstart.md": "tests/test_readme.py",
    "serving.md": "tests/hub_cards/server/test_docs.py",
    "ui.md": "tests/hub_cards/ui/test_manual.py",
    "walkthrough.md": "tests/test_walkthrough.py",
}
# Pages whose statements take minutes.
SLOW = ("evaluation.md", "finetuning.md", "from-scratch.md", "training.md", "unimed5m.md", "unimed5m-scores.md")
# Pages whose blocks of text are what their commands print, with "..." in the place of a number.
SHOWN = ("evaluation.md", "from-scratch.md")

HOURS = "hours of training, on data sets that are not here"
MEASURES = "minutes of measurement; its parts are tested in tests/benchmarks"
GPU = "a GPU; tests/benchmarks/gpu rehearses it on a CPU"
ENGINE = "another environment, of `make engines`; the options are those that its card was written with"
NETWORK = "a network"
PUBLISHERS = "the publishers' data sets; tests/evaluation/test_named_benchmarks.py has their layouts"
# (page, how the snippet begins) -> why it is not run.
NOT_RUN = {
    ("ablation.md", "python -m examples.nano.ablation"): HOURS,
    ("clients.md", "transformers serve"): "run by the preparation, until the page ends",
    ("engines-harnesses.md", "python -m pytest -m slow"): "the slow tests of engines themselves",
    ("engines-harnesses.md", "lmms-eval"): ENGINE,
    ("engines-harnesses.md", "lighteval"): ENGINE,
    ("engines-harnesses.md", "swift sft"): ENGINE,
    ("engines-vllm.md", "python3.11 -m venv"): NETWORK,
    ("engines-vllm.md", "vllm-cpu/bin/python"): ENGINE,
    ("engines.md", "from torchao"): "another environment, in which benchmarks/engines/torchao_process.py loads so",
    ("evaluation.md", "unimedvl eval --model owner/name"): PUBLISHERS,
    ("gpu.md", "python -m benchmarks.gpu --out"): GPU,
    ("gpu.md", "python -m benchmarks.gpu --parts"): GPU,
    ("gpu.md", "python -m benchmarks.gpu --after"): GPU,
    ("gpu.md", "python -m benchmarks.gpu --size tiny"): "minutes; tests/benchmarks/gpu/test_rehearsal.py runs it",
    ("gpu.md", "python -m benchmarks.gpu.bundle wheels"): NETWORK,
    ("gpu.md", "python -m benchmarks.gpu.bundle copy"): "the wheels of the command before",
    ("gpu.md", "bash BUNDLE"): GPU,
    ("performance.md", "make bench"): MEASURES,
    ("performance.md", "python -m benchmarks.counts"): MEASURES,
    ("performance.md", "python -m benchmarks.ratios"): MEASURES,
    ("scaling.md", "podman build"): NETWORK,
    ("training.md", "unimedvl train RECIPE.yaml"): "a synopsis",
    ("training.md", "torchrun"): "a synopsis; tests/training/test_processes.py starts it so",
    ("unimed5m.md", "unimedvl data augment"): "a model that writes; tests/unimed5m/test_augment.py has one that does",
    ("unimed5m-scores.md", "pip download"): NETWORK,
    ("unimed5m-scores.md", "unzip"): "the wheel of the command before",
    ("unimed5m-scores.md", "unimedvl data build --source unimed-mini PATH"): "run by the preparation, on drawn images",
}
# Programs that install or fetch: their statements are checked only, on every page.
INSTALLERS = {"pip": NETWORK, "git": NETWORK, "hf": NETWORK, "cd": "the folder of a fetched checkout"}
# (page, how the snippet begins) -> words that make it small, or keep it here.
SMALLER = {
    ("evaluation.md", "unimedvl eval --benchmark"): "--limit 2 --steps 2 --no-meteor",
    ("evaluation.md", "python -m unimedvl.evaluation.specialists.train"): "--steps 2 --side 32",
    ("evaluation.md", "unimedvl eval --model specialist"): "--limit 2 --no-meteor",
    ("evaluation.md", "unimedvl eval --model runs"): "--limit 2",
    ("finetuning.md", "unimedvl train tuning/lora-both"): "steps=2 bf16=false output_dir=OUTPUT",
    ("finetuning.md", "unimedvl train tuning/sft"): "arguments.max_steps=2 arguments.eval_steps=2",
    ("finetuning.md", "unimedvl push"): "--dry-run",
    ("training.md", "unimedvl train recipe.yaml"): "steps=2 optimizer.warmup_steps=1",
    ("unimed5m-scores.md", "python -m unimedvl.unimed5m.quality.train_scorer"): "--epochs 1",
    ("upstream-weights.md", "unimedvl generate"): "--steps 2 --height 64 --width 64",
}
# (page, how the snippet begins, or "" for the page's begin) -> what a reader has by then.
BEFORE = preparations.BEFORE


def begins(snippet: Snippet, start: str) -> bool:
    return snippet.text.startswith(start)


def reason(snippet: Snippet) -> str | None:
    """Why a snippet is not run; None where it is."""
    found = [why for (page, start), why in NOT_RUN.items() if page == snippet.page and begins(snippet, start)]
    return found[0] if found else INSTALLERS.get(snippet.program)


def of_page(path: Path) -> list[Snippet]:
    return list(snippets(path.name, path.read_text(encoding="utf-8")))


def listed(paths: list[Path]) -> list:
    """Parameters: pages, of which some are slow."""
    marks = dict.fromkeys(SLOW, pytest.mark.slow)
    return [pytest.param(path, id=path.name, marks=marks.get(path.name, pytest.mark.medium)) for path in paths]


def is_run(snippet: Snippet) -> bool:
    return snippet.kind not in ("begin", "json", "yaml") and reason(snippet) is None


def shown(text: str) -> list[str]:
    """The lines of a page's blocks of text, of which there is one at least."""
    lines = "".join(re.findall(r"^```text\n(.*?)^```", text, re.MULTILINE | re.DOTALL)).splitlines()
    assert lines
    return lines


# README's are run by tests/test_readme.py, but for those with a name that a reader fills in.
CHECKED = [*PAGES, ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
RUN = [path for path in PAGES if path.name not in OWN_TESTS and any(map(is_run, of_page(path)))]


@pytest.mark.parametrize("path", listed(RUN))
def test_the_page_runs_as_written(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:
        place = Place(tmp_path, stack)
        ran = set()
        for snippet in [Snippet(path.name, "begin", ""), *of_page(path)]:
            for (page, start), prepare in BEFORE.items():
                if page == path.name and (page, start) not in ran and (snippet.kind == "begin") == (start == ""):
                    if begins(snippet, start):
                        prepare(place)
                        ran.add((page, start))
            if is_run(snippet):
                more = [
                    words for (page, start), words in SMALLER.items() if page == path.name and begins(snippet, start)
                ]
                place.run(snippet, *more[:1])
        if path.name in SHOWN:
            text = path.read_text(encoding="utf-8")
            assert not [line for line in shown(text) if not was_printed(line, place.said)], place.said[-3000:]


@pytest.mark.medium
@pytest.mark.parametrize("path", CHECKED, ids=lambda path: path.name)
def test_commands_are_those_of_the_programs(path):
    text = path.read_text(encoding="utf-8")
    # Set by assignments that pages run.
    folders = {"H": ROOT / "evaluation" / "harnesses", "P": ROOT / "training" / "engines"}
    for snippet in of_page(path):
        if snippet.kind == "shell":
            check(snippet, text, {name: str(folder) for name, folder in folders.items()})
        elif snippet.kind == "json":
            assert json.loads(snippet.text)
        elif snippet.kind == "yaml":
            assert yaml.safe_load(snippet.text)
    for span in dict.fromkeys(spans(text)):
        check_span(span)


def test_tables_name_what_pages_hold():
    """An exception without its snippet goes, and so does a page without its test."""
    held = [snippet for path in PAGES for snippet in of_page(path)]
    for page, start in [*NOT_RUN, *SMALLER, *(key for key in BEFORE if key[1])]:
        assert any(snippet.page == page and begins(snippet, start) for snippet in held), (page, start)
    pages = {path.name for path in PAGES}
    assert {*OWN_TESTS, *SLOW, *SHOWN, *(page for page, _ in BEFORE)} <= pages
    for page, test in OWN_TESTS.items():
        text = (ROOT / test).read_text(encoding="utf-8")
        assert f'"docs" / "{page}"' in text or f"docs/{page}" in text, test
    for why in {*NOT_RUN.values(), *INSTALLERS.values()}:
        for name in re.findall(r"(?:tests|benchmarks)/[\w/.]+\w", why):
            assert (ROOT / name).exists(), name


WRONG = {
    "unimedvl ask --imge a.png 'What?'": "imge",
    "unimedvl asks a.png": "asks",
    "unimedvl data build --source nothing a b": "nothing",
    "unimedvl eval --benchmark nothing=FOLDER --out OUT": "nothing",
    "unimedvl train training/recipes/tuning/lora-both.yaml stepps=2": "stepps",
    "unimedvl train tuning/nothing.yaml": "nothing",
    "python -m benchmarks.nothing": "nothing",
    "python -m benchmarks.counts --nothing": "nothing",
    "python -m benchmarks.gpu --nothing": "nothing",
    "torchrun --nproc_per_node 2 -m unimedvl.training.run tuning/lora-both.yaml stepps=2": "stepps",
    "accelerate launch -m unimedvl eval --nothing": "nothing",
    "pip install 'unimedvl[nothing]'": "nothing",
    "pip install lighteval==0.0.1": "0.0.1",
    "make nothing": "nothing",
    "lighteval custom --nothing": "nothing",
    "hf download owner/name --nothing": "nothing",
    "bash BUNDLE/benchmarks/nothing.sh": "nothing",
}


@pytest.mark.medium
@pytest.mark.parametrize("command", WRONG)
def test_a_wrong_command_is_found(command):
    (snippet,) = snippets("page.md", f"```bash\n{command}\n```\n")
    with pytest.raises(Exception) as found:  # noqa: PT011
        check(snippet, "", os.environ)
    assert WRONG[command] in f"{found.value} {getattr(found.value, 'format_message', str)()}"


def test_every_form_of_a_snippet_is_read():
    text = """# A page

    unimedvl ask --image a.png "A; B?"      # a comment
    unimedvl eval sheet OUT STUDY; unimedvl eval readers STUDY

* a list
    with prose in it

```bash
H=$(python -c "print(1)")
KEY=1 unimedvl serve \\
    --port 8000
cat > a.yaml <<'YAML'
a: 1
YAML
```

```python
print(1)
```

`unimedvl info --model M` and `unimedvl train ...` and `make demo`
"""
    found = list(snippets("page.md", text))
    assert [(snippet.kind, snippet.words) for snippet in found] == [
        ("shell", ("unimedvl", "ask", "--image", "a.png", "A; B?")),
        ("shell", ("unimedvl", "eval", "sheet", "OUT", "STUDY")),
        ("shell", ("unimedvl", "eval", "readers", "STUDY")),
        ("assignment", ()),
        ("shell", ("unimedvl", "serve", "--port", "8000")),
        ("heredoc", ("cat", ">", "a.yaml", "<<'YAML'")),
        ("python", ()),
    ]
    assert found[4].variables == (("KEY", "1"),) and found[5].text.endswith("a: 1\nYAML")
    assert spans(text) == ["unimedvl info --model M", "make demo"]
    with pytest.raises(ValueError, match="a fence of 'perl'"):
        list(snippets("page.md", "```perl\n1\n```\n"))
    with pytest.raises(SyntaxError):
        list(snippets("page.md", "```python\nprint(\n```\n"))


def test_what_a_page_shows_is_looked_for():
    said = "step 1/2  loss 0.5  ce 2\n| vqa | 0.1 (0 to 1) |\n"
    assert was_printed("step 1/2  loss ...  ce", said) and was_printed("| vqa | ... (... to ...) |", said)
    assert not was_printed("loss ...", said) and not was_printed("step 1/2  ce ...", said)
    assert shown("```text\na\nb\n```\n") == ["a", "b"]
    with pytest.raises(AssertionError):
        shown("```bash\na\n```\n")


def test_a_failing_snippet_fails(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with ExitStack() as stack:
        place = Place(tmp_path, stack)
        for text in ("unimedvl info --model nowhere", "python -c 'import nothing'", "cat nowhere | cat nowhere"):
            (snippet,) = snippets("page.md", f"```bash\n{text}\n```\n")
            with pytest.raises(AssertionError, match=r"page\.md"):
                place.run(snippet)
