"""Write the packaged demo volumes: one synthetic subject with a tumour, and the same subject without."""

from pathlib import Path

import nibabel as nib
import numpy as np

import ssn.assets
from ssn.train.subject import make_subject
from ssn.train.templates import load_template

SEED = 900_000_007  # of no cohort that the model was made or measured with


def main() -> None:
    """Write both volumes as 8-bit NIfTI, so that they stay small."""
    folder = Path(ssn.assets.__file__).parent
    template = load_template("icbm152")
    for name, lesion in (("demo", "tumour"), ("demo_healthy", None)):
        subject = make_subject(template, SEED, lesion=lesion)
        data = np.rint(subject.image.clip(0, 1.25) * 200).astype(np.uint8)
        # A brain voxel that rounds to 0 would be taken for background.
        data[(subject.image > 0) & (data == 0)] = 1
        image = nib.Nifti1Image(data, subject.affine)
        image.header.set_xyzt_units("mm")
        nib.save(image, folder / f"{name}.nii.gz")
        print(f"{name}: {(folder / f'{name}.nii.gz').stat().st_size / 1e6:.2f} MB, {subject.mask.sum() / 1000:.1f} ml")  # noqa: T201


if __name__ == "__main__":
    main()
