"""Write the card of a checkpoint or an adapter: README.md, from the folder itself and a file of facts.

  unimedvl card checkpoint --facts card.yaml --repo owner/name
  unimedvl card runs/lora/final --facts card.yaml --base owner/name --check

A fact that neither holds is an error that names it.
"""

from typing import Annotated

from typer import Argument, Option

from ..utils.command_line import Result


def card(
    directory: Annotated[str, Argument(metavar="DIR", help="Folder of a checkpoint or a PEFT adapter.")],
    facts: Annotated[str, Option(metavar="FILE", help="YAML file of what the folder does not say (docs/hub.md).")],
    repo: Annotated[str | None, Option(metavar="REPO_ID", help="owner/name that the snippets name.")] = None,
    base: Annotated[
        str | None, Option(metavar="HUB_ID", help="Base of an adapter, as others find it (default: the one it names).")
    ] = None,
    check: Annotated[bool, Option("--check", help="Compare with the README.md that is there, write nothing.")] = False,
) -> Result:
    from pathlib import Path

    from ..hub_cards.card_facts import read_facts
    from ..hub_cards.model_card import UNNAMED, build_card, write_card

    text = build_card(directory, read_facts(facts), repo or UNNAMED, base=base)
    path = Path(directory) / "README.md"
    if check:
        if not path.is_file() or path.read_text(encoding="utf-8") != text:
            raise ValueError(f"{path} is not what its facts make: run the same command without --check.")
        return {"file": str(path), "written": False}, f"{path} is up to date"
    write_card(directory, text)
    return {"file": str(path), "written": True}, str(path)
