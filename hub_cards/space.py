"""The application of `unimedvl ui` as the folder of a Hugging Face Space, for one model at one commit."""

import os
import re
from pathlib import Path

from huggingface_hub import SpaceCard, SpaceCardData
from huggingface_hub.utils import validate_repo_id

from unimedvl.checkpoint.provenance import NOTICE
from unimedvl.utils.whole_files import replacing_folder
from unimedvl.version import __version__

# The Gradio that the application is tested with, which a Space installs by itself.
GRADIO = "6.31.0"
COMMIT = re.compile(r"[0-9a-f]{40}")
FILES = ("README.md", "app.py", "requirements.txt")

_APP = '''"""{title}: the browser application of unimedvl for one model at one commit."""

from unimedvl.checkpoint.loading import load
from unimedvl.hub_cards.ui.application import serve

serve(load({model!r}, revision={revision!r}), host="0.0.0.0", port=7860)
'''

_README = """
# {title}

Ask, report, generate, edit and segment with [{model}](https://huggingface.co/{model}/tree/{revision}).

**{notice}** Generated images say that they are synthetic, as PNG and as DICOM. Uploads are
deleted when the page is closed. Do not upload images that identify a patient.

The model is pinned to commit `{revision}`. `unimedvl ui --model {model} --revision {revision}` runs the same
application on a machine of your own.
"""


def write_space(
    folder: str | os.PathLike, model_id: str, revision: str, *, title: str | None = None, overwrite: bool = False
) -> list[str]:
    """Write `app.py`, `requirements.txt` and `README.md` of a Space, all or nothing.

    Args:
        folder: made here; it may exist only where it is empty, or with `overwrite`.
        model_id: Hub id of a checkpoint or an adapter, `owner/name`.
        revision: its commit, 40 hexadecimal digits: a branch would change under the people who use the Space.
        title: of the Space; by default the model's name.
        overwrite: replace a folder that is there.

    Returns:
        The names of the files.

    Raises:
        ValueError: if the id is no `owner/name`, the revision no commit, or the folder in use.
    """
    validate_repo_id(model_id)
    if model_id.count("/") != 1:
        raise ValueError(f"{model_id!r} is not a Hub id: write owner/name.")
    if COMMIT.fullmatch(revision) is None:
        raise ValueError(
            f"{revision!r} is not a commit: give its 40 hexadecimal digits, so that the Space stays as it is."
        )
    target = Path(folder)
    if target.exists() and not overwrite and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{str(target)!r} is already there: choose another folder.")
    title = title or model_id.partition("/")[2]
    if not title.isprintable() or '"' in title:
        raise ValueError("The title must be one line of text without double quotes.")
    facts = {"title": title, "model": model_id, "revision": revision, "notice": NOTICE}
    data = SpaceCardData(
        title=title,
        sdk="gradio",
        sdk_version=GRADIO,
        python_version="3.12",
        app_file="app.py",
        license="apache-2.0",
        models=[model_id],
        tags=["medical", "research-use-only"],
        short_description="Research use only: a medical vision-language model",
        pinned=False,
    )
    with replacing_folder(target, overwrite=overwrite) as partial:
        (partial / "app.py").write_text(_APP.format(**facts), encoding="utf-8")
        (partial / "requirements.txt").write_text(f"unimedvl[ui,hub]=={__version__}\n", encoding="utf-8")
        card = SpaceCard(f"---\n{data.to_yaml()}\n---\n{_README.format(**facts)}")
        card.save(partial / "README.md")
    return list(FILES)
