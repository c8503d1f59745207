"""UniMedVL in ms-swift, for tuning the understanding half: `swift sft --external_plugins ms_swift_plugin.py ...`.

The generation expert and the autoencoder stay on the disk: an adapter that is trained here fits the whole checkpoint,
whereas full weights saved here are a checkpoint that only answers.
"""

import re
from itertools import groupby
from typing import Any

from swift.model import (
    Model,
    ModelGroup,
    ModelLoader,
    ModelMeta,
    MultiModelKeys,
    register_model,
    register_model_arch,
)
from swift.template import StdTemplateInputs, Template, TemplateMeta, register_template
from transformers import AutoModelForImageTextToText

NAME = "unimedvl"
IGNORED = -100
IMAGE = "<image>"


class UniMedVLLoader(ModelLoader):
    """Loads the understanding half with the checkpoint's own code."""

    auto_model_cls: Any

    def get_config(self, model_dir: str) -> Any:
        config = super().get_config(model_dir)
        config.visual_gen = False
        # A configuration may freeze the understanding half or leave its loss out; nothing would be trained then.
        config.ce_loss_weight, config.text_config.freeze_und = 1.0, False
        return config

    def get_model(self, model_dir: str, config: Any, processor: Any, model_kwargs: dict[str, Any]) -> Any:
        self.auto_model_cls = self.auto_model_cls or AutoModelForImageTextToText
        return super().get_model(model_dir, config, processor, model_kwargs)


class UniMedVLTemplate(Template):
    """Conversations as the checkpoint's own processor renders them; the loss is that of the assistant's turns, without
    those marked `"loss": false`."""

    def _preprocess_inputs(self, inputs: StdTemplateInputs) -> None:
        """Check a conversation while it is as its author wrote it: ms-swift fills in tags of images next.

        Raises:
            ValueError: for what this template cannot render.
        """
        if inputs.videos or inputs.audios or inputs.tools or inputs.objects:
            raise ValueError("UniMedVL reads text and images only: leave videos, audios, tools and objects out.")
        texts = [inputs.system or "", *(message["content"] or "" for message in inputs.messages)]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("The content of a message must be text: UniMedVL takes no token ids of ms-swift's.")
        tags = sum(text.count(IMAGE) for text in texts)
        # Without any tag ms-swift puts the images first.
        if tags and tags != len(inputs.images):
            raise ValueError(
                f"The conversation has {tags} {IMAGE} tags and {len(inputs.images)} images: write one for each."
            )
        super()._preprocess_inputs(inputs)

    def _encode(self, inputs: StdTemplateInputs) -> dict[str, Any]:
        """The fields of one conversation: token lists, and the tensors of its images.

        Raises:
            ValueError: for a loss scale other than the default.
        """
        scales = {self._loss_scale, *(message.get("loss_scale") for message in inputs.messages)}
        if others := scales - {"default", None, 1}:
            raise ValueError(f"loss_scale={others.pop()!r}: this template knows the default only, leave it out.")
        messages = [message for message in inputs.messages if message["content"] is not None]
        if inputs.system:
            messages = [{"role": "system", "content": inputs.system}, *messages]
        images = iter(inputs.images)
        conversation = [
            {"role": message["role"], "content": list(_parts(message["content"], images))} for message in messages
        ]
        answered = messages[-1]["role"] == "assistant"
        encoded = self.processor.apply_chat_template(
            conversation,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            add_generation_prompt=not answered,
            return_assistant_tokens_mask=True,
        )
        ids, said = (encoded[name][0].tolist() for name in ("input_ids", "assistant_masks"))
        # A run of the assistant's tokens for each of its texts, in their order.
        trained = iter(
            message.get("loss") in (None, True)
            for message, turn in zip(messages, conversation, strict=True)
            if message["role"] == "assistant"
            for part in turn["content"]
            if part["type"] == "text"
        )
        labels: list[int] = []
        for own, run in groupby(zip(ids, said, strict=True), key=lambda pair: pair[1]):
            keep = own and next(trained)
            labels += [token if keep else IGNORED for token, _ in run]
        found = {"input_ids": ids, "labels": labels if self.is_training else None, "loss_scale": None}
        return found | {name: encoded[name] for name in ("pixel_values", "image_grid_thw") if name in encoded}


def _parts(text: str, images: Any) -> Any:
    """A message's text and images in their order."""
    for piece in re.split(f"({IMAGE})", text):
        if piece == IMAGE:
            yield {"type": "image", "image": next(images)}
        elif piece:
            yield {"type": "text", "text": piece}


register_template(
    TemplateMeta(
        template_type=NAME,
        prefix=[],
        prompt=["{{QUERY}}"],
        chat_sep=[],
        suffix=["<|im_end|>"],
        system_prefix=["{{SYSTEM}}"],
        template_cls=UniMedVLTemplate,
    )
)
register_model_arch(
    MultiModelKeys(
        arch_name=NAME,
        language_model=["model.language_model", "lm_head"],
        vision_tower=["model.vit_model"],
        aligner=["model.connector", "model.vit_pos_embed"],
    )
)
register_model(
    ModelMeta(
        model_type=NAME,
        model_groups=[ModelGroup([Model()])],
        loader=UniMedVLLoader,
        template=NAME,
        model_arch=NAME,
        architectures=["UniMedVLForConditionalGeneration"],
        is_multimodal=True,
        tags=["vision"],
    )
)
