"""Publish a checkpoint folder on the Hugging Face Hub, after checking that it is fit to be published.

  unimedvl push checkpoint owner/name --private --dry-run

Needs a token: `hf auth login`, or the environment variable HF_TOKEN.
"""

import argparse
import json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("directory", metavar="DIR", help="checkpoint folder")
    parser.add_argument("repo_id", metavar="REPO_ID", help="owner/name; created if it does not exist")
    parser.add_argument("--private", action="store_true", help="create the repository as private")
    parser.add_argument("--dry-run", action="store_true", help="check and list the files, send nothing")
    parser.add_argument("--message", metavar="TEXT", help="commit message")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(arguments: argparse.Namespace) -> None:
    from ..hub_cards.push import check_folder, push_folder

    if arguments.dry_run:
        record = {"repo_id": arguments.repo_id, "files": check_folder(arguments.directory), "commit": None}
        text = "\n".join([*record["files"], f"{len(record['files'])} files would be sent to {arguments.repo_id}"])
    else:
        commit = push_folder(
            arguments.directory, arguments.repo_id, private=arguments.private, message=arguments.message
        )
        record = {"repo_id": arguments.repo_id, "files": check_folder(arguments.directory), "commit": commit}
        text = f"{arguments.repo_id} is at commit {commit}"
    print(json.dumps(record) if arguments.json else text)
