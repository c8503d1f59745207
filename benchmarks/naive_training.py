"""A packed training step in the reference's order of execution, see `benchmarks.naive`.

Shape legend: as there; N noised tokens, Q labeled tokens.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from unimedvl.modeling_unimedvl.blocks_unimedvl import BlockKind, block_layout, dense_mask
from unimedvl.modeling_unimedvl.flow_unimedvl import patchify_latents

from .naive import Naive


@dataclass(frozen=True)
class NaivePack:
    """What the reference's data loader hands to a step: index lists instead of kinds, and a mask for each sample.

    Attributes:
        text_ids, text_index: ids of text and markers, and their rows.
        vit_index, latent_index, noised_index: rows of ViT patches, latent tokens and noised ones.
        positions_S: RoPE ids.
        lengths: tokens of each sample.
        masks: (S, S) of each sample, 0 where a key may be seen and -inf elsewhere.
        labels_Q, label_index: ids to predict, and the rows that predict them.
        images: `pixel_values`, `image_grid_thw`, `latent_values`, `flow_noise`, `flow_timesteps` of the pack.
    """

    text_ids: torch.Tensor
    text_index: torch.Tensor
    vit_index: torch.Tensor
    latent_index: torch.Tensor
    noised_index: torch.Tensor
    positions_S: torch.Tensor
    lengths: list[int]
    masks: list[torch.Tensor]
    labels_Q: torch.Tensor
    label_index: torch.Tensor
    images: dict[str, Any]

    @classmethod
    def from_pack(cls, pack: dict[str, Any]) -> "NaivePack":
        """Split what `pack_samples` and the images' inputs describe. The latents are all noised."""
        ids, kinds, samples = (pack[name][0] for name in ("input_ids", "mm_token_type_ids", "sample_ids"))
        assert not bool((kinds == BlockKind.CLEAN).any()), "noised latents only"
        lengths = torch.bincount(samples).tolist()
        masks = []
        for part in pack["mm_token_type_ids"].split(lengths, dim=1):
            allowed = dense_mask(block_layout(part))[0]
            masks.append(torch.zeros(allowed.shape).masked_fill(~allowed, float("-inf")))
        following = F.pad(pack["labels"][0, 1:], (0, 1), value=-100)
        text_index = (kinds == BlockKind.TEXT).nonzero()[:, 0]
        label_index = (following != -100).nonzero()[:, 0]
        noised_index = (kinds == BlockKind.NOISED).nonzero()[:, 0]
        names = ("pixel_values", "image_grid_thw", "latent_values", "flow_noise", "flow_timesteps")
        return cls(
            text_ids=ids[text_index],
            text_index=text_index,
            vit_index=(kinds == BlockKind.VIT).nonzero()[:, 0],
            latent_index=noised_index,
            noised_index=noised_index,
            positions_S=pack["position_ids"][0],
            lengths=lengths,
            masks=masks,
            labels_Q=following[label_index],
            label_index=label_index,
            images={name: pack[name] for name in names if name in pack},
        )


def training_loss(naive: Naive, pack: NaivePack) -> torch.Tensor:
    """Cross entropy and flow loss of a pack, weighted as the configuration says."""
    config, inner, images = naive.config, naive.inner, pack.images
    text_SD = naive.text_model.embed_tokens(pack.text_ids)
    states_SD = text_SD.new_zeros(sum(pack.lengths), text_SD.shape[1])
    states_SD[pack.text_index] = text_SD
    und_index = pack.text_index
    if len(pack.vit_index):
        grids = [(rows, columns) for _, rows, columns in images["image_grid_thw"].tolist()]
        states_SD[pack.vit_index] = naive.vision(images["pixel_values"], grids)
        und_index = torch.cat([pack.text_index, pack.vit_index])
    target_NL = None
    if len(pack.latent_index):
        patch_size = config.latent_patch_size
        sizes = [(latent.shape[1] // patch_size, latent.shape[2] // patch_size) for latent in images["latent_values"]]
        clean_TL = torch.cat([patchify_latents(latent, patch_size) for latent in images["latent_values"]])
        counts = torch.tensor([rows * columns for rows, columns in sizes])
        times_T = images["flow_timesteps"].repeat_interleave(counts)
        noise_TL = images["flow_noise"]
        noised_TL = (1 - times_T[:, None]) * clean_TL + times_T[:, None] * noise_TL
        states_SD[pack.latent_index] = naive.latent_rows(noised_TL, times_T, sizes)
        target_NL = (noise_TL - clean_TL)[times_T > 0]

    groups = naive.text_config.num_attention_heads // naive.text_config.num_key_value_heads

    def attend(index: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        mixed, start = torch.zeros_like(query), 0
        for length, mask in zip(pack.lengths, pack.masks, strict=True):
            rows = slice(start, start + length)
            parts = (query[rows], *(part[rows].repeat_interleave(groups, dim=1) for part in (key, value)))
            queries, keys, values = (part.transpose(0, 1)[None] for part in parts)
            mixed[rows] = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)[0].transpose(0, 1)
            start += length
        return mixed

    hidden_SD = naive.decoder(states_SD, pack.positions_S, und_index, pack.latent_index, attend)
    loss = hidden_SD.new_zeros(())
    if len(pack.label_index):
        logits_QV = naive.model.lm_head(hidden_SD[pack.label_index])
        losses_Q = F.cross_entropy(logits_QV, pack.labels_Q, reduction="none")
        loss = loss + config.ce_loss_weight * losses_Q.sum() / len(losses_Q)
    if target_NL is not None:
        velocity_NL = inner.llm2vae(hidden_SD[pack.noised_index])
        errors_N = ((velocity_NL - target_NL) ** 2).mean(dim=-1)
        loss = loss + config.mse_loss_weight * errors_N.sum() / len(errors_N)
    return loss
