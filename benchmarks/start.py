"""What a process costs before its first token: processor time and modules as ratios to `import torch`, and load peaks.

    python -m benchmarks.start

Every process is timed whole, from the interpreter's start to its end, in rounds that run each kind once; ratios are
formed within a round. `transformers` is the floor: its own Qwen2 of the nano's size, loaded, one greedy token.

Peaks of memory are sampled while a bfloat16 checkpoint of over 1 GB in the proportions of the 14B model is loaded and
every weight is then read once, and start from what the process held after it had loaded the nano in the same way.
Resident memory counts weights that stay mapped to their file; anonymous memory is what no file backs.
"""

import compileall
import gc
import json
import os
import resource
import select
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import torch
from PIL import Image
from transformers import Qwen2Config, Qwen2ForCausalLM

from unimedvl import UniMedVLForConditionalGeneration
from unimedvl.modeling_unimedvl.configuration_unimedvl import UniMedVLConfig
from unimedvl.modeling_unimedvl.upstream_weights_unimedvl import model_shapes

from .gpu.architecture import full_config
from .origin import origin

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).parent / "results"
CHECKPOINT = ROOT / "hub_cards" / "unimedvl-nano"
ROUNDS = 7
# Layers, width and vocabulary of the 14B model, each cut by as much that the parts keep their shares.
WIDE: dict[str, Any] = {
    "vocab_size": 19_456,
    "hidden_size": 1_024,
    "intermediate_size": 5_408,
    "num_hidden_layers": 13,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "layer_types": None,
}
TIMED = ("torch", "transformers", "understanding only", "ask")
# Packages that neither a model for understanding nor `unimedvl ask` has a use for.
UNUSED = (
    "bitsandbytes",
    "datasets",
    "diffusers",
    "evaluate",
    "matplotlib",
    "nibabel",
    "onnx",
    "pandas",
    "peft",
    "pyarrow",
    "pydicom",
    "sklearn",
    "tifffile",
    "torch._inductor.compile_fx",
    "torchao",
    "torchvision",
    "trl",
)
ONE_TOKEN = "model.generate(input_ids=torch.tensor([[5, 6, 7, 8]]), max_new_tokens=1, do_sample=False)"
LOAD_OURS = "import torch, unimedvl; model = unimedvl.UniMedVLForConditionalGeneration.from_pretrained"
LOAD_QWEN2 = "import torch, transformers; model = transformers.Qwen2ForCausalLM.from_pretrained"


def programs(folder: Path) -> dict[str, str]:
    """The Python program of every kind of process.

    Args:
        folder: holds `qwen2`, a checkpoint, and `image.png`.
    """
    ask = ["ask", "--image", str(folder / "image.png"), "What kind of image is this?", "--max-new-tokens", "8"]
    return {
        "torch": "import torch",
        "unimedvl": "import unimedvl",
        "transformers": f"{LOAD_QWEN2}({str(folder / 'qwen2')!r}); {ONE_TOKEN}",
        "understanding only": f"{LOAD_OURS}({str(CHECKPOINT)!r}, visual_gen=False); {ONE_TOKEN}",
        "whole model": f"{LOAD_OURS}({str(CHECKPOINT)!r}); {ONE_TOKEN}",
        "ask": f"from unimedvl.commands.main import main; assert main({ask!r}) == 0",
    }


def write_inputs(folder: Path) -> None:
    """What `programs` read: a Qwen2 with as many parameters as the nano's understanding half, and an image."""
    text = UniMedVLConfig.from_pretrained(CHECKPOINT).text_config
    names = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    # The wider MLP takes the place of the vision transformer.
    config = Qwen2Config(**{name: getattr(text, name) for name in names}, intermediate_size=2 * text.intermediate_size)
    Qwen2ForCausalLM(config).save_pretrained(folder / "qwen2")
    Image.radial_gradient("L").resize((72, 60)).save(folder / "image.png")


def environment() -> dict[str, str]:
    """One thread, no network, and byte code kept as in an installation."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**kept, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}


def run_program(program: str) -> str:
    """What a program writes to stdout, run in an interpreter of its own.

    Raises:
        subprocess.CalledProcessError: if it fails.
    """
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, env=environment(), cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout


def measure_program(program: str) -> tuple[float, list[str]]:
    """Processor time of a whole process, user and system, in seconds, and the modules it has imported by its end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    printed = run_program(f"{program}\nimport sys; print(); print(*sys.modules)")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return seconds, printed.splitlines()[-1].split()


def unused_packages(modules: list[str]) -> list[str]:
    """Which of `UNUSED` are among the modules."""
    return [name for name in UNUSED if name in modules]


def spread(ratios: list[float]) -> dict[str, float]:
    """Median and range."""
    return {
        "median": round(statistics.median(ratios), 2),
        "lowest": round(min(ratios), 2),
        "highest": round(max(ratios), 2),
    }


def measure_start(rounds: int = ROUNDS) -> Iterator[dict[str, Any]]:
    """Ratios of processor time to a process that imports torch alone, and numbers of modules, after every round."""
    # As in an installation: no process should have to translate our code first.
    compileall.compile_dir(ROOT / "unimedvl", quiet=1)
    report: dict[str, Any] = {}
    timed: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder))
        by_kind = programs(Path(folder))
        for index in range(rounds):
            timed.append({})
            for kind in TIMED if index else by_kind:
                timed[index][kind], modules = measure_program(by_kind[kind])
                if not index:
                    report[kind] = {"modules": len(modules), "unused packages": unused_packages(modules)}
            for kind in TIMED[1:]:
                report[kind]["processor time to torch"] = spread([row[kind] / row["torch"] for row in timed])
            for kind in TIMED[2:]:
                ratios = [row[kind] / row["transformers"] for row in timed]
                report[kind]["processor time to transformers"] = spread(ratios)
            yield {"rounds": len(timed), **report}


def write_wide_checkpoint(folder: Path, max_shard_size: str, **changes: Any) -> None:
    """A random bfloat16 checkpoint in the proportions of the 14B model.

    Args:
        max_shard_size: of `save_pretrained`.
        **changes: fields of the language model's configuration that differ from `WIDE`.
    """
    fields = UniMedVLConfig.from_pretrained(CHECKPOINT).to_dict()
    fields["text_config"] = {**fields["text_config"], **WIDE, **changes}
    model: Any = UniMedVLForConditionalGeneration._from_config(UniMedVLConfig(**fields), dtype=torch.bfloat16)
    model.save_pretrained(folder, max_shard_size=max_shard_size)


def load(folder: str, visual_gen: str) -> None:
    """Load the nano, wait for a line on stdin, load the checkpoint, read its weights, print their bytes, and wait."""
    options = {"visual_gen": json.loads(visual_gen), "dtype": torch.bfloat16}
    read_weights(UniMedVLForConditionalGeneration.from_pretrained(CHECKPOINT, **options))
    gc.collect()
    print("ready", flush=True)
    sys.stdin.readline()
    model = UniMedVLForConditionalGeneration.from_pretrained(folder, **options)
    print(read_weights(model), flush=True)
    sys.stdin.readline()


def read_weights(model: torch.nn.Module) -> int:
    """Bytes of a model's weights, each of which is read once."""
    weights = [value.detach() for value in model.state_dict().values()]
    for value in weights:
        value.view(-1).max()
    return sum(value.numel() * value.element_size() for value in weights)


def resident_bytes(process: psutil.Process) -> tuple[int, int]:
    """Memory of a process: all that is resident, and the part of it that no file backs."""
    memory = process.memory_info()
    return memory.rss, memory.rss - memory.shared


def measure_load(folder: Path, visual_gen: bool) -> dict[str, Any]:
    """Peaks of memory while a checkpoint is loaded and read, beside the bytes of its weights."""
    command = [sys.executable, "-m", "benchmarks.start", str(folder), json.dumps(visual_gen)]
    pipes: Any = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL, "text": True}
    with subprocess.Popen(command, env=environment(), cwd=ROOT, **pipes) as child:
        assert child.stdin is not None and child.stdout is not None
        assert child.stdout.readline().strip() == "ready"
        process = psutil.Process(child.pid)
        samples = [resident_bytes(process)]
        child.stdin.write("\n")
        child.stdin.flush()
        while not select.select([child.stdout], [], [], 0.001)[0]:
            samples.append(resident_bytes(process))
        weights = int(child.stdout.readline())
        samples.append(resident_bytes(process))
    resident, anonymous = (max(column) - column[0] for column in zip(*samples, strict=True))
    return {
        "weights": weights,
        "samples": len(samples),
        "resident peak": resident,
        "anonymous peak": anonymous,
        "resident peak to weights": round(resident / weights, 3),
        "anonymous peak to weights": round(anonymous / weights, 3),
    }


def parameters(visual_gen: bool) -> int:
    """Parameters of the 14B model, counted without its weights; the autoencoder is left out, as upstream counts."""
    config = UniMedVLConfig.from_dict({**full_config().to_dict(), "visual_gen": visual_gen})
    shapes = model_shapes(UniMedVLForConditionalGeneration, config)
    return sum(torch.Size(shape).numel() for name, shape in shapes.items() if not name.startswith("model.vae."))


def measure_memory(**changes: Any) -> dict[str, Any]:
    """Load peaks of the whole model in one file and in five, and of understanding only.

    Args:
        **changes: fields of the language model's configuration that differ from `WIDE`.
    """
    report = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, shard in {"one file": "10GB", "shards": "250MB"}.items():
            place = Path(folder) / name
            write_wide_checkpoint(place, shard, **changes)
            report[f"whole model, {name}"] = measure_load(place, True)
            report[f"understanding only, {name}"] = measure_load(place, False)
    for name in ("one file", "shards"):
        half, whole = report[f"understanding only, {name}"], report[f"whole model, {name}"]
        half["resident peak to whole model's"] = round(half["resident peak"] / whole["resident peak"], 3)
    share = parameters(False) / parameters(True)
    return {"dtype": "bfloat16", "parameters for understanding, share of the 14B model": round(share, 3), **report}


def main() -> None:
    path = RESULTS / "start.json"
    report: dict[str, Any] = {"origin": origin("one thread"), "load": measure_memory()}
    # A run that is cut short keeps what it has.
    for report["start"] in measure_start():
        path.write_text(json.dumps(report, indent=1) + "\n")
    print(path.read_text())


if __name__ == "__main__":
    if sys.argv[1:]:
        load(*sys.argv[1:])
    else:
        main()
