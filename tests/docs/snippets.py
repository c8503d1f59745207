"""The snippets of a page of documents: Python blocks, data blocks, and single shell statements, in their order."""

import ast
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))
SHELLS = ("bash", "console", "sh", "shell")
DATA = ("json", "yaml")
# Fences that hold nothing to run.
TEXTS = ("text", "mermaid")
# An indented line, or one of a fence without a language, is a command where it begins with one of these.
PROGRAMS = (
    "accelerate bash cat cd cp echo git hf lighteval lmms-eval make mkdir pip python sed swift torchrun transformers "
    "unimedvl unzip"
).split()
_FENCE = re.compile(r"^( *)```(\S*)[^\n]*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:(?<=\n\n)|\A)(?:    \S.*\n)(?:(?:    .*)?\n(?=    |\n    ))*(?:    .*\n)*", re.MULTILINE)
_ASSIGNED = re.compile(r"([A-Z]\w*)=(\$\([^)]*\)|[^\s;]*)\s+")


@dataclass(frozen=True)
class Snippet:
    """What a page shows.

    Attributes:
        page: the page's file name.
        kind: "python", "json", "yaml", "shell", "heredoc" (a file that a shell statement writes) or "assignment".
        text: as the page has it; a shell statement in one line.
        words: of a shell statement, the program first.
        variables: of a shell statement, those set in front of it; of an assignment, its name and command.
    """

    page: str
    kind: str
    text: str
    words: tuple[str, ...] = ()
    variables: tuple[tuple[str, str], ...] = ()

    @property
    def program(self) -> str:
        """The program of a shell statement, without its folder."""
        return Path(self.words[0]).name if self.words else ""


def snippets(page: str, text: str) -> Iterator[Snippet]:
    """All snippets of a page's text.

    Raises:
        ValueError: for a fence of a language that is not known here.
    """
    for language, block in _blocks(text):
        if language == "python":
            ast.parse(block)
            yield Snippet(page, "python", block)
        elif language in DATA:
            yield Snippet(page, language, block)
        elif language in SHELLS:
            yield from _statements(page, block, only_known=False)
        elif language == "":
            yield from _statements(page, block, only_known=True)
        elif language not in TEXTS:
            raise ValueError(f"{page}: a fence of {language!r} is neither run nor known to be text.")


def spans(text: str) -> list[str]:
    """Commands in code spans, where they are more than a name and nothing is left out of them."""
    without = _FENCE.sub("", text)
    found = (" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", without))
    return [span for span in found if re.match(r"(unimedvl|python -m|make|torchrun) \S", span) and "..." not in span]


def _blocks(text: str) -> list[tuple[str, str]]:
    """(language, block) in their order; an indented block has no language."""
    found = []
    for match in _FENCE.finditer(text):
        indent = len(match[1])
        block = "".join(line[indent:] if line[:indent].isspace() else line for line in match[3].splitlines(True))
        found.append((match.start(), match[2].lower(), block))
    outside = _FENCE.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), text)
    outside = "\n".join(line.rstrip() for line in outside.splitlines()) + "\n"
    for match in _INDENTED.finditer(outside):
        found.append((match.start(), "", "".join(line[4:] or "\n" for line in match[0].splitlines(True))))
    return [(language, block) for _, language, block in sorted(found)]


def _statements(page: str, block: str, *, only_known: bool) -> Iterator[Snippet]:
    lines = iter(block.splitlines())
    for line in lines:
        line = re.sub(r"^\$ ", "", line.strip())
        if not line or line.startswith("#"):
            continue
        while line.endswith("\\"):
            line = f"{line[:-1].rstrip()} {next(lines).strip()}"
        end = re.search(r"<<\s*'?(\w+)'?$", line)
        if end:
            body = [line]
            while body[-1].strip() != end[1]:
                body.append(next(lines))
            yield Snippet(page, "heredoc", "\n".join(body), tuple(line.split()))
            continue
        if assigned := re.fullmatch(r"(\w+)=\$\((.*)\)", line):
            yield Snippet(page, "assignment", line, variables=((assigned[1], assigned[2]),))
            continue
        for snippet in _commands(page, line):
            if not only_known or snippet.program in PROGRAMS:
                yield snippet


def _commands(page: str, line: str) -> Iterator[Snippet]:
    """The commands of a line, which `;` and `&&` divide."""
    variables = []
    while assigned := _ASSIGNED.match(line):
        variables.append((assigned[1], assigned[2]))
        line = line[assigned.end() :]
    try:
        reader = shlex.shlex(line, posix=True, punctuation_chars=";&")
        reader.whitespace_split = True
        tokens = list(reader)
    except ValueError:
        # An apostrophe: prose between indented lines.
        return
    found: list[list[str]] = [[]]
    for token in tokens:
        if set(token) <= set(";&"):
            found.append([])
        else:
            found[-1].append(token)
    for words in filter(None, found):
        text = line if len(found) == 1 else shlex.join(words)
        yield Snippet(page, "shell", text, tuple(words), tuple(variables))
