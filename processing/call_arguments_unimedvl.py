"""Which keyword arguments the processor knows, and how remote code is found by its name."""

import sys
from collections.abc import Mapping
from typing import Any

IMAGE_SETTINGS = (
    "pipeline",
    "understanding_transform",
    "vae_transform",
    "vit_transform",
    "patch_size",
    "max_image_pixels",
    "num_images",
)
TEXT_SETTINGS = (
    "padding",
    "padding_side",
    "truncation",
    "max_length",
    "pad_to_multiple_of",
    "return_tensors",
    "return_offsets_mapping",
    "return_text_replacement_offsets",
    "split_special_tokens",
)
# What a tokenizer may have been saved with. Its padding side is not among them: the processor has its own.
SAVED_SETTINGS = ("padding", "truncation", "max_length", "pad_to_multiple_of")
SETTING_GROUPS = ("common_kwargs", "text_kwargs", "images_kwargs", "videos_kwargs", "audio_kwargs")
# Arguments of other processors that mean nothing here or are always on; callers such as TRL and `transformers serve`
# pass them to every model.
IGNORED_SETTINGS = (
    "add_special_tokens",
    "audio_sampling_rate",
    "do_sample_frames",
    "fps",
    "load_audio_backend",
    "load_audio_from_video",
    "num_frames",
    "raw_speech",
    "reasoning_effort",
    "return_attention_mask",
    "return_metadata",
    "return_mm_token_type_ids",
    "return_token_type_ids",
    "sampling_rate",
    "timeout",
    "verbose",
    "use_audio_in_video",
    "video_backend",
    "video_fps",
    "video_load_backend",
    "video_metadata",
)
KNOWN_SETTINGS = frozenset((*TEXT_SETTINGS, *IMAGE_SETTINGS, *IGNORED_SETTINGS, *SETTING_GROUPS))


def flat_options(kwargs: dict[str, Any], saved: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Flatten the groups that transformers allows in the keyword arguments of `__call__`.

    Args:
        kwargs: arguments by name, and groups of them. `common_kwargs` gives way to all others; `videos_kwargs` and
            `audio_kwargs` mean nothing here.
        saved: what the tokenizer was saved with; its `SAVED_SETTINGS` hold where the caller says nothing.

    Raises:
        ValueError: for an argument that is not one of the processor's, or that is given twice.
    """
    # Not `ProcessorMixin._merge_kwargs`: it only warns of a misspelled argument and ignores it.
    options = {name: value for name, value in kwargs.items() if name not in SETTING_GROUPS}
    for group in ("text_kwargs", "images_kwargs"):
        given = kwargs.get(group) or {}
        twice = sorted(options.keys() & given.keys())
        if twice:
            raise ValueError(f"{', '.join(twice)}: given twice, once in {group}; leave one of them out.")
        options |= given
    defaults = {name: saved[name] for name in SAVED_SETTINGS if name in saved} if saved else {}
    options = {**defaults, **(kwargs.get("common_kwargs") or {}), **options}
    unknown = sorted(options.keys() - {*TEXT_SETTINGS, *IMAGE_SETTINGS, *IGNORED_SETTINGS})
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)}: not an argument of this processor; use {', '.join(TEXT_SETTINGS)} or a setting of "
            "the image processor."
        )
    return options


def once_only(processor_kwargs: Mapping[str, Any], kwargs: Mapping[str, Any], **named: Any) -> dict[str, Any]:
    """Copy `processor_kwargs` of `apply_chat_template` unless they repeat what was given beside them.

    Args:
        processor_kwargs: the group.
        kwargs: other keyword arguments of the call.
        **named: parameters of the call; None counts as not given.

    Raises:
        ValueError: for a keyword that is given twice.
    """
    beside = kwargs.keys() | {name for name, value in named.items() if value is not None}
    twice = sorted(processor_kwargs.keys() & beside)
    if twice:
        raise ValueError(f"{', '.join(twice)}: given twice, once in processor_kwargs; leave one of them out.")
    return dict(processor_kwargs)


def name_in_parent(module: str) -> None:
    """Let a module be found by its dotted name, as Python's own import does at its end.

    transformers' loader of remote code leaves that out. dill, with which `datasets` hashes what `map` calls, then
    takes the module's classes for unreachable and pickles them with everything they refer to, for minutes.

    Args:
        module: its `__name__`.
    """
    parent, _, name = module.rpartition(".")
    if parent in sys.modules:
        setattr(sys.modules[parent], name, sys.modules[module])
