"""Several processes, one a GPU, as torchrun starts them: each computes its share of every step, and all stay equal.

DistributedDataParallel gives each process a loss of its own. Here that would give each a boundary of its own,
because semi-push-pull finds it from the whole batch; so log-likelihoods are gathered (one number a location),
every process sees the one loss, and gradients are summed.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from ssn.core.errors import BackendError

DeviceName = Literal["auto", "cpu", "cuda"]


@dataclass(frozen=True)
class Ranks:
    """One process among those that train together; by default the only one, on the CPU."""

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def share(self, total: int) -> slice:
        """Return this process's part of `total` things; all parts together are all, in order."""
        return slice(total * self.rank // self.count, total * (self.rank + 1) // self.count)

    def gather(self, mine: Tensor, total: int) -> Tensor:
        """Put every process's `share(total)` of values together: (total,), without gradient, the same in all."""
        if self.count == 1:
            return mine.detach().clone()
        everyone = mine.new_zeros(total)
        everyone[self.share(total)] = mine.detach()
        dist.all_reduce(everyone)  # all other summands are 0, so the sum is exact
        return everyone

    def sum_(self, tensors: Iterable[Tensor]) -> None:
        """Sum tensors over all processes, in place and in one message; processes without gradient give zeros."""
        if self.count == 1:
            return
        listed = list(tensors)
        flat = torch.cat([tensor.flatten() for tensor in listed])
        dist.all_reduce(flat)
        for tensor, summed in zip(listed, flat.split([t.numel() for t in listed]), strict=True):
            tensor.copy_(summed.view_as(tensor))

    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients over all processes."""
        if self.count == 1:
            return
        gradients = []
        for parameter in parameters:
            if parameter.grad is None:  # an empty share
                parameter.grad = torch.zeros_like(parameter)
            gradients.append(parameter.grad)
        self.sum_(gradients)

    def equalise_(self, tensors: Iterable[Tensor]) -> None:
        """Give every process the first one's values, in place."""
        if self.count > 1:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

    def wait(self) -> None:
        """Wait until every process is here."""
        if self.count > 1:
            dist.barrier()


ONE_PROCESS = Ranks()
# Processes wait for the one with most volumes to encode, and for the first one to measure an ablation's arm.
_PATIENCE = timedelta(hours=12)


def choose_device(name: DeviceName) -> torch.device:
    """Choose where to compute; "auto" takes the process's GPU if there is one.

    Raises
    ------
    BackendError
        CUDA was asked for and there is none.
    """
    if name != "cpu" and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    if name == "cuda":
        raise BackendError("--device cuda: torch finds no CUDA device; install a CUDA build of torch, or use cpu")
    return torch.device("cpu")


@contextmanager
def processes(device: DeviceName = "auto") -> Iterator[Ranks]:
    """Join the processes that torchrun started (its environment variables say so); without it, be the only one.

    On CUDA, matrix products round their factors to TF32: the mantissa of float16 with the range of float32, so
    that the flow's log-determinants and squares, which are summed in float32, need no loss scaling.
    """
    chosen = choose_device(device)
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
        torch.set_float32_matmul_precision("high")
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        yield Ranks(device=chosen)
        return
    dist.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=_PATIENCE)
    try:
        yield Ranks(dist.get_rank(), count, chosen)
    finally:
        dist.destroy_process_group()
