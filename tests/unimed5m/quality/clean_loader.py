"""Program of the loading test: uses a published folder with `datasets` and without this package.

    python -I -S clean_loader.py PACKAGES FOLDER STATES save|resume

`save` compares the streaming and the map form, interleaves three configs and saves the state at several places with
the ids that follow; `resume` continues from each of them in a new process.
"""

import importlib.util
import json
import sys

packages, folder, states, action = sys.argv[1:]
sys.path.append(packages)

import datasets  # noqa: E402

# `datasets` waits so long after each interleaved pass for threads of old versions of pyarrow.
datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN = 0
STOPS = (1, 2, 7, 13, 29, 50)


def interleaved():
    parts = [
        datasets.load_dataset(folder, name, split="train", streaming=True).select_columns(["id"])
        for name in ("caption", "vqa", "segmentation")
    ]
    return datasets.interleave_datasets(
        parts, probabilities=[0.5, 0.3, 0.2], seed=7, stopping_strategy="all_exhausted"
    )


report = {}
if action == "save":
    whole = datasets.load_dataset(folder, "all", split="train")
    stream = list(datasets.load_dataset(folder, "all", split="train", streaming=True))
    assert stream == list(whole), "the streaming and the map form differ"
    assert whole[0]["input_img"][0]["image"].size == (136, 136)
    assert datasets.load_dataset(folder, split="train").num_rows == len(whole), "`all` is not the default"
    closed = datasets.load_dataset(folder, "metadata_caption", split="train")
    assert closed[0]["input_img"][0]["image"] is None and closed[0]["message"] == []
    rows, saved, ids = interleaved(), {}, []
    for row in rows:
        ids.append(row["id"])
        if len(ids) in STOPS:
            saved[len(ids)] = rows.state_dict()
    with open(states, "w") as file:
        json.dump([{"state": state, "rest": ids[stop:]} for stop, state in saved.items()], file)
    report = {"map": len(whole), "interleaved": len(ids), "different": len(set(ids))}
else:
    with open(states) as file:
        saved = json.load(file)
    for entry in saved:
        rows = interleaved()
        rows.load_state_dict(entry["state"])
        assert [row["id"] for row in rows] == entry["rest"], f"resumed otherwise before the last {len(entry['rest'])}"
    report = {"resumed": len(saved)}

for name in ("unimedvl", "torch", "transformers"):
    assert importlib.util.find_spec(name) is None, f"{name} is importable"
print(json.dumps(report))
