"""The model of lmms-eval's `--model unimedvl`."""

from itertools import groupby
from typing import Any

import torch
from accelerate import Accelerator
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from lmms_eval.protocol import ChatMessages

from .checkpoints import Checkpoint


class UniMedVLForLmmsEval(lmms):
    """A checkpoint's answers to tasks of the type `generate_until`, in batches cut in the order of the questions.

    Args:
        pretrained: folder or Hub id of the exported checkpoint.
        trust_remote_code: let its code run, which it needs.
        dtype: "auto" (as stored) or the name of a torch dtype.
        revision: branch, tag or commit of a Hub id.
        device: as given to lmms-eval; by default each process takes a GPU of its own, or the CPU.
        batch_size: questions asked at once.
        max_batch_size: lmms-eval passes it; not used.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        trust_remote_code: bool = False,
        dtype: str = "auto",
        revision: str | None = None,
        device: str | None = None,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ):
        super().__init__()
        self.accelerator = Accelerator()
        self._rank, self._world_size = self.accelerator.process_index, self.accelerator.num_processes
        self.batch_size = int(batch_size)
        self.checkpoint = Checkpoint(
            pretrained,
            device=device or self.accelerator.device,
            dtype=dtype,
            revision=revision,
            trust_remote_code=trust_remote_code,
        )

    @property
    def rank(self) -> int:
        return self._rank

    @property
    def world_size(self) -> int:
        return self._world_size

    @property
    def device(self) -> torch.device:
        """Where lmms-eval puts what several processes exchange."""
        return self.checkpoint.model.device

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """The answer to each request, in their order.

        Raises:
            ValueError: for a task that samples.
        """
        texts: list[str] = []
        # One batch never mixes tasks, as in `unimedvl eval`.
        for (_, settings), group in groupby((request.args for request in requests), lambda args: (args[4], args[2])):
            asked = list(group)
            for start in range(0, len(asked), self.batch_size):
                texts += self._answer(asked[start : start + self.batch_size], settings)
        return texts

    def _answer(self, batch: list[tuple[Any, ...]], settings: dict[str, Any]) -> list[str]:
        if settings.get("do_sample") or (settings.get("temperature") or 0) > 0:
            raise ValueError(
                f"the task {batch[0][4]} samples, and this model answers greedily: --gen_kwargs temperature=0."
            )
        conversations = []
        for _, doc_to_messages, _, doc_id, task, split in batch:
            messages = doc_to_messages(self.task_dict[task][split][doc_id])
            conversations.append(ChatMessages(messages=messages).to_hf_messages())
        found = self.checkpoint.answer(conversations, settings.get("max_new_tokens", 64))
        for place, stop in ((place, stop) for place in range(len(found)) for stop in settings.get("until") or ()):
            found[place] = found[place].split(stop)[0]
        for (context, *_), text in zip(batch, found, strict=True):
            self.cache_hook.add_partial("generate_until", (context, settings), text)
        return found

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        raise ValueError("unimedvl answers one round of questions here: choose tasks of the type generate_until.")

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        raise ValueError("unimedvl is scored by its answers here: choose tasks of the type generate_until.")
