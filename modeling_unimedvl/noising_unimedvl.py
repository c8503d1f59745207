"""The latent images of a batch as tokens at their flow times, and what the flow has to predict (rectified flow).

Shape legend: T latent tokens, N noised tokens, M latent images, L latent token dimension.
"""

from dataclasses import dataclass
from typing import Any

import torch

from .flow_unimedvl import grid_position_ids, patchify_latents, shift_timesteps
from .plans_unimedvl import TokenRows


@dataclass(frozen=True)
class FlowTokens:
    """Latent tokens of a batch, in sequence order.

    Attributes:
        tokens_TL: float32, noised or clean.
        timesteps_M: flow time of each image in [0, 1], 0 where it is clean.
        image_index_T, position_ids_T: the image and the row of the position table of each token, int64.
        target_NL: `noise - latent` of the noised tokens.
    """

    tokens_TL: torch.Tensor
    timesteps_M: torch.Tensor
    image_index_T: torch.Tensor
    position_ids_T: torch.Tensor
    target_NL: torch.Tensor


def flow_tokens(
    config: Any,
    latents: list[torch.Tensor],
    rows: TokenRows,
    flow_noise: torch.Tensor | None,
    flow_timesteps: torch.Tensor | None,
    check_times: bool = True,
) -> FlowTokens:
    """Noise the latents that the batch wants noised: `x_t = (1 - t) x_0 + t noise`.

    Args:
        config: the model's, for sizes and the shift of times that are drawn here.
        latents: scaled latents (C, h, w) in sequence order.
        rows: of the batch; its tensors say on which device everything lies.
        flow_noise, flow_timesteps: see `UniMedVLForConditionalGeneration.forward`.
        check_times: look at the values of `flow_timesteps`, for which the host waits.

    Raises:
        ValueError: if latents, placeholders, noise or times do not fit each other.
    """
    device, size, dim = rows.gen_T.device, config.latent_patch_size, config.latent_dim
    if not latents and rows.gen_T.shape[0] == 0:
        nothing_TL = torch.zeros(0, dim, device=device)
        return FlowTokens(nothing_TL, torch.zeros(0, device=device), rows.gen_T, rows.gen_T, nothing_TL)
    grids = [(latent.shape[-2] // size, latent.shape[-1] // size) for latent in latents]
    counts = [height * width for height, width in grids]
    if sum(counts) != rows.gen_T.shape[0]:
        raise ValueError(
            f"The latent images make {sum(counts)} tokens but the sequence holds {rows.gen_T.shape[0]} latent "
            "placeholders: pass input_ids, mm_token_type_ids and images from one processor call."
        )
    clean_TL = torch.cat([patchify_latents(latent, size) for latent in latents]).to(device).float()
    # Shapes are known here: what follows from them is made here and sent, without waiting for the device.
    places = [grid_position_ids(*grid, config.max_latent_size, config.interpolate_pos) for grid in grids]
    position_ids_T = torch.cat(places).to(device, non_blocking=True)
    owners = torch.arange(len(latents)).repeat_interleave(torch.tensor(counts), output_size=sum(counts))
    image_index_T = owners.to(device, non_blocking=True)
    num_noised = rows.noised_N.shape[0]
    if flow_timesteps is None:
        # Reading clean images draws nothing, so that a seed means the same with and without them.
        drawn = torch.randn(len(latents), device=device) if num_noised else torch.zeros(len(latents), device=device)
        flow_timesteps = shift_timesteps(drawn.sigmoid(), config.timestep_shift)
    timesteps_M = torch.as_tensor(flow_timesteps, dtype=torch.float32, device=device)
    if timesteps_M.shape != (len(latents),):
        raise ValueError(
            f"flow_timesteps needs one value for each of the {len(latents)} latent images, "
            f"got shape {tuple(timesteps_M.shape)}."
        )
    noised_image_N = image_index_T[rows.noised_N]
    is_noised_M = torch.zeros(len(latents), dtype=torch.bool, device=device).index_fill(0, noised_image_N, True)
    timesteps_M = torch.where(is_noised_M, timesteps_M, 0.0)
    if check_times and not bool(((timesteps_M >= 0) & (timesteps_M <= 1)).all()):
        raise ValueError("flow_timesteps must lie in [0, 1] (after sigmoid and shift): 0 is data, 1 is noise.")
    if flow_noise is None:
        flow_noise = torch.randn(num_noised, dim, device=device)
    if flow_noise.shape != (num_noised, dim):
        raise ValueError(
            f"flow_noise has shape {tuple(flow_noise.shape)}, expected {(num_noised, dim)}: one row for "
            "each noised token."
        )
    data_NL = clean_TL[rows.noised_N]
    target_NL = flow_noise.to(clean_TL) - data_NL
    # Written from the target so that clean tokens stay untouched.
    noised_NL = data_NL + timesteps_M[noised_image_N, None] * target_NL
    tokens_TL = clean_TL.index_copy(0, rows.noised_N, noised_NL)
    return FlowTokens(tokens_TL, timesteps_M, image_index_T, position_ids_T, target_NL)
