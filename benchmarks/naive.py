"""The order in which the reference executes the model, over our weights: what the package's order is compared with.

Written from the rules of BAGEL and UniMedVL, with none of their code. One conversation at a time; every part of a
prompt and every guidance branch is a pass of its own; the two experts' tokens are gathered and scattered around every
linear layer; keys and values are copied into new tensors for every layer and token; index lists, lengths and positions
are made anew in Python for every pass; a training pack attends sample by sample under dense masks. Results equal the
package's.

Shape legend: S new tokens, K cached tokens, D hidden, H heads, G key/value heads, E head dimension, P patches,
T latent tokens, L latent token dimension, C latent channels.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from transformers.models.qwen2.modeling_qwen2 import rotate_half

from unimedvl.modeling_unimedvl.blocks_unimedvl import BlockKind
from unimedvl.modeling_unimedvl.flow_unimedvl import (
    FlowSettings,
    flow_schedule,
    grid_position_ids,
    guided_velocity,
    patchify_latents,
    unpatchify_latents,
)


@dataclass
class Context:
    """What one conversation has read so far.

    Attributes:
        keys, values: (K, G, E) of each layer, none before anything was read.
        length: K.
        position: RoPE id of what comes next.
    """

    keys: list[torch.Tensor] = field(default_factory=list)
    values: list[torch.Tensor] = field(default_factory=list)
    length: int = 0
    position: int = 0


@dataclass(frozen=True)
class Pass:
    """Where the tokens of one pass stand, made anew for each.

    Attributes:
        positions_S: RoPE ids.
        query_lengths, key_lengths: new and all tokens of each conversation, of which there is one.
        query_index_S, key_index_K: rows of new and cached tokens among all keys.
        und_index, gen_index: rows of each expert's tokens; None where all are understanding tokens.
        causal: a token sees no later one.
    """

    positions_S: torch.Tensor
    query_lengths: torch.Tensor
    key_lengths: torch.Tensor
    query_index_S: torch.Tensor
    key_index_K: torch.Tensor
    und_index: torch.Tensor | None
    gen_index: torch.Tensor | None
    causal: bool

    @classmethod
    def after(
        cls, context: Context, positions: list[int], latents: range | None = None, causal: bool = False
    ) -> "Pass":
        """A pass of new tokens, of which the rows `latents` are generation tokens, after a context."""
        count, past = len(positions), context.length
        gen = None if latents is None else list(latents)
        und = None if gen is None else sorted(set(range(count)) - set(gen))
        return cls(
            positions_S=torch.tensor(positions),
            query_lengths=torch.tensor([count]),
            key_lengths=torch.tensor([past + count]),
            query_index_S=torch.tensor(list(range(past, past + count))),
            key_index_K=torch.tensor(list(range(past)), dtype=torch.long),
            und_index=None if und is None else torch.tensor(und),
            gen_index=None if gen is None else torch.tensor(gen),
            causal=causal,
        )


Attend = Callable[[int, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]


class Naive:
    """A model executed in the reference's order.

    Args:
        model: a `UniMedVLForConditionalGeneration`, whose weights are used in place.
    """

    def __init__(self, model: Any):
        self.model, self.inner, self.config = model, model.model, model.config
        self.text_model = model.model.language_model
        self.text_config = model.config.text_config

    # The decoder

    def decoder(
        self,
        states_SD: torch.Tensor,
        positions_S: torch.Tensor,
        und_index: torch.Tensor | None,
        gen_index: torch.Tensor | None,
        attend: Attend,
    ) -> torch.Tensor:
        """All layers and the final norms, (S, D)."""
        angles_SE = (positions_S[:, None].float() * self.text_model.rotary_emb.inv_freq).repeat(1, 2)
        cos_SE, sin_SE = angles_SE.cos(), angles_SE.sin()

        def gathered(states: torch.Tensor) -> list[torch.Tensor]:
            if und_index is None:
                return [states]
            return [states[und_index], states[gen_index]]

        def norm(rows: torch.Tensor, module: Any) -> torch.Tensor:
            scale = torch.rsqrt(rows.pow(2).mean(-1, keepdim=True) + self.text_config.rms_norm_eps)
            return module.weight * (rows * scale)

        def feed_forward(rows: torch.Tensor, before: Any, mlp: Any) -> torch.Tensor:
            rows = norm(rows, before)
            return mlp.down_proj(F.silu(mlp.gate_proj(rows)) * mlp.up_proj(rows))

        def scattered(
            rows: list[torch.Tensor], functions: list[Callable[[torch.Tensor], torch.Tensor]]
        ) -> torch.Tensor:
            results = [function(part) for part, function in zip(rows, functions, strict=False)]
            if und_index is None:
                return results[0]
            out = results[0].new_zeros((len(positions_S), *results[0].shape[1:]))
            out[und_index], out[gen_index] = results
            return out

        def linear(rows: list[torch.Tensor], module: Any, name: str) -> torch.Tensor:
            return scattered(rows, [getattr(module, name), getattr(module, f"{name}_moe_gen")])

        def normed(states: torch.Tensor, module: Any, name: str) -> torch.Tensor:
            modules = getattr(module, name), getattr(module, f"{name}_moe_gen")
            return scattered(gathered(states), [partial(norm, module=chosen) for chosen in modules])

        def rotated(heads: torch.Tensor) -> torch.Tensor:
            return heads * cos_SE[:, None] + rotate_half(heads) * sin_SE[:, None]

        for index, layer in enumerate(self.text_model.layers):
            attention = layer.self_attn
            rows = gathered(normed(states_SD, layer, "input_layernorm"))
            query, key, value = (
                linear(rows, attention, f"{name}_proj").unflatten(-1, (-1, attention.head_dim)) for name in "qkv"
            )
            query, key = rotated(normed(query, attention, "q_norm")), rotated(normed(key, attention, "k_norm"))
            mixed_SD = attend(index, query, key, value).flatten(1)
            states_SD = states_SD + linear(gathered(mixed_SD), attention, "o_proj")
            und = partial(feed_forward, before=layer.post_attention_layernorm, mlp=layer.mlp)
            gen = partial(feed_forward, before=layer.post_attention_layernorm_moe_gen, mlp=layer.mlp_moe_gen)
            states_SD = states_SD + scattered(gathered(states_SD), [und, gen])
        return normed(states_SD, self.text_model, "norm")

    # Reading and continuing a context

    def run(self, states_SD: torch.Tensor, place: Pass, context: Context, write: bool) -> torch.Tensor:
        """One pass over a context, (S, D). `write` makes the new tokens part of the context."""
        written: list[tuple[torch.Tensor, torch.Tensor]] = []

        def grown(new_SGE: torch.Tensor, cached_KGE: torch.Tensor) -> torch.Tensor:
            total = int(place.key_lengths.sum())
            merged = new_SGE.new_zeros((total, *new_SGE.shape[1:]))
            merged[place.query_index_S] = new_SGE
            merged[place.key_index_K] = cached_KGE
            return merged

        def attend(index: int, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
            if context.keys:
                key, value = grown(key, context.keys[index]), grown(value, context.values[index])
            written.append((key, value))
            queries = int(place.query_lengths.max())
            keys = int(place.key_lengths.max())
            mask = None
            if place.causal and queries > 1:
                mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
            query, key, value = (part.transpose(0, 1)[None] for part in (query, key, value))
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=mask, enable_gqa=True)
            return mixed[0].transpose(0, 1)

        hidden_SD = self.decoder(states_SD, place.positions_S, place.und_index, place.gen_index, attend)
        if write:
            context.keys, context.values = (list(states) for states in zip(*written, strict=True))
            context.length += len(states_SD)
        return hidden_SD

    def scattered(self, parts: list[tuple[list[int], torch.Tensor]]) -> torch.Tensor:
        """Input rows (S, D) put together from parts at given rows."""
        rows = sum(len(index) for index, _ in parts)
        states = parts[0][1].new_zeros(rows, self.text_config.hidden_size)
        for index, values in parts:
            states[torch.tensor(index)] = values
        return states

    def between_markers(self, rows_SD: torch.Tensor) -> torch.Tensor:
        """An image's rows with its two markers around it."""
        count = len(rows_SD)
        markers = torch.tensor([self.config.vision_start_token_id, self.config.vision_end_token_id])
        embeds = self.text_model.embed_tokens(markers)
        return self.scattered([([0, count + 1], embeds), (list(range(1, count + 1)), rows_SD)])

    def read_text(self, context: Context, ids: list[int]) -> None:
        """Add a text, ids with their markers, to a context."""
        positions = list(range(context.position, context.position + len(ids)))
        states_SD = self.text_model.embed_tokens(torch.tensor(ids))
        self.run(states_SD, Pass.after(context, positions, causal=True), context, write=True)
        context.position += len(ids)

    def read_patches(self, context: Context, patches: torch.Tensor, grid: tuple[int, int]) -> None:
        """Add an image as ViT patches (P, patch values) to a context."""
        states_SD = self.between_markers(self.vision(patches, [grid]))
        place = Pass.after(context, [context.position] * len(states_SD))
        self.run(states_SD, place, context, write=True)
        context.position += 1

    def read_latent(self, context: Context, latent: torch.Tensor) -> None:
        """Add an image as a clean latent (C, h, w) to a context."""
        patch_size = self.config.latent_patch_size
        tokens_TL = patchify_latents(latent, patch_size)
        grid = (latent.shape[1] // patch_size, latent.shape[2] // patch_size)
        states_SD = self.between_markers(self.latent_rows(tokens_TL, [0.0] * len(tokens_TL), [grid]))
        place = Pass.after(context, [context.position] * len(states_SD), range(1, len(states_SD) - 1))
        self.run(states_SD, place, context, write=True)
        context.position += 1

    @torch.no_grad()
    def read(self, context: Context, inputs: Mapping[str, torch.Tensor], latents: list[torch.Tensor]) -> list[Context]:
        """Add a prompt to a context, part by part.

        Args:
            inputs: one row, as the processor returns it.
            latents: (C, h, w) of its images for the autoencoder.

        Returns:
            Copies of the context as it was before each text.
        """
        ids = inputs["input_ids"][0].tolist()
        kinds = inputs["mm_token_type_ids"][0].tolist() if "mm_token_type_ids" in inputs else [0] * len(ids)
        grids = [(rows, columns) for _, rows, columns in inputs["image_grid_thw"].tolist()] if any(kinds) else []
        patches = iter(inputs["pixel_values"].split([rows * columns for rows, columns in grids]) if grids else ())
        places, encoded, before = iter(grids), iter(latents), []
        while ids:
            end = ids.index(self.config.vision_end_token_id if kinds[1:2] > [0] else self.config.eos_token_id) + 1
            if kinds[1:2] == [BlockKind.VIT]:
                self.read_patches(context, next(patches), next(places))
            elif kinds[1:2] == [BlockKind.CLEAN]:
                self.read_latent(context, next(encoded))
            else:
                before.append(copy.deepcopy(context))
                self.read_text(context, ids[:end])
            ids, kinds = ids[end:], kinds[end:]
        return before

    # Images

    def vision(self, patches: torch.Tensor, grids: list[tuple[int, int]]) -> torch.Tensor:
        """Input rows (P, D) of the patches of images, each of which attends to itself."""
        side, vit = self.config.vit_max_num_patch_per_side, self.inner.vit_model
        positions_P = torch.cat([grid_position_ids(*grid, side) for grid in grids])
        states = vit.embeddings(patches, positions_P)
        lengths = [rows * columns for rows, columns in grids]
        for layer in vit.encoder.layers:
            attention, normed = layer.self_attn, layer.layer_norm1(states)
            query, key, value = (
                getattr(attention, f"{name}_proj")(normed).unflatten(-1, (-1, attention.head_dim)) for name in "qkv"
            )
            mixed = [
                F.scaled_dot_product_attention(*(part.transpose(0, 1)[None] for part in parts))[0].transpose(0, 1)
                for parts in zip(*(states.split(lengths) for states in (query, key, value)), strict=True)
            ]
            states = states + attention.out_proj(torch.cat(mixed).flatten(1))
            states = states + layer.mlp(layer.layer_norm2(states))
        rows = self.inner.connector(vit.post_layernorm(states))
        return rows + self.inner.vit_pos_embed(positions_P)

    def latent_rows(self, tokens_TL: torch.Tensor, times: Any, grids: list[tuple[int, int]]) -> torch.Tensor:
        """Input rows (T, D) of latent tokens, the time embedded for every token."""
        side = self.config.max_latent_size
        positions_T = torch.cat([grid_position_ids(*grid, side) for grid in grids])
        time_TD = self.inner.time_embedder(torch.as_tensor(times), tokens_TL.dtype)
        return self.inner.vae2llm(tokens_TL) + time_TD + self.inner.latent_pos_embed(positions_T)

    @torch.no_grad()
    def encode(self, images: list[torch.Tensor], noise: list[torch.Tensor]) -> list[torch.Tensor]:
        """Latents (C, h, w) of images (3, H, W), one after another."""
        config, latents = self.config.vae_config, []
        for image, draw in zip(images, noise, strict=True):
            posterior = self.inner.vae.encode(image[None]).latent_dist
            sample = posterior.mean[0] + posterior.std[0] * draw
            latents.append(config.scaling_factor * (sample - config.shift_factor))
        return latents

    @torch.no_grad()
    def decode(self, latents: list[torch.Tensor]) -> list[torch.Tensor]:
        """Pixels (3, H, W) of latents (C, h, w), one after another."""
        config = self.config.vae_config
        return [
            self.inner.vae.decode(latent[None] / config.scaling_factor + config.shift_factor).sample[0]
            for latent in latents
        ]

    # Generation

    @torch.no_grad()
    def written(self, context: Context) -> Iterator[int]:
        """Ids of a greedy text after a context, without markers. The context stays as it is."""
        context = copy.deepcopy(context)
        token = torch.tensor([self.config.bos_token_id])
        while True:
            place = Pass.after(context, [context.position], causal=True)
            hidden_SD = self.run(self.text_model.embed_tokens(token), place, context, write=True)
            token = self.model.lm_head(hidden_SD).argmax(dim=-1)
            context.position += 1
            if bool(token[0] == self.config.eos_token_id):
                return
            yield int(token)

    @torch.no_grad()
    def denoised(
        self, contexts: dict[str, Context], grid: tuple[int, int], noise_TL: torch.Tensor, settings: FlowSettings
    ) -> Iterator[torch.Tensor]:
        """Latent tokens (T, L) of one image after each Euler update.

        Args:
            contexts: "cond", "text" (without the last text) and, for its guidance, "image" (without images).
            grid: (rows, columns) in latent tokens.
            noise_TL: initial latent tokens.
        """
        schedule, tokens_TL = flow_schedule(settings.num_inference_steps, settings.timestep_shift), noise_TL
        names = ("cond", "text", "image") if settings.image_guidance_scale > 1 else ("cond", "text")
        for time, following in zip(schedule[:-1], schedule[1:], strict=True):
            guided = settings.guides(time.item())
            branches = {
                name: self.velocity(contexts[name], grid, tokens_TL, time) for name in (names if guided else names[:1])
            }
            velocity = branches["cond"]
            if guided:
                velocity = guided_velocity(
                    velocity[None], branches["text"][None], branches.get("image", velocity)[None], settings
                )[0]
            tokens_TL = tokens_TL - velocity * (time - following)
            yield tokens_TL

    def velocity(
        self, context: Context, grid: tuple[int, int], tokens_TL: torch.Tensor, time: torch.Tensor
    ) -> torch.Tensor:
        """Velocity (T, L) of a noised image over a context, which is not written to."""
        count = len(tokens_TL)
        times = torch.tensor([time] * count)
        states_SD = self.between_markers(self.latent_rows(tokens_TL, times, [grid]))
        place = Pass.after(context, [context.position] * len(states_SD), range(1, count + 1))
        hidden_SD = self.run(states_SD, place, context, write=False)
        return self.inner.llm2vae(hidden_SD[place.gen_index])

    def latent(self, tokens_TL: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
        """Latent tokens as a latent (C, h, w)."""
        return unpatchify_latents(tokens_TL, *grid, self.config.latent_patch_size)
