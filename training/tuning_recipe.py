"""What a fine-tuning run is: the adapter it trains and, for tuning on answers or rewards, the method and its data."""

from dataclasses import dataclass, field
from typing import Any

ADAPTER_METHODS = ("lora", "dora")
EXPERTS = ("understanding", "generation", "both")
TUNING_METHODS = ("sft", "dpo", "grpo", "flow_grpo")


@dataclass
class AdapterRecipe:
    """A trainable adapter on a frozen base.

    Attributes:
        method: "lora", or "dora" (a weight's change split into magnitude and direction).
        experts: whose linear layers it sits on: "understanding", "generation" or "both".
        vit: whether it also sits on the image encoder's.
        rank, alpha, dropout: LoRA's; `alpha` is twice the rank if None.
        quantize: "nf4" loads the experts' base weights in 4 bits (QLoRA); nothing if empty.
    """

    method: str = "lora"
    experts: str = "both"
    vit: bool = False
    rank: int = 16
    alpha: int | None = None
    dropout: float = 0.0
    quantize: str = ""

    def __post_init__(self) -> None:
        _one_of("adapter.method", self.method, ADAPTER_METHODS)
        _one_of("adapter.experts", self.experts, EXPERTS)
        _one_of("adapter.quantize", self.quantize, ("", "nf4"))
        if self.rank < 1:
            raise ValueError(f"adapter.rank must be 1 or more, not {self.rank}.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"adapter.dropout must lie in [0, 1), not {self.dropout}.")


@dataclass
class RecordChoice:
    """Which records of a folder are used, see `trl_datasets.read_records`.

    Attributes:
        path: folder of built or published records.
        tasks, sources: values of `sub_task_type` and `dataset` to keep; all if empty.
        split: "train", "validation" or "test".
        limit: keep that many, the same ones every time; all if None.
    """

    path: str
    tasks: list[str] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    split: str = "train"
    limit: int | None = None


@dataclass
class TuningRecipe:
    """Tuning on answers ("sft"), preferences ("dpo") or rewards ("grpo" for text, "flow_grpo" for images).

    Attributes:
        method: one of `TUNING_METHODS`.
        model: checkpoint to start from, a folder or a name on the Hub.
        output_dir: checkpoints, logs, and the finished adapter in `final`.
        train, evaluation: records to train on, and held-out ones.
        adapter: see `AdapterRecipe`.
        rewards: weights of the rewards by name, see `rewards`; for the last two methods.
        arguments: fields of TRL's `SFTConfig`, `DPOConfig` or `GRPOConfig`, or of `FlowGRPOArguments`.
        bf16: keep the frozen base and compute in bfloat16; float32 otherwise.
        seed: of the adapter's start, the order of the data and all sampling.
    """

    method: str
    model: str
    output_dir: str
    train: RecordChoice
    evaluation: RecordChoice | None = None
    adapter: AdapterRecipe = field(default_factory=AdapterRecipe)
    rewards: dict[str, float] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    bf16: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        _one_of("method", self.method, TUNING_METHODS)
        rewarded = self.method in ("grpo", "flow_grpo")
        if rewarded != bool(self.rewards):
            raise ValueError(
                f"method {self.method} {'needs `rewards`: name' if rewarded else 'reads no `rewards`: leave out'} "
                f"{'at least one with its weight' if rewarded else 'the section'}."
            )
        own = {"output_dir", "seed", "bf16"} & self.arguments.keys()
        if own:
            raise ValueError(f"arguments.{min(own)} is set twice: use the recipe's own {min(own)}.")


def _one_of(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{name} must be one of {', '.join(repr(entry) for entry in allowed)}, not {value!r}.")
