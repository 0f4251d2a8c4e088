"""What a network costs, whatever runs it: parameters, FLOPs and bytes, counted without computing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


@dataclass(frozen=True)
class Costs:
    """Of one volume.

    Attributes
    ----------
    parameters : numbers in the network
    flops : a multiply-add is two
    bytes_moved : read and written by the operators one by one, in FP32; a runtime that fuses moves less
    """

    parameters: int
    flops: float
    bytes_moved: float

    def times(self, factor: float) -> Costs:
        """Cost of `factor` runs."""
        return Costs(self.parameters, self.flops * factor, self.bytes_moved * factor)


class _Traffic(TorchDispatchMode):
    """Adds up the bytes of every operator's tensors; views move none."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if not func.is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return result


@torch.no_grad()
def count_costs(network: nn.Module, *inputs: Tensor) -> Costs:
    """Count one run of a network; it is moved to torch's `meta` device, where nothing is computed, and is lost."""
    network = network.to("meta")
    given = [tensor.to("meta") for tensor in inputs]
    with FlopCounterMode(display=False) as counter, _Traffic() as traffic:
        network(*given)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Costs(parameters, float(counter.get_total_flops()), float(traffic.bytes))
