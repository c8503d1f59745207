"""docs/hub.md as a reader runs it: every command and snippet, against the local Hub."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from tests.adapters import write_adapter
from tests.hub_cards.test_hub_faults import ROOT, run
from tests.hub_cards.test_push_kinds import clean, snippets
from tests.hub_server import HubServer
from unimedvl.checkpoint.folder import NANO_DIRECTORY

pytestmark = pytest.mark.medium

TEXT = (ROOT / "docs" / "hub.md").read_text(encoding="utf-8")
COMMANDS = [line for block in re.findall(r"```bash\n(.*?)```", TEXT, re.DOTALL) for line in block.strip().splitlines()]
FACTS = re.search(r"```yaml\n(.*?)```", TEXT, re.DOTALL)[1]


def words(command, commit=""):
    program, *rest = shlex.split(command.replace("COMMIT", commit))
    assert program == "unimedvl"
    return rest


def test_the_page_runs_as_written(dataset, tmp_path):
    place = tmp_path / "place"
    shutil.copytree(
        NANO_DIRECTORY, place / "checkpoint", ignore=shutil.ignore_patterns("README.md", "evaluation", ".eval_results")
    )
    shutil.copytree(NANO_DIRECTORY / "evaluation", place / "scores")
    shutil.copytree(dataset, place / "published")
    (place / "card.yaml").write_text(FACTS)
    first = [command for command in COMMANDS if " card " in command]
    later = [command for command in COMMANDS if command not in first]
    assert len(first) == 2 and len(later) == 5
    with HubServer() as hub:
        push = {"words": ["push", "checkpoint", "owner/name", "--json"]}
        done = run(hub, tmp_path / "home", *({"words": words(command)} for command in first), push, folder=place)
        assert all(result["code"] == 0 for result in done), done
        commit = json.loads(done[-1]["out"])["commit"]
        write_adapter(place / "checkpoint", place / "runs" / "lora" / "final")
        done = run(hub, tmp_path / "home", *({"words": words(command, commit)} for command in later), folder=place)
        for command, result in zip(later, done, strict=True):
            assert result["code"] == 0 and result["out"].strip(), (command, result)
        remote, installed = snippets(TEXT).replace("COMMIT", commit).split("import unimedvl")
        (tmp_path / "stranger").mkdir()
        clean(remote, hub, tmp_path / "stranger")
        environment = {"PATH": "/usr/bin:/bin", **hub.environment(tmp_path / "home"), "PYTHONPATH": str(ROOT)}
        code = f"import unimedvl{installed}\nprint(loaded.checkpoint.revision)"
        said = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert said.stdout.strip() == commit, said.stderr[-2000:]
