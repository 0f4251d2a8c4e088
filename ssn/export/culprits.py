"""Which parts of a graph cannot bear lower precision: found by bisection, not by guessing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from onnx import ModelProto

Part = TypeVar("Part")


def find_culprits(parts: Sequence[Part], passes: Callable[[Sequence[Part]], bool]) -> list[Part]:
    """Find a smallest set of parts that must be spared for a check to pass (QuickXplain, Junker, AAAI 2004).

    Smallest in that none of it can be left out. About k log2(n / k) checks for k culprits among n parts.

    Parameters
    ----------
    passes : the check, given the parts that are spared; it passes where all are
    """
    if passes([]):
        return []
    return _search([], list(parts), passes)


def _search(spared: list[Part], parts: list[Part], passes: Callable[[Sequence[Part]], bool]) -> list[Part]:
    """Culprits among `parts`, where sparing `spared` alone fails and sparing both passes."""
    if len(parts) == 1:
        return parts
    first, second = parts[: len(parts) // 2], parts[len(parts) // 2 :]
    if passes([*spared, *first]):
        return _search(spared, first, passes)
    in_second = _search([*spared, *first], second, passes)
    if passes([*spared, *in_second]):
        return in_second
    return [*_search([*spared, *in_second], first, passes), *in_second]


def stages(model: ModelProto) -> list[list[str]]:
    """Node names of a graph, cut into its stages in order.

    Weights are named by their module ("encoder.trunk.blocks.2.0.conv_pw.weight"): a stage begins where the name's part
    up to its first number changes. Nodes without a named weight belong to the stage before them.
    """
    weights = {tensor.name for tensor in model.graph.initializer}
    found: list[list[str]] = [[]]
    label = ""
    for node in model.graph.node:
        for name in node.input:
            if name in weights and "." in name and _stage(name) != label:
                label = _stage(name)
                found.append([])
                break
        found[-1].append(node.name)
    return [names for names in found if names]


def _stage(weight: str) -> str:
    """Return "trunk.blocks.2" of "trunk.blocks.2.0.conv.weight", "trunk.layer1" of "trunk.layer1.0.conv.weight"."""
    words = weight.split(".")[:-1]
    for index, word in enumerate(words):
        if word[-1:].isdigit():
            return ".".join(words[: index + 1])
    return ".".join(words)
