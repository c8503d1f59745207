"""What a run reports of itself: losses by task and modality, shares, padding, speed, floating point operations."""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from unimedvl.modeling_unimedvl.plans_unimedvl import PackPlan

from ..checkpoints import gather
from ..data.collate import BatchInfo, SampleInfo
from .parameter_groups import part_of

# Dense bfloat16 teraflops as the vendor states them, by what the device's name contains.
PEAK_TFLOPS = {"A100": 312.0, "A800": 312.0, "H100": 989.0, "H800": 989.0, "H200": 989.0}


class StepMetrics:
    """Sums of one stretch of training, over the micro-batches of this process. Losses stay on the device until
    `close`."""

    def __init__(self) -> None:
        self._losses: list[tuple[str, SampleInfo, int]] = []
        self._loss_sums: list[torch.Tensor] = []
        self.sums: dict[str, list[float]] = {}
        self.samples: Counter[str] = Counter()
        self.totals: Counter[str] = Counter()

    def add(self, name: str, value: float, weight: float) -> None:
        """Add to what will be a mean."""
        sums = self.sums.setdefault(name, [0.0, 0.0])
        sums[0] += value
        sums[1] += weight

    def count(self, infos: list[BatchInfo]) -> None:
        """Padding and shares of micro-batches."""
        for info in infos:
            tokens = sum(sample.num_tokens for sample in info.samples)
            self.add("padding", info.capacity - tokens, info.capacity)
            self.totals["tokens"] += tokens
            for sample in info.samples:
                self.samples[f"share/{sample.group}"] += 1
                self.samples[f"share/modality/{sample.modality}"] += 1
                self.totals["samples"] += 1

    @torch.no_grad()
    def add_losses(self, output: Any, inputs: Mapping[str, Any], info: BatchInfo) -> None:
        """The losses of a forward pass, by task and modality.

        Args:
            output: of `forward`.
            inputs: its arguments, with the `plan`.
            info: of the micro-batch.
        """
        plan: PackPlan = inputs["plan"]
        before = [sum(sample.row < row for sample in info.samples) for row in range(plan.layout.kinds_BS.shape[0])]
        first = torch.tensor(before)[:, None].to(plan.labeled_A.device, non_blocking=True)
        assert plan.layout.sample_ids_BS is not None
        owners = (plan.layout.sample_ids_BS + first).flatten()
        if len(plan.labeled_A):
            counts = [sample.label_tokens for sample in info.samples]
            self._by_sample("ce", output.label_losses, owners[plan.labeled_A], info, counts)
        if len(plan.rows.noised_N):
            errors = (output.velocity.detach().float() - output.flow_target.float()).square().mean(dim=-1)
            counts = [sample.flow_tokens for sample in info.samples]
            self._by_sample("mse", errors, owners[plan.rows.gen_T[plan.rows.noised_N]], info, counts)

    def _by_sample(
        self, loss: str, values: torch.Tensor, owners: torch.Tensor, info: BatchInfo, counts: list[int]
    ) -> None:
        self._loss_sums.append(torch.zeros(len(counts), device=values.device).index_add_(0, owners, values))
        self._losses += [(loss, sample, count) for sample, count in zip(info.samples, counts, strict=True)]

    def _read_losses(self) -> None:
        if not self._losses:
            return
        totals = torch.cat(self._loss_sums).tolist()
        for (loss, sample, count), total in zip(self._losses, totals, strict=True):
            if count:
                for name in (loss, f"{loss}/{sample.task}", f"{loss}/modality/{sample.modality}"):
                    self.add(name, total, count)
        self._losses, self._loss_sums = [], []

    def close(self) -> tuple[dict[str, float], Counter[str]]:
        """Means and shares over all processes, and the sums of tokens, samples and operations; starts anew."""
        self._read_losses()
        gathered = gather((self.sums, self.samples, self.totals))
        names = sorted({name for sums, _, _ in gathered for name in sums})
        means = {}
        for name in names:
            total, weight = (sum(sums.get(name, (0.0, 0.0))[place] for sums, _, _ in gathered) for place in (0, 1))
            means[name] = total / weight
        samples: Counter[str] = sum((found for _, found, _ in gathered), Counter())
        totals: Counter[str] = sum((found for _, _, found in gathered), Counter())
        means |= {name: count / totals["samples"] for name, count in sorted(samples.items())}
        self.sums, self.samples, self.totals = {}, Counter(), Counter()
        return means, totals


# What reads inputs: no gradient passes through it.
_FIRST = ("vae2llm.", "patch_embedding.", "time_embedder.mlp.0.")


class Operations:
    """Floating point operations of training steps, without those that checkpointing repeats.

    Two for each weight and token forwards and four backwards, in the expert that the token goes through. Frozen
    weights take two backwards where something before them is trained, and none elsewhere. Attention takes four times
    layers, width and the squared length of each sample (in the ViT, of each image) forwards, whether a mask hides
    some of it or not, and twice that backwards where gradients pass. Where all is
    trained, this is just what torch counts.
    """

    def __init__(self, model: nn.Module):
        trained = {_weight_kind(name) for name, weight in model.named_parameters() if weight.requires_grad}
        self.costs: Counter[str] = Counter()  # of a token (of an image for "time"), by part
        for name, parameter in model.named_parameters():
            part = _weight_kind(name)
            # Gradients reach the language model's frozen weights from whatever lies before them, too; those of inputs
            # are never computed.
            before = {"vit": {"vit"}, "connector": {"vit", "connector"}, "time": {"time"}}.get(
                part, trained - {"head"}
            )
            passed = bool(trained & before) and not any(first in name for first in _FIRST)
            backward = 2 * parameter.requires_grad + 2 * passed
            self.costs[part] += (2 + backward) * _matrix_elements(parameter)
        config: Any = model.config
        text, vision = config.text_config, config.vision_config
        # Backwards, attention costs nothing where neither its layers nor anything before them are trained.
        self.attention = (12 if trained - {"head"} else 4) * text.num_hidden_layers * text.hidden_size
        self.vit_attention = (12 if "vit" in trained else 4) * vision.num_hidden_layers * vision.hidden_size

    def __call__(self, batch: Mapping[str, Any]) -> int:
        """Operations of one micro-batch, on this process.

        Args:
            batch: a collated micro-batch with its `PackPlan` under "plan" and its `BatchInfo` under "info".
        """
        info: BatchInfo = batch["info"]
        plan: PackPlan = batch["plan"]
        tokens = {
            "und": sum(sample.num_tokens for sample in info.samples) - len(plan.rows.gen_T),
            "gen": len(plan.rows.gen_T),
            "vit": len(plan.rows.vit_P),
            "connector": len(plan.rows.vit_P),
            "time": len(batch.get("flow_timesteps", ())),
            "head": len(plan.labeled_A),
        }
        linear = sum(self.costs[part] * count for part, count in tokens.items())
        attention = self.attention * sum(sample.num_tokens**2 for sample in info.samples)
        return linear + attention + self.vit_attention * sum((rows * columns) ** 2 for rows, columns in plan.vit_grids)


def _matrix_elements(parameter: nn.Parameter) -> int:
    """Elements of a matrix, 0 for anything else; of 4-bit weights those that they represent."""
    packed = getattr(parameter, "quant_state", None)
    shape = parameter.shape if packed is None else packed.shape
    return math.prod(shape) if len(shape) > 1 else 0


def _weight_kind(name: str) -> str:
    part = part_of(name)
    if part == "vae" or any(table in name for table in ("pos_embed", "position_embedding", "embed_tokens")):
        return "none"
    if "_moe_gen" in name or any(f"{latent}." in name for latent in ("vae2llm", "llm2vae")):
        return "gen"
    if "connector." in name or "time_embedder." in name:
        return "connector" if "connector." in name else "time"
    if "lm_head." in name:
        return "head"
    return "und" if part == "llm" else "vit"


def peak_flops(stated: float) -> float | None:
    """Operations per second that the device can do: as stated in teraflops, or looked up; None if not known."""
    if stated:
        return stated * 1e12
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        return next((peak * 1e12 for part, peak in PEAK_TFLOPS.items() if part in name), None)
    return None
