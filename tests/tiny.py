"""Tiny substitutes for upstream artifacts, built in a moment and shared by the tests of several folders."""

from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import Qwen2Tokenizer
from transformers.models.qwen2.tokenization_qwen2 import PRETOKENIZE_REGEX

CONTROL_TOKENS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
SENTENCES = (
    "What is abnormal in this chest radiograph?",
    "There is an opacity in the left lower lobe, and the heart is enlarged.",
    "Turn the stain of this slide from haematoxylin and eosin to a trichrome stain.",
    "A T1-weighted axial slice of the brain without contrast; the ventricles are symmetric.",
    "You should first think about the reasoning process in the mind.",
)


def make_tokenizer(directory: str | Path | None = None, without: tuple[str, ...] = ()) -> Qwen2Tokenizer:
    """A Qwen2 tokenizer of 320 byte-level BPE entries and the control tokens, which come last, as upstream ones do.

    Saved to `directory` if given. `without`: control tokens to leave out.
    """
    byte_level = Tokenizer(models.BPE())
    byte_level.normalizer = normalizers.NFC()
    byte_level.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PRETOKENIZE_REGEX), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    byte_level.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    byte_level.train_from_iterator(
        SENTENCES, trainers.BpeTrainer(vocab_size=320, initial_alphabet=alphabet, show_progress=False)
    )
    control_tokens = [token for token in CONTROL_TOKENS if token not in without]
    byte_level.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in control_tokens])
    tokenizer = Qwen2Tokenizer(
        tokenizer_object=byte_level,
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>" if "<|im_end|>" in control_tokens else None,
        unk_token=None,
        bos_token=None,
        model_max_length=32768,
    )
    if directory is not None:
        tokenizer.save_pretrained(directory)
    return tokenizer
