"""What other programs expect of a model of transformers: classes, arguments, features, batches, embeddings."""

import pytest
import torch
from transformers import AttentionInterface, AutoModel, AutoModelForMultimodalLM, GenerationConfig, pipeline
from transformers.generation.configuration_utils import ContinuousBatchingConfig
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tests.tiny_checkpoint import tiny_checkpoint
from tests.tiny_inputs import collate, conversation
from tests.tiny_model import tiny_model
from unimedvl.modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration, UniMedVLModel

GREEDY = {"do_sample": False, "max_new_tokens": 6}
TRUST = {"trust_remote_code": True}


@pytest.fixture(scope="module")
def edit(model):
    return conversation(model.config, [("latent", 3, 2), ("vit", 3, 3), [3, 4, 5]], seed=2)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    tiny_checkpoint(folder)
    return folder


# -- D3: keyword arguments, continuous batching


def test_d3_keyword_arguments_reach_attention():
    seen = []

    def record(module, query, key, value, attention_mask, **kwargs):
        seen.append(kwargs)
        return query.transpose(1, 2), None

    AttentionInterface.register("recorder", record)
    model = tiny_model()
    model.config.text_config._attn_implementation = "recorder"
    instances, batch = {0: object()}, object()
    ids = torch.tensor([[121, 3, 4]])
    with torch.no_grad():
        for one in (model, model.model):
            one(input_ids=ids, attention_instances=instances, forward_batch=batch, use_cache=False)
    assert len(seen) == 2 * model.config.text_config.num_hidden_layers
    assert all(kwargs["attention_instances"] is instances and kwargs["forward_batch"] is batch for kwargs in seen)


@pytest.mark.medium
def test_d3_continuous_batching_equals_generate(model):
    prompts = [[121, 3, 4, 5, 122, 121], [121, 7, 8], [121, *range(9, 30), 122, 121]]
    config = GenerationConfig(**GREEDY, eos_token_id=122, pad_token_id=120)
    # The default takes most of the machine's memory.
    small = ContinuousBatchingConfig(num_blocks=16, max_batch_tokens=64)
    made = model.generate_batch(prompts, generation_config=config, continuous_batching_config=small)
    assert len(made) == len(prompts)
    for number, prompt in enumerate(prompts):
        alone = model.generate(input_ids=torch.tensor([prompt]), **GREEDY)[0, len(prompt) :].tolist()
        result = made[f"req_{number}"]
        assert result.error is None and result.generated_tokens == alone


def test_d3_continuous_batching_refuses_images(model, question):
    with pytest.raises(ValueError, match="use generate"):
        model.generate_batch([[121, 3], question["input_ids"][0].tolist()], max_new_tokens=2)


# -- D6: images that were prepared for understanding


@pytest.mark.parametrize("mode", ["image", "interleaved"])
def test_d6_images_without_latents_are_refused_with_the_remedy(model, question, edit, mode):
    options = {"generation_mode": mode, "num_inference_steps": 1, "show_progress": False}
    for row in (question, collate([edit, question], model.config.pad_token_id)):
        given = row if mode == "image" or len(row["input_ids"]) == 1 else question
        with pytest.raises(ValueError, match="generation_mode='image'.*processor_kwargs"):
            model.generate(**given, **options)
    without_kinds = {name: value for name, value in question.items() if name != "mm_token_type_ids"}
    with pytest.raises(ValueError, match="latent_pixel_values"):
        model.generate(**without_kinds, **options)


def test_d6_text_to_image_and_edits_are_as_before(model, edit):
    options = {"generation_mode": "image", "num_inference_steps": 1, "show_progress": False}
    prompt = conversation(model.config, [[3, 4, 5]])
    assert model.generate(**prompt, **options, height=16, width=24).shape == (1, 3, 16, 24)
    assert model.generate(**edit, **options).shape == (1, 3, 24, 16)


# -- D8: AutoModel


@pytest.mark.medium
def test_d8_auto_model_is_the_base_model(checkpoint):
    base, info = AutoModel.from_pretrained(checkpoint, **TRUST, output_loading_info=True)
    full = AutoModelForMultimodalLM.from_pretrained(checkpoint, **TRUST)
    assert type(base).__name__ == "UniMedVLModel" and type(full).__name__ == "UniMedVLForConditionalGeneration"
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    row = conversation(full.config, [("vit", 2, 3), [3, 4, 5]], seed=1)
    with torch.no_grad():
        expected = full(**row, output_hidden_states=True).hidden_states[-1]
        assert torch.equal(base(**row)[0], expected)
    assert not any(weight.requires_grad for weight in base.vae.parameters())


@pytest.mark.medium
def test_d8_feature_extraction_gives_hidden_states(checkpoint):
    extract = pipeline("feature-extraction", model=str(checkpoint), **TRUST)
    features = torch.tensor(extract("There is an opacity."))
    ids = extract.tokenizer("There is an opacity.", return_tensors="pt").input_ids
    assert features.shape == (1, ids.shape[1], 32)
    full = UniMedVLForConditionalGeneration.from_pretrained(checkpoint)
    with torch.no_grad():
        assert (features - full(input_ids=ids, output_hidden_states=True).hidden_states[-1]).abs().max() < 1e-5


def test_d8_the_base_model_loads_alone_and_saves(checkpoint, tmp_path):
    full = UniMedVLForConditionalGeneration.from_pretrained(checkpoint)
    small, info = UniMedVLModel.from_pretrained(checkpoint, visual_gen=False, output_loading_info=True)
    assert not hasattr(small, "vae") and not any(info[kind] for kind in ("missing_keys", "unexpected_keys"))
    base = UniMedVLModel.from_pretrained(checkpoint)
    base.save_pretrained(tmp_path)
    again = UniMedVLModel.from_pretrained(tmp_path)
    for name, weight in full.model.state_dict().items():
        assert torch.equal(weight, base.state_dict()[name]) and torch.equal(weight, again.state_dict()[name])


# -- D9: embeddings instead of ids


@pytest.mark.parametrize(
    "options", [{}, {"num_beams": 3}, {"cache_implementation": "static", "disable_compile": True}]
)
def test_d9_embeddings_of_a_text_equal_its_ids(model, options):
    rows = [conversation(model.config, [[3, 4, 5]], answer=True), conversation(model.config, [[6]], answer=True)]
    batch = collate(rows, model.config.pad_token_id)
    ids = batch.pop("input_ids")
    expected = model.generate(input_ids=ids, **batch, **GREEDY, **options)[:, ids.shape[1] :]
    given = model.get_input_embeddings()(ids)
    assert torch.equal(model.generate(inputs_embeds=given, **batch, **GREEDY, **options), expected)
    both = model.generate(input_ids=ids, inputs_embeds=given, **batch, **GREEDY, **options)
    assert torch.equal(both[:, ids.shape[1] :], expected)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}])
def test_d9_embeddings_with_images(model, question, options):
    ids = question["input_ids"]
    expected = model.generate(**question, **GREEDY, **options)[:, ids.shape[1] :]
    rest = {name: value for name, value in question.items() if name != "input_ids"}
    embeds = model.get_input_embeddings()(ids)
    assert torch.equal(model.generate(inputs_embeds=embeds, **rest, **GREEDY, **options), expected)
    without_kinds = {name: value for name, value in rest.items() if name != "mm_token_type_ids"}
    assert torch.equal(model.generate(inputs_embeds=embeds, **without_kinds, **GREEDY, **options), expected)
    # Features of images that are in the embeddings already.
    with torch.no_grad():
        features = model.get_image_features(question["pixel_values"], question["image_grid_thw"]).pooler_output
    merged = embeds.detach().clone()
    merged[question["mm_token_type_ids"] == 1] = torch.cat(features)
    named = {name: question[name] for name in ("attention_mask", "mm_token_type_ids")}
    assert torch.equal(model.generate(inputs_embeds=merged, **named, **GREEDY, **options), expected)


def test_d9_latents_cannot_be_embeddings(model, edit):
    kinds = {name: edit[name] for name in ("attention_mask", "mm_token_type_ids")}
    with pytest.raises(ValueError, match="latent_pixel_values"):
        model.generate(inputs_embeds=model.get_input_embeddings()(edit["input_ids"]), **kinds, **GREEDY)


# -- D12, D13: features and parts


@pytest.mark.parametrize("held", ["base", "full"])
def test_d12_image_features(model, held):
    row = conversation(model.config, [("vit", 2, 3), ("vit", 3, 3)], seed=3)
    images = {name: row[name] for name in ("pixel_values", "image_grid_thw")}
    one = model if held == "full" else model.model
    with torch.no_grad():
        features = one.get_image_features(**images)
        detailed = one.get_image_features(**images, output_hidden_states=True)
        plain = one.get_image_features(**images, return_dict=False)
    vision, width = model.config.vision_config, model.config.text_config.hidden_size
    assert isinstance(features, BaseModelOutputWithPooling) and isinstance(plain, tuple)
    assert features.last_hidden_state.shape == (15, vision.hidden_size)
    assert [part.shape for part in features.pooler_output] == [(6, width), (9, width)]
    assert len(detailed.hidden_states) == vision.num_hidden_layers + 1
    normed = model.model.vit_model.post_layernorm(detailed.hidden_states[-1])
    assert torch.equal(normed, features.last_hidden_state)
    # They are what the language model reads at the places of the images.
    with torch.no_grad():
        embedded = model(**row, output_hidden_states=True).hidden_states[0]
    assert torch.equal(embedded[row["mm_token_type_ids"] == 1], torch.cat(features.pooler_output))


def test_d12_attentions_of_the_vision_part(question):
    model = tiny_model()
    model.set_attn_implementation("eager")
    images = {name: question[name] for name in ("pixel_values", "image_grid_thw")}
    attentions = model.get_image_features(**images, output_attentions=True).attentions
    assert len(attentions) == model.config.vision_config.num_hidden_layers
    assert all(torch.allclose(weights.sum(-1), torch.ones(())) for weights in attentions)


def test_d13_encoder_and_decoder_are_found(model):
    for one in (model, model.model):
        assert one.get_encoder(modality="image") is model.model.vit_model
        assert one.get_decoder() is model.model.language_model
    other = tiny_model(seed=1)
    other.set_encoder(model.model.vit_model, modality="image")
    assert other.model.vit_model is model.model.vit_model
