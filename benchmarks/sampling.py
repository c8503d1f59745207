"""Counts of the image sampler: language-model passes, branch evaluations and matmul FLOPs for one image.

    python -m benchmarks.sampling

Deterministic counts on the nano checkpoint, no timings. The reference runs one pass for each branch and step; its
counts follow from its rules (a branch whose scale is above 1 runs inside the guidance interval, the image branch also
without an image in the context).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from unimedvl import UniMedVLForConditionalGeneration, UniMedVLProcessor
from unimedvl.checkpoint.conversations import person_turn, typed_inputs
from unimedvl.modeling_unimedvl.flow_unimedvl import TASK_PRESETS, FlowSettings, flow_schedule

CHECKPOINT = Path(__file__).parents[1] / "hub_cards" / "unimedvl-nano"


def reference_passes(settings: FlowSettings) -> int:
    """Forward passes of the reference for one image with these settings."""
    low, high = torch.tensor(settings.cfg_interval).tolist()
    branches = 1 + (settings.guidance_scale > 1) + (settings.image_guidance_scale > 1)
    times = flow_schedule(settings.num_inference_steps, settings.timestep_shift)[:-1].tolist()
    return sum(branches if low < time <= high else 1 for time in times)


def count(model: Any, inputs: Mapping[str, Any], settings: dict[str, Any]) -> dict:
    """Passes of the language model during sampling, rows evaluated, and matmul FLOPs of the whole call."""
    calls = []
    original = model.model.predict_velocity

    def counted(tokens, time, blocks):
        calls.append(blocks.rows)
        return original(tokens, time, blocks)

    model.model.predict_velocity = counted
    try:
        with FlopCounterMode(display=False) as flops:
            model.generate(**inputs, generation_mode="image", show_progress=False, **settings)
    finally:
        model.model.predict_velocity = original
    return {"passes": len(calls), "branches": sum(calls), "gflop": round(flops.get_total_flops() / 1e9, 2)}


def main() -> None:
    model = UniMedVLForConditionalGeneration.from_pretrained(CHECKPOINT).eval()
    processor = UniMedVLProcessor.from_pretrained(CHECKPOINT)
    image = Image.new("RGB", (64, 64), (90, 120, 150))
    cases: dict[str, tuple[list[Image.Image], dict[str, float]]] = {
        "text to image": ([], {}),
        "text to image, image scale 1.5": ([], {"image_guidance_scale": 1.5}),
        "edit": ([image], {}),
    }
    for name, (images, changes) in cases.items():
        inputs: Any = typed_inputs(processor, [person_turn("a chest X-ray", images)], generation_mode="image")
        preset = {**TASK_PRESETS["edit" if images else "t2i"], **changes}
        size = {"height": 64, "width": 64}
        fields = {key: value for key, value in preset.items() if key not in size}
        ours = count(model, inputs, {**fields, **size})
        print(json.dumps({"case": name, **ours, "reference_passes": reference_passes(FlowSettings(**fields))}))


if __name__ == "__main__":
    main()
