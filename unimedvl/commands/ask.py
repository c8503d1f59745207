"""Answer a question, about one or several images or about none.

unimedvl ask --image retina.png "What kind of image is this?"
unimedvl ask --model owner/name --image scan.dcm --window 400 1800 --json "Is there a fracture?"
"""

from typing import Annotated, Any

from typer import Option

from ..utils.command_line import Result
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
    load_images,
    load_model,
    say,
)


def ask(
    question: str,
    image: Images = None,
    window: Window = None,
    frame: Frame = None,
    plane: Plane = None,
    slice_index: Slice = None,
    percentiles_of: PercentilesOf = None,
    allow_url: AllowUrl = False,
    think: Annotated[bool, Option("--think", help="Let the model reason before it answers.")] = False,
    max_new_tokens: Annotated[int, Option(metavar="N", help="Length limit.")] = 256,
    sample: Annotated[bool, Option("--sample", help="Sample instead of taking the likeliest token.")] = False,
    temperature: Annotated[
        float | None, Option(metavar="T", help="Spread of the sampling (implies --sample).")
    ] = None,
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

    if not question.strip():
        raise ValueError("the question is empty: write what you want to know.")
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
        model, revision=revision, base=base, dtype=dtype, device=device, quantize=quantize, understanding_only=True
    )
    inputs = typed_inputs(processor, [person_turn(question, images)], add_generation_prompt=True, think=think)
    sampling: dict[str, Any] = {"do_sample": sample or temperature is not None}
    if temperature is not None:
        sampling["temperature"] = temperature
    torch.manual_seed(seed)
    ids = network.generate(**inputs.to(network.device, dtype=network.dtype), max_new_tokens=max_new_tokens, **sampling)
    text = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()
    thought, answer = split_thought(text) if think else (None, text)
    say(NOTICE)
    record = {
        "answer": answer,
        "thought": thought,
        "model": checkpoint.name,
        "revision": checkpoint.revision,
        "seed": seed,
        "notice": NOTICE,
    }
    return record, text


def split_thought(text: str) -> tuple[str | None, str]:
    """Cut `<think>thought</think>answer` in two; the thought is None where the model wrote no closing mark."""
    thought, mark, answer = text.partition("</think>")
    if not mark:
        return None, text
    return thought.replace("<think>", "", 1).strip(), answer.strip()
