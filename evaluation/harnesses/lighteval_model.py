"""The model file of `lighteval custom CHECKPOINT lighteval_model.py ...`.

CHECKPOINT is the folder or Hub id of an exported checkpoint. Its code runs where `UNIMEDVL_TRUST_REMOTE_CODE` is 1, as
lighteval has no option for that. `UNIMEDVL_BATCH_SIZE` sets the number of questions that are asked at once.
"""

import os
from itertools import groupby
from pathlib import Path
from typing import Any

from lighteval.models.abstract_model import LightevalModel
from lighteval.models.custom.custom_model import CustomModelConfig
from lighteval.models.model_output import ModelResponse
from lighteval.tasks.requests import Doc
from lighteval.utils.cache_management import SampleCache

from unimedvl.evaluation.harnesses.checkpoints import Checkpoint
from unimedvl.evaluation.harnesses.hub_sets import MAX_NEW_TOKENS

TRUST = "UNIMEDVL_TRUST_REMOTE_CODE"


class UniMedVLForLighteval(LightevalModel):
    """A checkpoint's answers to generative tasks, in batches cut in the order of the questions.

    Raises:
        ValueError: unless the checkpoint's code may run.
    """

    def __init__(self, config: CustomModelConfig):
        if os.environ.get(TRUST) != "1":
            raise ValueError(
                f"The code of the checkpoint {config.model_name} would run: set {TRUST}=1 if you trust it."
            )
        self.config = config
        # lighteval hands its tasks to this; answers are not kept there.
        # Its folder is named after the model, which would put it inside a checkpoint's folder.
        self._cache = SampleCache(config.model_copy(update={"model_name": Path(config.model_name).name}))
        self.batch_size = int(os.environ.get("UNIMEDVL_BATCH_SIZE", "8"))
        self.checkpoint = Checkpoint(config.model_name, trust_remote_code=True)

    @property
    def tokenizer(self) -> Any:
        return self.checkpoint.processor.tokenizer

    @property
    def add_special_tokens(self) -> bool:
        return False

    @property
    def max_length(self) -> int:
        return int(self.checkpoint.model.config.text_config.max_position_embeddings)

    def greedy_until(self, docs: list[Doc]) -> list[ModelResponse]:
        """The answer to each question, in their order."""
        responses = []
        # One batch never mixes tasks, as in `unimedvl eval`.
        for (_, size), group in groupby(docs, lambda doc: (doc.task_name, doc.generation_size)):
            asked = list(group)
            for start in range(0, len(asked), self.batch_size):
                batch = asked[start : start + self.batch_size]
                texts = self.checkpoint.answer([_conversation(doc) for doc in batch], size or MAX_NEW_TOKENS)
                for doc, text in zip(batch, texts, strict=True):
                    for stop in doc.stop_sequences or ():
                        text = text.split(stop)[0]
                    responses.append(ModelResponse(input=doc.query, text=[text]))
        return responses

    def loglikelihood(self, docs: list[Doc]) -> list[ModelResponse]:
        raise ValueError("unimedvl is scored by its answers here: choose generative tasks.")

    def loglikelihood_rolling(self, docs: list[Doc]) -> list[ModelResponse]:
        raise ValueError("unimedvl is scored by its answers here: choose generative tasks.")


def _conversation(doc: Doc) -> list[dict[str, Any]]:
    images = [{"type": "image", "image": image} for image in doc.images or ()]
    system = [{"role": "system", "content": [{"type": "text", "text": doc.instruction}]}] if doc.instruction else []
    return [*system, {"role": "user", "content": [*images, {"type": "text", "text": doc.query}]}]
