"""Every strategy of transformers' `generate` over prompts with images, against an answer known otherwise."""

import copy

import pytest
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    TextIteratorStreamer,
    WatermarkDetector,
    WatermarkingConfig,
)

from tests.tiny_checkpoint import tiny_processor
from tests.tiny_inputs import collate, conversation
from tests.tiny_model import tiny_model

GREEDY = {"do_sample": False, "max_new_tokens": 7}
STATIC = {"cache_implementation": "static", "disable_compile": True}


@pytest.fixture(scope="module")
def others(model):
    """Questions with two images and with none."""
    two = conversation(model.config, [("vit", 1, 2), [9] * 4, ("vit", 3, 1), [8]], seed=3, answer=True)
    return two, conversation(model.config, [[5, 6]], answer=True)


@pytest.fixture(scope="module")
def batch(model, question, others):
    return collate([question, *others], model.config.pad_token_id)


def new_tokens(model, row, **options) -> torch.Tensor:
    return model.generate(**row, **options)[:, row["input_ids"].shape[1] :]


def by_hand(model, row, change=lambda ids, scores: scores, steps: int = GREEDY["max_new_tokens"]) -> torch.Tensor:
    """Greedy tokens without any cache: each from a pass of its own over everything before it."""
    ids, prompt = row["input_ids"], row["input_ids"].shape[1]
    for _ in range(steps):
        kinds = torch.nn.functional.pad(row["mm_token_type_ids"], (0, ids.shape[1] - prompt))
        full = {**row, "input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds}
        with torch.no_grad():
            scores = model(**full, use_cache=False).logits[:, -1]
        token = change(ids, scores).argmax(-1, keepdim=True)
        ids = torch.cat([ids, token], dim=1)
        if int(token) == model.config.eos_token_id:
            break
    return ids[:, prompt:]


# -- what must equal greedy decoding


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"use_cache": False},
        STATIC,
        {"cache_implementation": "dynamic"},
        {"prompt_lookup_num_tokens": 3},
        {"num_beams": 1},
    ],
    ids=lambda options: ", ".join(options) or "default",
)
def test_greedy(model, question, options):
    assert torch.equal(new_tokens(model, question, **GREEDY, **options), by_hand(model, question))


@pytest.mark.parametrize(
    "options",
    [
        {"top_k": 1},
        {"top_p": 1e-6},
        {"min_p": 1.0},
        {"temperature": 1e-6},
        {"epsilon_cutoff": 0.9999},
    ],
    ids=lambda options: next(iter(options)),
)
def test_sampling_at_its_limit_is_greedy(model, question, options):
    torch.manual_seed(0)
    sampled = new_tokens(model, question, do_sample=True, max_new_tokens=7, **{"top_k": 0, **options})
    assert torch.equal(sampled, by_hand(model, question))


@pytest.mark.parametrize(
    "options",
    [{}, {"top_k": 8}, {"top_p": 0.8}, {"min_p": 0.1}, {"typical_p": 0.7}, {"eta_cutoff": 0.01}, {"temperature": 2.0}],
)
def test_sampling_does_not_depend_on_the_cache(model, question, options):
    made = []
    for cache in ({}, {"use_cache": False}, STATIC):
        torch.manual_seed(3)
        made.append(new_tokens(model, question, do_sample=True, max_new_tokens=7, **options, **cache))
    assert torch.equal(made[0], made[1]) and torch.equal(made[0], made[2])


@pytest.mark.parametrize("assistant", ["same", "copy", "other"])
def test_assisted(model, question, assistant):
    helper = {"same": model, "copy": tiny_model(), "other": tiny_model(seed=1)}[assistant]
    assert torch.equal(new_tokens(model, question, **GREEDY, assistant_model=helper), by_hand(model, question))


def test_assisted_sampling_at_its_limit_is_greedy(model, question):
    torch.manual_seed(0)
    options = {"do_sample": True, "top_k": 1, "max_new_tokens": 7, "assistant_model": tiny_model(seed=1)}
    assert torch.equal(new_tokens(model, question, **options), by_hand(model, question))


@pytest.mark.parametrize(
    "options", [{}, {"use_cache": False}, STATIC, {"num_beams": 3}], ids=["cache", "none", "static", "beams"]
)
def test_batch_of_different_image_counts_equals_singles(model, question, others, batch, options):
    made = new_tokens(model, batch, **GREEDY, **options)
    for row, single in zip(made, (question, *others), strict=True):
        alone = new_tokens(model, single, **GREEDY, **options)[0]
        assert torch.equal(row[: len(alone)], alone)
        assert set(row[len(alone) :].tolist()) <= {model.config.pad_token_id}


# -- beams


def test_beams_do_not_depend_on_the_cache(model, batch):
    options = {**GREEDY, "num_beams": 3, "num_return_sequences": 2, "length_penalty": 0.7}
    expected = new_tokens(model, batch, **options)
    assert expected.shape[0] == 2 * batch["input_ids"].shape[0]
    assert torch.equal(new_tokens(model, batch, **options, use_cache=False), expected)
    assert torch.equal(new_tokens(model, batch, **options, **STATIC), expected)


def test_enough_beams_find_the_best_pair_of_tokens(model, question):
    """With a beam for every token, two steps are an exhaustive search."""
    count = model.config.text_config.vocab_size
    never = {"suppress_tokens": [model.config.eos_token_id]}
    found = new_tokens(model, question, do_sample=False, max_new_tokens=2, num_beams=count, **never)
    with torch.no_grad():
        first = model(**question).logits[0, -1].log_softmax(-1)
        ids = torch.cat([question["input_ids"].expand(count, -1), torch.arange(count)[:, None]], dim=1)
        kinds = torch.nn.functional.pad(question["mm_token_type_ids"], (0, 1)).expand(count, -1)
        images = {
            "pixel_values": question["pixel_values"].repeat(count, 1),
            "image_grid_thw": question["image_grid_thw"].repeat(count, 1),
        }
        total = first[:, None] + model(input_ids=ids, mm_token_type_ids=kinds, **images).logits[:, -1].log_softmax(-1)
    total[model.config.eos_token_id] = -torch.inf
    total[:, model.config.eos_token_id] = -torch.inf
    assert found[0].tolist() == list(divmod(int(total.argmax()), count))


def test_beam_sampling_repeats(model, question):
    made = []
    for _ in range(2):
        torch.manual_seed(1)
        made.append(new_tokens(model, question, do_sample=True, num_beams=3, max_new_tokens=6))
    assert torch.equal(*made)


def test_several_sequences_are_samples_of_their_prompt(model, batch):
    made = new_tokens(model, batch, do_sample=True, top_k=1, max_new_tokens=6, num_return_sequences=3)
    expected = new_tokens(model, batch, do_sample=False, max_new_tokens=6)
    assert torch.equal(made, expected.repeat_interleave(3, dim=0))


# -- what changes the scores


class Ban(LogitsProcessor):
    def __init__(self, tokens):
        self.tokens = tokens

    def __call__(self, input_ids, scores):
        return scores.index_fill(1, torch.tensor(self.tokens), -torch.inf)


def test_logits_processors(model, question):
    banned = by_hand(model, question)[0, :2].tolist()
    expected = by_hand(model, question, lambda ids, scores: Ban(banned)(ids, scores))
    for options in (
        {"logits_processor": LogitsProcessorList([Ban(banned)])},
        {"suppress_tokens": banned},
        {"bad_words_ids": [[token] for token in banned]},
        {"sequence_bias": {(token,): -1e9 for token in banned}},
    ):
        assert torch.equal(new_tokens(model, question, **GREEDY, **options), expected)


def test_repetition_penalty_covers_the_prompt(model, question):
    def penalized(ids, scores):
        seen = scores.gather(1, ids)
        return scores.scatter(1, ids, torch.where(seen < 0, seen * 1.7, seen / 1.7))

    expected = by_hand(model, question, penalized)
    assert torch.equal(new_tokens(model, question, **GREEDY, repetition_penalty=1.7), expected)


def test_prefix_allowed_tokens(model, question):
    allowed = [3, 7, 11, 20]

    def only(ids, scores):
        return torch.full_like(scores, -torch.inf).index_copy(1, torch.tensor(allowed), scores[:, allowed])

    made = new_tokens(model, question, **GREEDY, prefix_allowed_tokens_fn=lambda batch_id, ids: allowed)
    assert torch.equal(made, by_hand(model, question, only))


def test_text_guidance(model, question):
    """The unconditional branch of transformers starts from the prompt's last token, or from a negative prompt."""
    for negative in (None, torch.tensor([[121, 4, 4]])):
        start = question["input_ids"][:, -1:] if negative is None else negative
        prompt = question["input_ids"].shape[1]

        def guided(ids, scores, start=start, prompt=prompt):
            with torch.no_grad():
                # The first token follows the last one of the prompt; later ones follow the branch's own.
                other = model(input_ids=torch.cat([start, ids[:, prompt:]], dim=1)).logits[:, -1]
            conditional, unconditional = scores.log_softmax(-1), other.log_softmax(-1)
            return 1.5 * (conditional - unconditional) + unconditional

        options = {"guidance_scale": 1.5, **({} if negative is None else {"negative_prompt_ids": negative})}
        assert torch.equal(new_tokens(model, question, **GREEDY, **options), by_hand(model, question, guided))


def test_watermark_is_detected(model, question):
    settings = WatermarkingConfig(bias=12.0)
    options = {"do_sample": True, "max_new_tokens": 40, "suppress_tokens": [model.config.eos_token_id]}
    torch.manual_seed(0)
    marked = new_tokens(model, question, **options, watermarking_config=settings)
    plain = new_tokens(model, question, **options)
    text = copy.deepcopy(model.config.text_config)
    # The detector skips it where a text begins with it.
    text.bos_token_id = model.config.bos_token_id
    detector = WatermarkDetector(text, "cpu", settings)
    scores = [float(detector(ids, return_dict=True).z_score[0]) for ids in (marked, plain)]
    assert scores[0] > 3 > scores[1]


# -- when it stops, and what it returns


def test_stop_strings_and_streams(model):
    """Of a real tokenizer; the tiny model's ids are those of its bytes."""
    tokenizer = tiny_processor().tokenizer
    large = tiny_model(text_config={**model.config.text_config.to_dict(), "vocab_size": len(tokenizer)})
    row = conversation(large.config, [("vit", 2, 3), [3, 4, 5]], seed=1, answer=True)
    free = new_tokens(large, row, **GREEDY)[0]
    third = tokenizer.decode(free[2])
    first = next(index for index, token in enumerate(free) if third in tokenizer.decode(token))
    stopped = new_tokens(large, row, **GREEDY, stop_strings=[third], tokenizer=tokenizer)[0]
    assert stopped.tolist() == free[: first + 1].tolist()
    streamer = TextIteratorStreamer(tokenizer, skip_prompt=True)
    large.generate(**row, **GREEDY, streamer=streamer)
    assert "".join(streamer) == tokenizer.decode(free)


def test_max_time_ends_early(model, question):
    assert new_tokens(model, question, do_sample=False, max_new_tokens=50, max_time=0.0).shape[1] == 1


def test_scores_logits_states_and_attentions(question):
    model = tiny_model()
    model.set_attn_implementation("eager")
    wanted = ("output_scores", "output_logits", "output_attentions", "output_hidden_states", "return_dict_in_generate")
    made = model.generate(**question, **GREEDY, **dict.fromkeys(wanted, True))
    prompt, layers = question["input_ids"].shape[1], model.config.text_config.num_hidden_layers
    with torch.no_grad():
        kinds = torch.nn.functional.pad(question["mm_token_type_ids"], (0, made.sequences.shape[1] - prompt))
        images = {name: question[name] for name in ("pixel_values", "image_grid_thw")}
        whole = model(
            input_ids=made.sequences,
            mm_token_type_ids=kinds,
            output_hidden_states=True,
            output_attentions=True,
            **images,
        )
    steps = made.sequences.shape[1] - prompt
    assert (torch.stack(made.logits, dim=1) - whole.logits[:, prompt - 1 : -1]).abs().max() < 1e-5
    assert len(made.attentions) == len(made.hidden_states) == steps
    for layer in range(layers):
        assert (made.attentions[0][layer] - whole.attentions[layer][:, :, :prompt, :prompt]).abs().max() < 1e-5
        last = made.hidden_states[-1][layer + 1][:, -1]
        assert (last - whole.hidden_states[layer + 1][:, prompt + steps - 2]).abs().max() < 1e-4
    transitions = model.compute_transition_scores(made.sequences, made.scores, normalize_logits=True)
    expected = torch.stack(made.logits, dim=1).log_softmax(-1).gather(2, made.sequences[:, prompt:, None])[..., 0]
    assert (transitions - expected).abs().max() < 1e-5


def test_custom_loop(model, question):
    """A callable in place of the decoding loop gets prompts, images and cache as transformers' loops do."""

    def loop(model, input_ids, logits_processor, stopping_criteria, generation_config, **kwargs):
        outputs = model._prefill(input_ids, generation_config, kwargs)
        for _ in range(generation_config.max_length - input_ids.shape[1]):
            token = logits_processor(input_ids, outputs.logits[:, -1]).argmax(-1, keepdim=True)
            input_ids = torch.cat([input_ids, token], dim=1)
            kwargs = model._update_model_kwargs_for_generation(outputs, kwargs)
            inputs = model.prepare_inputs_for_generation(input_ids, next_sequence_length=1, **kwargs)
            outputs = model(**inputs, return_dict=True)
        return input_ids

    expected = by_hand(model, question, lambda ids, scores: Ban([model.config.eos_token_id])(ids, scores))
    options = {**GREEDY, "suppress_tokens": [model.config.eos_token_id]}
    assert torch.equal(new_tokens(model, question, **options, custom_generate=loop), expected)


def test_texts_are_read_in_chunks(model, others):
    text = others[1]
    assert torch.equal(new_tokens(model, text, **GREEDY, prefill_chunk_size=3), by_hand(model, text))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_strategies_agree(question, dtype):
    model = tiny_model().to(dtype)
    expected = new_tokens(model, question, **GREEDY)
    assert expected.shape[1] > 1
    for options in (STATIC, {"top_k": 1, "do_sample": True}):
        assert torch.equal(new_tokens(model, question, **{**GREEDY, **options}), expected)


def test_a_conversation_is_resumed_with_its_cache(model, question, others):
    """Further turns come as new tokens alone, with the mask of everything and no position_ids."""
    # A written placeholder would be taken for one of an image when the whole conversation is read again.
    placeholders = [model.config.image_token_id, model.config.latent_token_id]
    first = model.generate(**question, **GREEDY, suppress_tokens=placeholders, return_dict_in_generate=True)
    turn = torch.tensor([[122, 121, 8, 9, 122, 121]])
    cache = first.past_key_values
    added = torch.cat([first.sequences[:, cache.get_seq_length() :], turn], dim=1)
    ids = torch.cat([first.sequences, turn], dim=1)
    continued = model.generate(input_ids=added, attention_mask=torch.ones_like(ids), past_key_values=cache, **GREEDY)[
        :, added.shape[1] :
    ]
    kinds = torch.nn.functional.pad(question["mm_token_type_ids"], (0, ids.shape[1] - question["input_ids"].shape[1]))
    whole = {**question, "input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds}
    assert torch.equal(continued, new_tokens(model, whole, **GREEDY))
