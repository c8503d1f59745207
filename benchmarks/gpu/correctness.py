"""Correctness on the device: golden records, precision, attention kernels, batches, quantization, offload."""

import copy
import importlib.util
import tempfile
from dataclasses import replace
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import BitsAndBytesConfig, TorchAoConfig

from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration
from unimedvl.training.data.collate import to_device

from .architecture import SIZES, prompt
from .denoise import denoised
from .golden import golden_records
from .memory import float8_settings
from .run import Bench
from .timing import bf16_tolerance, differences, time_guard
from .train import packed_batch

# Largest relative L2 distance of two float32 runs that only order their sums differently: the golden suite's
# tolerance of a tensor.
FLOAT32 = 2e-5
# A 4-bit weight has an error of about a tenth of its size, an 8-bit integer of a hundredth, an 8-bit floating point
# number, which has 4 significant bits, of a thirtieth. What is asked is that the weights were read and scaled rightly,
# which random ones fail with a distance of about 1.4.
QUANTIZED = {"nf4": 0.5, "int8": 0.1, "float8": 0.3, "float8_dynamic": 0.3}
VIT_GRID, TEXT_TOKENS, ANSWER_TOKENS = (3, 4), 9, 8


def exact_arithmetic() -> None:
    """Float32 without TF32, and the same order of sums in every run where the device has one."""
    torch.set_float32_matmul_precision("highest")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)


def golden(bench: Bench) -> None:
    exact_arithmetic()
    golden_records(bench)


def checkpoint(bench: Bench) -> Any:
    """The golden checkpoint on the CPU in float32, as the golden tests load it."""

    def load() -> Any:
        from tests.golden.records import Golden
        from tests.golden.reference import load_model

        return load_model(Golden(bench.golden))

    return bench.shared("checkpoint", load)


def on_device(bench: Bench) -> Any:
    return bench.shared("on_device", lambda: copy.deepcopy(checkpoint(bench)).to(bench.device))


def image_side(model: Any) -> int:
    """Pixels along one side of the images made: three latent tokens."""
    return 3 * model.config.pixels_per_latent_token


@torch.no_grad()
def answers(model: Any, device: torch.device) -> dict[str, torch.Tensor]:
    """Logits of a text and of a question about an image."""
    text = prompt(model.config, device, TEXT_TOKENS)
    question = prompt(model.config, device, TEXT_TOKENS, vit_grid=VIT_GRID)
    return {"text": model(**text).logits, "question": model(**question).logits}


def greedy(model: Any, device: torch.device, vit_grid: tuple[int, int] | None = None) -> torch.Tensor:
    """Greedy ids (1, T) of an answer to a text, or to a question about an image of `vit_grid` patches."""
    inputs = prompt(model.config, device, TEXT_TOKENS, vit_grid=vit_grid)
    return model.generate(**inputs, do_sample=False, max_new_tokens=ANSWER_TOKENS, min_new_tokens=ANSWER_TOKENS).cpu()


def velocities(model: Any, device: torch.device) -> dict[str, torch.Tensor]:
    """Velocity of the first update from a text, and from a text and an image; posterior noise is drawn on the CPU."""
    side, found = image_side(model), {}
    image: dict[str, Any] = {"vit_grid": VIT_GRID, "vae_side": side}
    for name, contexts, shown in (("image", 2, {}), ("edit", 3, image)):
        inputs = prompt(model.config, device, TEXT_TOKENS, **shown)
        branches: dict[int, dict[str, Any]] = {}
        denoised(model, inputs, side, contexts, 2, branches.__setitem__)
        found[name] = branches[0]["velocity_cond"][0]
    return found


def training_step(model: Any, device: torch.device) -> dict[str, torch.Tensor]:
    """Both losses of a pack and the gradients of every weight, in float32."""
    learner = copy.deepcopy(model).train()
    size = replace(SIZES["tiny"], sides=(image_side(model),) * 2, vit_grid=VIT_GRID, text_tokens=TEXT_TOKENS)
    batch, _ = packed_batch(model.config, size)
    output = learner(**to_device(batch, device))
    output.loss.backward()
    gradients = [weight.grad.flatten().float().cpu() for weight in learner.parameters() if weight.grad is not None]
    losses = torch.stack([output.ce_loss.float(), output.mse_loss.float()])
    return {"losses": losses, "gradients": torch.cat(gradients)}


def compare(bench: Bench, name: str, ours: torch.Tensor, plain: torch.Tensor, limit: float) -> None:
    """Record the relative L2 distance of two results as a comparison with a limit."""
    gaps = differences(ours, plain)
    bench.record.comparison(f"correctness.{name}", gaps["relative_l2"], limit, "relative L2", **gaps)


def same_ids(bench: Bench, name: str, ours: torch.Tensor, plain: torch.Tensor) -> None:
    """Record how many ids differ as a comparison with 0."""
    bench.record.comparison(f"correctness.{name}", int((ours.cpu() != plain.cpu()).sum()), 0, "ids that differ")


def device_and_processor(bench: Bench) -> None:
    """Float32 on the device against float32 on the CPU: answers, images and one training step."""
    exact_arithmetic()
    processor = torch.device("cpu")
    ours, plain = on_device(bench), checkpoint(bench)
    for part in (answers, velocities, training_step):
        expected = part(plain, processor)
        for name, value in part(ours, bench.device).items():
            compare(bench, f"cpu.{name}", value, expected[name], FLOAT32)
    for name, grid in (("text", None), ("question", VIT_GRID)):
        same_ids(bench, f"cpu.greedy.{name}", greedy(ours, bench.device, grid), greedy(plain, processor, grid))


def bfloat16(bench: Bench) -> None:
    """bfloat16 on the device against float32 on the device."""
    exact_arithmetic()
    plain = on_device(bench)
    ours = copy.deepcopy(plain).to(torch.bfloat16)
    text, vision = plain.config.text_config.num_hidden_layers, plain.config.vision_config.num_hidden_layers
    for part, layers in ((answers, text + vision), (velocities, text + vision), (training_step, 2 * (text + vision))):
        expected = part(plain, bench.device)
        for name, value in part(ours, bench.device).items():
            compare(bench, f"bfloat16.{name}", value, expected[name], bf16_tolerance(layers))


def attention(bench: Bench) -> None:
    """Eager attention against SDPA in float32; flash kernels against SDPA's choice in bfloat16."""
    exact_arithmetic()
    model = copy.deepcopy(on_device(bench))
    model.set_attn_implementation("sdpa")
    expected = answers(model, bench.device) | velocities(model, bench.device)
    model.set_attn_implementation("eager")
    for name, value in (answers(model, bench.device) | velocities(model, bench.device)).items():
        compare(bench, f"attention.eager.{name}", value, expected[name], FLOAT32)
    half = copy.deepcopy(on_device(bench)).to(torch.bfloat16)
    vision, text = half.config.vision_config.num_hidden_layers, half.config.text_config.num_hidden_layers
    limits = {"text": bf16_tolerance(text), "question": bf16_tolerance(text + vision)}
    plain = answers(half, bench.device)
    with torch.no_grad(), sdpa_kernel(SDPBackend.FLASH_ATTENTION):
        flash = half(**prompt(half.config, bench.device, TEXT_TOKENS)).logits
    compare(bench, "attention.sdpa_flash.text", flash, plain["text"], limits["text"])
    name = "attention.flash_attention_2"
    if importlib.util.find_spec("flash_attn") is None:
        bench.record.not_run(f"correctness.{name}", "flash-attn is not installed")
        return
    half.set_attn_implementation("flash_attention_2")
    for part, value in answers(half, bench.device).items():
        compare(bench, f"{name}.{part}", value, plain[part], limits[part])


def flex_attention(bench: Bench) -> None:
    """Flex attention, which a GPU has to compile, against SDPA in float32."""
    exact_arithmetic()
    model = copy.deepcopy(on_device(bench))
    model.set_attn_implementation("sdpa")
    expected = answers(model, bench.device)
    model.set_attn_implementation("flex_attention")
    with time_guard(bench.seconds_left(reserve=2)), torch.compiler.set_stance(bench.size.flex_stance):
        for name, value in answers(model, bench.device).items():
            compare(bench, f"attention.flex.{name}", value, expected[name], FLOAT32)


def compiled(bench: Bench) -> None:
    """Every layer compiled as a region of its own against none, in float32."""
    exact_arithmetic()
    model = copy.deepcopy(on_device(bench))
    expected = answers(model, bench.device) | velocities(model, bench.device)
    with time_guard(bench.seconds_left(reserve=2)):
        model.compile_repeated_blocks(backend=bench.size.compile_backend)
        for name, value in answers(model, bench.device).items():
            compare(bench, f"compiled.{name}", value, expected[name], FLOAT32)
        for name, value in velocities(model, bench.device).items():
            compare(bench, f"compiled.{name}", value, expected[name], FLOAT32)


def batch(bench: Bench) -> None:
    """Prompts of different lengths answered together, against each alone."""
    exact_arithmetic()
    model = on_device(bench)
    singles = [prompt(model.config, bench.device, TEXT_TOKENS + 2 * row) for row in range(3)]
    width = max(inputs["input_ids"].shape[1] for inputs in singles)

    def padded(name: str) -> torch.Tensor:
        value = model.config.pad_token_id or 0 if name == "input_ids" else 0
        rows = [inputs[name][0] for inputs in singles]
        return torch.stack([torch.nn.functional.pad(row, (width - row.shape[0], 0), value=value) for row in rows])

    together = {name: padded(name) for name in ("input_ids", "attention_mask")}
    options: dict[str, Any] = {"do_sample": False, "max_new_tokens": ANSWER_TOKENS, "min_new_tokens": ANSWER_TOKENS}
    with torch.no_grad():
        logits = model(**together).logits[:, -1]
        alone = torch.cat([model(**inputs).logits[:, -1] for inputs in singles])
    compare(bench, "batch.logits", logits, alone, FLOAT32)
    ids = torch.cat([model.generate(**inputs, **options)[:, -ANSWER_TOKENS:] for inputs in singles])
    same_ids(bench, "batch.greedy", model.generate(**together, **options)[:, -ANSWER_TOKENS:], ids)


def loaded(bench: Bench, **options: Any) -> Any:
    """The golden checkpoint through `from_pretrained`."""
    config = copy.deepcopy(checkpoint(bench).config)
    return UniMedVLForConditionalGeneration.from_pretrained(bench.golden / "ckpt", config=config, **options).eval()


def quantization_settings(device: torch.device) -> dict[str, Any]:
    """A configuration for each kind of `QUANTIZED`, or the reason why it cannot run."""
    nf4: dict[str, Any] = {"bnb_4bit_quant_type": "nf4", "bnb_4bit_compute_dtype": torch.bfloat16}
    found: dict[str, Any] = {
        "nf4": BitsAndBytesConfig(load_in_4bit=True, **nf4),
        "int8": BitsAndBytesConfig(load_in_8bit=True),
    }
    for kind, settings in float8_settings(device).items():
        found[kind] = settings if isinstance(settings, str) else TorchAoConfig(settings)
    return found


def quantized(bench: Bench) -> None:
    """4-bit and 8-bit weights: loaded by transformers, they answer, and close to the full weights."""
    expected = answers(on_device(bench), bench.device)
    half = answers(copy.deepcopy(on_device(bench)).to(torch.bfloat16), bench.device)
    for kind, settings in quantization_settings(bench.device).items():
        if isinstance(settings, str):
            bench.record.not_run(f"correctness.{kind}", settings)
            continue
        plain = half if kind.startswith("float8") else expected
        try:
            options: dict[str, Any] = {"dtype": torch.bfloat16, "device_map": {"": str(bench.device)}}
            model = loaded(bench, quantization_config=settings, **options)
            for name, value in answers(model, bench.device).items():
                compare(bench, f"{kind}.{name}", value, plain[name], QUANTIZED[kind])
            assert greedy(model, bench.device).shape[1] > ANSWER_TOKENS
        except ImportError as error:
            bench.record.not_run(f"correctness.{kind}", f"{type(error).__name__}: {str(error).splitlines()[0]}")
        except Exception as error:  # the other kinds are still compared
            bench.record.error(f"correctness.{kind}", error)


def offload(bench: Bench) -> None:
    """The second half of the layers kept off the device by `device_map`, against everything on it."""
    exact_arithmetic()
    model = on_device(bench)
    layers = model.config.text_config.num_hidden_layers
    # Everything is on the CPU in a rehearsal, so the disk replaces it there.
    elsewhere = "cpu" if bench.device.type == "cuda" else "disk"
    places = {
        name: str(bench.device) for name in ("lm_head", *(f"model.{part}" for part, _ in model.model.named_children()))
    }
    del places["model.language_model"]
    places |= {
        f"model.language_model.{part}": str(bench.device)
        for part, _ in model.model.language_model.named_children()
        if part != "layers"
    }
    places |= {
        f"model.language_model.layers.{layer}": elsewhere if layer >= layers // 2 else str(bench.device)
        for layer in range(layers)
    }
    with tempfile.TemporaryDirectory() as folder:
        ours = loaded(bench, dtype=torch.float32, device_map=places, offload_folder=folder)
        same_ids(bench, "offload.greedy", greedy(ours, bench.device), greedy(model, bench.device))
        expected = velocities(model, bench.device)
        for name, value in velocities(ours, bench.device).items():
            compare(bench, f"offload.{name}", value, expected[name], FLOAT32)


STEPS = [golden, device_and_processor, bfloat16, attention, batch, quantized, offload, flex_attention, compiled]
