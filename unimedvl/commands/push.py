"""Check a folder of a checkpoint or an adapter and publish it on the Hugging Face Hub.

  unimedvl push checkpoint owner/name --private --dry-run
  unimedvl push runs/lora/final owner/adapter --base owner/name

Needs a token: `hf auth login`, or the environment variable HF_TOKEN.
"""

from typing import Annotated

from typer import Argument, Option

from ..utils.command_line import Result


def push(
    directory: Annotated[str, Argument(metavar="DIR", help="Folder of a checkpoint or a PEFT adapter.")],
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
        files = check_folder(directory, base)
        text = "\n".join([*files, f"{len(files)} files would be sent to {repo_id}"])
        return {"repo_id": repo_id, "files": files, "commit": None}, text
    commit = push_folder(directory, repo_id, private=private, message=message, base=base)
    record = {"repo_id": repo_id, "files": check_folder(directory, base), "commit": commit}
    return record, f"{repo_id} is at commit {commit}"
