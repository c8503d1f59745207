"""Questions about images: one turn, several turns, packed images, sampling and stopping."""

import torch
from transformers import DynamicCache

from unimedvl.modeling_unimedvl.flow_unimedvl import grid_position_ids

from .records import ABSOLUTE, TENSOR
from .reference import Answer, Context, answer, cache_tokens, decode, left_pad, merged_places

FILE = "und.safetensors"
JSON = "infer.json"


def margin_tolerance(*answers: Answer) -> float:
    """A margin is a difference of two logits, each as exact as a tensor has to be."""
    return 2 * (TENSOR * max(one.logits.abs().max().item() for one in answers) + ABSOLUTE)


def chat_context(golden, model, images) -> Context:
    context = Context(model.config).vit(*images.vit_patches(golden.argument(JSON, "/und/chat/image")))
    return context.text(question(golden, "/und/chat/prompt"))


def interleave_context(golden, model, images) -> Context:
    """The reference's inferencer resizes for the VAE before the ViT, even where no VAE is used."""
    patches, grid = images.vit_patches(golden.argument(JSON, "/und/interleave/image"), after_vae=True)
    return Context(model.config).vit(patches, grid).text(question(golden, "/und/interleave/prompt"))


def question(golden, pointer: str) -> list[int]:
    return golden.argument(JSON, f"/prompts/{golden.argument(JSON, pointer)}")


@torch.no_grad()
def test_one_image(golden, model, images):
    if golden.value(JSON, "/und/chat") is None:
        return
    context = chat_context(golden, model, images)
    image, text = context.segments()
    output = model(**context.inputs(), use_cache=True, output_hidden_states=True)
    reply = answer(model, context, golden.argument(JSON, "/und/chat/max_length"))
    positions = context.position_ids()
    hidden = output.hidden_states[-1][0]
    ours = {
        "image_input_embeds": output.hidden_states[0][0, image],
        "image_position_ids": positions[image],
        "image_hidden": hidden[image],
        "text_hidden": hidden[text],
        "text_logits": output.logits[0, text],
        "generated_ids": torch.tensor(reply.ids),
        "generate_logits": reply.logits,
    }
    for layer in range(model.config.text_config.num_hidden_layers):
        keys, values = cache_tokens(output.past_key_values, layer)
        ours |= {f"prefill_key_cache_{layer}": keys, f"prefill_value_cache_{layer}": values}
    golden.compare_all(FILE, "chat.", ours)
    facts = {
        "ids": reply.ids,
        "answer": decode(reply.ids, model.config),
        "text_position_ids": positions[text].tolist(),
    }
    golden.equal_all(JSON, "/und/chat", facts)
    golden.equal_all(JSON, "/und/chat", {"min_top2_margin": reply.margin}, absolute=margin_tolerance(reply))


@torch.no_grad()
def test_image_resized_for_the_autoencoder_first(golden, model, images):
    if golden.value(JSON, "/und/interleave") is None:
        return
    context = interleave_context(golden, model, images)
    image, text = context.segments()
    output = model(**context.inputs(), output_hidden_states=True)
    hidden = output.hidden_states[-1][0]
    reply = answer(model, context, golden.argument(JSON, "/und/interleave/max_think_token_n"))
    ours = {
        "image_hidden": hidden[image],
        "text_hidden": hidden[text],
        "text_last_logits": output.logits[:, -1],
        "generated_ids": torch.tensor(reply.ids),
    }
    golden.compare_all(FILE, "interleave.", ours)
    facts = {"ids": reply.ids, "answer": decode(reply.ids, model.config)}
    golden.equal_all(JSON, "/und/interleave", facts)
    golden.equal_all(JSON, "/und/interleave", {"min_top2_margin": reply.margin}, absolute=margin_tolerance(reply))


@torch.no_grad()
def test_several_turns_with_two_images(golden, model, images):
    """Operations of the record one by one on a growing cache; answers by `generate` from the start."""
    record = golden.value(JSON, "/und/multiturn")
    if record is None:
        return
    indices = iter(golden.argument(JSON, "/und/multiturn/images"))
    whole, cache = Context(model.config), DynamicCache(config=model.config.text_config)
    answers: dict[str, Answer] = {}

    def reply_to_context(name: str) -> Answer:
        answers[name] = answer(model, whole, len(record[f"{name}_ids"]))
        golden.compare_all(FILE, "multiturn.", {f"{name}_ids": torch.tensor(answers[name].ids)})
        golden.compare_all(FILE, "multiturn.", {f"{name}_logits": answers[name].logits})
        facts = {f"{name}_ids": answers[name].ids, name: decode(answers[name].ids, model.config)}
        golden.equal_all(JSON, "/und/multiturn", facts)
        return answers[name]

    for number, operation in enumerate(golden.argument(JSON, "/und/multiturn/ops")):
        name = operation.split()[0]
        segment = Context(model.config)
        if name == "image":
            segment.vit(*images.vit_patches(next(indices), after_vae=True))
        elif f"{name}_ids" in record:
            segment.text(reply_to_context(name).ids[1:])
        else:
            segment.text(golden.argument(JSON, f"/prompts/{name}"))
        inputs = segment.inputs()
        start, cached = whole.next_position(), cache.get_seq_length()
        inputs["attention_mask"] = torch.ones(1, cached + inputs["input_ids"].shape[1], dtype=torch.int64)
        output = model(
            **inputs,
            position_ids=start + segment.position_ids()[None],
            past_key_values=cache,
            use_cache=True,
            output_hidden_states=True,
        )
        golden.compare_all(FILE, f"multiturn.step{number}.", {"hidden": output.hidden_states[-1][0]})
        whole.blocks += segment.blocks
        whole.patches += segment.patches
        whole.grids += segment.grids
        step = {
            "op": "image" if segment.patches else "text",
            "kv_lens": [cache.get_seq_length()],
            "ropes": [whole.next_position()],
        }
        golden.equal(JSON, f"/und/multiturn/steps/{number}", step)
    for layer in range(model.config.text_config.num_hidden_layers):
        keys, values = cache_tokens(cache, layer)
        final = {f"final_key_cache_{layer}": keys, f"final_value_cache_{layer}": values}
        golden.compare_all(FILE, "multiturn.", final)
    for key in record:
        name = key.removesuffix("_ids")
        if name != key and name not in answers:
            reply_to_context(name)
    if answers:
        margin = {"min_top2_margin": min(one.margin for one in answers.values())}
        golden.equal_all(JSON, "/und/multiturn", margin, absolute=margin_tolerance(*answers.values()))


@torch.no_grad()
def test_two_images_as_two_samples(golden, model, images):
    if not golden.tensor_names(FILE, "batch_vit."):
        return
    side, interpolate = model.config.vit_max_num_patch_per_side, model.config.interpolate_pos
    contexts = [Context(model.config).vit(*images.vit_patches(index)) for index in (0, 1)]
    batch = left_pad([context.inputs() for context in contexts])
    valid = batch["attention_mask"].bool()
    output = model(**batch, output_hidden_states=True)
    kinds = batch["mm_token_type_ids"][valid]
    lengths = valid.sum(1).tolist()
    cached = [0] * len(contexts)
    cache_places, places = merged_places(cached, lengths)
    ours = {
        "hidden": output.hidden_states[-1][valid],
        "key_values_lens": torch.tensor(cached),
        "packed_key_value_indexes": cache_places,
        "packed_indexes": places,
        "packed_seqlens": torch.tensor(lengths),
        "packed_position_ids": torch.cat([context.position_ids() for context in contexts]),
        "packed_text_ids": batch["input_ids"][valid][kinds == 0],
        "packed_text_indexes": (kinds == 0).nonzero()[:, 0],
        "packed_vit_token_indexes": (kinds == 1).nonzero()[:, 0],
        "packed_vit_position_ids": torch.cat(
            [grid_position_ids(*context.grids[0], side, interpolate) for context in contexts]
        ),
        "vit_token_seqlens": torch.tensor([context.patches[0].shape[0] for context in contexts]),
    }
    golden.compare_all(FILE, "batch_vit.", ours)


@torch.no_grad()
def test_sampling(golden, model, images):
    """The same multinomial draws as the reference, from the global generator."""
    if golden.value(JSON, "/und/sampled") is None:
        return
    context = interleave_context(golden, model, images)
    length = golden.argument(JSON, "/und/interleave/max_think_token_n")
    temperature = golden.argument(JSON, "/und/sampled/temperature")
    torch.manual_seed(golden.argument(JSON, "/und/sampled/seed"))
    reply = answer(model, context, length, do_sample=True, temperature=temperature, top_k=0, top_p=1.0)
    facts = {"ids": reply.ids, "answer": decode(reply.ids, model.config)}
    golden.equal_all(JSON, "/und/sampled", facts)


@torch.no_grad()
def test_stopping(golden, model, images):
    if golden.value(JSON, "/und/stop") is None:
        return
    context = chat_context(golden, model, images)
    length = golden.argument(JSON, "/und/chat/max_length")
    reply = answer(model, context, length, eos_token_id=golden.argument(JSON, "/und/stop/end_token_id"))
    golden.equal_all(JSON, "/und/stop", {"ids": reply.ids, "answer": decode(reply.ids, model.config)})
