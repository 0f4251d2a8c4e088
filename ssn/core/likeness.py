"""How much a brain's grey values lie as healthy ones do: it tells another contrast, a wrong orientation and a tilt.

A map shows none of them as what it is: all make it high where nothing is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ssn.core.geometry import GridConfig
from ssn.core.slices import SliceStack
from ssn.core.tilt import Tilt, find_tilt

BLOCK = 2  # map cells an axis: one person's folds are not another's, and average out
_LEAST = 0.2  # of a correlation: synthetic T1 of two atlases has 0.4 and more, T2 less than 0
_CLEARLY = 0.02  # more like healthy brains than as it lies
_NEARLY = 0.1  # less like them: may be a turned brain yet, when it is straight
_TILTED = 11.5  # degrees: below, interpolation blurs more than straightening gains (docs/infer.md, Tilted heads)
_TELL_TILT = 6  # volumes: the mean of fewer heads is still these heads
_FEWEST = 100  # blocks that both have: less is no brain to compare


@dataclass(frozen=True)
class Likeness:
    """How a volume compares with healthy ones.

    Attributes
    ----------
    value : Pearson correlation over the blocks; None where too few of them meet
    straight : the correlation when its tilt is undone
    turn : how it would have to be turned to be more like them; None where it is most like them as it lies
    turned : the correlation when turned so, and that tilt undone
    tilt : of the head in its grid, against them; None where they are too little alike, or blocks too coarse, to tell
    left : of the head after that tilt was undone; None where it was not
    """

    value: float | None
    straight: float = -1.0
    turn: str | None = None
    turned: float = -1.0
    tilt: Tilt | None = None
    left: Tilt | None = None

    @property
    def tilted(self) -> Tilt | None:
        """The tilt, where it is more than a model should have to bear."""
        return _too_much(self.tilt)

    def doubts(self, others: str, straightened: bool = False) -> list[str]:
        """Say what is probably wrong with the volume.

        Parameters
        ----------
        others : what it was compared with, in words
        straightened : its tilt was undone before it was scored
        """
        if self.value is None:
            return [
                f"too little of it is solid where {others} are, so it cannot be compared with them and its scores mean "
                "nothing; check that it is a whole, skull-stripped brain"
            ]
        if self.turn is not None:
            return [
                f"it is more like {others} when it is turned {self.turn} (correlation {self.turned:.2f}, as it lies "
                f"{self.straight:.2f}); look at it in a viewer, and correct the orientation in its header"
            ]
        if self.tilted is not None and straightened:
            return self._left_doubts(others)
        if self.tilted is not None:
            return [
                f"its head is tilted in its grid by {self.tilted.degrees:.0f} degrees against {others} "
                f"({self.tilted}), which makes maps high where all is well; turn it straight, by linear interpolation"
            ]
        if self.value < _LEAST:
            return [
                f"its grey values do not lie as those of {others} do (correlation {self.value:.2f}): another contrast, "
                "or a wrong orientation; look at it in a viewer"
            ]
        return []

    def _left_doubts(self, others: str) -> list[str]:
        left = _too_much(self.left)
        if self.tilt is None or left is None:
            return []
        return [
            f"its head was turned straight by {self.tilt.degrees:.0f} degrees, and is still tilted by "
            f"{left.degrees:.0f} against {others} ({left}), which makes maps high where all is well; look at it in a "
            "viewer, and align it"
        ]


def _too_much(tilt: Tilt | None) -> Tilt | None:
    return tilt if tilt is not None and tilt.degrees > _TILTED else None


def block_shape(windows: int, cells: int) -> tuple[int, int, int]:
    """Blocks of a grid of so many windows, and cells a row."""
    depth, width = (-(-size // BLOCK) for size in (windows, cells))
    return depth, width, width


def block_edges(grid: GridConfig, cells: int) -> tuple[float, float, float]:
    """Edges of a block in mm: up, and in the plane."""
    across = BLOCK * grid.plane / cells
    return BLOCK * grid.window, across, across


def grey_blocks(stack: SliceStack) -> NDArray[np.float32]:
    """Mean normalised intensity (windows / 2, G / 2, G / 2) of blocks of map cells, NaN where there is no brain."""
    cells = stack.occupancy.shape[1]
    step = stack.slices.shape[-1] // cells
    middle = slice(step // 2, None, step)  # a sample a cell: eight of them make a block
    grey = stack.by_window[:, stack.slices_a_window // 2, middle, middle]
    brain = stack.occupancy >= 0.5
    depth, width, _ = (size * BLOCK for size in block_shape(stack.placement.grid.windows, cells))
    total, count = np.zeros((2, depth, width, width), np.float32)
    windows = slice(stack.first, stack.first + len(grey))
    total[windows, :cells, :cells] = np.where(brain, grey, 0)
    count[windows, :cells, :cells] = brain
    shape = (depth // BLOCK, BLOCK, width // BLOCK, BLOCK, width // BLOCK, BLOCK)
    total, count = (values.reshape(shape).sum((1, 3, 5)) for values in (total, count))
    return np.where(count >= BLOCK**3 / 4, total / count.clip(1), np.float32(np.nan))


def mean_blocks(volumes: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Mean of healthy volumes' blocks, NaN where fewer than a third of them have brain."""
    return _mean(*_sums(volumes), len(volumes))


def unlike_the_rest(
    volumes: Sequence[NDArray[np.float32]], edges: tuple[float, float, float], others: str
) -> list[list[str]]:
    """Doubts about each volume of a set, compared with the mean of the rest; of fewer than three nothing is said.

    Fewer than six volumes say nothing of a tilt.
    """
    if len(volumes) < 3:
        return [[] for _ in volumes]
    total, count = _sums(volumes)
    found = []
    for own in volumes:
        rest = _mean(total - np.nan_to_num(own), count - np.isfinite(own), len(volumes) - 1)
        likeness = compare(own, rest, edges)
        found.append((likeness if len(volumes) >= _TELL_TILT else replace(likeness, tilt=None)).doubts(others))
    return found


def _sums(volumes: Sequence[NDArray[np.float32]]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    total, count = np.zeros((2, *volumes[0].shape), np.float32)
    for blocks in volumes:
        total += np.nan_to_num(blocks)
        count += np.isfinite(blocks)
    return total, count


def _mean(total: NDArray[np.float32], count: NDArray[np.float32], volumes: int) -> NDArray[np.float32]:
    return np.where(count >= max(volumes / 3, 1), total / count.clip(1), np.float32(np.nan))


def compare(own: NDArray[np.float32], healthy: NDArray[np.float32], edges: tuple[float, float, float]) -> Likeness:
    """Compare a volume's blocks with healthy ones, as it lies and turned.

    The pose has put the brain's box in the middle of the plane, so that a turned brain is in the same blocks. Left and
    right are too alike to be told apart. `edges`: `block_edges` of their grid.
    """
    value = _correlation(own, healthy)
    if value is None:
        return Likeness(None)
    tilt, straight = find_tilt(own, healthy, edges) or (None, value)
    turns = {
        "back to front": own[:, ::-1],
        "upside down": _upside_down(own),
        "upside down and back to front": _upside_down(own)[:, ::-1],
    }
    turn, turned = None, straight + _CLEARLY
    least = max(value - _NEARLY, _LEAST)  # a tilt hides a turn, or looks like one: it is undone in both
    for name, blocks in turns.items():
        plain = _correlation(blocks, healthy)
        if plain is not None and plain > least:
            _, likeness = find_tilt(blocks, healthy, edges) or (None, plain)
            if likeness > turned:
                turn, turned = name, likeness
    if turn is not None:
        return Likeness(value, straight, turn, turned)
    return Likeness(value, straight, tilt=tilt if value >= _LEAST else None)


def _upside_down(blocks: NDArray[np.float32]) -> NDArray[np.float32]:
    """Reverse the depth of the blocks that have brain: the pose puts whatever end is up at the same height."""
    inside = np.flatnonzero(np.isfinite(blocks).any((1, 2)))
    turned = blocks.copy()
    if inside.size:
        part = slice(inside[0], inside[-1] + 1)
        turned[part] = blocks[part][::-1]
    return turned


def _correlation(own: NDArray[np.float32], healthy: NDArray[np.float32]) -> float | None:
    both = np.isfinite(own) & np.isfinite(healthy)
    if both.sum() < _FEWEST:
        return None
    a, b = own[both], healthy[both]
    if a.std() == 0 or b.std() == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])
