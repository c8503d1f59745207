"""Which keyword arguments the processor knows."""

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
    "split_special_tokens",
)
SETTING_GROUPS = ("common_kwargs", "text_kwargs", "images_kwargs")
# Arguments of other processors that mean nothing here or are always on; callers such as TRL pass them to every model.
IGNORED_SETTINGS = (
    "add_special_tokens",
    "return_attention_mask",
    "return_mm_token_type_ids",
    "return_text_replacement_offsets",
    "return_token_type_ids",
    "timeout",
    "verbose",
)


def flat_options(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Flatten the groups that transformers allows in the keyword arguments of `__call__`.

    Raises:
        ValueError: for an argument that is not one of the processor's.
    """
    # Not `ProcessorMixin._merge_kwargs`: it only warns of a misspelled argument and ignores it.
    options = dict(kwargs)
    for group in SETTING_GROUPS:
        options |= options.pop(group, None) or {}
    unknown = sorted(options.keys() - {*TEXT_SETTINGS, *IMAGE_SETTINGS, *IGNORED_SETTINGS})
    if unknown:
        raise ValueError(
            f"{', '.join(unknown)}: not an argument of this processor; use {', '.join(TEXT_SETTINGS)} or a setting of "
            "the image processor."
        )
    return options
