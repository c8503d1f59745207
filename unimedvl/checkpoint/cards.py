"""Cards of what training, merging and exporting write: front matter for the Hub, origin, and what it is not for.

A card never names a folder of this machine, whose path may name a person.
"""

from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from .adapter_folder import Adapter
from .folder import Checkpoint

_NOTICE = """> **Research use only.** Not a medical device; not for diagnosis, treatment or any clinical decision.
> Generated images are synthetic."""
_TAGS = ["medical", "vision-language", "unimedvl", "research-only"]


def adapter_card(adapter: Adapter, base: Checkpoint) -> str:
    """The card of an adapter that training wrote: `library_name: peft`, the base, and how to load both."""
    settings = adapter.settings
    sizes = ", ".join(f"{word} {settings[key]}" for key, word in (("r", "rank"), ("lora_alpha", "alpha")))
    method = "DoRA" if settings.get("use_dora") else adapter.method.replace("LORA", "LoRA")
    packed = f", with the base in 4 bits ({adapter.record['quantize']})" if adapter.record.get("quantize") else ""
    data = _front_matter(base, library_name="peft", tags=[*_TAGS, method.lower()])
    return _card(
        data,
        f"# {method} adapter for {base.name}",
        f"{method} ({sizes}) on {base.name}, revision `{base.revision}`, trained with unimedvl{packed}. Only the "
        "adapter's weights are here; the base is needed to use them.",
        _NOTICE,
        '    unimedvl ask --model ADAPTER --base BASE --image scan.png "What is shown?"\n'
        "    unimedvl merge ADAPTER CHECKPOINT --base BASE",
    )


def merged_card(name: str, adapter: Adapter, base: Checkpoint) -> str:
    """The card of a merged checkpoint."""
    data = _front_matter(
        base, library_name="transformers", tags=_TAGS, pipeline_tag="any-to-any", base_model_relation="finetune"
    )
    return _card(
        data,
        f"# {name}",
        f"The checkpoint {base.name}, revision `{base.revision}`, with the adapter {adapter.name}, revision "
        f"`{adapter.revision}`, merged into its weights. `merge.json` says so for programs.",
        _NOTICE,
        '    unimedvl ask --model CHECKPOINT --image scan.png "What is shown?"',
    )


def pipeline_card(name: str, base: Checkpoint) -> str:
    """The card of a checkpoint that was exported as a diffusers pipeline."""
    data = _front_matter(base, library_name="diffusers", tags=_TAGS, pipeline_tag="text-to-image")
    return _card(
        data,
        f"# {name}",
        f"The checkpoint {base.name}, revision `{base.revision}`, as a diffusers pipeline with its own code. It makes "
        "images; for answers use the checkpoint itself.",
        _NOTICE,
        "    import torch\n"
        "    from diffusers import DiffusionPipeline\n\n"
        "    pipe = DiffusionPipeline.from_pretrained(PIPELINE, trust_remote_code=True)\n"
        '    image = pipe("a chest X-ray", generator=torch.Generator().manual_seed(0)).images[0]',
    )


def _front_matter(base: Checkpoint, **fields: Any) -> ModelCardData:
    """With the license of the base's card, and with the base itself where it is on the Hub."""
    name, commit = base.source
    if commit is None:
        fields.pop("base_model_relation", None)
    else:
        fields["base_model"] = name
    return ModelCardData(license=_license(base.directory), **fields)


def _license(folder: Path) -> str | None:
    if not (folder / "README.md").is_file():
        return None
    try:
        return ModelCard.load(folder / "README.md").data.license
    # Front matter that is not YAML, in somebody's own card.
    except ValueError:
        return None


def _card(data: ModelCardData, *paragraphs: str) -> str:
    body = "\n\n".join(paragraphs)
    return f"---\n{data.to_yaml()}\n---\n\n{body}\n"
