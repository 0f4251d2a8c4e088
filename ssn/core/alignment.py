"""Features of other healthy brains brought to what a flow was trained on.

Another scanner, protocol or skull stripping shifts and turns the features of every place together, of healthy tissue as
of lesions. Mean and covariance over healthy brains say how, and the linear map that undoes it (correlation alignment:
Sun, Feng and Saenko, AAAI 2016) becomes part of the whitening: it costs nothing when a volume is examined.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]
RIDGE = 1e-3  # of the mean variance, added to each: directions that hardly vary are not blown up


@dataclass(frozen=True)
class Moments:
    """Sums over features (C,), whose mean and covariance they give; those of several volumes add up.

    Attributes
    ----------
    centre : (C,), somewhere among the features: what is summed of their distances from it stays small
    total : (C,)
    products : (C, C)
    """

    centre: Matrix
    count: int
    total: Matrix
    products: Matrix

    @classmethod
    def of(cls, features: NDArray[np.float32], centre: Matrix) -> Moments:
        """Sum over features (L, C)."""
        rows = features - centre.astype(np.float32)
        return cls(centre, len(rows), rows.sum(0, dtype=np.float64), np.asarray(rows.T @ rows, np.float64))

    def __add__(self, other: Moments) -> Moments:
        return Moments(self.centre, self.count + other.count, self.total + other.total, self.products + other.products)

    @property
    def mean(self) -> Matrix:
        """(C,)."""
        return self.centre + self.total / self.count

    @property
    def covariance(self) -> Matrix:
        """(C, C)."""
        shift = self.total / self.count
        return self.products / self.count - np.outer(shift, shift)


@dataclass(frozen=True)
class Whitening:
    """The linear map `weight @ features + bias` that made mean 0 and covariance 1 of what a flow was trained on.

    Attributes
    ----------
    weight : (C, C)
    bias : (C,)

    Raises
    ------
    numpy.linalg.LinAlgError
        If no features come out of it.
    """

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]

    def __post_init__(self) -> None:
        _ = self.mean  # a damaged one is told here, and not after the encoder has run

    @cached_property
    def mean(self) -> Matrix:
        """Mean (C,) of the features that it was measured on."""
        return np.asarray(np.linalg.solve(self.weight.astype(np.float64), -self.bias.astype(np.float64)))

    def align(self, moments: Moments, share: float = 1.0) -> tuple[Matrix, Matrix]:
        """Find the linear map that brings other features to those that it was measured on.

        Parameters
        ----------
        moments : of the other features
        share : of the way between their moments that is gone, along the straight line between means and the geodesic
            between covariances

        Returns
        -------
        matrix, offset : (C, C) and (C,), of the map `matrix @ features + offset`
        """
        own = self.weight.astype(np.float64)
        measured = np.asarray(np.linalg.inv(own.T @ own))  # the covariance, with the ridge that it was whitened with
        covariance = moments.covariance
        other = covariance + RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        mean = self.mean + share * (moments.mean - self.mean)
        root = _power(measured, 0.5)
        if share < 1:
            whitened = _power(measured, -0.5)
            other = root @ _power(whitened @ other @ whitened, share) @ root
        matrix: Matrix = root @ _power(other, -0.5)
        return matrix, self.mean - matrix @ mean

    def aligned(self, moments: Moments, share: float = 1.0) -> Whitening:
        """Return one that takes other features, of these moments, to where this one took those it was measured on.

        With a smaller `share`, to where it takes what `align` brings so far.
        """
        own = self.weight.astype(np.float64)
        matrix, offset = self.align(moments, share)
        return Whitening((own @ matrix).astype(np.float32), (own @ offset + self.bias).astype(np.float32))


def _power(matrix: Matrix, exponent: float) -> Matrix:
    values, directions = np.linalg.eigh(matrix)
    return np.asarray((directions * values**exponent) @ directions.T)
