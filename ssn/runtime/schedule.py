"""Which buffer, which lane, which wait: the plan by which copies and computing of a volume's batches overlap.

A batch passes six stages. Each stage reads and writes buffers of the batch's slot; slots are taken in turn:

    fill      host      host memory -> staging    (pinned)
    copy_in   in        staging     -> inputs     (device)
    encoder   compute   inputs      -> features   (device)
    flow      compute   features, inputs -> values (device)
    copy_out  out       values      -> results    (pinned)
    read      host      results     -> the caller

With three lanes (CUDA streams) and three slots, batch k + 1 is copied in while batch k computes and batch k - 1
is copied out. Nothing here knows CUDA: the plan is data, so that a simulator can prove it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Stage = Literal["fill", "copy_in", "encoder", "flow", "copy_out", "read"]
Lane = Literal["host", "in", "compute", "out"]

DEFAULT_SLOTS = 3
_LANES: dict[Stage, Lane] = {
    "fill": "host",
    "copy_in": "in",
    "encoder": "compute",
    "flow": "compute",
    "copy_out": "out",
    "read": "host",
}
DEVICE_STAGES: tuple[Stage, ...] = ("copy_in", "encoder", "flow", "copy_out")
READS: dict[Stage, tuple[str, ...]] = {
    "fill": (),
    "copy_in": ("staging",),
    "encoder": ("inputs",),
    "flow": ("inputs", "features"),
    "copy_out": ("values",),
    "read": ("results",),
}
WRITES: dict[Stage, tuple[str, ...]] = {
    "fill": ("staging",),
    "copy_in": ("inputs",),
    "encoder": ("features",),
    "flow": ("values",),
    "copy_out": ("results",),
    "read": (),
}
# The stage of the same batch that a stage waits for, where that is in another lane. No batch waits for an earlier
# one: the host reads a batch's results before it fills the slot again, and then all stages in it have ended.
_WAITS: dict[Stage, Stage] = {"encoder": "copy_in", "copy_out": "flow", "read": "copy_out"}


@dataclass(frozen=True)
class Step:
    """One stage of one batch.

    Attributes
    ----------
    batch : number of the batch, from 0
    slot : set of buffers that it works in
    lane : where it is queued; a lane's steps run in the order in which they are queued, the host's at once
    waits : stage of the same batch, in another lane, that must have ended before it begins
    """

    stage: Stage
    batch: int
    slot: int
    lane: Lane
    waits: Stage | None


@dataclass(frozen=True)
class Schedule:
    """The plan of any number of batches.

    Parameters
    ----------
    slots : sets of buffers, 1 or more
    overlap : three lanes; without it one lane, one slot, and a batch ends before the next begins
    """

    slots: int = DEFAULT_SLOTS
    overlap: bool = True

    def __post_init__(self) -> None:
        if self.slots < 1 or (not self.overlap and self.slots != 1):
            raise ValueError(f"{self.slots} slots are not possible{'' if self.overlap else ' without overlap'}")

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """Device lanes in use."""
        return ("in", "compute", "out") if self.overlap else ("compute",)

    def _step(self, stage: Stage, batch: int) -> Step:
        def lane_of(stage: Stage) -> Lane:
            return "compute" if not self.overlap and _LANES[stage] != "host" else _LANES[stage]

        waits = _WAITS.get(stage)
        if waits is not None and lane_of(waits) == lane_of(stage):
            waits = None
        return Step(stage, batch, batch % self.slots, lane_of(stage), waits)

    def begin(self, batch: int) -> Iterator[Step]:
        """Yield the steps, in the order in which the host takes them when a batch comes.

        They end by reading an earlier batch's results, so that its slot is free for the next batch.
        """
        for stage in ("fill", *DEVICE_STAGES):
            yield self._step(stage, batch)  # type: ignore[arg-type]
        if batch - self.slots + 1 >= 0:
            yield self._step("read", batch - self.slots + 1)

    def finish(self, batches: int) -> Iterator[Step]:
        """Yield the steps that are left when the last of `batches` batches has begun."""
        for batch in range(max(0, batches - self.slots + 1), batches):
            yield self._step("read", batch)


def bucket(count: int, largest: int, parts: int) -> int:
    """Smallest of a few sizes that holds `count`: multiples of a `parts`-th of `largest`, which is the last.

    Shapes are made few so that each has its own CUDA graph.
    """
    if not 0 < count <= largest:
        raise ValueError(f"{count} is not in 1..{largest}")
    sizes = (-(-largest * part // parts) for part in range(1, parts + 1))
    return next(size for size in sizes if size >= count)
