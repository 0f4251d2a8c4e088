"""The two graphs of a bundle as modules whose forward is what is exported."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ssn.export.folded_flow import FoldedFlow, linear
from ssn.train.checkpoint import Detector
from ssn.train.network import FeatureNetwork


class FlowGraph(nn.Module):
    """Features, places and the first window to log-likelihood per dimension.

    The condition of a place is the sum of its in-plane row and its depth row of each block's condition
    tables. The tables are products of small constants: a runtime folds them when it loads the graph, and the
    file needn't hold 20 MB of them.
    """

    plane: Tensor
    depth: Tensor

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.whitening = _whitening(detector.network)  # `ssn.runtime.align` finds it in the file by this name
        self.flow = FoldedFlow(detector.flow)
        self.register_buffer("plane", detector.codes.plane.clone())
        self.register_buffer("depth", detector.codes.depth.clone())

    def tables(self) -> list[tuple[Tensor, Tensor | None]]:
        """In-plane (G*G, n) and depth (windows, n) part of each block's condition; the bias is in the first."""
        channels = self.plane.shape[1]
        tables = []
        for weight, bias in self.flow.condition_maps():
            depth = self.depth @ weight[:, channels:].T if self.depth.shape[1] else None
            tables.append((self.plane @ weight[:, :channels].T + bias, depth))
        return tables

    def forward(self, features: Tensor, places: Tensor, first: Tensor) -> Tensor:
        """Return the log-likelihood (L,).

        Parameters
        ----------
        features : (W, C, G, G) float32
            Of windows `first` to `first` + W - 1 of the canonical grid, before whitening: few places need it.
        places : (L,) int64
            Window * G * G + row * G + column.
        first : (1,) int64
        """
        return self.at(features, places, first, self.tables())

    def at(
        self, features: Tensor, places: Tensor, first: Tensor, tables: Sequence[tuple[Tensor, Tensor | None]]
    ) -> Tensor:
        """Do what `forward` does, with tables made before."""
        cells = self.plane.shape[0]
        rows = features.flatten(2).transpose(1, 2).reshape(-1, features.shape[1])
        chosen = rows.index_select(0, places - first * cells)
        # By subtraction, because integer remainders are not everywhere supported.
        window = torch.div(places, cells, rounding_mode="trunc")
        cell = places - window * cells
        conditions = []
        for plane, depth in tables:
            condition = plane.index_select(0, cell)
            conditions.append(condition if depth is None else condition + depth.index_select(0, window))
        return self.score(chosen, conditions)

    def score(self, features: Tensor, conditions: Sequence[Tensor]) -> Tensor:
        """Log-likelihood (L,) of features before whitening (L, C) under each block's conditions (L, n)."""
        return self.flow(self.whitening(features), conditions)


def _whitening(network: FeatureNetwork) -> nn.Module:
    """`FeatureNetwork.whitened` as one Linear, or nothing."""
    if not network.config.whiten:
        return nn.Identity()
    weight = network.whitening.double()
    return linear(weight, -weight @ network.feature_mean.double())
