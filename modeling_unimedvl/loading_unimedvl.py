"""Loading and saving of every model class: our layout, upstream folders, understanding only, 4 and 8 bits."""

import copy
import importlib
from typing import TYPE_CHECKING, Any

from transformers import BitsAndBytesConfig, PreTrainedModel

from .upstream_layout_unimedvl import is_upstream_layout, prepare_direct_load

# Modules that quantized loading leaves in full precision: small, or sensitive to rounding.
QUANTIZATION_SKIP_MODULES = [
    "lm_head",
    "model.vae",
    "model.vit_model",
    "model.connector",
    "model.vae2llm",
    "model.llm2vae",
    "model.time_embedder",
]
# Weights that a model without its generation half leaves in the file, with or without the head's prefix.
GENERATION_WEIGHTS = [r"_moe_gen", r"^(model\.)?(vae|vae2llm|llm2vae|time_embedder|latent_pos_embed)\."]


def diffusers_module(name: str) -> Any:
    """Import a module of diffusers, which only images need, and which takes as long to import as all else.

    Where `import` is written, transformers wants the package of whoever loads this code.

    Raises:
        ModuleNotFoundError: if diffusers is not installed.
    """
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Images as VAE latents need diffusers: run `pip install diffusers`, or load with visual_gen=False.",
            name=error.name,
        ) from error


if TYPE_CHECKING:
    _Base = PreTrainedModel
else:
    _Base = object


class UniMedVLLoadingMixin(_Base):
    """`from_pretrained` and `save_pretrained` of `UniMedVLModel` and `UniMedVLForConditionalGeneration`.

    Attributes:
        omitted_prefix: what the names of a class's weights lack of the names in a checkpoint.
    """

    omitted_prefix = ""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, **kwargs):
        """Load a checkpoint: our layout, or a local folder in the upstream BAGEL / UniMedVL layout.

        Two defaults are ours: weights in the upstream layout are renamed while they stream in, and quantized loading
        keeps the autoencoder, the ViT and the small projections in full precision unless `llm_int8_skip_modules`
        (bitsandbytes) or `modules_to_not_convert` (torchao and others) says otherwise. Arguments: as in transformers,
        and fields of the configuration.

        Raises:
            ValueError: if weights are missing, damaged or do not fit the configuration.
        """
        quantization = kwargs.get("quantization_config")
        if isinstance(quantization, dict) and {"load_in_4bit", "load_in_8bit"} & quantization.keys():
            quantization = BitsAndBytesConfig.from_dict(quantization)
            kwargs["quantization_config"] = quantization
        for field in ("llm_int8_skip_modules", "modules_to_not_convert"):
            if getattr(quantization, field, 0) is None:
                quantization = copy.deepcopy(quantization)
                skipped = [name.removeprefix(cls.omitted_prefix) for name in QUANTIZATION_SKIP_MODULES]
                setattr(quantization, field, skipped)
                kwargs["quantization_config"] = quantization
        if kwargs.get("visual_gen") and not cls.config_class.from_pretrained(pretrained_model_name_or_path).visual_gen:
            raise ValueError(
                f"{pretrained_model_name_or_path} was saved for understanding only and holds no generation weights: "
                "load it without visual_gen=True."
            )
        upstream = pretrained_model_name_or_path if is_upstream_layout(pretrained_model_name_or_path) else None
        if upstream is not None:
            kwargs = prepare_direct_load(cls, upstream, kwargs)
            pretrained_model_name_or_path = None
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, **kwargs)
        model: Any = loaded[0] if isinstance(loaded, tuple) else loaded
        if upstream is not None:
            model.name_or_path = model.config.name_or_path = str(upstream)
        # Loading replaces parameters by trainable ones.
        model.base_model.freeze_fixed_parts()
        return loaded

    def save_pretrained(self, save_directory, *args, save_original_format: bool = False, **kwargs):
        """Save in our layout. `save_original_format` stays off so that a Trainer's checkpoints resume."""
        kwargs["save_original_format"] = save_original_format
        return super().save_pretrained(save_directory, *args, **kwargs)
