"""Which of transformers' common tests do not apply, and why. A star at the end takes all cases of a test."""

_FIXED_PIXELS = (
    "the pixels of the reference are fixed: rescaling, normalization and conversion are no settings, and naming one "
    "is refused instead of ignored"
)
_OTHER_INPUTS = "passes videos or audio, which this processor refuses"
_REMOTE_CODE = "saving adds the auto_map of remote code, which a processor inside transformers does not have"

_NO_LOSS = "the base model has no loss; transformers skips base models by a table that remote classes are not in"

BASE_MODEL: dict[str, str] = {
    "test_training": _NO_LOSS,
    "test_training_gradient_checkpointing*": _NO_LOSS,
}
MODEL: dict[str, str] = {
    "test_generation_tester_mixin_inheritance": "the source distribution lacks that mixin; see test_strategies.py",
}
PROCESSOR: dict[str, str] = {
    "test_call_arguments_default_none": "a convention of transformers' own models; ours are False where they mean no",
    "test_flat_kwarg_applied_when_modality_dict_lacks_it": _OTHER_INPUTS,
    "test_kwargs_overrides_default_subprocessor_kwargs_0_images": _FIXED_PIXELS,
    "test_model_input_names": _OTHER_INPUTS,
    "test_processor_from_and_save_pretrained": _REMOTE_CODE,
    "test_processor_from_and_save_pretrained_as_nested_dict": _REMOTE_CODE,
    "test_structured_kwargs_nested_from_dict_0_images": _FIXED_PIXELS,
    "test_subprocessor_defaults_preserved_by_kwargs_0_images": _FIXED_PIXELS,
    "test_unstructured_kwargs_0_images": _FIXED_PIXELS,
    "test_unstructured_kwargs_batched_0_images": _FIXED_PIXELS,
}
IMAGE_PROCESSOR: dict[str, str] = {
    "test_call_numpy_4_channels": _FIXED_PIXELS,
    "test_convert_to_rgb_mixed_input_batch_*": _FIXED_PIXELS,
    "test_new_models_require_torchvision_backend": "the resize of the reference is PIL's, to the last bit",
}

# Under other versions than the one of constraints.txt, by their first two numbers and the class of the tests.
OTHER_VERSIONS: dict[str, dict[str, dict[str, str]]] = {
    "5.20": {
        "TestImageProcessor": {
            "test_pil_can_load_without_torchvision": "looks for the module of the model inside transformers",
        },
    },
    "5.24": {
        "TestProcessor": {
            "test_chat_template_message_objects": "expects an image's address in the text; templates see no images",
        },
    },
}
