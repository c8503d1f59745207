"""Model inputs for the tiny model, built token by token so that the tests need no tokenizer."""

import torch
import torch.nn.functional as F

from unimedvl.modeling_unimedvl.blocks_unimedvl import BlockKind

PATCH_VALUES = 6 * 6 * 3


def conversation(config, parts, *, seed=0, answer=False) -> dict:
    """One row from parts: a list of ids is a text turn, ("vit", rows, columns), ("latent", rows, columns) an image.

    `answer=True` ends with the BOS that starts an answer.
    """
    generator = torch.Generator().manual_seed(seed)
    ids, kinds, patches, grids, images, sizes = [], [], [], [], [], []
    for part in parts:
        if isinstance(part, list):
            turn = [config.bos_token_id, *part, config.eos_token_id]
            ids += turn
            kinds += [0] * len(turn)
            continue
        name, rows, columns = part
        count = rows * columns
        latent = name == "latent"
        token = config.latent_token_id if latent else config.image_token_id
        ids += [config.vision_start_token_id, *[token] * count, config.vision_end_token_id]
        kinds += [0, *[int(BlockKind.CLEAN if latent else BlockKind.VIT)] * count, 0]
        if latent:
            unit = config.pixels_per_latent_token
            images.append(torch.rand(3, rows * unit, columns * unit, generator=generator) * 2 - 1)
            sizes.append((rows * unit, columns * unit))
        else:
            patches.append(torch.rand(count, PATCH_VALUES, generator=generator) * 2 - 1)
            grids.append((1, rows, columns))
    if answer:
        ids.append(config.bos_token_id)
        kinds.append(0)
    inputs = {
        "input_ids": torch.tensor([ids]),
        "attention_mask": torch.ones(1, len(ids), dtype=torch.long),
        "mm_token_type_ids": torch.tensor([kinds]),
    }
    if patches:
        inputs |= {"pixel_values": torch.cat(patches), "image_grid_thw": torch.tensor(grids)}
    if images:
        inputs |= _padded_images(images, sizes)
    return inputs


def _padded_images(images, sizes) -> dict:
    height, width = (max(side) for side in zip(*sizes, strict=True))
    padded = [F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images]
    return {"latent_pixel_values": torch.stack(padded), "latent_image_sizes": torch.tensor(sizes)}


def collate(rows: list[dict], pad_token_id: int, side: str = "left") -> dict:
    """Pad rows to one batch."""
    width = max(row["input_ids"].shape[1] for row in rows)

    def padded(row, name, value):
        missing = width - row[name].shape[1]
        return F.pad(row[name], (missing, 0) if side == "left" else (0, missing), value=value)

    batch = {
        name: torch.cat([padded(row, name, value) for row in rows])
        for name, value in (("input_ids", pad_token_id), ("attention_mask", 0), ("mm_token_type_ids", 0))
    }
    for name in ("pixel_values", "image_grid_thw"):
        values = [row[name] for row in rows if name in row]
        if values:
            batch[name] = torch.cat(values)
    images = [
        image[:, :height, :width_]
        for row in rows
        if "latent_pixel_values" in row
        for image, (height, width_) in zip(row["latent_pixel_values"], row["latent_image_sizes"].tolist(), strict=True)
    ]
    if images:
        batch |= _padded_images(images, [image.shape[1:] for image in images])
    return batch


def noises(config, inputs: dict, seed: int = 5) -> list[torch.Tensor]:
    """Posterior noise for every latent image of a row or batch."""
    generator = torch.Generator().manual_seed(seed)
    factor = config.vae_config.downsample
    return [
        torch.randn(config.vae_config.latent_channels, height // factor, width // factor, generator=generator)
        for height, width in inputs.get("latent_image_sizes", torch.zeros(0, 2)).long().tolist()
    ]


def initial_latents(config, grids, seed: int = 9) -> list[torch.Tensor]:
    """Initial noise for images of the given token grids."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(rows * columns, config.latent_dim, generator=generator) for rows, columns in grids]


def marker_ids(config) -> dict[str, int]:
    """The token ids that `pack_samples` asks for."""
    names = ("bos", "eos", "vision_start", "vision_end", "image", "latent")
    return {f"{name}_token_id": getattr(config, f"{name}_token_id") for name in names}
