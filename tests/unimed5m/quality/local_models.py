"""Models of the paper's architectures, made small with random weights and saved to folders of the paper's names."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizerFast,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessorPil,
    Gemma3Processor,
    PreTrainedTokenizerFast,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipProcessor,
)

WORDS = "a query : user model red green blue field tinted scan all over smooth".split()
CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ message['role'] }} {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<boi>{% else %}{{ part['text'] }}{% endif %}{% endfor %} {% endfor %}"
    "{% if add_generation_prompt %}model {% endif %}"
)
SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}


def bert_tokenizer(folder: Path) -> BertTokenizerFast:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]) + "\n")
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    return tokenizer


def save_e5(folder: Path) -> Path:
    """E5-large-v2 is a BERT."""
    torch.manual_seed(0)
    tokenizer = bert_tokenizer(folder)
    BertModel(BertConfig(vocab_size=len(tokenizer), **{**SIZES, "num_hidden_layers": 2})).save_pretrained(folder)
    return folder


def save_medsiglip(folder: Path) -> Path:
    """MedSigLIP is a SigLIP with 64 text positions."""
    torch.manual_seed(1)
    tokenizer = bert_tokenizer(folder)
    text = {**SIZES, "vocab_size": len(tokenizer), "max_position_embeddings": 64, "projection_size": 16}
    vision = {**SIZES, "image_size": 32, "patch_size": 16}
    SiglipModel(SiglipConfig(text_config=text, vision_config=vision)).save_pretrained(folder)
    SiglipProcessor(SiglipImageProcessor(size={"height": 32, "width": 32}), tokenizer).save_pretrained(folder)
    return folder


def save_medgemma(folder: Path) -> Path:
    """MedGemma is a Gemma 3 with an image tower."""
    torch.manual_seed(2)
    specials = ["<pad>", "<eos>", "<bos>", "<unk>", "<boi>", "<eoi>", "<image_soft_token>"]
    vocabulary = {word: number for number, word in enumerate([*specials, *WORDS])}
    raw = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw,
        pad_token="<pad>",
        eos_token="<eos>",
        bos_token="<bos>",
        unk_token="<unk>",
        extra_special_tokens={"boi_token": "<boi>", "eoi_token": "<eoi>", "image_token": "<image_soft_token>"},
    )
    images = Gemma3ImageProcessorPil(size={"height": 32, "width": 32})
    Gemma3Processor(images, tokenizer, chat_template=CHAT, image_seq_length=4).save_pretrained(folder)
    text = {**SIZES, "vocab_size": len(vocabulary), "num_key_value_heads": 1, "head_dim": 8, "sliding_window": 64}
    config = Gemma3Config(
        text_config={**text, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2},
        vision_config={**SIZES, "image_size": 32, "patch_size": 8, "vision_use_head": False},
        mm_tokens_per_image=4,
        boi_token_index=4,
        eoi_token_index=5,
        image_token_index=6,
    )
    Gemma3ForConditionalGeneration(config).save_pretrained(folder)
    return folder
