"""An exported checkpoint, asked through plain transformers and the code that lies in its folder."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers import AutoModelForImageTextToText, AutoProcessor


class Checkpoint:
    """A checkpoint's understanding half: it answers conversations greedily.

    Args:
        path: folder or Hub id of the exported checkpoint.
        device: where it runs; "auto" is a CUDA device where there is one, else the CPU.
        dtype: "auto" (as stored) or the name of a torch dtype.
        revision: branch, tag or commit of a Hub id.
        trust_remote_code: let the checkpoint's code run, without which it cannot be loaded.
    """

    def __init__(
        self,
        path: str,
        *,
        device: str | torch.device = "auto",
        dtype: str = "auto",
        revision: str | None = None,
        trust_remote_code: bool = False,
    ):
        options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
        self.processor = AutoProcessor.from_pretrained(path, **options)
        self.processor.tokenizer.padding_side = "left"
        # Neither the generation expert nor the autoencoder takes part in an answer.
        model: Any = AutoModelForImageTextToText.from_pretrained(path, dtype=dtype, visual_gen=False, **options)
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model = model.to(device).eval()

    def answer(self, conversations: Sequence[list[dict[str, Any]]], max_new_tokens: int) -> list[str]:
        """The answers to a batch of conversations, each in the form of transformers' chat templates."""
        inputs = self.processor.apply_chat_template(
            list(conversations),
            add_generation_prompt=True,
            tokenize=True,
            return_dict=True,
            return_tensors="pt",
            processor_kwargs={"padding": True},
        ).to(self.model.device, dtype=self.model.dtype)
        with torch.inference_mode():
            ids = self.model.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False, num_beams=1)
        texts = self.processor.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        return [text.strip() for text in texts]
