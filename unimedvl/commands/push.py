"""Check a folder of a checkpoint, an adapter, a dataset or a Space and publish it on the Hugging Face Hub.

  unimedvl push checkpoint owner/name --private --dry-run
  unimedvl push runs/lora/final owner/adapter --base owner/name
  unimedvl push published owner/dataset

A push that was interrupted resumes by the same command. Needs a token: `hf auth login`, or the environment variable
HF_TOKEN.
"""

from typing import Annotated

from typer import Argument, Option

from ..utils.command_line import Result


def push(
    directory: Annotated[str, Argument(metavar="DIR", help="Folder of a checkpoint, adapter, dataset or Space.")],
    repo_id: Annotated[str, Argument(metavar="REPO_ID", help="owner/name; created if it does not exist.")],
    base: Annotated[
        str | None, Option(metavar="HUB_ID", help="Base of an adapter, as others find it (default: the one it names).")
    ] = None,
    private: Annotated[bool, Option("--private", help="Create the repository as private.")] = False,
    dry_run: Annotated[bool, Option("--dry-run", help="Check and list the files, send nothing.")] = False,
    message: Annotated[str | None, Option(metavar="TEXT", help="Commit message.")] = None,
) -> Result:
    from ..hub_cards.push import check_folder, push_folder

    if dry_run:
        checked, commit = check_folder(directory, base), None
        text = "\n".join([*checked.files, f"{len(checked.files)} files would be sent to {repo_id}"])
    else:
        checked, commit = push_folder(directory, repo_id, private=private, message=message, base=base)
        text = f"{checked.kind} {repo_id} is at commit {commit}"
    return {"repo_id": repo_id, "kind": checked.kind, "files": checked.files, "commit": commit}, text
