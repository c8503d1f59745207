"""Runs as a program of its own: several `unimedvl` commands after one another, each with faults of the server before.

    python -m tests.hub_cards.commands_in_one_process '[{"faults": [...], "words": ["push", ...]}, ...]'

A command imports its libraries once this way; huggingface_hub reads its endpoint when it is imported, so that tests
cannot run them in their own process. Prints one JSON list: code, stdout and stderr of each.
"""

import contextlib
import io
import json
import os
import sys
import urllib.request


def main() -> None:
    # Retries wait for seconds; what is tested is what happens after and between them.
    import huggingface_hub.utils._http as http

    from unimedvl.commands.main import main as command

    http.time.sleep = lambda seconds: None
    found = []
    for step in json.loads(sys.argv[1]):
        request = urllib.request.Request(
            os.environ["HF_ENDPOINT"] + "/test/faults", json.dumps(step.get("faults", [])).encode(), method="POST"
        )
        urllib.request.urlopen(request).close()
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = command(step["words"])
        found.append({"code": code, "out": out.getvalue(), "err": err.getvalue()})
    print(json.dumps(found))


if __name__ == "__main__":
    main()
