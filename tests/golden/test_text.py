"""The language model alone: logits, caches, batches and greedy ids."""

import torch

from .records import ABSOLUTE, TENSOR
from .reference import Context, cache_tokens, left_pad, merged_places, top2_margin

FILE = "llm_text.safetensors"


def prompt(golden, model, name: str) -> Context:
    return Context(model.config).text(golden.argument("infer.json", f"/prompts/{name}"))


@torch.no_grad()
def test_prefill(golden, model):
    context = prompt(golden, model, "text_a")
    inputs = context.inputs()
    output = model(**inputs, use_cache=True, output_hidden_states=True)
    ours = {
        "input_ids": inputs["input_ids"][0],
        "position_ids": context.position_ids(),
        "hidden": output.hidden_states[-1][0],
        "logits": output.logits[0],
    }
    for layer in range(model.config.text_config.num_hidden_layers):
        ours[f"key_cache_{layer}"], ours[f"value_cache_{layer}"] = cache_tokens(output.past_key_values, layer)
    golden.compare_all(FILE, "a.", ours)


@torch.no_grad()
def test_batch_of_two_turns(golden, model):
    """Two samples of different length: first turns, second turns on their cache, then greedy answers."""
    first = [prompt(golden, model, name) for name in ("batch_a", "batch_b")]
    second = [prompt(golden, model, name) for name in ("question_1", "question_2")]

    batch = left_pad([context.inputs() for context in first])
    valid = batch["attention_mask"].bool()
    lengths = valid.sum(1).tolist()
    output = model(**batch, use_cache=True, output_hidden_states=True)
    ours = turn_fields([0, 0], first, [0, 0]) | {"hidden": output.hidden_states[-1][valid]}
    golden.compare_all(FILE, "batch1.", ours)

    turn = left_pad([context.inputs() for context in second])
    turn_valid = turn["attention_mask"].bool()
    starts = torch.tensor([context.next_position() for context in first])[:, None]
    position_ids = starts + (turn["attention_mask"].cumsum(1) - 1).clamp(min=0)
    both_valid = torch.cat([valid, turn_valid], dim=1)
    output = model(
        input_ids=turn["input_ids"],
        attention_mask=both_valid.long(),
        position_ids=position_ids,
        past_key_values=output.past_key_values,
        use_cache=True,
        output_hidden_states=True,
    )
    last = model.config.text_config.num_hidden_layers - 1
    keys, values = cache_tokens(output.past_key_values, last, both_valid)
    ours = turn_fields(lengths, second, starts[:, 0].tolist()) | {
        "hidden": output.hidden_states[-1][turn_valid],
        "logits": output.logits[turn_valid],
        "key_cache_last": keys,
        "value_cache_last": values,
    }
    golden.compare_all(FILE, "batch2.", ours)
    counters = {
        "batch_kv_lens": both_valid.sum(1).tolist(),
        "batch_ropes": [int(row[-1]) + 1 for row in position_ids],
    }
    golden.equal_all("infer.json", "/text", counters)


@torch.no_grad()
def test_greedy_batch(golden, model):
    """The reference stops a batch by its first sample only, so no id ends this run; `generate` must not care."""
    if not golden.has_tensor(FILE, "batch2.generated_ids"):
        return
    contexts = [
        prompt(golden, model, first).text(golden.argument("infer.json", f"/prompts/{second}"))
        for first, second in (("batch_a", "question_1"), ("batch_b", "question_2"))
    ]
    steps = golden.input(FILE, "batch2.generated_ids").shape[0]
    batch = left_pad([context.inputs(generation_prompt=True) for context in contexts])
    output = model.generate(
        **batch,
        do_sample=False,
        max_new_tokens=steps,
        eos_token_id=model.config.text_config.vocab_size,
        return_dict_in_generate=True,
        output_logits=True,
    )
    logits = torch.stack(output.logits)
    ours = {"generate_logits": logits, "generated_ids": output.sequences[:, -steps - 1 : -1].T}
    golden.compare_all(FILE, "batch2.", ours)
    tolerance = 2 * (TENSOR * logits.abs().max().item() + ABSOLUTE)
    golden.equal_all("infer.json", "/text", {"batch_generate_margin": top2_margin(logits)}, absolute=tolerance)


def turn_fields(cached: list[int], turn: list[Context], starts: list[int]) -> dict[str, torch.Tensor]:
    """The reference's packed description of a text turn, from ours."""
    ids = [context.inputs()["input_ids"][0] for context in turn]
    lengths = [len(row) for row in ids]
    cache_places, places = merged_places(cached, lengths)
    positions = [start + context.position_ids() for start, context in zip(starts, turn, strict=True)]
    return {
        "key_values_lens": torch.tensor(cached),
        "packed_key_value_indexes": cache_places,
        "packed_text_ids": torch.cat(ids),
        "packed_text_indexes": places,
        "packed_text_position_ids": torch.cat(positions),
        "text_token_lens": torch.tensor(lengths),
    }
