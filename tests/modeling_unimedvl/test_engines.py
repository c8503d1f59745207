"""What engines ask of the model, without any of them: their attention is played by a function of the same form."""

import pytest
import torch
import torch.nn.functional as F
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from tests.tiny_inputs import collate, conversation
from tests.tiny_model import tiny_config, tiny_model
from unimedvl.modeling_unimedvl.configuration_unimedvl import UniMedVLConfig
from unimedvl.modeling_unimedvl.engines_unimedvl import logger
from unimedvl.modeling_unimedvl.loading_unimedvl import GENERATION_WEIGHTS
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLModel

PARTS = [[5, 6, 7], ("vit", 2, 3), [8, 9], ("vit", 3, 1), ("vit", 1, 1), [10]]


def rows_of_all_heads(module, query_BHSE, key_BGSE, value_BGSE, attention_mask, scaling, **kwargs):
    """Causal attention over one sequence that comes and goes as vLLM's: (S, H * E)."""
    assert attention_mask is None
    mixed = F.scaled_dot_product_attention(
        query_BHSE, key_BGSE, value_BGSE, is_causal=True, scale=scaling, enable_gqa=True
    )
    return mixed[0].transpose(0, 1).flatten(1), None


@pytest.fixture
def engine_config():
    """A configuration as vLLM hands it to the base model."""
    ALL_ATTENTION_FUNCTIONS.register("vllm", rows_of_all_heads)
    config = tiny_config()
    config.text_config._attn_implementation = "vllm"
    yield config
    del ALL_ATTENTION_FUNCTIONS._global_mapping["vllm"]


def test_positions_are_those_of_forward():
    model = tiny_model()
    inputs = conversation(model.config, PARTS, answer=True)
    positions, after = model.model.get_rope_index(inputs["input_ids"], image_grid_thw=inputs["image_grid_thw"])
    length = inputs["input_ids"].shape[1]
    # Turns of 5, 4 and 3 tokens, three images of one id each, and the token that begins the answer.
    assert positions.shape == (3, 1, length) and positions[0, 0, -1] == 5 + 1 + 4 + 1 + 1 + 3
    assert after.tolist() == [[int(positions.max()) + 1 - length]]
    with torch.no_grad():
        without, given = model(**inputs).logits, model(**inputs, position_ids=positions).logits
    torch.testing.assert_close(given, without, rtol=0, atol=0)
    text = conversation(model.config, PARTS[:1], answer=True)
    batch = collate([text, inputs], model.config.pad_token_id)
    padded, after_padded = model.model.get_rope_index(batch["input_ids"], attention_mask=batch["attention_mask"])
    torch.testing.assert_close(padded[:, 1:], positions)
    assert after_padded[1] == after and padded[0, 0, -6:].tolist() == [0, 1, 2, 3, 4, 5]


@torch.no_grad()
def test_an_engine_runs_the_understanding_half_with_its_own_attention(engine_config):
    model = tiny_model()
    engine = UniMedVLModel._from_config(engine_config).eval()
    names = {name for name, _ in engine.named_parameters()}
    assert names and not any("moe_gen" in name or name.startswith(("vae", "llm2vae")) for name in names)
    # The engine drops what matches, and loads the head by itself.
    assert set(engine._keys_to_ignore_on_load_unexpected) == set(GENERATION_WEIGHTS)
    ours = {name: tensor for name, tensor in model.model.state_dict().items() if name in engine.state_dict()}
    engine.load_state_dict(ours)

    inputs = conversation(model.config, PARTS, answer=True)
    ids, kinds = inputs["input_ids"], inputs["mm_token_type_ids"]
    features = engine.get_image_features(inputs["pixel_values"], image_grid_thw=inputs["image_grid_thw"])
    assert [rows.shape[0] for rows in features.pooler_output] == [6, 3, 1]
    embeds = engine.get_input_embeddings()(ids)
    embeds[kinds == 1] = torch.cat(features.pooler_output)
    positions, _ = engine.get_rope_index(ids)
    outputs = engine(inputs_embeds=embeds, position_ids=positions, use_cache=False, return_dict=False)
    length = ids.shape[1]
    causal = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    expected = model.model(**{**inputs, "attention_mask": causal}, use_cache=False).last_hidden_state
    torch.testing.assert_close(outputs[0], expected, rtol=1e-5, atol=1e-5)
    # The language model alone takes ids too.
    alone, _, _ = engine.language_model(None, positions[0], None, input_ids=ids)
    by_ids = engine(input_ids=ids, position_ids=positions, use_cache=False).last_hidden_state
    torch.testing.assert_close(alone, by_ids)


def test_images_under_an_engine_on_a_cpu_are_warned_of_once(engine_config, caplog):
    inputs = conversation(engine_config, PARTS, answer=True)
    images = (inputs["pixel_values"], inputs["image_grid_thw"])
    logger.warning_once.cache_clear()
    tiny_model().get_image_features(*images)
    assert not caplog.records
    engine = UniMedVLModel._from_config(engine_config).eval()
    for _ in range(2):
        engine.get_image_features(*images)
    (record,) = caplog.records
    assert record.levelname == "WARNING" and "differ from those of `generate`" in record.getMessage()


def test_what_engines_read_is_not_saved(tmp_path):
    config = tiny_config()
    assert config.is_mm_prefix_lm and config.text_config.mrope_section == [2, 1, 1]
    config.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert "mrope" not in text and "prefix_lm" not in text
    loaded = UniMedVLConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict() and isinstance(loaded, UniMedVLConfig)
