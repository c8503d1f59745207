"""Runs as a program of its own: opens a saved pipeline with diffusers alone, and prints what came out as JSON.

python -I pipeline_process.py LOCATION [REVISION]
"""

import json
import sys
from pathlib import Path


def images(pipe) -> dict:
    """Sizes and digests of an image from text and of one from an image, in three updates."""
    import hashlib

    import torch
    from PIL import Image

    section = Image.linear_gradient("L").resize((40, 28)).convert("RGB")
    report = {}
    for name, call in (
        ("image", {"prompt": "What is this?", "preset": "t2i", "height": 32, "width": 32}),
        ("edit", {"prompt": "What is this?", "image": section, "preset": "edit"}),
    ):
        made = pipe(**call, num_inference_steps=3, generator=torch.Generator().manual_seed(0)).images[0]
        report[name] = {"size": list(made.size), "sha256": hashlib.sha256(made.tobytes()).hexdigest()}
    return report


def main(location: str, revision: str | None = None) -> None:
    sys.path.insert(0, str(Path(__file__).parent))
    from clean_process import RefusePackage

    sys.meta_path.insert(0, RefusePackage())
    import torch
    from diffusers import DiffusionPipeline

    torch.set_num_threads(1)
    options = {} if revision is None else {"revision": revision}
    pipe = DiffusionPipeline.from_pretrained(location, trust_remote_code=True, **options)
    pipe.set_progress_bar_config(disable=True)
    report = images(pipe) | {"presets": sorted(pipe.model.generation_config.task_presets)}
    report["imported"] = sorted(name for name in sys.modules if name.partition(".")[0] == "unimedvl")
    print(json.dumps(report))


if __name__ == "__main__":
    main(*sys.argv[1:])
