"""README.md and the quick start run as written, on the nano; what all documents name exists."""

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.docs.running import write_files
from unimedvl.checkpoint.folder import NANO_DIRECTORY
from unimedvl.checkpoint.provenance import read_provenance
from unimedvl.commands.main import main

pytestmark = pytest.mark.medium

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in ("README.md", "docs/quickstart.md")}
# A value in the files that the GPU benchmark writes, no module.
SCHEMA = "unimedvl.benchmarks.gpu"
DOCUMENTS = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])
BLOCKS = {name: re.findall(r"```python\n(.*?)```", text, re.DOTALL) for name, text in PAGES.items()}
# Those with a capital M, ADAPTER, owner/name or the name of a release hold a place for what the reader puts in.
COMMANDS = {
    name: [
        line.partition("  #")[0].strip()
        for line in text.splitlines()
        if line.startswith("    unimedvl ") and not re.search(r"--model M\b|ADAPTER|owner/name|BAGEL-7B-MoT", line)
    ]
    for name, text in PAGES.items()
}


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A folder with the files that the README names: images from scikit-image, and synthetic scans."""
    monkeypatch.chdir(tmp_path)
    write_files(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_code_blocks(workplace, page):
    assert PAGES[page].count("```") == 2 * len(BLOCKS[page]) > 0, "a fenced block is not run"
    names: dict = {}
    for block in BLOCKS[page]:
        block = block.replace('"./hub_cards/unimedvl-nano"', repr(str(NANO_DIRECTORY)))
        exec(compile(block, page, "exec"), names)
    written = "xray.png" if page == "README.md" else "stained-in-python.png"
    assert read_provenance(workplace / written)["synthetic"]
    assert page == "README.md" or names["ids"].shape[0] == 2


@pytest.mark.parametrize("page", PAGES)
def test_commands(workplace, capsys, page):
    assert {command.split()[1] for command in COMMANDS[page]} >= {"ask", "generate"}
    for command in COMMANDS[page]:
        assert main(shlex.split(command)[1:]) == 0, (command, capsys.readouterr().err)
    if page != "README.md":
        assert read_provenance(workplace / "stained.png")["settings"]["preset"] == "virtual_staining"


def test_the_readme_is_short_and_says_what_it_is_first():
    """What a reader sees without scrolling: what it is, that it is for research only, how to install it."""
    lines = README.splitlines()
    assert len(lines) <= 130
    assert README.index("Research use only") < README.index("## Install") < README.index("## Use")
    assert not any("make " in line for line in lines[: lines.index("## Install")])


def tracked_folders() -> set[str]:
    """Names of the folders at the root of the checkout."""
    listing = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {line.partition("/")[0] for line in listing.stdout.splitlines() if "/" in line}


def is_module(dotted: str) -> bool:
    place = ROOT / dotted.replace(".", "/")
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def missing_paths(text: str) -> list[str]:
    """Files and folders of the checkout that code spans name and that are not there; capitals hold places."""
    words = {word.strip("\"'.,") for span in re.findall(r"`([^`\n]+)`", text) for word in span.split()}
    ours = {word for word in words if word.partition("/")[0] in tracked_folders() and re.fullmatch(r"[\w./-]+", word)}
    named = {word for word in ours if "/" in word and not re.search(r"/[A-Z]+(/|$)", word)}
    return sorted(word for word in named if not (ROOT / word).exists())


def missing_modules(text: str) -> list[str]:
    """Modules that `python -m` runs, and dotted names of ours in code spans, that are not there."""
    others = ("build", "pytest", "vllm.entrypoints.openai.api_server")
    runs = {name for name in re.findall(r"python -m ([\w.]+)", text) if name not in others}
    missing = [
        name for name in runs if not is_module(name) or ((ROOT / name.replace(".", "/")).is_dir() and not starts(name))
    ]
    for name in re.findall(r"`((?:unimedvl|examples|benchmarks)(?:\.\w+)+)`", text):
        module, attributes = name, []
        while not is_module(module):
            module, _, attribute = module.rpartition(".")
            attributes.append(attribute)
        if name != SCHEMA and not all(re.search(rf"\b{attribute}\b", source(module)) for attribute in attributes):
            missing.append(name)
    return sorted(missing)


def starts(package: str) -> bool:
    return is_module(f"{package}.__main__")


def source(module: str) -> str:
    place = ROOT / module.replace(".", "/")
    return (place / "__init__.py" if place.is_dir() else place.with_suffix(".py")).read_text(encoding="utf-8")


def missing_links(document: Path, text: str) -> list[str]:
    """Relative links of a document without a file, or without the heading that they lead to."""
    missing = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        name, _, anchor = link.partition("#")
        if "://" in link:
            continue
        target = document.parent / name if name else document
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            missing.append(link)
    return missing


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to the headings of a document."""
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_what_documents_name_exists(document):
    text = document.read_text(encoding="utf-8")
    assert not missing_paths(text)
    assert not missing_links(document, text)
    # The changelog names what was moved by its earlier place.
    assert document.name == "CHANGELOG.md" or not missing_modules(text)


def test_what_does_not_exist_is_found():
    text = (
        "`python -m pytest tests/nowhere.py` `docs/evaluation.md` `unimedvl.utils.nothing` `python -m benchmarks.none`"
    )
    assert missing_paths(text) == ["tests/nowhere.py"]
    assert missing_modules(text) == ["benchmarks.none", "unimedvl.utils.nothing"]
    assert missing_modules("`python -m examples.nano`") == ["examples.nano"]
    assert missing_links(ROOT / "README.md", "[a](docs/gpu.md#how-to-run-it) [b](docs/gpu.md#none)") == [
        "docs/gpu.md#none"
    ]


def test_the_verification_table_names_a_status_and_a_command_that_shows_it():
    text = (ROOT / "docs" / "verification.md").read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if re.match(r"\| .*verified", line)]
    rows = [[cell.strip() for cell in line[1:-1].split("|")] for line in lines]
    statuses = {status: [row for row in rows if row[1].startswith(status)] for status in ("verified", "unverified")}
    assert len(rows) == sum(map(len, statuses.values())) > 40 and min(map(len, statuses.values())) > 5
    without = [row[0] for row in statuses["verified"] if "`" not in row[2]]
    assert without == ['`pipeline("any-to-any")`']
    dated = re.compile(r"CI|2026-\d\d-\d\d")
    assert all(dated.fullmatch(row[4]) for row in statuses["verified"])
    assert any(row[0].startswith("GPU") and "`python -m benchmarks.gpu`" in row[2] for row in statuses["unverified"])
