"""Hooks of the site: what pages link to outside of docs/ comes along, and the reference of the commands is made."""

import posixpath
import re
from pathlib import Path
from typing import Any

import typer
from mkdocs.structure.files import File, Files

from unimedvl.commands.main import app

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)(#[^)\s]*)?(\))")
OUTSIDE = "repository"  # where files from outside of docs/ lie in the site


def on_files(files: Files, config: Any) -> Files:
    """Add what pages link to outside of docs/, pages of other folders too, and the page of the commands."""
    waiting = [Path(file.abs_src_path) for file in files.documentation_pages() if file.abs_src_path]
    seen = set(waiting)
    while waiting:
        page = waiting.pop()
        for target in targets(page):
            if target in seen or target.is_relative_to(DOCS):
                continue
            seen.add(target)
            place = f"{OUTSIDE}/{target.relative_to(ROOT).as_posix()}"
            if target.is_dir():
                names = sorted(path.name for path in target.iterdir() if path.is_file() and path.name != "__init__.py")
                lines = "\n".join(f"* [{name}]({name})" for name in names)
                text = f"# {target.relative_to(ROOT)}\n\n{lines}\n"
                files.append(File.generated(config, f"{place}/index.md", content=text))
                for name in names:
                    files.append(File.generated(config, f"{place}/{name}", abs_src_path=str(target / name)))
                continue
            files.append(File.generated(config, place, abs_src_path=str(target)))
            if target.suffix == ".md":
                waiting.append(target)
    files.append(File.generated(config, "reference/commands.md", content=commands()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead links to files outside of docs/ to where they lie in the site, and those to notebooks to their pages."""
    source = page.file.abs_src_path
    if source is None:
        return markdown
    here = Path(source).resolve()
    folder = posixpath.dirname(page.file.src_uri)

    def led(found: re.Match[str]) -> str:
        target = resolved(here, found[2])
        if target is None:
            return found[0]
        inside = target.is_relative_to(DOCS)
        place = target.relative_to(DOCS if inside else ROOT).as_posix()
        place = place if inside else f"{OUTSIDE}/{place}"
        # The page of a notebook itself links to the file.
        place = f"{place.removesuffix('.ipynb')}.md" if target.suffix == ".ipynb" and target != here else place
        place = f"{place}/index.md" if target.is_dir() else place
        return f"{found[1]}{posixpath.relpath(place, folder or '.')}{found[3] or ''}{found[4]}"

    return LINK.sub(led, markdown)


def targets(page: Path) -> list[Path]:
    """The files and folders of the checkout that a page links to."""
    found = (resolved(page.resolve(), match[2]) for match in LINK.finditer(page.read_text(encoding="utf-8")))
    return [target for target in found if target is not None]


def resolved(page: Path, link: str) -> Path | None:
    """What a relative link leads to, where that is in the checkout."""
    if "://" in link or link.startswith(("/", "mailto:")):
        return None
    target = Path(posixpath.normpath((page.parent / link).as_posix()))
    return target if target.exists() and target.is_relative_to(ROOT) else None


def commands() -> str:
    """The help of every command, as it prints it."""
    parts = ["# Commands", "", "`unimedvl COMMAND --help` prints the same."]
    group = typer.main.get_command(app)
    for path, command in described(group, ["unimedvl"]):
        with command.make_context(path[-1], [], parent=None, resilient_parsing=True) as context:
            context.info_name = " ".join(path)
            text = command.get_help(context)
        parts += ["", f"## {' '.join(path[1:]) or 'unimedvl'}", "", "```text", text.rstrip(), "```"]
    return "\n".join(parts) + "\n"


def described(command: Any, path: list[str]) -> list[tuple[list[str], Any]]:
    """A command and all below it, with their names."""
    found = [(path, command)]
    for name, below in sorted(getattr(command, "commands", {}).items()):
        found += described(below, [*path, name])
    return found
