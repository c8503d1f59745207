"""The same runner scores models of other makers, built small and random here."""

import json

import diffusers
import pytest
import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from unimedvl.evaluation.benchmarks import BenchmarkData, get_benchmark
from unimedvl.evaluation.harness import Run, evaluate
from unimedvl.evaluation.metrics.image_features import load_feature_extractor
from unimedvl.evaluation.model_wrappers import open_model
from unimedvl.evaluation.model_wrappers.diffusers_pipelines import abilities_of
from unimedvl.evaluation.predictions import ModelPredictor
from unimedvl.evaluation.scoring import Settings

TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {% for item in message.content %}"
    "{% if item.type == 'image' %}<image>{% else %}{{ item.text }}{% endif %}{% endfor %}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def letters(special: list[str]) -> Tokenizer:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate([*special, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    return tokenizer


@pytest.fixture(scope="module")
def llava(tmp_path_factory):
    """A transformers image-text-to-text model: LLaVA of two layers."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("llava")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=letters(["<pad>", "</s>", "<image>"]),
        pad_token="<pad>",
        eos_token="</s>",
        additional_special_tokens=["<image>"],
    )
    size = {"height": 32, "width": 32}
    LlavaProcessor(
        CLIPImageProcessor(size=size, crop_size=size),
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    ).save_pretrained(folder)
    common = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(**common, image_size=32, patch_size=16),
        text_config=LlamaConfig(**common, vocab_size=300, max_position_embeddings=2048),
        image_token_index=2,
        image_token_id=2,
    )
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def stable_diffusion(tmp_path_factory):
    """A diffusers text-to-image pipeline, and the image-to-image one of the same parts."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("sd")
    tokenizer = letters(["<|startoftext|>", "<|endoftext|>"])
    (folder / "words").mkdir()
    vocabulary = tokenizer.get_vocab() | {f"{letter}</w>": 300 + ord(letter) for letter in map(chr, range(33, 127))}
    (folder / "words" / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "words" / "merges.txt").write_text("#version: 0.2\n")
    parts = {
        "tokenizer": CLIPTokenizer(
            str(folder / "words" / "vocab.json"), str(folder / "words" / "merges.txt"), model_max_length=32
        ),
        "text_encoder": CLIPTextModel(
            CLIPTextConfig(
                hidden_size=32,
                intermediate_size=32,
                num_hidden_layers=2,
                num_attention_heads=2,
                vocab_size=512,
                max_position_embeddings=32,
            )
        ),
        "vae": AutoencoderKL(
            block_out_channels=(8, 8),
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=32,
        ),
        "unet": UNet2DConditionModel(
            sample_size=16,
            block_out_channels=(8, 16),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=4,
            norm_num_groups=4,
        ),
        "scheduler": DDIMScheduler(),
        "safety_checker": None,
        "feature_extractor": None,
    }
    StableDiffusionPipeline(**parts, requires_safety_checker=False).save_pretrained(folder / "t2i")
    StableDiffusionImg2ImgPipeline(**parts, requires_safety_checker=False).save_pretrained(folder / "i2i")
    return folder


def score(path, records, out, **options) -> dict:
    model = open_model(str(path), device="cpu", **options)
    data = BenchmarkData(get_benchmark("unimed-mini"), records, limit=3)
    run = Run(str(path), out, batch_size=2, baselines=False)
    settings = Settings(extractor=load_feature_extractor("pixels-1"), meteor=False)
    return evaluate(run, ModelPredictor(model, max_new_tokens=4), [data], settings, print)["benchmarks"]["unimed-mini"]


def test_a_transformers_model_answers_what_it_can(llava, records, tmp_path):
    found = score(llava, records, tmp_path / "out")
    assert set(found["tasks"]) == {"vqa", "diagnosis", "caption", "report", "dialogue"}
    assert "text_to_image" in found["unsupported_tasks"] and "segmentation" in found["unsupported_tasks"]
    rows = [json.loads(line) for line in open(tmp_path / "out" / "unimed-mini" / "predictions.jsonl")]
    assert all(0 < row["confidence"] <= 1 for row in rows) and any(row["text"] for row in rows)


def test_a_batch_of_a_foreign_model_gives_what_its_rows_give_alone(llava, records):
    model = open_model(str(llava), device="cpu")
    data = BenchmarkData(get_benchmark("unimed-mini"), records, limit=4, tasks=["vqa"])
    talks = [sample.conversation() for _, sample in data.samples()]
    together = model.write(talks, 5)
    for (text, sure), talk in zip(together, talks, strict=True):
        alone = model.write([talk], 5)[0]
        assert alone[0] == text and alone[1] == pytest.approx(sure, abs=1e-4)


def test_a_diffusers_pipeline_draws_what_it_can(stable_diffusion, records, tmp_path):
    found = score(stable_diffusion / "t2i", records, tmp_path / "out", steps=2)
    assert set(found["tasks"]) == {"text_to_image", "planned_text_to_image"}
    assert found["tasks"]["text_to_image"]["count"] == 3 and "vqa" in found["unsupported_tasks"]


def test_an_image_to_image_pipeline_edits(stable_diffusion, records, tmp_path):
    found = score(stable_diffusion / "i2i", records, tmp_path / "out", steps=2)
    assert "super_resolution" in found["tasks"] and "text_to_image" in found["unsupported_tasks"]


@pytest.mark.parametrize(
    ("pipeline", "abilities"),
    [
        (diffusers.StableDiffusionPipeline, {"image"}),
        (diffusers.StableDiffusionImg2ImgPipeline, {"image_from_image"}),
        (diffusers.StableDiffusionInpaintPipeline, {"image_from_image"}),
        (diffusers.QwenImageEditPipeline, {"image_from_image"}),
        (diffusers.FluxKontextPipeline, {"image", "image_from_image"}),
        (diffusers.DDPMPipeline, set()),
    ],
)
def test_a_pipeline_whose_image_may_be_left_out_also_draws_from_text(pipeline, abilities):
    assert abilities_of(pipeline) == abilities


def test_noise_follows_the_sample(stable_diffusion):
    model = open_model(str(stable_diffusion / "t2i"), device="cpu", steps=2)
    talk = [{"role": "user", "content": [{"type": "text", "text": "a chest film"}]}]
    first, second, third = (list(model.draw([talk], "t2i", [seed])[0].getdata()) for seed in (1, 1, 2))
    assert first == second != third


def test_what_cannot_be_loaded_gets_one_line(tmp_path, llava):
    with pytest.raises(ValueError, match="there is no folder"):
        open_model(str(tmp_path / "none"))
    with pytest.raises(ValueError, match="cannot be loaded"):
        open_model(str(tmp_path))
    with pytest.raises(ValueError, match="unknown dtype"):
        open_model(str(llava), dtype="int3")
    with pytest.raises(ValueError, match="not available here"):
        open_model(str(llava), device="warp")


def test_f14_an_adapter_of_another_makers_model_is_asked_on_its_base(llava, tmp_path):
    model = LlavaForConditionalGeneration.from_pretrained(llava)
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=r".*language_model.*q_proj"))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=2.0, generator=torch.Generator().manual_seed(0))
    adapted.save_pretrained(str(tmp_path / "lora"))
    conversations = [[{"role": "user", "content": [{"type": "text", "text": "What is this?"}]}]]
    base, together = open_model(str(llava)), open_model(str(tmp_path / "lora"))
    assert together.name == f"lora on {llava}" and together.settings["class"] == base.settings["class"]
    assert together.write(conversations, 8) != base.write(conversations, 8)
    with pytest.raises(ValueError, match="the base of the adapter 'lora', './nowhere', cannot be loaded.*--base"):
        open_model(str(tmp_path / "lora"), base="./nowhere")
