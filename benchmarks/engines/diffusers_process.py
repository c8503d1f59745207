"""Opens an exported pipeline with diffusers alone, and writes what it draws beside its job.

python -I diffusers_process.py PIPELINE JOB.json
"""

import json
import sys
from pathlib import Path


def main(location: str, job: str) -> None:
    # Nobody imports this package here, installed or not.
    sys.modules["unimedvl"] = None  # type: ignore[assignment]
    import torch
    from diffusers import DiffusionPipeline
    from PIL import Image

    torch.set_num_threads(1)
    with open(job, encoding="utf-8") as handle:
        calls = json.load(handle)
    pipe = DiffusionPipeline.from_pretrained(location, trust_remote_code=True)
    pipe.set_progress_bar_config(disable=True)
    for name, call in calls.items():
        if "image" in call:
            call["image"] = Image.open(call["image"])
        pipe(**call, generator=torch.Generator().manual_seed(0)).images[0].save(Path(job).with_name(f"{name}.png"))


if __name__ == "__main__":
    main(*sys.argv[1:])
