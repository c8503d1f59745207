"""What the approximations of the image sampler save and what they cost, on the nano.

    python -m benchmarks.approximations [--to benchmarks/results]

Writes TO/approximations.json, and TO/approximations.png with quality against speed. Every approximation of `CASES`
makes the same images (`--count`), from the same noise, as the exact sampler does, with the settings of `SETTINGS`:
those of the paper (at 64 and 128 pixels), those of an edit of an image that was made before, and the nano's own. For
each:

- `nfe_ratio`: evaluations of the velocity, each of one branch, of the exact sampler over its own; a count.
- `cpu_ratio`: processor time of the whole call, text and autoencoder included, exact over approximate. An exact call
  precedes every three approximate ones; median over the images with its 95 % interval (bootstrap).
- `psnr`: of its image against the exact one, 8 bits, mean and least over the images; `relative_error` of the final
  latents, ||a - b|| / ||b||, mean.
- `psnr_to_flow`: against the image of the flow itself, that is Euler with 4 times the updates; that of the exact
  sampler (case `exact`) shows how far its own updates are from it.
"""

import json
import statistics
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy
import torch
from PIL import Image
from transformers.utils import logging as transformers_logging
from typer import Option

from unimedvl import UniMedVLForConditionalGeneration, UniMedVLProcessor
from unimedvl.evaluation.metrics.images import psnr
from unimedvl.evaluation.metrics.intervals import percentiles
from unimedvl.modeling_unimedvl.flow_solvers_unimedvl import count_evaluations
from unimedvl.modeling_unimedvl.flow_unimedvl import TASK_PRESETS, FlowSettings, flow_schedule
from unimedvl.utils.command_line import run_module

from .origin import origin

CHECKPOINT = Path(__file__).parents[1] / "hub_cards" / "unimedvl-nano"
RESULTS = Path(__file__).with_name("results")
# In the words of the nano's own requests, see `examples.nano.prepare.plain_prompt`.
PROMPTS = (
    "a chest X-ray",
    "a chest X-ray showing pneumonia",
    "a frontal chest radiograph, labeled no finding",
    "a CT image",
    "a CT image of kidney",
    "a CT image showing lung",
    "an MRI image",
    "a T2 brain MRI",
    "a FLAIR brain MRI",
    "a brain MRI, labeled glioma",
    "an ultrasound image",
    "an ultrasound image of fetal head",
    "an endoscopy image",
    "an endoscopy image showing polyp",
    "a microscopy image",
    "an H&E histopathology image, lung, labeled adenocarcinoma",
)
EDIT_PROMPT = "make it darker"
FLOW_FACTOR = 4
# Approximate calls between two exact ones.
TOGETHER = 3
RESAMPLES = 2000


def preset(name: str) -> dict[str, Any]:
    return {key: value for key, value in TASK_PRESETS[name].items() if key not in ("height", "width")}


NANO_PRESET = preset("t2i") | {
    "num_inference_steps": 16,
    "guidance_scale": 2.0,
    "cfg_interval": (0.0, 1.0),
    "timestep_shift": 1.0,
}
# Settings, pixels a side, and whether an image is edited.
SETTINGS: dict[str, tuple[dict[str, Any], int, bool]] = {
    "text to image, 49 updates, 64 pixels": (preset("t2i"), 64, False),
    "text to image, 49 updates, 128 pixels": (preset("t2i"), 128, False),
    "edit, 49 updates, 64 pixels": (preset("edit"), 64, True),
    "nano's preset, 16 updates, 64 pixels": (NANO_PRESET, 64, False),
}


def fewer(share: float, solver: str = "euler") -> dict[str, Any]:
    return {"num_inference_steps": share, "solver": solver}


# What each case changes; a number of updates is a share of the settings'.
CASES: dict[str, dict[str, Any]] = {
    "exact": {},
    **{f"velocity cache {n}": {"velocity_cache_interval": n} for n in (2, 3, 4, 6)},
    "velocity cache 3, order 0": {"velocity_cache_interval": 3, "velocity_cache_order": 0},
    "velocity cache 3, order 2": {"velocity_cache_interval": 3, "velocity_cache_order": 2},
    "guidance cache 2": {"guidance_cache_interval": 2},
    "guidance cache 4": {"guidance_cache_interval": 4},
    "velocity cache 2, guidance cache 4": {"velocity_cache_interval": 2, "guidance_cache_interval": 4},
    "guidance above 0.7 only": {"cfg_interval": (0.7, 1.0)},
    "half the updates": fewer(0.5),
    "a quarter of the updates": fewer(0.25),
    "half the updates, Adams-Bashforth": fewer(0.5, "adams_bashforth"),
    "a quarter of the updates, Adams-Bashforth": fewer(0.25, "adams_bashforth"),
    "a quarter of the updates, midpoint": fewer(0.25, "midpoint"),
}


def settings_of(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with a case's changes."""
    merged = {**base, **changes}
    if "num_inference_steps" in changes:
        merged["num_inference_steps"] = round(base["num_inference_steps"] * changes["num_inference_steps"])
    return merged


def evaluations(settings: Mapping[str, Any], edited: bool) -> int:
    """NFE of one image, see `count_evaluations`."""
    flow = FlowSettings(**settings)
    # A text alone has no image to drop: that branch is the main one.
    branches = 3 if edited and flow.image_guidance_scale > 1 else 2
    return count_evaluations(flow, flow_schedule(flow.num_inference_steps, flow.timestep_shift), branches)


def median_interval(values: list[float]) -> list[float]:
    """[low, high] of the 95 % interval of the median, by drawing the values again."""
    drawn = numpy.random.default_rng(0).choice(values, size=(RESAMPLES, len(values)))
    low, high = percentiles(numpy.median(drawn, axis=1))
    return [round(float(low), 3), round(float(high), 3)]


class Sampler:
    """Images of the nano, one call each.

    Args:
        side: pixels of the images.
        edited: whether every call edits an image, made before from the same prompt.
    """

    def __init__(self, side: int, edited: bool, checkpoint: Path = CHECKPOINT):
        self.model: Any = UniMedVLForConditionalGeneration.from_pretrained(checkpoint).eval()
        self.processor = UniMedVLProcessor.from_pretrained(checkpoint)
        self.side = side
        self.originals: list[Image.Image] = []
        if edited:
            self.originals = [self.pixels(self.make(number, NANO_PRESET)[0].images) for number in range(len(PROMPTS))]

    def pixels(self, images: torch.Tensor) -> Image.Image:
        return self.processor.post_process_multimodal_output(images, generation_mode="image")[0]

    def inputs(self, number: int) -> Any:
        """What the processor makes of prompt `number`."""
        content: list[dict[str, Any]] = [{"type": "text", "text": PROMPTS[number]}]
        if self.originals:
            content = [{"type": "image", "image": self.originals[number]}, {"type": "text", "text": EDIT_PROMPT}]
        return self.processor.apply_chat_template(
            [{"role": "user", "content": content}],
            generation_mode="image",
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
        )

    def make(self, number: int, settings: Mapping[str, Any]) -> tuple[Any, float]:
        """The output for prompt `number`, always from the same noise, and the processor time of the call."""
        inputs = self.inputs(number)
        started = time.process_time()
        output = self.model.generate(
            **inputs,
            **settings,
            generation_mode="image",
            height=self.side,
            width=self.side,
            generator=torch.Generator().manual_seed(number),
            vae_sample_mode="mode",
            show_progress=False,
            return_dict_in_generate=True,
        )
        return output, time.process_time() - started


def distance(output: Any, exact: Any) -> float:
    """||a - b|| / ||b|| of the final latents."""
    (found,), (wanted,) = output.latents, exact.latents
    return float((found - wanted).norm() / wanted.norm())


def measure(name: str, sampler: Sampler, numbers: range) -> dict[str, dict[str, Any]]:
    """Every case under one of `SETTINGS`."""
    base, _, edited = SETTINGS[name]
    exact_nfe = evaluations(base, edited)
    of_flow = {**base, "num_inference_steps": FLOW_FACTOR * base["num_inference_steps"]}
    flows = [sampler.pixels(sampler.make(number, of_flow)[0].images) for number in numbers]
    exact = [sampler.make(number, base)[0] for number in numbers]
    images = [sampler.pixels(output.images) for output in exact]
    ratios: dict[str, list[float]] = {case: [] for case in CASES}
    outputs: dict[str, list[Any]] = {case: [] for case in CASES}
    for number in numbers:
        for place, (case, changes) in enumerate(CASES.items()):
            if place % TOGETHER == 0:
                _, plain = sampler.make(number, base)
            output, took = sampler.make(number, settings_of(base, changes))
            outputs[case].append(output)
            ratios[case].append(plain / took)
    figures: dict[str, dict[str, Any]] = {}
    for case, changes in CASES.items():
        settings = settings_of(base, changes)
        found = [sampler.pixels(output.images) for output in outputs[case]]
        nfe = evaluations(settings, edited)
        figures[case] = {
            "settings": {key: value for key, value in settings.items() if value != base.get(key)},
            "nfe": nfe,
            "nfe_ratio": round(exact_nfe / nfe, 3),
            "cpu_ratio": round(statistics.median(ratios[case]), 3),
            "cpu_ratio_interval": median_interval(ratios[case]),
            "relative_error": round(statistics.fmean(map(distance, outputs[case], exact)), 5),
            **summary("psnr", list(map(psnr, found, images))),
            **summary("psnr_to_flow", list(map(psnr, found, flows))),
        }
        print(json.dumps({"of": name, "case": case, **figures[case]}), flush=True)
    return figures


def summary(name: str, values: list[float | None]) -> dict[str, float | None]:
    """Mean and least over the images that differ at all; None where all are equal."""
    finite = [value for value in values if value is not None]
    mean, least = (round(statistics.fmean(finite), 2), round(min(finite), 2)) if finite else (None, None)
    return {name: mean, f"{name}_least": least}


def draw(results: dict[str, dict[str, Any]], path: Path) -> None:
    """Quality against speed, one panel for each of the settings."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    kinds = {"velocity cache": "o", "guidance": "s", "updates": "^"}
    figure, axes = pyplot.subplots(1, len(results), figsize=(4.2 * len(results), 4), layout="constrained", sharey=True)
    for axis, (name, figures) in zip(numpy.atleast_1d(axes), results.items(), strict=True):
        for case, found in figures.items():
            if found["psnr"] is not None:
                marker = next(shape for kind, shape in kinds.items() if kind in case)
                axis.plot(found["nfe_ratio"], found["psnr"], marker, label=case)
        axis.axhline(30, color="gray", linewidth=0.8)
        axis.set(title=name, xlabel="evaluations saved, exact / approximate")
    numpy.atleast_1d(axes)[0].set_ylabel("PSNR to the exact image, dB")
    handles, labels = numpy.atleast_1d(axes)[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8)
    figure.savefig(path, dpi=70)
    pyplot.close(figure)


def main(
    to: Annotated[Path, Option(help="Folder of the results.")] = RESULTS,
    count: Annotated[int, Option(help="Images of each case.", min=2, max=len(PROMPTS))] = len(PROMPTS),
    only: Annotated[str, Option(help="Settings whose name holds this.")] = "",
) -> None:
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    to.mkdir(parents=True, exist_ok=True)
    path = to / "approximations.json"
    kept = json.loads(path.read_text()) if path.is_file() else {"settings": {}, "images": {}}
    made = origin("one thread, float32", kept=kept.get("origin") if only else None)
    kept = {"origin": made, **{part: kept[part] for part in ("settings", "images")}}
    for name, (_, side, edited) in SETTINGS.items():
        if only in name:
            kept["settings"][name] = measure(name, Sampler(side, edited), range(count))
            kept["images"][name] = count
            path.write_text(json.dumps(kept, indent=1) + "\n")
    draw(kept["settings"], path.with_suffix(".png"))


if __name__ == "__main__":
    sys.exit(run_module(main))
