"""Which of transformers' common tests do not apply to this model, and why."""

MODEL: dict[str, str] = {}
PROCESSOR: dict[str, str] = {}
IMAGE_PROCESSOR: dict[str, str] = {}
