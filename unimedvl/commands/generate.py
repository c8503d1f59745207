"""Make an image from a text and, for some tasks, input images.

  unimedvl generate "axial T1 MRI of the brain" --out brain.png
  unimedvl generate "Convert this H&E section to HER2 IHC." --image section.png --preset virtual_staining --out ihc.png

The files, PNG or DICOM secondary captures (--out brain.dcm), say that they are synthetic, and hold model, seed and
settings; of the prompt only a hash.
"""

from pathlib import Path
from typing import Annotated, Any

from typer import Option

from ..checkpoint.dicom_capture import DICOM_SUFFIX, save_dicom_capture
from ..checkpoint.provenance import check_output_path, save_generated_image
from ..utils.command_line import Result, require
from .shared import (
    NOTICE,
    AllowUrl,
    Base,
    Device,
    Dtype,
    Frame,
    Images,
    Model,
    PercentilesOf,
    Plane,
    Quantize,
    Revision,
    Seed,
    Slice,
    Window,
    choose_seed,
    image_hashes,
    load_images,
    load_model,
    say,
)


def generate(
    prompt: str,
    out: Annotated[str, Option(metavar="FILE", help="PNG or DICOM (.dcm); several get -1, -2, ... appended.")],
    force: Annotated[bool, Option("--force", help="Overwrite files that are already there.")] = False,
    num_images: Annotated[int, Option(metavar="N", help="Images of the prompt.")] = 1,
    preset: Annotated[
        str | None, Option(metavar="NAME", help="Settings of a task (default: edit with --image, else t2i).")
    ] = None,
    steps: Annotated[int | None, Option(metavar="S", help="Denoising steps.")] = None,
    guidance: Annotated[
        float | None, Option(metavar="G", help="Weight of the text; 1 turns all guidance off.")
    ] = None,
    image_guidance: Annotated[
        float | None, Option(metavar="I", help="Weight of the input images; 1 turns it off.")
    ] = None,
    renorm: Annotated[str | None, Option(metavar="R", help="global, channel or text_channel.")] = None,
    shift: Annotated[float | None, Option(metavar="S", help="Above 1: more steps at high noise.")] = None,
    height: Annotated[int | None, Option(metavar="H", help="Pixels (default: the input image's).")] = None,
    width: Annotated[int | None, Option(metavar="W", help="Pixels (default: the input image's).")] = None,
    think: Annotated[bool, Option("--think", help="Let the model plan the image in words first.")] = False,
    max_think_tokens: Annotated[int, Option(metavar="N", help="Length limit of that plan.")] = 512,
    keep_prompt: Annotated[bool, Option("--keep-prompt", help="Write the prompt itself into the files.")] = False,
    image: Images = None,
    window: Window = None,
    frame: Frame = None,
    plane: Plane = None,
    slice_index: Slice = None,
    percentiles_of: PercentilesOf = None,
    allow_url: AllowUrl = False,
    seed: Seed = None,
    model: Model = None,
    revision: Revision = None,
    base: Base = None,
    dtype: Dtype = "auto",
    device: Device = "auto",
    quantize: Quantize = None,
) -> Result:
    import torch

    from ..checkpoint.conversations import person_turn, typed_inputs

    if not prompt.strip():
        raise ValueError("the prompt is empty: describe the image.")
    if num_images < 1:
        raise ValueError(f"--num-images must be at least 1, not {num_images}.")
    paths = output_paths(out, num_images)
    for path in paths:
        check_output_path(path, overwrite=force, suffixes=(".png", DICOM_SUFFIX))
    save = save_dicom_capture if paths[0].suffix.lower() == DICOM_SUFFIX else save_generated_image
    if save is save_dicom_capture:
        require("medical", "pydicom")
    seed = choose_seed(seed)
    images = load_images(
        image,
        allow_url=allow_url,
        window=window,
        frame=frame,
        plane=plane,
        slice_index=slice_index,
        percentiles_of=percentiles_of,
    )
    network, processor, checkpoint = load_model(
        model, revision=revision, base=base, dtype=dtype, device=device, quantize=quantize
    )
    inputs = typed_inputs(processor, [person_turn(prompt, images)], generation_mode="image", think=think)
    chosen: dict[str, Any] = {
        "num_inference_steps": steps,
        "guidance_scale": guidance,
        "image_guidance_scale": image_guidance,
        "cfg_renorm_type": renorm,
        "timestep_shift": shift,
        "height": height,
        "width": width,
        "preset": preset or ("edit" if images else "t2i"),
    }
    settings = {name: value for name, value in chosen.items() if value is not None}
    torch.manual_seed(seed)
    output = network.generate(
        **inputs.to(network.device, dtype=network.dtype),
        **settings,
        generation_mode="image",
        think=think,
        max_think_tokens=max_think_tokens,
        num_images_per_prompt=num_images,
        generator=torch.Generator().manual_seed(seed),
        return_dict_in_generate=True,
    )
    generated = processor.post_process_multimodal_output(output.images, generation_mode="image")
    fields = {
        "model": checkpoint.name,
        "revision": checkpoint.revision,
        "seed": seed,
        "prompt": prompt,
        "keep_prompt": keep_prompt,
        "input_hashes": image_hashes(image),
    }
    for number, (path, made) in enumerate(zip(paths, generated, strict=True)):
        made_with = {**settings, "think": think, "index": number}
        save(made, path, overwrite=force, settings=made_with, **fields)
    thought = processor.batch_decode(output.text)[0].strip() if output.text else None
    say(NOTICE)
    files = [str(path) for path in paths]
    record = {
        "files": files,
        "thought": thought,
        "model": checkpoint.name,
        "revision": checkpoint.revision,
        "seed": seed,
        "settings": settings,
        "synthetic": True,
        "notice": NOTICE,
    }
    return record, "\n".join(files)


def output_paths(out: str, count: int) -> list[Path]:
    """`out` itself for one image, else `name-1.png`, `name-2.png`, ..."""
    path = Path(out)
    if count == 1:
        return [path]
    return [path.with_name(f"{path.stem}-{number}{path.suffix}") for number in range(1, count + 1)]
