"""Features of other healthy brains brought to what a flow was trained on.

Another scanner, protocol or skull stripping shifts and turns the features of every place together, of healthy tissue as
of lesions. Mean and covariance over healthy brains say how, and the linear map that undoes it (correlation alignment:
Sun, Feng and Saenko, AAAI 2016) becomes part of the whitening: it costs nothing when a volume is examined.
"""

from __future__ import annotations

from dataclasses import dataclass

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
        mean: Matrix = self.centre + self.total / self.count
        return mean

    @property
    def covariance(self) -> Matrix:
        """(C, C)."""
        shift = self.total / self.count
        covariance: Matrix = self.products / self.count - np.outer(shift, shift)
        return covariance


def whitened_mean(weight: NDArray[np.float32], bias: NDArray[np.float32]) -> Matrix:
    """Features (C,) that a whitening takes to 0: the mean of those that it was measured on."""
    return np.asarray(np.linalg.solve(weight.astype(np.float64), -bias.astype(np.float64)))


def align(
    weight: NDArray[np.float32], bias: NDArray[np.float32], moments: Moments, share: float = 1.0
) -> tuple[Matrix, Matrix]:
    """Find the linear map that brings other features to those that a whitening was measured on.

    Parameters
    ----------
    weight, bias : (C, C) and (C,), of the whitening `weight @ features + bias`
    moments : of the other features
    share : of the way between their moments that is gone, along the straight line between means and the geodesic
        between covariances

    Returns
    -------
    matrix, offset : (C, C) and (C,), of the map `matrix @ features + offset`
    """
    own = weight.astype(np.float64)
    measured = np.asarray(np.linalg.inv(own.T @ own))  # the covariance, with the ridge that it was whitened with
    covariance = moments.covariance
    other = covariance + RIDGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
    middle = whitened_mean(weight, bias)
    mean = middle + share * (moments.mean - middle)
    root = _power(measured, 0.5)
    if share < 1:
        whitened = _power(measured, -0.5)
        other = root @ _power(whitened @ other @ whitened, share) @ root
    matrix: Matrix = root @ _power(other, -0.5)
    return matrix, middle - matrix @ mean


def align_whitening(
    weight: NDArray[np.float32], bias: NDArray[np.float32], moments: Moments
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Make a whitening take other features to where it took those that it was measured on.

    Parameters
    ----------
    weight, bias : (C, C) and (C,), of `weight @ features + bias`
    moments : of the other features

    Returns
    -------
    weight, bias : for the other features
    """
    own = weight.astype(np.float64)
    matrix, offset = align(weight, bias, moments)
    return (own @ matrix).astype(np.float32), (own @ offset + bias).astype(np.float32)


def _power(matrix: Matrix, exponent: float) -> Matrix:
    values, directions = np.linalg.eigh(matrix)
    return np.asarray((directions * values**exponent) @ directions.T)
