"""One call from the name of a checkpoint to a model and a processor, with every tensor accounted for."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, cast

import torch

from ..modeling_unimedvl.upstream_layout_unimedvl import build_config, is_upstream_layout, upstream_config_dict
from ..modeling_unimedvl.upstream_weights_unimedvl import GENERATION_HALF, model_shapes, require_exact_fit
from ..utils.errors import first_line
from ..utils.json_files import read_json
from .adapter_folder import Adapter, joined, open_adapter, open_base, put_on
from .folder import Checkpoint, default_model, is_adapter, locate, open_place

if TYPE_CHECKING:
    from transformers import BitsAndBytesConfig

    from ..modeling_unimedvl.configuration_unimedvl import UniMedVLConfig
    from ..modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration
    from ..processing.image_processing_unimedvl import UniMedVLImageProcessor
    from ..processing.processing_unimedvl import UniMedVLProcessor

DTYPES = {"auto": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Loaded(NamedTuple):
    """What `load` returns; with an adapter, `model` is PEFT's wrapper of the model, which answers the same calls."""

    model: "UniMedVLForConditionalGeneration"
    processor: "UniMedVLProcessor"
    checkpoint: Checkpoint


def load(
    model: str | os.PathLike | None = None,
    *,
    revision: str | None = None,
    base: str | None = None,
    dtype: str = "auto",
    device: str = "auto",
    quantize: str | None = None,
    understanding_only: bool = False,
) -> Loaded:
    """Load a checkpoint, or an adapter on its base, with the installed classes.

    No code of a repository runs, and no pickle is opened. Unlike plain `from_pretrained`, which leaves missing tensors
    at random values, this refuses a checkpoint whose tensors do not fit the model exactly.

    Args:
        model: a folder (ours or the upstream layout) or a Hub id, of a checkpoint or of a PEFT adapter; the nano
            checkpoint by default.
        revision: branch, tag or commit of a Hub id.
        base: folder or Hub id of an adapter's base; the one that the adapter names by default.
        dtype: "auto" (as stored), "float32", "bfloat16" or "float16".
        device: "auto" (the first accelerator, else the CPU) or a torch device name.
        quantize: "nf4" or "int8" to load the experts' linear layers through bitsandbytes.
        understanding_only: leave the generation expert and the autoencoder out of memory.

    Raises:
        ValueError: if the checkpoint, the adapter, its base, the type or the device cannot be used; the message says
            what to do.
    """
    from ..modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration

    if dtype not in DTYPES:
        raise ValueError(f"unknown dtype {dtype!r}: choose one of {', '.join(DTYPES)}.")
    target = _find_device(device)
    options: dict = {"dtype": DTYPES[dtype], "device_map": {"": target}, "use_safetensors": True}
    if quantize not in (None, "nf4", "int8"):
        raise ValueError(f"unknown quantization {quantize!r}: choose nf4 or int8.")
    adapter, checkpoint = _open(default_model() if model is None else model, revision, base)
    understanding_only = understanding_only and not (adapter is not None and adapter.on_generation_half)
    if quantize is not None:
        options["quantization_config"] = _quantization(quantize, read_config(checkpoint.directory), target)
    if understanding_only:
        options["visual_gen"] = False
    if checkpoint.layout == "transformers":
        _require_exact_fit(checkpoint, understanding_only)
    processor = adapted_processor(adapter, checkpoint)
    network = UniMedVLForConditionalGeneration.from_pretrained(checkpoint.directory, local_files_only=True, **options)
    if adapter is not None:
        network = cast("UniMedVLForConditionalGeneration", put_on(network, adapter))
    return Loaded(network.eval(), processor, checkpoint)


def _open(model: str | os.PathLike, revision: str | None, base: str | None) -> tuple[Adapter | None, Checkpoint]:
    """The adapter, if it is one, and the checkpoint to load."""
    place = locate(model, revision)
    if is_adapter(place.directory):
        adapter = open_adapter(place)
        return adapter, joined(adapter, open_base(adapter, base))
    if base is not None:
        raise ValueError(f"{place.name!r} holds no adapter, and only an adapter has a base: leave --base out.")
    return None, open_place(place)


def adapted_processor(adapter: Adapter | None, base: Checkpoint) -> "UniMedVLProcessor":
    """The processor that was saved with an adapter, else that of its base.

    Raises:
        ValueError: see `load_processor`.
    """
    if adapter is None or not adapter.has_processor:
        return load_processor(base.directory)
    return load_processor(adapter.directory, read_config(base.directory))


def load_processor(directory: str | os.PathLike, config: "UniMedVLConfig | None" = None) -> "UniMedVLProcessor":
    """The processor of a checkpoint folder, put together from the installed classes.

    (`UniMedVLProcessor.from_pretrained` looks its parts up in the folder's `auto_map`, which is the folder's code.)
    A folder without processor settings, as upstream's are, gets the reference's, in the model's patch sizes.

    Args:
        directory: the folder.
        config: of the model, where the folder has none.

    Raises:
        ValueError: if the folder's tokenizer cannot be read or is not of the Qwen2 family.
    """
    from transformers import AutoTokenizer

    from ..processing.image_processing_unimedvl import UniMedVLImageProcessor
    from ..processing.processing_unimedvl import UniMedVLProcessor

    folder = Path(directory)
    config = read_config(folder) if config is None else config
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, config=config, trust_remote_code=False, local_files_only=True
        )
    # The tokenizers library raises bare `Exception`.
    except Exception as error:
        raise ValueError(
            f"the tokenizer in {str(folder)!r} cannot be read ({first_line(error)}): get or save it again."
        ) from error
    if not (folder / "processor_config.json").is_file():
        return UniMedVLProcessor(_default_image_processor(config), tokenizer)
    template = folder / "chat_template.jinja"
    return UniMedVLProcessor(
        UniMedVLImageProcessor.from_pretrained(folder),
        tokenizer,
        chat_template=template.read_text(encoding="utf-8") if template.is_file() else None,
    )


def read_config(directory: str | os.PathLike, **changes) -> "UniMedVLConfig":
    """The configuration of a folder in either layout, with fields replaced by `changes`.

    Raises:
        ValueError: if it is missing, or holds values that it cannot have.
    """
    from ..modeling_unimedvl.configuration_unimedvl import UniMedVLConfig

    folder = Path(directory)
    if is_upstream_layout(folder):
        fields = upstream_config_dict(folder, overrides=changes)
    else:
        fields = read_json(folder / "config.json")
    config = build_config(UniMedVLConfig, folder, fields, **changes)
    assert isinstance(config, UniMedVLConfig)
    return config


def _default_image_processor(config: "UniMedVLConfig") -> "UniMedVLImageProcessor":
    """The reference's resize rules, stated in the model's patches and latent tokens instead of in pixels."""
    from ..modeling_unimedvl.configuration_unimedvl import UniMedVLVisionConfig
    from ..processing.image_processing_unimedvl import UniMedVLImageProcessor

    default = UniMedVLImageProcessor()
    assert isinstance(config.vision_config, UniMedVLVisionConfig)
    patch, token = config.vision_config.patch_size, config.pixels_per_latent_token
    if (patch, token) == (default.patch_size, default.vae_transform["image_stride"]):
        return default
    largest = config.vit_max_num_patch_per_side * patch
    vit = {"max_image_size": largest, "min_image_size": min(27 * patch, largest), "image_stride": patch}
    vae = {"max_image_size": config.max_latent_size * token, "min_image_size": 2 * token, "image_stride": token}
    return UniMedVLImageProcessor(patch_size=patch, understanding_transform=vit, vit_transform=vit, vae_transform=vae)


def _find_device(device: str) -> torch.device:
    if device == "auto":
        accelerator = torch.accelerator.current_accelerator(check_available=True)
        return accelerator or torch.device("cpu")
    try:
        target = torch.device(device)
        torch.empty(0, device=target)
    except (RuntimeError, AssertionError, ImportError) as error:
        raise ValueError(f"the device {device!r} is not available here: choose cpu, or leave it out.") from error
    return target


def _quantization(kind: str, config: "UniMedVLConfig", device: torch.device) -> "BitsAndBytesConfig":
    from transformers import BitsAndBytesConfig

    from ..modeling_unimedvl.configuration_unimedvl import UniMedVLTextConfig

    if kind == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    text = config.text_config
    assert isinstance(text, UniMedVLTextConfig) and text.num_key_value_heads is not None
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    sizes = (text.hidden_size, text.intermediate_size, head_dim * text.num_key_value_heads)
    # Its AVX-512 kernels repack weights in rows of whole blocks of 64 values, and fail on others in mid-answer.
    if device.type == "cpu" and any(size % 64 for size in sizes):
        raise ValueError("on the CPU, nf4 needs layer sizes that are multiples of 64, unlike this model's: use int8.")
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _require_exact_fit(checkpoint: Checkpoint, understanding_only: bool) -> None:
    from ..modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration

    stored = read_config(checkpoint.directory)
    if getattr(stored, "quantization_config", None) is not None:
        return  # names and shapes of packed weights are bitsandbytes' own
    used, tensors = stored, checkpoint.tensors
    if understanding_only:
        used = read_config(checkpoint.directory, visual_gen=False)
        tensors = {name: tensor for name, tensor in tensors.items() if not GENERATION_HALF.search(name)}
    try:
        shapes = model_shapes(UniMedVLForConditionalGeneration, used)
    # Sizes that contradict one another surface as many kinds of error inside torch, transformers and diffusers.
    except Exception as error:
        raise ValueError(
            f"no model can be built from {checkpoint.directory}/config.json ({first_line(error)}): get it again."
        ) from error
    require_exact_fit(checkpoint.directory, tensors, shapes, shapes)
