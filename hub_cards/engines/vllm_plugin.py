"""Entry point `vllm.general_plugins`: vLLM calls it in each of its processes, maybe several times."""

ARCHITECTURE = "UniMedVLForConditionalGeneration"


def register() -> None:
    """Let vLLM run UniMedVL by `vllm_model` unless it is started with `--model-impl transformers`.

    The class is named, not imported, so that nothing touches a GPU before vLLM does.
    """
    from vllm import ModelRegistry

    ModelRegistry.register_model(ARCHITECTURE, f"{__package__}.vllm_model:{ARCHITECTURE}")
