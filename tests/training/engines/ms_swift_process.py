"""Runs in ms-swift's own environment: encodes conversations by the plugin's template, and prints them as JSON.

python ms_swift_process.py PLUGIN CHECKPOINT CONVERSATIONS.json
"""

import importlib.util
import json
import sys


def main(plugin: str, checkpoint: str, conversations: str) -> None:
    specification = importlib.util.spec_from_file_location("ms_swift_plugin", plugin)
    specification.loader.exec_module(importlib.util.module_from_spec(specification))
    from swift.model import get_processor
    from swift.template import get_template

    processor = get_processor(checkpoint, use_hf=True)
    found = []
    with open(conversations, encoding="utf-8") as handle:
        jobs = json.load(handle)
    for job in jobs:
        template = get_template(processor, **job.get("template", {}))
        template.set_mode("train")
        try:
            encoded = template.encode(job["conversation"])
        except ValueError as error:
            found.append({"error": str(error)})
        else:
            found.append({"ids": encoded["input_ids"], "labels": encoded["labels"]})
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
