"""What a NIfTI header declares, checked before any memory is taken for the voxels it declares.

The rules are those of nifti1.h and nifti2.h (https://nifti.nimh.nih.gov), read more strictly than nibabel
reads them: it repairs or accepts many headers for which a map in the patient's space has no meaning.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from ssn.core.errors import VolumeError
from ssn.core.nifti_stream import NiftiStream, refusal

MIN_AXIS_VOXELS = 8
MAX_VOXELS = 512**3  # for more no memory is taken
MIN_ZOOM_MM, MAX_ZOOM_MM = 0.2, 10.0
# Volume of a voxel over the product of its edges: 1 for a box, 0 for a flat one. No scan is near 0.
MIN_VOXEL_SHAPE = 1e-4
_RIGHT_ANGLES = 0.99  # below it lengths along the axes say too little about the brain's shape
# DICOM headers and CIFTI tables live in extensions; none that was seen is near this.
MAX_EXTENSION_BYTES = 64 << 20

_BYTES_OF_VERSION = {348: 1, 540: 2}
_SINGLE_FILE_MAGIC = {1: b"n+1\0", 2: b"n+2\0\r\n\x1a\n"}
_GREY_DTYPES = {2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280}  # codes of integers and floats of up to 64 bits
_REFUSED_DTYPES = {
    1: "1-bit", 32: "complex", 128: "RGB colour", 1536: "128-bit float",
    1792: "complex", 2048: "complex", 2304: "RGBA colour",
}  # fmt: skip
_MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units: metre, millimetre, micrometre
_CONVERT = "convert it to NIfTI (DICOM: dcm2niix)"


@dataclass(frozen=True)
class DeclaredVolume:
    """A header that has been checked, and what it says about the voxels that follow it."""

    header: nib.Nifti1Header
    affine: NDArray[np.float64]  # (4, 4), own voxel indices to the header's own length unit
    own_zooms: tuple[float, float, float]  # mm, along the file's own axes
    shape: tuple[int, int, int]  # own axis order
    dtype: np.dtype[np.generic]  # as on disk, byte order included
    slope: float
    inter: float
    doubts: tuple[str, ...] = ()  # what the header leaves open about where left is; a line each


def read_header(stream: NiftiStream) -> DeclaredVolume:
    """Read and check the header, and leave the stream at the first voxel.

    Raises
    ------
    VolumeError
        It is not a NIfTI header, or it declares something that is not one brain volume.
    """
    path = stream.path
    header, header_bytes = _parse(stream)
    shape = _checked_shape(path, header)
    voxels = math.prod(shape)
    if voxels > MAX_VOXELS:
        raise refusal(
            path,
            f"declares {_times(shape)} voxels, more than the limit of {MAX_VOXELS}",
            "check the file, or resample it",
        )
    dtype = _checked_dtype(path, header)
    extension_bytes = _checked_offset(path, header, header_bytes) - header_bytes
    stream.check_size(header_bytes + extension_bytes + voxels * dtype.itemsize)
    # Any number can stand in a header; what overflows is refused below as infinite or singular.
    with np.errstate(all="ignore"):
        affine = _checked_affine(path, header)
    declared = DeclaredVolume(
        header=header,
        affine=affine,
        own_zooms=_checked_zooms(path, header, affine),
        shape=shape,
        dtype=dtype,
        doubts=_doubts(header, affine),
        **_checked_scaling(path, header),
    )
    stream.skip(extension_bytes)
    return declared


def _parse(stream: NiftiStream) -> tuple[nib.Nifti1Header, int]:
    start = stream.read(348)
    size, endianness = int.from_bytes(start[:4], "little"), "<"
    if size not in _BYTES_OF_VERSION:
        size, endianness = int.from_bytes(start[:4], "big"), ">"
    if size not in _BYTES_OF_VERSION or len(start) < 348:
        raise _foreign(stream.path, start)
    version = _BYTES_OF_VERSION[size]
    magic = start[4:12] if version == 2 else start[344:348]
    if magic != _SINGLE_FILE_MAGIC[version]:
        raise _pair_or_analyze(stream.path, magic)
    block = start + stream.read(size - len(start))
    if len(block) < size:
        raise _foreign(stream.path, block)
    kind = nib.Nifti2Header if version == 2 else nib.Nifti1Header
    header = kind(block, endianness=endianness, check=False)
    # The two repairs that nifti1.h asks of every reader; nibabel makes the same.
    if header["pixdim"][0] not in (-1, 1):
        header["pixdim"][0] = 1
    for code in ("qform_code", "sform_code"):
        if not 0 <= header[code] <= 5:
            header[code] = 0
    return header, size


def _foreign(path: Path, start: bytes) -> VolumeError:
    kinds = {
        b"\x1f\x8b": ("is compressed twice", "decompress it once with gunzip"),
        b"NRRD": ("is an NRRD file, not NIfTI", "convert it with 3D Slicer or SimpleITK"),
        b"\x89HDF": ("is an HDF5 (MINC) file, not NIfTI", "convert it with mnc2nii"),
        b"\0\0\0\x01": ("is a FreeSurfer MGH file, not NIfTI", "convert it with mri_convert"),
        b"version https://git-lfs": ("is a git-lfs pointer, not the volume", "run git lfs pull"),
    }
    if start[128:132] == b"DICM":
        return refusal(path, "is a DICOM file, not NIfTI", "convert with dcm2niix")
    for magic, (what, remedy) in kinds.items():
        if start.startswith(magic):
            return refusal(path, what, remedy)
    if path.suffix.lower() == ".img":
        return _pair_or_analyze(path, b"ni1\0")
    return refusal(path, "is not a NIfTI file", _CONVERT)


def _pair_or_analyze(path: Path, magic: bytes) -> VolumeError:
    if magic.startswith((b"ni1", b"ni2")):
        what = "is one half of a .hdr/.img pair"
    elif not magic.strip(b"\0 "):
        what = "is an Analyze 7.5 header, which does not say left from right"
    else:
        return refusal(path, f"has an invalid NIfTI magic ({magic!a})", "copy or download the file again")
    return refusal(path, what, "convert it to a single .nii.gz file (fslchfiletype NIFTI_GZ, or nibabel)")


def _checked_shape(path: Path, header: nib.Nifti1Header) -> tuple[int, int, int]:
    dim = [int(value) for value in header["dim"]]
    if not 1 <= dim[0] <= 7 or min(dim[1 : dim[0] + 1]) < 1:
        raise refusal(path, f"declares impossible dimensions {dim}", "copy or download the file again")
    shape = dim[1 : dim[0] + 1]
    frames = math.prod(shape[3:])
    if frames > 1:
        raise refusal(
            path,
            f"holds {frames} volumes ({_times(shape)}), not one",
            "extract one with fslroi or nibabel",
        )
    x, y, z = (*shape, 1, 1)[:3]
    if min(x, y, z) == 1:
        raise refusal(path, f"is a 2D slice ({x} x {y} x {z}), not a volume", "give the whole 3D volume")
    if min(x, y, z) < MIN_AXIS_VOXELS:
        what = f"has an axis of fewer than {MIN_AXIS_VOXELS} voxels ({x} x {y} x {z})"
        raise refusal(path, what, "give a whole 3D brain volume")
    return x, y, z


def _checked_dtype(path: Path, header: nib.Nifti1Header) -> np.dtype[np.generic]:
    code = int(header["datatype"])
    if code not in _GREY_DTYPES:
        name = _REFUSED_DTYPES.get(code, f"unknown (code {code})")
        raise refusal(path, f"its voxels are {name}, not grey values", "save it as int16 or float32")
    return header.get_data_dtype()


def _checked_offset(path: Path, header: nib.Nifti1Header, header_bytes: int) -> int:
    """Return where the voxels begin: behind the header and its four extension bytes, at a whole byte."""
    offset = float(header["vox_offset"])  # a float in NIfTI-1
    first, last = header_bytes + 4, header_bytes + MAX_EXTENSION_BYTES
    if not (first <= offset <= last and offset.is_integer()):
        raise refusal(path, f"its voxels cannot begin at byte {offset:g}", "copy or download the file again")
    return int(offset)


def _checked_affine(path: Path, header: nib.Nifti1Header) -> NDArray[np.float64]:
    pixdim = [float(size) for size in header["pixdim"][1:4]]
    if not all(math.isfinite(size) and size > 0 for size in pixdim):
        what = f"its voxel size (pixdim) is {_times(pixdim)}"
        raise refusal(path, what, "correct the header with nibabel or fslchpixdim")
    try:
        affine = np.asarray(header.get_best_affine(), np.float64)
    except (HeaderDataError, ValueError) as error:  # a quaternion longer than 1
        raise refusal(path, "its qform is not a rotation", "correct the header, or convert again") from error
    if not np.isfinite(affine).all():
        raise refusal(path, "its affine holds NaN or infinity", "correct the header, or convert again")
    if np.linalg.norm(affine[:3, :3], axis=0).min() == 0 or voxel_shape(affine) < MIN_VOXEL_SHAPE:
        raise refusal(path, "its affine is singular", "correct the header, or convert again")
    return affine


def voxel_shape(affine: NDArray[np.float64]) -> float:
    """Volume of a voxel over the product of its edges: 1 where axes are at right angles, which six digits say."""
    # Unit columns first: a determinant alone would depend on the voxel size.
    return round(abs(float(np.linalg.det(affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)))), 6)


def _doubts(header: nib.Nifti1Header, affine: NDArray[np.float64]) -> tuple[str, ...]:
    """Say what the header leaves open: how the brain lies, which programs read differently, or what shape it has."""
    shape = voxel_shape(affine)
    if shape < _RIGHT_ANGLES:
        what = f"its axes are not at right angles (a voxel has {shape:.0%} of the product of its edges)"
        return (*_form_doubts(header), f"{what}; resample it onto a grid with right angles")
    return _form_doubts(header)


def _form_doubts(header: nib.Nifti1Header) -> tuple[str, ...]:
    qform, sform = int(header["qform_code"]), int(header["sform_code"])
    if not (qform or sform):
        what = "its header does not say how it lies (qform and sform codes are 0): left and right may be swapped"
        return (f"{what}; convert it again from its source",)
    if qform and sform:
        try:
            one, other = (np.asarray(form, np.float64) for form in (header.get_sform(), header.get_qform()))
        except (HeaderDataError, ValueError):  # a qform that no one can read: nobody will
            return ()
        axes = ["".join(nib.aff2axcodes(form)) for form in (one, other)]
        edges = [np.linalg.norm(form[:3, :3], axis=0) for form in (one, other)]
        if axes[0] != axes[1] or not np.allclose(edges[0], edges[1], rtol=0.05):
            what = f"its sform ({axes[0]}) and qform ({axes[1]}) contradict each other, and the sform was taken"
            return (f"{what}; look at it, and set both to the right one with nibabel",)
    elif sform:
        edges = np.linalg.norm(np.asarray(header.get_sform(), np.float64)[:3, :3], axis=0)
        stated = [float(size) for size in header["pixdim"][1:4]]
        if not np.allclose(edges, stated, rtol=0.05):
            what = f"its voxel size (pixdim, {_times(stated)}) and its sform ({_times(float(e) for e in edges)})"
            return (f"{what} contradict each other, and the sform was taken; look at it, and correct it with nibabel",)
    return ()


def _checked_zooms(path: Path, header: nib.Nifti1Header, affine: NDArray[np.float64]) -> tuple[float, float, float]:
    mm_per_unit = _MM_PER_UNIT.get(int(header["xyzt_units"]) & 0x07, 1.0)
    x, y, z = (float(edge) * mm_per_unit for edge in np.linalg.norm(affine[:3, :3], axis=0))
    if not MIN_ZOOM_MM <= min(x, y, z) <= max(x, y, z) <= MAX_ZOOM_MM:
        unit = "" if mm_per_unit == 1 else f" (its header counts in units of {mm_per_unit:g} mm)"
        what = f"has voxels of {x:.4g} x {y:.4g} x {z:.4g} mm{unit}, outside {MIN_ZOOM_MM:g} to {MAX_ZOOM_MM:g}"
        raise refusal(path, what, "correct the header, or resample the volume")
    return x, y, z


def _checked_scaling(path: Path, header: nib.Nifti1Header) -> dict[str, float]:
    try:
        slope, inter = header.get_slope_inter()
    except HeaderDataError as error:
        raise refusal(path, "its scl_inter is NaN or infinite", "correct the header, or convert again") from error
    # nifti1.h: a slope of zero means that the voxels are not scaled.
    return {"slope": 1.0, "inter": 0.0} if slope is None else {"slope": slope, "inter": inter}


def _times(lengths: Iterable[float]) -> str:
    return " x ".join(f"{length:g}" if isinstance(length, float) else str(length) for length in lengths)
