"""The processes of a run: one, or those that torchrun or `accelerate launch` started."""

import datetime

import torch
from accelerate import PartialState

# The others wait while the first one scores, which may take hours; torch's own limit is half an hour.
PATIENCE = datetime.timedelta(hours=12)


def join(device: str = "auto") -> PartialState:
    """The state of this process among the others.

    Accelerate keeps what the first call decides, so the first call has to know the device that was asked for. Without
    CUDA, processes only find each other where the CPU is asked for explicitly.
    """
    return PartialState(cpu=not torch.cuda.is_available() or device == "cpu", timeout=PATIENCE)
