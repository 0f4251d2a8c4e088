"""Small heads for tests, no side of them like another: a second of computing where a real template takes ten."""

import numpy as np

from ssn.train.templates import Template

SEMI_AXES = (25, 30, 23)  # mm


def small_template(margin=7):
    """An ellipsoid of white matter in grey matter, with a ventricle of fluid to the right, before and above."""
    shape = tuple(2 * (semi + margin) + 1 for semi in SEMI_AXES)
    offsets = np.indices(shape, np.float32) - (np.array(shape, np.float32) - 1).reshape(3, 1, 1, 1) / 2
    radius = np.sqrt(sum((axis / semi) ** 2 for axis, semi in zip(offsets, SEMI_AXES, strict=True)))
    brain = radius < 1
    ventricle = sum((axis - at) ** 2 for axis, at in zip(offsets, (4, 6, 3), strict=True)) < 36
    white = ((radius < 0.8) & ~ventricle).astype(np.float32)
    grey = (brain & (radius >= 0.8)).astype(np.float32)
    t1 = np.where(ventricle, 0.16, np.where(white > 0, 0.84, 0.56)) * brain
    affine = np.diag([1.0, 1, 1, 1])
    affine[:3, 3] = -20, -31, 12
    return Template(t1.astype(np.float32), grey, white, brain, affine)
