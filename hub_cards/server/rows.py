"""Prompts that were prepared one by one, as one batch."""

from typing import Any

import torch
import torch.nn.functional as F


def joined(inputs: list[dict[str, Any]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """One batch of what the processor returned for single prompts, padded on the left as the processor does.

    Args:
        inputs: each with `input_ids`, `attention_mask` and `mm_token_type_ids`, int64 (1, S), and with images their
            patches `pixel_values` (P, D) and `image_grid_thw` (I, 3), in image mode also `latent_pixel_values`
            (I, 3, H, W) and `latent_image_sizes` (I, 2).
        pad_token_id: for `input_ids`.

    Returns:
        The same names, for all prompts.
    """
    if len(inputs) == 1:
        return dict(inputs[0])
    length = max(row["input_ids"].shape[1] for row in inputs)
    batch: dict[str, torch.Tensor] = {}
    for name, fill in (("input_ids", pad_token_id), ("attention_mask", 0), ("mm_token_type_ids", 0)):
        parts = [F.pad(row[name], (length - row[name].shape[1], 0), value=fill) for row in inputs]
        batch[name] = torch.cat(parts)
    for name in ("pixel_values", "image_grid_thw", "latent_image_sizes"):
        if parts := [row[name] for row in inputs if row.get(name) is not None]:
            batch[name] = torch.cat(parts)
    if images := [row["latent_pixel_values"] for row in inputs if row.get("latent_pixel_values") is not None]:
        height, width = (max(image.shape[side] for image in images) for side in (2, 3))
        batch["latent_pixel_values"] = torch.cat(
            [F.pad(image, (0, width - image.shape[3], 0, height - image.shape[2])) for image in images]
        )
    return batch
