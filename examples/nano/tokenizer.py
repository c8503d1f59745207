"""A small Qwen2-family tokenizer: byte-level BPE trained on the words of the data."""

from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

SPECIAL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def train_tokenizer(texts: list[str], folder: str | Path, vocab_size: int = 2048) -> Qwen2Tokenizer:
    """Train on `texts` and save to `folder`; returns the tokenizer, at most `vocab_size` entries with the specials.

    Normalizer (NFC), pre-tokenizer and decoder are those of the Qwen2 family, so every byte string can be encoded and
    decoded; the special tokens take the last ids, as in Qwen's own Qwen2 tokenizers.
    """
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - len(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    byte_level = Tokenizer(models.BPE())
    byte_level.normalizer = normalizers.NFC()
    byte_level.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    byte_level.decoder = decoders.ByteLevel()
    byte_level.train_from_iterator(texts, trainer)
    byte_level.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in SPECIAL_TOKENS])
    # The annotations of Qwen2Tokenizer leave out that a token may be None.
    none: Any = None
    tokenizer = Qwen2Tokenizer(
        tokenizer_object=byte_level,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        unk_token=none,
        bos_token=none,
        additional_special_tokens=list(SPECIAL_TOKENS[1:]),
        model_max_length=2048,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer
