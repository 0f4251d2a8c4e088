"""Subjects made from one person's scan: deformed anew for every seed, with or without a lesion drawn in.

Those of `ssn.train.subject` are imaged anew from a template's tissue; these keep what a scanner made of it: texture,
contrast, sharpness and noise. They are one person all the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from warnings import catch_warnings, simplefilter

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.exceptions import ConvergenceWarning
from sklearn.mixture import GaussianMixture

from ssn.core.atomic import printable
from ssn.core.brain_box import brain_box
from ssn.core.brain_doubts import doubts_as_it_lies
from ssn.core.errors import DataError
from ssn.core.geometry import GridConfig
from ssn.core.slices import cut_slices
from ssn.core.volume import Volume, background, read_volume
from ssn.train.anatomy import TISSUE_SIGNAL, Tissue, draw_coordinates, smooth_field
from ssn.train.lesions import LesionKind, blend, draw_lesion
from ssn.train.subject import Subject, draw_turn
from ssn.train.templates import MARGIN

_TISSUES = tuple(mean for mean, _ in TISSUE_SIGNAL["t1"])
_LEVELS = (0.0, *_TISSUES, 1.4)  # signal: nothing, the tissues, what is brighter
_BEGIN = (0.06, 0.35, 0.8)  # quantiles of a brain's grey values, where the search for its three tissues begins
_EVERY = 50  # voxels: what is enough to find them
_CELLS = 48  # a row of a slice, for the doubts alone
_FIELD_MM = 20.0  # Gaussian that leaves the receiver's field of white matter


@dataclass(frozen=True)
class Person:
    """A scan at 1 mm, and what is known of its tissue.

    Attributes
    ----------
    image : (X, Y, Z), grey values continued beyond the brain, as coefficients of cubic splines
    brain : (X, Y, Z)
    means : grey values at the signals of `_LEVELS`
    fractions : (3, X, Y, Z) of cerebrospinal fluid, grey and white matter
    field : (X, Y, Z), of the receiver: white matter here, relative to all white matter
    affine : (4, 4), voxel indices to world millimetres
    contents : digest of the scan's voxels
    doubts : about the scan's header and brain
    """

    image: NDArray[np.float32]
    brain: NDArray[np.bool_]
    means: tuple[float, ...]
    fractions: NDArray[np.float32]
    field: NDArray[np.float32]
    affine: NDArray[np.float64]
    contents: str
    doubts: tuple[str, ...]

    @classmethod
    def read(cls, path: Path) -> Person:
        """Read a skull-stripped T1-weighted scan of a healthy head.

        Raises
        ------
        VolumeError
            If it is not a usable brain.
        DataError
            If its tissue cannot be told.
        """
        volume = read_volume(path)
        stack = cut_slices(volume, GridConfig(), _CELLS, thick="middle")
        doubts = doubts_as_it_lies(volume, stack)
        data, brain, affine = _at_one_millimetre(volume, stack.brain)
        parts, _ = ndimage.label(brain)
        brain = parts == np.bincount(parts[brain]).argmax()
        # Room for larger subjects, also where a scan was cropped to its brain; not where it ends inside.
        room = [tuple(0 if brain.take(end, axis).any() else MARGIN for end in (0, -1)) for axis in range(3)]
        data, brain = np.pad(data, room, mode="edge"), np.pad(brain, room)
        affine[:3, 3] -= affine[:3, :3] @ [before for before, _ in room]
        box = brain_box(brain, MARGIN)
        affine[:3, 3] += affine[:3, :3] @ [side.start for side in box]
        data, brain = data[box].clip(1e-3), brain[box]
        fluid, grey, white = _tissue_means(path, data[brain])
        less, more = ((grey - data) / (grey - fluid)).clip(0, 1), ((data - grey) / (white - grey)).clip(0, 1)
        fractions = np.stack([less, 1 - less - more, more]) * brain
        solid = (fractions[2] > 0.8).astype(np.float32)
        field = ndimage.gaussian_filter(data * solid, _FIELD_MM)
        field /= (ndimage.gaussian_filter(solid, _FIELD_MM) + np.float32(1e-6)) * np.float32(white)
        means = (0.0, fluid, grey, white, white + 2 * (white - grey))
        coefficients = ndimage.spline_filter(data, 3, np.float32)
        return cls(coefficients, brain, means, fractions, field, affine, volume.contents(), tuple(doubts))

    def subject(self, seed: int, *, lesion: LesionKind | None = None, tilt_degrees: int = 0) -> Subject:
        """Make one subject. The same seed with another `lesion` (or none) is the same brain and acquisition."""
        streams = np.random.SeedSequence(seed).spawn(4)
        shape_rng, lesion_rng, scan_rng, tilt_rng = (np.random.default_rng(s) for s in streams)
        shape_state, lesion_state, scan_state, _ = (int(s.generate_state(1)[0]) for s in streams)
        shape: tuple[int, int, int] = self.brain.shape  # type: ignore[assignment]
        turn = draw_turn(tilt_rng, tilt_degrees) if tilt_degrees else None
        at = draw_coordinates(shape, shape_rng, shape_state, turn).numpy()

        def moved(data: NDArray[np.float32], order: int = 1, mode: str = "nearest") -> NDArray[np.float32]:
            result: NDArray[np.float32] = ndimage.map_coordinates(data, at, order=order, prefilter=False, mode=mode)
            return result

        image = moved(self.image, order=3)
        brain = moved(self.brain.astype(np.float32), mode="constant") > 0.5
        mask = np.zeros(shape, bool)
        if lesion is not None:
            fractions = np.stack([moved(each, mode="constant") for each in self.fractions]) * brain
            tissue = Tissue(torch.from_numpy(fractions), torch.zeros(shape), torch.from_numpy(brain))
            drawn = draw_lesion(lesion, tissue, lesion_rng, lesion_state)
            mask = drawn.mask.numpy()
            field = moved(self.field)  # a lesion's signal is relative to the tissue's own
            signal = torch.from_numpy(np.interp(image / field, self.means, _LEVELS).astype(np.float32))
            changed = np.interp(blend(signal, drawn, "t1", lesion_rng).numpy(), _LEVELS, self.means) * field
            touched = torch.stack([part.weight for part in drawn.parts]).amax(0).numpy() > 0
            image = np.where(touched, changed, image)
        generator = torch.Generator().manual_seed(scan_state)
        bias, noise = scan_rng.uniform((0.02, 0.005), (0.08, 0.02))
        scanned = image / np.float32(self.means[3]) * np.exp(bias * smooth_field(shape, 90.0, generator)[0].numpy())
        scanned += scan_rng.normal(0, noise, shape)
        # White matter of a template's subjects is as bright; what is brain is never the background.
        return Subject(((scanned * _TISSUES[2]).clip(1e-3) * brain).astype(np.float32), mask, self.affine)


def _at_one_millimetre(
    volume: Volume, brain: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.bool_], NDArray[np.float64]]:
    """Grey values from 0 to about 100, continued beyond the brain, brain and affine on a grid of about 1 mm, in RAS."""
    import nibabel as nib

    inside = volume.data[brain]
    low = min(background(volume.data)[0], float(np.quantile(inside, 0.001)))  # z-scores lie on both sides of it
    span = float(np.quantile(inside, 0.9)) - low
    data = (volume.data - np.float32(low)) * np.float32(2.0 ** (6 - np.floor(np.log2(span))))  # by a power of 2: exact
    data = data[tuple(ndimage.distance_transform_edt(~brain, return_distances=False, return_indices=True))]
    to_canonical = nib.orientations.inv_ornt_aff(volume.orientation, volume.header.get_data_shape()[:3])
    affine = np.asarray(volume.affine @ to_canonical, np.float64)
    affine[:3] *= volume.zooms[0] / float(np.linalg.norm(affine[:3, 0]))  # mm, whatever the header's unit
    if all(abs(zoom - 1) < 1e-3 for zoom in volume.zooms):
        return data, brain, affine
    finer = ndimage.zoom(data, volume.zooms, order=3)
    steps = (np.array(data.shape) - 1) / (np.array(finer.shape) - 1)  # first and last voxel stay where they are
    affine[:3, :3] *= steps
    return finer, ndimage.zoom(brain.astype(np.float32), volume.zooms, order=1) > 0.5, affine


def _tissue_means(path: Path, inside: NDArray[np.float32]) -> tuple[float, float, float]:
    """Grey values of fluid, grey and white matter in a brain's (n,)."""
    begin = np.quantile(inside, _BEGIN)[:, None]
    mixture = GaussianMixture(3, random_state=0, means_init=begin, max_iter=1000)
    with catch_warnings():
        simplefilter("ignore", ConvergenceWarning)  # the last digits do not matter
        mixture.fit(inside[::_EVERY, None])
    fluid, grey, white = (float(mean) for mean in np.sort(mixture.means_[:, 0]))
    if not fluid < grey < white or (white - fluid) < 0.1 * white:
        raise DataError(
            f"{printable(path)}: fluid, grey and white matter cannot be told by its grey values; give a T1-weighted "
            "scan of a healthy head, its bias field corrected if that is strong"
        )
    return fluid, grey, white
