"""Make a cohort from one person's scan: deformed anew for every subject, some with a lesion drawn in.

Usage: python scripts/person_cohort.py SCAN FOLDER     (a skull-stripped T1 volume; three minutes on one core)

Unlike those of `ssn-train synth`, its subjects keep what a scanner made of tissue: texture, contrast, sharpness, noise.
They are one person all the same. 12 are healthy and to calibrate on, 30 to test on, of which every fifth is healthy.
"""

import csv
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from scipy import ndimage
from sklearn.mixture import GaussianMixture

from ssn.core.brain_box import brain_box
from ssn.train.anatomy import TISSUE_SIGNAL, Tissue, draw_coordinates, smooth_field
from ssn.train.lesions import LESION_KINDS, LesionKind, blend, draw_lesion

CALIBRATION, TEST = 12, 30
MARGIN = 12  # voxels around the brain: room for larger subjects
LEVELS = (0.0, *(mean for mean, _ in TISSUE_SIGNAL["t1"]), 1.4)  # signal: nothing, the tissues, what is brighter


class Person:
    """A scan at 1 mm, and what is known of its tissue.

    Attributes
    ----------
    image : (X, Y, Z), continued beyond the brain, prepared for cubic splines
    brain : (X, Y, Z)
    means : grey values at LEVELS
    fractions : (3, X, Y, Z) of cerebrospinal fluid, grey and white matter
    field : (X, Y, Z), of the receiver: white matter here, relative to all white matter
    """

    def __init__(self, path: Path) -> None:
        read = nib.as_closest_canonical(nib.load(path))
        data = np.squeeze(np.asanyarray(read.dataobj)).astype(np.float32).clip(0)
        zooms = read.header.get_zooms()[:3]
        brain = data > 0
        data = data[tuple(ndimage.distance_transform_edt(~brain, return_distances=False, return_indices=True))]
        if any(abs(zoom - 1) > 1e-3 for zoom in zooms):
            data, brain = (
                ndimage.zoom(data, zooms, order=3),
                ndimage.zoom(brain.astype(np.float32), zooms, order=1) > 0.5,
            )
        parts, _ = ndimage.label(brain)
        brain = parts == np.bincount(parts[brain]).argmax()
        box = brain_box(brain, MARGIN)
        data, self.brain = data[box].clip(1e-3), brain[box]
        inside = data[self.brain]
        start = np.quantile(inside, (0.06, 0.35, 0.8))[:, None]
        mixture = GaussianMixture(3, random_state=0, means_init=start, max_iter=1000).fit(inside[::50, None])
        fluid, grey, white = np.sort(mixture.means_[:, 0])
        self.means = (0.0, fluid, grey, white, white + 2 * (white - grey))
        less, more = ((grey - data) / (grey - fluid)).clip(0, 1), ((data - grey) / (white - grey)).clip(0, 1)
        self.fractions = np.stack([less, 1 - less - more, more]) * self.brain
        solid = (self.fractions[2] > 0.8).astype(np.float32)
        self.field = ndimage.gaussian_filter(data * solid, 20) / (ndimage.gaussian_filter(solid, 20) + 1e-6) / white
        self.image = ndimage.spline_filter(data, 3)

    def subject(self, seed: int, kind: LesionKind | None) -> tuple[np.ndarray, np.ndarray]:
        """Image and lesion mask, both (X, Y, Z), of a head deformed as those of `ssn-train synth` are."""
        rng, generator = np.random.default_rng((7, seed)), torch.Generator().manual_seed(seed)
        shape = self.brain.shape
        at = draw_coordinates(shape, rng, seed).numpy()
        image = ndimage.map_coordinates(self.image, at, order=3, prefilter=False, mode="nearest")
        brain = ndimage.map_coordinates(self.brain.astype(np.float32), at, order=1) > 0.5
        mask = np.zeros(shape, bool)
        if kind is not None:
            fractions = np.stack([ndimage.map_coordinates(each, at, order=1) for each in self.fractions]) * brain
            tissue = Tissue(torch.from_numpy(fractions.astype(np.float32)), torch.zeros(shape), torch.from_numpy(brain))
            lesion = draw_lesion(kind, tissue, rng, seed)
            mask = lesion.mask.numpy()
            # Its signal is relative to the tissues' own.
            field = ndimage.map_coordinates(self.field, at, order=1, mode="nearest")
            signal = torch.from_numpy(np.interp(image / field, self.means, LEVELS).astype(np.float32))
            changed = np.interp(blend(signal, lesion, "t1", rng).numpy(), LEVELS, self.means) * field
            touched = torch.stack([part.weight for part in lesion.parts]).amax(0).numpy() > 0
            image = np.where(touched, changed, image)
        bias = np.exp(rng.uniform(0.02, 0.08) * smooth_field(shape, 90.0, generator)[0].numpy())
        noise = rng.normal(0, rng.uniform(0.005, 0.02) * self.means[3], shape)
        return ((image * bias + noise).clip(1e-3) * brain).astype(np.float32), mask


def main() -> None:
    """Write the cohort and its table."""
    torch.set_num_threads(1)
    person, folder = Person(Path(sys.argv[1])), Path(sys.argv[2])
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    rows = []
    wanted = [("calibration", None)] * CALIBRATION
    wanted += [("test", (*LESION_KINDS, None)[index % 5]) for index in range(TEST)]
    for seed, (split, kind) in enumerate(wanted):
        name = f"{split}-{seed:04d}.nii.gz"
        image, mask = person.subject(seed, kind)
        nib.save(nib.Nifti1Image(image, np.eye(4)), folder / "images" / name)
        if kind:
            nib.save(nib.Nifti1Image(mask.astype(np.uint8), np.eye(4)), folder / "masks" / name)
        rows.append((f"images/{name}", f"masks/{name}" if kind else "", split, kind or ""))
    with (folder / "cohort.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("image", "mask", "split", "lesion"), *rows])


if __name__ == "__main__":
    main()
