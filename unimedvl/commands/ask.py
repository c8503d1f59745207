"""Answer a question, about one or several images or about none.

unimedvl ask --image retina.png "What kind of image is this?"
unimedvl ask --model owner/name --image scan.dcm --window 40 400 --json "Is there a fracture?"
"""

import argparse

from .shared import (
    NOTICE,
    add_image_arguments,
    add_model_arguments,
    add_output_arguments,
    choose_seed,
    load_images,
    load_model,
    print_result,
    say,
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("question")
    add_image_arguments(parser)
    parser.add_argument("--think", action="store_true", help="let the model reason before it answers")
    parser.add_argument("--max-new-tokens", type=int, default=256, metavar="N", help="length limit (default: 256)")
    parser.add_argument("--sample", action="store_true", help="sample instead of taking the likeliest token")
    parser.add_argument("--temperature", type=float, metavar="T", help="spread of the sampling (implies --sample)")
    add_output_arguments(parser)
    add_model_arguments(parser)


def run(arguments: argparse.Namespace) -> None:
    import torch

    if not arguments.question.strip():
        raise ValueError("the question is empty: write what you want to know.")
    seed = choose_seed(arguments)
    images = load_images(arguments)
    model, processor, checkpoint = load_model(arguments, understanding_only=True)
    content = [{"type": "image", "image": image} for image in images]
    content.append({"type": "text", "text": arguments.question})
    inputs = processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        think=arguments.think,
        # What a person types is text: control tokens in it stay plain characters.
        split_special_tokens=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
    ).to(model.device, dtype=model.dtype)
    sampling = {"do_sample": arguments.sample or arguments.temperature is not None}
    if arguments.temperature is not None:
        sampling["temperature"] = arguments.temperature
    torch.manual_seed(seed)
    ids = model.generate(**inputs, max_new_tokens=arguments.max_new_tokens, **sampling)
    text = processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)[0].strip()
    thought, answer = split_thought(text) if arguments.think else (None, text)
    say(NOTICE)
    record = {
        "answer": answer,
        "thought": thought,
        "model": checkpoint.name,
        "revision": checkpoint.revision,
        "seed": seed,
        "notice": NOTICE,
    }
    print_result(arguments, record, text)


def split_thought(text: str) -> tuple[str | None, str]:
    """Cut `<think>thought</think>answer` in two; the thought is None where the model wrote no closing mark."""
    thought, mark, answer = text.partition("</think>")
    if not mark:
        return None, text
    return thought.replace("<think>", "", 1).strip(), answer.strip()
