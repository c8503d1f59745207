"""Runs in torchao's own environment: loads a checkpoint with 8-bit weights, and prints what became of it as JSON.

python torchao_process.py CHECKPOINT int8|float8 SAVED
"""

import json
import sys

import torch
from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig
from transformers import AutoModelForMultimodalLM, AutoProcessor, TorchAoConfig

KINDS = {"int8": lambda: Int8WeightOnlyConfig(version=2), "float8": Float8WeightOnlyConfig}


def stored_bytes(weight: torch.Tensor) -> int:
    """Bytes of a weight: of a packed one those of its parts."""
    if not hasattr(weight, "__tensor_flatten__"):
        return weight.nbytes
    return sum(stored_bytes(getattr(weight, name)) for name in weight.__tensor_flatten__()[0])


def numbers(weight: torch.Tensor) -> torch.Tensor:
    """A weight, of a packed one what it says."""
    return weight.dequantize() if hasattr(weight, "__tensor_flatten__") else weight


def drawn(model, processor) -> torch.Tensor:
    """An image from text in four updates."""
    turn = [{"role": "user", "content": [{"type": "text", "text": "a chest X-ray"}]}]
    inputs = processor.apply_chat_template(
        turn, generation_mode="image", tokenize=True, return_dict=True, return_tensors="pt"
    )
    return model.generate(
        **inputs,
        generation_mode="image",
        num_inference_steps=4,
        generator=torch.Generator().manual_seed(0),
        show_progress=False,
    )


def errors(weight: torch.Tensor, packed: torch.Tensor, kind: str) -> tuple[float, float]:
    """Largest and mean error of a packed weight, as a share of what 8 bits allow of every value.

    Whole numbers: half a step, of which a row has 127 up to its largest value. Floating point with three digits behind
    the first: half of the last digit, 1/16 of the value, and not below the smallest step of the format.
    """
    error = (packed.dequantize().double() - weight.double()).abs()
    largest = weight.double().abs().amax(dim=1, keepdim=True)
    if kind == "int8":
        allowed = largest / 127 / 2
    else:
        allowed = torch.maximum(weight.double().abs() / 16, largest / 448 * 2**-9 / 2)
    share = error / allowed.clamp(min=1e-12)
    return float(share.max()), float(share.mean())


def main(checkpoint: str, kind: str, saved: str) -> None:
    torch.set_num_threads(1)
    processor = AutoProcessor.from_pretrained(checkpoint, trust_remote_code=True)
    options = {"trust_remote_code": True, "dtype": torch.float32}
    full = AutoModelForMultimodalLM.from_pretrained(checkpoint, **options)
    settings = TorchAoConfig(KINDS[kind]())
    packed = AutoModelForMultimodalLM.from_pretrained(checkpoint, quantization_config=settings, **options)
    plain = dict(full.named_parameters())
    changed = {name: weight for name, weight in packed.named_parameters() if hasattr(weight, "dequantize")}
    changed = {name: weight for name, weight in changed.items() if type(weight) is not torch.nn.Parameter}
    shares = [errors(plain[name], weight, kind) for name, weight in changed.items()]
    experts = {
        name for name in plain if ".language_model.layers." in name and "proj" in name and plain[name].dim() == 2
    }
    bytes_of = {
        name: sum(stored_bytes(weight) for weight in model.parameters())
        for name, model in (("float32", full), (kind, packed))
    }
    image, other = drawn(full, processor), drawn(packed, processor)
    packed.save_pretrained(saved)
    processor.save_pretrained(saved)
    again = AutoModelForMultimodalLM.from_pretrained(saved, **options)
    processor = AutoProcessor.from_pretrained(saved, trust_remote_code=True)
    report = {
        "packed layers": len(changed),
        "linear layers of both experts": len(experts),
        "packed layers are those of the experts": set(changed) == experts,
        "largest error as a share of what 8 bits allow": max(share for share, _ in shares),
        "mean error as a share of what 8 bits allow": sum(mean for _, mean in shares) / len(shares),
        "bytes of all weights as a share of float32": bytes_of[kind] / bytes_of["float32"],
        "PSNR of an image to that of float32, dB": float(-10 * torch.log10((image - other).square().mean() / 4)),
        "saved folder holds the same weights": all(
            torch.equal(numbers(weight), numbers(loaded))
            for weight, loaded in zip(packed.parameters(), again.parameters(), strict=True)
        ),
        # Rounding depends on where in memory a weight lies.
        "largest difference of its pixels": float((drawn(again, processor) - other).abs().max()),
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
