"""docs/serving.md runs as written, its tables are those of the command, and the container examples hold together."""

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import typer
import yaml

from tests.hub_cards.server.running import png_bytes, serving
from unimedvl.checkpoint.provenance import read_provenance
from unimedvl.commands.main import app
from unimedvl.hub_cards.server.settings import Limits

ROOT = Path(__file__).resolve().parents[3]
TEXT = (ROOT / "docs" / "serving.md").read_text(encoding="utf-8")
PYTHON = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
SHELL = re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL)
FOLDER = ROOT / "hub_cards" / "server"


def options() -> dict[str, typer.core.TyperOption]:
    command = typer.main.get_command(app).commands["serve"]
    return {name: parameter for parameter in command.params for name in parameter.opts}


@pytest.mark.medium
def test_the_page_runs_as_written(tmp_path, monkeypatch):
    assert TEXT.count("```") == 2 * (len(PYTHON) + len(SHELL))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scan.png").write_bytes(png_bytes())
    with serving(tmp_path) as server:
        names: dict = {}
        for block in PYTHON:
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                # The port of the page may be taken here.
                exec(block.replace("localhost:8000", f"localhost:{server.port}"), names)
            assert "made =" in block or printed.getvalue().strip() or names["answer"].usage.completion_tokens
    for name in ("made-0.png", "made-1.png", "edited.png"):
        assert read_provenance(tmp_path / name)["synthetic"] is True


def test_its_commands_are_the_commands():
    lines = [line for block in SHELL for line in block.splitlines()]
    served = [line.split("unimedvl serve", 1)[1] for line in lines if "unimedvl serve" in line]
    assert len(served) == 3 and all(line.startswith("pip install") for line in lines if "unimedvl serve" not in line)
    known = options()
    for words in served:
        assert all(word in known for word in words.split() if word.startswith("--"))


def test_the_table_of_limits_is_that_of_the_command():
    known = options()
    rows = re.findall(r"^\| (`--[^|]+) \| ([\d, ]+) \|", TEXT, re.MULTILINE)
    named = {}
    for names, defaults in rows:
        flags = re.findall(r"--[\w-]+", names)
        values = [defaults.replace(",", "")] if len(flags) == 1 else defaults.split(", ")
        named |= dict(zip(flags, values, strict=True))
    assert {name: float(known[name].default) for name in named} == {
        name: float(value) for name, value in named.items()
    }
    bounds = {name for name in known if name.startswith("--max-") or name.endswith("-batch") or name == "--timeout"}
    assert bounds - {"--max-replicas"} == named.keys()
    # The command repeats the defaults, as it must not import them to show its help.
    fields = {name: field.default for name, field in Limits.__dataclass_fields__.items()}
    own = {"max_prompt": "prompt_characters", "max_tokens": "new_tokens", "timeout": "seconds"}
    for name in named:
        word = name.removeprefix("--").replace("-", "_")
        assert float(known[name].default) == fields[own.get(word, word.removeprefix("max_"))]


def test_its_figures_are_the_measured_ones():
    measured = json.loads((ROOT / "benchmarks" / "results" / "serving.json").read_text())
    speed, waits, start = measured["throughput"], measured["waiting"], measured["start"]
    columns = [(speed["text"], waits["text"]), (speed["images of equal settings"], waits["generation"])]
    ratios = ("8 clients to one client", "8 clients to 8 clients without batches")
    expected = [" | ".join(str(rates[name]["median"]) for rates, _ in columns) for name in ratios]
    for ending in ("", ", in a mixed load"):
        pairs = [(wait[f"p50 to one alone{ending}"], wait[f"p95 to one alone{ending}"]) for _, wait in columns]
        expected.append(" | ".join(f"{middle}, {late}" for middle, late in pairs))
    assert all(f"| {row} |" in TEXT for row in expected)
    for name in ("weights, GB", "server's resident peak to plain's", "server's seconds until ready to plain's"):
        assert f" {start[name]} " in TEXT
    # What the batches are for.
    assert speed["text"]["8 clients to one client"]["median"] >= 2


def test_the_container_runs_without_root_and_checks_its_health():
    text = (FOLDER / "Containerfile").read_text(encoding="utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    words = [line.split()[0] for line in lines]
    begun = [number for number, word in enumerate(words) if word == "FROM"]
    assert words[: begun[1]] == ["FROM", "ARG", "COPY", "RUN"]
    build, stage = lines[: begun[1]], lines[begun[1] :]
    assert {"USER", "WORKDIR", "ENV", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK", "ENTRYPOINT"} <= set(words[begun[1] :])
    # What was copied from the checkout, and every layer with it, stays in the first stage.
    copies = [line for line in stage if line.split()[0] in ("COPY", "ADD")]
    place = copies[0].split()[-1]
    assert copies == [f"COPY --from=build {place} {place}"] and f"venv {place}" in build[3]
    by_word = {line.split()[0]: line.split(maxsplit=1)[1] for line in stage}
    assert f"PATH={place}/bin:" in by_word["ENV"]
    assert by_word["USER"] == "10001:10001" and "/ready" in by_word["HEALTHCHECK"]
    entry = yaml.safe_load(by_word["ENTRYPOINT"])
    assert entry[:2] == ["unimedvl", "serve"] and all(word in options() for word in entry if word.startswith("--"))
    extras = re.fullmatch(r"ARG EXTRAS=([\w,]+)", build[1])
    assert extras is not None and "/source[$EXTRAS]" in build[3]
    described = (ROOT / "setup.cfg").read_text(encoding="utf-8")
    assert all(f"\n{name} =\n" in described for name in extras[1].split(","))


@pytest.mark.medium
def test_the_container_is_built_of_the_package_alone(tmp_path):
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    first, *patterns = [line for line in lines if line and not line.startswith("#")]
    # Everything is left out but a few names; "**/" leaves names out at any depth.
    kept = [pattern.removeprefix("!") for pattern in patterns if pattern.startswith("!")]
    never = [pattern.removeprefix("**/") for pattern in patterns if pattern.startswith("**/")]
    assert first == "*" and len(kept) + len(never) == len(patterns) and not any("/" in name for name in kept + never)
    assert not {".git", ".venv", "tests", "examples", "demo", "outputs", "."} & set(kept)
    context = tmp_path / "context"
    context.mkdir()
    for name in kept:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, context / name, symlinks=True, ignore=shutil.ignore_patterns(*never))
        else:
            shutil.copy2(ROOT / name, context / name)
    words = ["--wheel", "--no-isolation", "--outdir", str(tmp_path), str(context)]
    built = subprocess.run([sys.executable, "-m", "build", *words], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        found = set(archive.namelist())
    # All of the package's code, and what it opens beside it.
    sources = [path.relative_to(ROOT) for name in kept for path in (ROOT / name).rglob("*.py")]
    inside = {Path("unimedvl", *path.parts[path.parts[0] == "unimedvl" :]).as_posix() for path in sources}
    assert len(inside) > 100 and inside <= found
    assert {
        "unimedvl/hub_cards/unimedvl-nano/model.safetensors",
        "unimedvl/hub_cards/templates/model.md.jinja",
    } <= found


def test_the_compose_example_is_closed():
    service = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))["services"]["unimedvl"]
    assert service["read_only"] is True and service["cap_drop"] == ["ALL"] and service["user"] == "10001:10001"
    assert service["security_opt"] == ["no-new-privileges:true"] and service["tmpfs"][0].startswith("/tmp:")
    assert all(port.startswith("127.0.0.1:") for port in service["ports"])
    assert "UNIMEDVL_API_KEY" in service["environment"] and ":?" in service["environment"]["UNIMEDVL_API_KEY"]
    assert all(volume.endswith(":ro") for volume in service["volumes"]) and "/ready" in str(service["healthcheck"])
    assert (FOLDER / service["build"]["context"] / service["build"]["dockerfile"]).is_file()
