"""Conversion is checked before it writes, and its output is whole or absent."""

import json
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from tests.tiny_model import tiny_model
from tests.unimedvl.checkpoint.weight_files import assert_nothing_written, assert_same, tensors
from tests.upstream_checkpoint import (
    TWO_GIGABYTES,
    Sizes,
    write_configs,
    write_upstream,
)
from unimedvl.checkpoint.folder import NANO_DIRECTORY
from unimedvl.checkpoint.layout_conversion import convert_checkpoint, export_checkpoint
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration

pytestmark = pytest.mark.medium

REPOSITORY = Path(__file__).resolve().parents[3]


# --------------------------------------------------------------------------------------------------------------------
# Bad input


def write_llm_config(folder: Path, **changes):
    path = folder / "llm_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def truncate(path: Path):
    path.write_bytes(path.read_bytes()[:-100])


def write_pickle(path: Path):
    with open(path, "wb") as handle:
        pickle.dump({"weight": [1.0]}, handle)


BAD_FOLDERS = {
    "unknown tensor": (
        {"extra": {"language_model.model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", (4,))}},
        None,
        r"1 unknown .*rotary_emb\.inv_freq",
    ),
    "many unknown": (
        {"extra": {f"head.{index}": ("F32", (4,)) for index in range(9)}},
        None,
        r"9 unknown .head\.0; head\.1; head\.2; \.\.\.",
    ),
    "unknown autoencoder level": (
        {"extra": {"encoder.down.9.block.0.conv1.weight": ("F32", (32, 32, 3, 3))}},
        None,
        r"unknown .encoder\.down\.9",
    ),
    "misshapen tensor": (
        {"extra": {"language_model.model.layers.1.mlp_moe_gen.up_proj.weight": ("BF16", (48, 31))}},
        None,
        r"1 misshapen .*layers\.1\.mlp_moe_gen\.up_proj\.weight \[48, 31\], expected \[48, 32\]",
    ),
    "transposed attention of the autoencoder": (
        {"extra": {"connector.fc1.weight": ("BF16", (24, 32))}},
        None,
        r"misshapen .connector\.fc1\.weight",
    ),
    "missing tensor": ({"keep": lambda name: name != "connector.fc2.bias"}, None, r"1 missing .connector\.fc2\.bias"),
    "missing expert": ({"keep": lambda name: "_moe_gen" not in name}, None, r"missing .*_moe_gen"),
    "half of the latent parts": ({"keep": lambda name: "vae2llm" not in name}, None, r"vae2llm\.weight"),
    "no vision tower": ({"keep": lambda name: "vit_model" not in name}, None, "no vision transformer"),
    "no connector": ({"keep": lambda name: "connector" not in name}, None, "no connector"),
    "no embedding": ({"keep": lambda name: "embed_tokens" not in name}, None, r"embed_tokens\.weight is missing"),
    "vision layers lost": ({"declared_vit_layers": 27}, None, "3 whole ViT layers but vit_config.json counts 27"),
    "gap in vision layers": ({"keep": lambda name: "encoder.layers.1." not in name}, None, "1 whole ViT layers"),
    "integers": ({"extra": {"connector.fc1.bias": ("I64", (32,))}}, None, r"another type .connector\.fc1\.bias I64"),
    "table is no square": ({"extra": {"vit_pos_embed.pos_embed": ("F32", (80, 32))}}, None, "no square grid"),
    "latents fit no patch": ({"extra": {"vae2llm.weight": ("BF16", (32, 25))}}, None, "no square patch"),
    "tensor twice": ({"extra": {"module.connector.fc1.bias": ("BF16", (32,))}}, None, "connector.fc1.bias is twice"),
    "wrong size stated": ({}, lambda f: write_llm_config(f, hidden_size=64), "misshapen"),
    "size is text": ({}, lambda f: write_llm_config(f, num_hidden_layers="two"), "no positive integer"),
    "size is zero": ({}, lambda f: write_llm_config(f, num_attention_heads=0), "no positive integer"),
    "activation is a number": ({}, lambda f: write_llm_config(f, hidden_act=3), "cannot be used"),
    "broken text config": (
        {},
        lambda f: (f / "llm_config.json").write_text("{,"),
        "llm_config.json is not valid JSON",
    ),
    "list as config": ({}, lambda f: (f / "vit_config.json").write_text("[]"), "does not hold a JSON object"),
    "odd tokenizer": (
        {},
        lambda f: (f / "tokenizer.json").write_text('{"added_tokens": [7]}'),
        "the tokenizer files in .* cannot be read",
    ),
    "no text config": ({}, lambda f: (f / "llm_config.json").unlink(), "not in the upstream layout"),
    "no weights": ({}, lambda f: (f / "ema.safetensors").unlink(), "holds no ema_bf16.safetensors or"),
    "truncated weights": ({}, lambda f: truncate(f / "ema.safetensors"), "not a whole safetensors file"),
    "empty weights": ({}, lambda f: (f / "ae.safetensors").write_bytes(b""), "not a whole safetensors file"),
    "pickle in disguise": ({}, lambda f: write_pickle(f / "ema.safetensors"), "pickles are never read"),
    "pickle": (
        {},
        lambda f: (write_pickle(f / "ema.pt"), (f / "ema.safetensors").unlink()),
        "pickled weights .ema.pt.",
    ),
    "shard missing": (
        {"shards": 3, "weights": "model"},
        lambda f: (f / "model-00002-of-00003.safetensors").unlink(),
        "model-00002-of-00003.safetensors, named in model.safetensors.index.json, is missing",
    ),
    "index leads outside": (
        {"shards": 2, "weights": "model"},
        lambda f: (f / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../x"}})),
        "named in model.safetensors.index.json, is missing",
    ),
    "groups do not divide": ({"sizes": replace(Sizes(), channels=(32, 48))}, None, "32 groups do not divide"),
}


@pytest.mark.parametrize("case", BAD_FOLDERS)
def test_bad_source_is_named_before_anything_is_written(tmp_path, case):
    options, damage, message = BAD_FOLDERS[case]
    folder = write_upstream(tmp_path / "upstream", **options)
    if damage is not None:
        damage(folder)
    output = tmp_path / "outputs" / "ours"
    with pytest.raises(ValueError, match=message) as caught:
        convert_checkpoint(folder, output, progress=False)
    assert "\n" not in str(caught.value)
    assert not output.parent.exists()


def test_bad_arguments(tmp_path):
    folder = write_upstream(tmp_path / "upstream")
    output = tmp_path / "ours"
    for options, message in (
        ({"dtype": "int4"}, "dtype must be one of"),
        ({"max_shard_size": "big"}, "max_shard_size must be a size"),
        ({"max_shard_size": None}, "max_shard_size must be a size"),
        ({"overrides": {"bos_token_id": 9999}}, "bos_token_id 9999 is no row"),
    ):
        with pytest.raises(ValueError, match=message):
            convert_checkpoint(folder, output, progress=False, **options)
    with pytest.raises(ValueError, match="there is no folder"):
        convert_checkpoint(tmp_path / "nowhere", output, progress=False)
    with pytest.raises(ValueError, match="not a checkpoint of ours"):
        export_checkpoint(folder, output, progress=False)
    with pytest.raises(ValueError, match="exists already"):
        convert_checkpoint(folder, folder, progress=False)
    with pytest.raises(ValueError, match="exists already"):
        convert_checkpoint(folder, folder / "config.json", progress=False)
    with pytest.raises(ValueError, match="cannot write"):
        convert_checkpoint(folder, folder / "config.json" / "ours", progress=False)
    assert_nothing_written(output)
    output.mkdir()
    convert_checkpoint(folder, output, progress=False)
    with pytest.raises(ValueError, match="not in the upstream layout"):
        convert_checkpoint(output, tmp_path / "twice", progress=False)
    (output / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="model.safetensors is missing"):
        export_checkpoint(output, tmp_path / "back", progress=False)


def test_autoencoder_without_place_in_the_layout_is_refused(tmp_path):
    config = {"norm_num_groups": 4, "use_quant_conv": True, "block_out_channels": [8, 8, 16], "latent_channels": 6}
    tiny_model(vae_config=config).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match="no place for model.vae.quant_conv"):
        export_checkpoint(tmp_path / "ours", tmp_path / "back", progress=False)
    # Its settings have no place there either: whoever reads the folder takes those of FLUX.
    with pytest.raises(ValueError, match="has no attention in its middle"):
        export_checkpoint(NANO_DIRECTORY, tmp_path / "back", progress=False)
    assert_nothing_written(tmp_path / "back")


# --------------------------------------------------------------------------------------------------------------------
# Interruption and memory

RUN = """
import resource, signal, sys, torch
torch.set_num_threads(1)
from unimedvl.checkpoint.layout_conversion import convert_checkpoint
source, output, shard, limit = sys.argv[1:]
if int(limit):
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(limit), int(limit)))
try:
    convert_checkpoint(source, output, max_shard_size=shard, progress=False)
except ValueError as error:
    sys.exit(str(error))
"""


def conversion(source: Path, output: Path, shard: str, limit: int = 0) -> subprocess.Popen:
    command = [sys.executable, "-c", RUN, str(source), str(output), shard, str(limit)]
    return subprocess.Popen(command, cwd=REPOSITORY, stderr=subprocess.PIPE, text=True)


def test_killed_run_leaves_no_output_and_the_next_one_clears_up(tmp_path):
    sizes = replace(Sizes(), hidden=256, intermediate=1024, layers=6, vocabulary=4000)
    folder = write_upstream(tmp_path / "upstream", sizes)
    output = tmp_path / "ours"
    process = conversion(folder, output, "256KB")
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob(".ours.partial/*.safetensors")):
        assert process.poll() is None and time.monotonic() < deadline
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert not output.exists() and (tmp_path / ".ours.partial").is_dir()
    convert_checkpoint(folder, output, progress=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ours", "upstream"]
    assert len(tensors(output)) == len(tensors(folder))


def test_full_disk_is_one_clear_line_and_leaves_nothing(tmp_path):
    folder = write_upstream(tmp_path / "upstream")
    process = conversion(folder, tmp_path / "ours", "5GB", limit=200_000)
    _, message = process.communicate(timeout=120)
    line = message.strip().splitlines()[-1]
    assert process.returncode == 1 and line.startswith("cannot write") and "make room" in line
    assert_nothing_written(tmp_path / "ours")


def test_more_than_the_disk_holds_is_refused_at_once(tmp_path):
    vocabulary = 2 * shutil.disk_usage(tmp_path).free // (2 * 32 * 2)
    folder = write_upstream(tmp_path / "upstream")
    write_configs(folder, replace(Sizes(), vocabulary=vocabulary))
    # A sparse file: the numbers are there, the disk blocks are not.
    path = folder / "ema.safetensors"
    with safe_open(path, framework="pt") as handle:
        shapes = {
            name: (handle.get_slice(name).get_dtype(), handle.get_slice(name).get_shape()) for name in handle.keys()
        }
    for name in ("language_model.model.embed_tokens.weight", "language_model.lm_head.weight"):
        shapes[name] = ("BF16", [vocabulary, 32])
    header: dict = {}
    offset = 0
    for name, (dtype, shape) in shapes.items():
        end = offset + torch.Size(shape).numel() * {"BF16": 2, "F32": 4}[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    with open(path, "wb") as handle:
        handle.write(len(encoded).to_bytes(8, "little") + encoded)
        handle.truncate(8 + len(encoded) + offset)
    with pytest.raises(ValueError, match="GB needed, .* GB free"):
        convert_checkpoint(folder, tmp_path / "ours", progress=False)
    assert_nothing_written(tmp_path / "ours")


def test_two_runs_into_one_folder_do_not_mix(tmp_path):
    folder = write_upstream(tmp_path / "upstream")

    def second(partial: Path):
        with pytest.raises(ValueError, match="another run is writing"):
            convert_checkpoint(folder, tmp_path / "ours", progress=False)

    convert_checkpoint(folder, tmp_path / "ours", progress=False, finish=second)
    assert len(tensors(tmp_path / "ours")) == len(tensors(folder))


PEAK = """
import sys, threading, time

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("RssAnon"))

baseline = peak = anonymous()
running = True

def watch():
    global peak
    while running:
        peak = max(peak, anonymous())
        time.sleep(0.002)

thread = threading.Thread(target=watch, daemon=True)
thread.start()
import torch
torch.set_num_threads(1)
from unimedvl.checkpoint.layout_conversion import convert_checkpoint, export_checkpoint
function = {"convert": convert_checkpoint, "export": export_checkpoint}[sys.argv[1]]
function(*sys.argv[2:4], progress=False, **eval(sys.argv[4]))
running = False
thread.join()
print(baseline, peak)
"""


def peak_above_baseline(*arguments) -> int:
    """Peak of anonymous memory, bytes above an interpreter that has imported nothing."""
    command = [sys.executable, "-c", PEAK, *map(str, arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    baseline, peak = map(int, done.stdout.split())
    return peak - baseline


@pytest.fixture
def large_folder(tmp_path):
    """A temporary folder that is emptied at once, also after a failure."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_two_gigabytes_pass_through_little_memory(large_folder):
    folder, ours, back = (large_folder / name for name in ("upstream", "ours", "back"))
    write_upstream(folder, TWO_GIGABYTES)
    assert sum(path.stat().st_size for path in folder.glob("*.safetensors")) > 2e9
    peaks = {"convert": peak_above_baseline("convert", folder, ours, {"max_shard_size": "500MB"})}
    shards = list(ours.glob("*.safetensors"))
    assert len(shards) >= 5 and all(path.stat().st_size < 501e6 for path in shards)
    peaks["export"] = peak_above_baseline("export", ours, back, {})
    for file in ("ema.safetensors", "ae.safetensors"):
        assert_same(load_file(folder / file), load_file(back / file))
    shutil.rmtree(back)
    peaks["cast"] = peak_above_baseline("convert", folder, back, {"dtype": "float32"})
    shutil.rmtree(back)
    print({name: f"{peak / 1e6:.0f} MB" for name, peak in peaks.items()})
    assert all(peak < 1e9 for peak in peaks.values())
    direct = UniMedVLForConditionalGeneration.from_pretrained(folder)
    converted = UniMedVLForConditionalGeneration.from_pretrained(ours)
    assert_same(dict(direct.state_dict()), dict(converted.state_dict()))
