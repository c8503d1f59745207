"""UniMedVL for the Hugging Face libraries: medical image understanding and generation in one model.

The public names load on first use, so that `import unimedvl` and `unimedvl --help` stay instant:

    from unimedvl import UniMedVLForConditionalGeneration, UniMedVLProcessor
"""

import importlib
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .version import __version__

if (Path(__file__).parent / "processing").is_file():
    raise ImportError(
        "this checkout holds small text files where links belong (unimedvl/processing is one): run `git config "
        "core.symlinks true` and `git checkout -- unimedvl hub_cards` (on Windows in developer mode)."
    )

# On processors that could use them it announces optional kernels whenever it is imported.
if logging.getLogger("bitsandbytes").level == logging.NOTSET:
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)

if TYPE_CHECKING:
    from .checkpoint.conversion import convert_checkpoint, export_checkpoint
    from .checkpoint.loading import load
    from .checkpoint.provenance import save_generated_image
    from .modeling_unimedvl.configuration_unimedvl import UniMedVLConfig
    from .modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration, UniMedVLModel
    from .processing.image_processing_unimedvl import UniMedVLImageProcessor
    from .processing.medical_formats_unimedvl import load_medical_image
    from .processing.processing_unimedvl import UniMedVLProcessor

_MODULE_OF_NAME = {
    "UniMedVLConfig": "modeling_unimedvl.configuration_unimedvl",
    "UniMedVLModel": "modeling_unimedvl.modeling_unimedvl",
    "UniMedVLForConditionalGeneration": "modeling_unimedvl.modeling_unimedvl",
    "UniMedVLProcessor": "processing.processing_unimedvl",
    "UniMedVLImageProcessor": "processing.image_processing_unimedvl",
    "load_medical_image": "processing.medical_formats_unimedvl",
    "convert_checkpoint": "checkpoint.conversion",
    "export_checkpoint": "checkpoint.conversion",
    "load": "checkpoint.loading",
    "save_generated_image": "checkpoint.provenance",
}

__all__ = [
    "UniMedVLConfig",
    "UniMedVLForConditionalGeneration",
    "UniMedVLImageProcessor",
    "UniMedVLModel",
    "UniMedVLProcessor",
    "__version__",
    "convert_checkpoint",
    "export_checkpoint",
    "load",
    "load_medical_image",
    "register",
    "save_generated_image",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF_NAME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f".{_MODULE_OF_NAME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


def register() -> None:
    """Make the installed classes answer for `model_type: unimedvl` in transformers' auto classes.

    Afterwards `AutoModelForMultimodalLM.from_pretrained(repo)` needs no `trust_remote_code`: transformers uses the
    installed code, never the repository's copy, even when `trust_remote_code=True` is given. It is not called on
    import, because it changes global tables of transformers. Calling it twice is harmless.
    """
    from transformers import (
        AutoConfig,
        AutoImageProcessor,
        AutoModel,
        AutoModelForCausalLM,
        AutoModelForImageTextToText,
        AutoModelForMultimodalLM,
        AutoProcessor,
    )

    from .modeling_unimedvl.configuration_unimedvl import UniMedVLConfig
    from .modeling_unimedvl.modeling_unimedvl import UniMedVLForConditionalGeneration, UniMedVLModel
    from .processing.image_processing_unimedvl import UniMedVLImageProcessor
    from .processing.processing_unimedvl import UniMedVLProcessor

    AutoConfig.register(UniMedVLConfig.model_type, UniMedVLConfig, exist_ok=True)
    AutoModel.register(UniMedVLConfig, UniMedVLModel, exist_ok=True)
    for auto_class in (AutoModelForMultimodalLM, AutoModelForImageTextToText, AutoModelForCausalLM):
        auto_class.register(UniMedVLConfig, UniMedVLForConditionalGeneration, exist_ok=True)
    AutoProcessor.register(UniMedVLConfig, UniMedVLProcessor, exist_ok=True)
    AutoImageProcessor.register(UniMedVLConfig, slow_image_processor_class=UniMedVLImageProcessor, exist_ok=True)
