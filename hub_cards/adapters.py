"""An adapter folder as others may see it: the base by its Hub id, a card for PEFT, and nothing of this machine."""

import shutil
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from unimedvl.checkpoint.adapter_folder import Adapter, base_source, open_adapter
from unimedvl.checkpoint.folder import ADAPTER_SETTINGS, Place
from unimedvl.utils.json_files import write_json

# What an adapter's repository holds: no optimizer, history or images of a run.
ADAPTER_PATTERNS = (
    "adapter_model.safetensors",
    "adapter_config.json",
    "base_model.json",
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer*.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
    "*.jinja",
    "*.py",
    "*.md",
    "LICENSE*",
    "NOTICE*",
    ".gitattributes",
)
# Lists a finished run's files on this machine; it stays here.
RUN_MARK = "complete.json"
_TEXTS = (".json", ".md", ".txt", ".jinja", ".py")


def stage_adapter(folder: Path, staged: Path, base: str | None = None) -> None:
    """Copy an adapter folder, with the base's Hub id in its settings and in the front matter of its card.

    Args:
        folder: an adapter folder.
        staged: an empty folder.
        base: Hub id of the base; the one that the adapter names by default.

    Raises:
        ValueError: if the adapter is not whole, its base has no Hub id, there is no card, or a file names a folder of
            this machine.
    """
    adapter = open_adapter(Place(folder, folder.resolve().name, None))
    stated, revision = base_on_the_hub(adapter, base, "push the base, and name it")
    if not (folder / "README.md").is_file():
        raise ValueError(f"{str(folder)!r} has no README.md: write a model card with license and intended use.")
    shutil.copytree(folder, staged, dirs_exist_ok=True, ignore=shutil.ignore_patterns(RUN_MARK, "__pycache__"))
    settings: dict[str, Any] = {**adapter.settings, "base_model_name_or_path": stated, "revision": revision}
    write_json(staged / ADAPTER_SETTINGS, settings, indent=2)
    card = ModelCard.load(staged / "README.md")
    # PEFT writes a tag and a base of its own, both with the local path.
    own = [tag for tag in card.data.tags or [] if not tag.startswith("base_model:")]
    card.data.base_model, card.data.library_name = stated, "peft"
    card.data.tags = own or None
    card.save(staged / "README.md")
    before = adapter.settings.get("base_model_name_or_path")
    if isinstance(before, str) and not is_hub_id(before):
        _require_absent(before, staged)


def _require_absent(path: str, folder: Path) -> None:
    """Raises ValueError where a text of the folder names a path of this machine, which may name a person."""
    for file in sorted(folder.rglob("*")):
        if file.suffix in _TEXTS and path.encode() in file.read_bytes():
            raise ValueError(f"{file.relative_to(folder)} names the folder {path!r} of this machine: take it out.")


def base_on_the_hub(adapter: Adapter, base: str | None, advice: str) -> tuple[str, str | None]:
    """Hub id and revision of an adapter's base.

    Args:
        adapter: see `open_adapter`.
        base: the Hub id that the user chose; the one that the adapter names by default.
        advice: what to do where there is none.

    Raises:
        ValueError: if the base is known by a folder only.
    """
    name, revision = base_source(adapter, base)
    if not is_hub_id(name):
        raise ValueError(
            f"the base of the adapter is {name!r}, which nobody else can load: {advice}, --base owner/name."
        )
    return name, revision


def is_hub_id(name: str) -> bool:
    """Whether a name is `owner/name` and no folder of this machine."""
    if name.count("/") != 1 or name.startswith((".", "~", "/")) or Path(name).exists():
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True
