"""Read one brain volume from NIfTI into canonical axis order, and write a map back onto the same voxels."""

import hashlib
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from isal import igzip
from nibabel import orientations
from numpy.typing import NDArray

from ssn.core.atomic import Held, atomic_path, printable
from ssn.core.errors import OutputError
from ssn.core.nifti_header import DeclaredVolume, read_header, voxel_shape
from ssn.core.nifti_stream import NiftiStream, refusal

_MOST_NONFINITE = 0.05  # of the voxels
_CHUNK_VOXELS = 1 << 20
# ISA-L level 1: six times as fast as zlib's fastest level, at the same size.
_GZIP_LEVEL = 1
OWN_MARK = b"ssn anomaly "  # what the `descrip` of every map and mask begins with
_RAS = np.array([[0, 1], [1, 1], [2, 1]])
# Everything that places the voxels in space. Copied as stored, so that not one bit of it changes.
_SPACE_FIELDS = (
    "xyzt_units", "qform_code", "sform_code", "quatern_b", "quatern_c", "quatern_d",
    "qoffset_x", "qoffset_y", "qoffset_z", "srow_x", "srow_y", "srow_z",
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Volume:
    """One 3D brain volume, in the axis order closest to RAS+ (right, anterior, superior)."""

    data: NDArray[np.float32]  # (X, Y, Z), canonical axis order, scl_slope/inter applied, all finite
    zooms: tuple[float, float, float]  # mm, along the axes of `data`
    path: Path
    sha256: str  # of the file as it lies on disk
    nonfinite_voxels: int  # how many NaN or infinite voxels were set to the background
    affine: NDArray[np.float64]  # (4, 4), of the input's own axis order, in the input's own length unit
    header: nib.Nifti1Header  # the input's own (a Nifti2Header is a Nifti1Header)
    orientation: NDArray[np.float64]  # (3, 2), nibabel's ornt from the input's own axes to RAS+
    doubts: tuple[str, ...] = ()  # what its header leaves open about where left is; a line each

    @property
    def voxel_ml(self) -> float:
        """Volume of a voxel, ml: less than the product of its edges where axes are not at right angles."""
        return float(np.prod(self.zooms)) * voxel_shape(self.affine) / 1000

    def contents(self) -> str:
        """SHA-256 of shape and voxels, whatever file they are in: compressed or not, in any axis order."""
        return hashlib.sha256(repr(self.data.shape).encode() + self.data.tobytes()).hexdigest()


def read_volume(path: Path) -> Volume:
    """Read a `.nii` or `.nii.gz` file that holds one brain volume, or say why it does not.

    NIfTI-1 and NIfTI-2, either byte order, any integer or float type up to 64 bits, any orientation. The
    file is read once, to its end; memory peaks at two float32 copies of the volume. Compression is read from its
    content, not from its name. NaN and infinite voxels become background (`background`), if they are few.

    Raises
    ------
    VolumeError
        The file is missing, damaged, not NIfTI, or not one plausible brain volume. The message is one line:
        the file, what is wrong, what to do.
    """
    path = Path(path)
    try:
        with NiftiStream(path) as stream:
            declared = read_header(stream)
            voxels, nonfinite = _read_voxels(stream, declared)
            sha256 = stream.finish()
        _check_content(path, voxels, nonfinite)
        ornt = orientations.io_orientation(declared.affine)
        own = voxels.reshape(declared.shape, order="F")
        data = _reordered(orientations.apply_orientation(own, ornt))
        if nonfinite:
            data[~np.isfinite(data)] = background(data)[0]
    except MemoryError as error:
        raise refusal(path, "does not fit into memory", "free some memory, or resample it") from error
    axes = np.argsort(ornt[:, 0])
    x, y, z = (declared.own_zooms[axis] for axis in axes)
    return Volume(
        data=data,
        zooms=(x, y, z),
        path=path,
        sha256=sha256,
        nonfinite_voxels=nonfinite,
        affine=declared.affine,
        header=declared.header,
        orientation=ornt,
        doubts=declared.doubts,
    )


def _reordered(view: NDArray[np.float32]) -> NDArray[np.float32]:
    """Copy a volume so that its last axis is the fastest; numpy alone takes up to three times as long."""
    if view.flags.c_contiguous:
        return view
    # Plane by plane, each with the axis that was the fastest and the one that becomes it: what is read is in cache.
    between = 1 if abs(view.strides[0]) == view.itemsize else 0
    data = np.empty(view.shape, view.dtype)
    for source, target in zip(np.moveaxis(view, between, 0), np.moveaxis(data, between, 0), strict=True):
        target[...] = source
    return data


def background(data: NDArray[np.float32]) -> tuple[float, float]:
    """Value that most of the finite voxels on the faces of a volume (X, Y, Z) have, and their share of the faces."""
    faces = np.concatenate([data[[0, -1]].ravel(), data[:, [0, -1]].ravel(), data[:, :, [0, -1]].ravel()])
    values, counts = np.unique(faces[np.isfinite(faces)], return_counts=True)
    if not values.size:
        return 0.0, 0.0
    return float(values[counts.argmax()]), float(counts.max() / faces.size)


def from_canonical(canonical: NDArray[Any], like: Volume) -> NDArray[Any]:
    """Bring an array (3D) from canonical axis order back to the input's own; the exact inverse, a view."""
    back = orientations.ornt_transform(_RAS, like.orientation)
    return np.asarray(orientations.apply_orientation(canonical, back))


def write_map(
    path: Path, canonical: NDArray[Any], like: Volume, *, overwrite: bool = False, held: Held | None = None
) -> None:
    """Write a map so that it lies on its input, voxel by voxel, in every viewer.

    The input's axis order, affine, qform and sform with their codes, units and voxel sizes are kept. Header
    extensions and free text are not: they may name the patient. The same map gives the same bytes.

    Parameters
    ----------
    path
        Ends in `.nii` or `.nii.gz`.
    canonical
        (X, Y, Z) float32 or uint8, the shape and axis order of `like.data`.
    like
        The volume that the map belongs to.
    overwrite
        Whether an existing file may be replaced. The input itself never is.
    held
        As for `atomic_path`.

    Raises
    ------
    OutputError
        The file exists, is the input, has another suffix, or cannot be written.
    ValueError
        The array has another shape or type (a mistake of the caller, not of the user).
    """
    path = Path(path)
    if canonical.shape != like.data.shape or canonical.dtype not in (np.float32, np.uint8):
        raise ValueError(f"map must be float32 or uint8 {like.data.shape}, not {canonical.dtype} {canonical.shape}")
    name = path.name.lower()
    if not name.endswith((".nii", ".nii.gz")):
        raise OutputError(f"{printable(path)}: cannot tell the format; end the name in .nii.gz or .nii")
    if _same_file(path, like.path):
        raise OutputError(f"{printable(path)}: is the input itself; choose another output name")
    own = from_canonical(canonical, like)
    header = _map_header(like, own)
    with atomic_path(path, overwrite=overwrite, held=held) as temporary, temporary.open("xb") as file:
        if name.endswith(".gz"):
            # No name and no time in the gzip header: the same map gives the same bytes.
            with igzip.GzipFile("", "wb", _GZIP_LEVEL, file, mtime=0) as compressed:
                _write_nifti(compressed, header, own)
        else:
            _write_nifti(file, header, own)


def _read_voxels(stream: NiftiStream, declared: DeclaredVolume) -> tuple[NDArray[np.float32], int]:
    """Read and scale the voxels in file order, piece by piece: one float32 copy and a small buffer.

    Returns
    -------
    (X * Y * Z,) float32 in file order (first axis fastest), and how many of them are not finite.
    """
    dtype, slope, inter = declared.dtype, declared.slope, declared.inter
    voxels = np.empty(math.prod(declared.shape), np.float32)
    buffer = np.empty(min(voxels.size, _CHUNK_VOXELS), dtype)
    scaled = (slope, inter) != (1.0, 0.0)
    # float32 holds 8- and 16-bit integers exactly; longer ones may lose digits to a large scl_inter.
    wide = dtype.itemsize == 8 or (scaled and dtype.itemsize == 4 and dtype.kind != "f")
    can_be_nonfinite = scaled or dtype.kind == "f"
    nonfinite = 0
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, voxels.size, _CHUNK_VOXELS):
            piece = voxels[start : start + _CHUNK_VOXELS]
            stored = buffer[: piece.size]
            stream.read_voxels(stored)
            values: NDArray[Any] = stored.astype(np.float64) if wide else piece
            if not wide:
                piece[...] = stored
            if scaled:
                values *= values.dtype.type(slope)
                values += values.dtype.type(inter)
            if wide:
                piece[...] = values
            if can_be_nonfinite:
                nonfinite += piece.size - int(np.count_nonzero(np.isfinite(piece)))
    return voxels, nonfinite


def _check_content(path: Path, voxels: NDArray[np.float32], nonfinite: int) -> None:
    share = nonfinite / voxels.size
    if share > _MOST_NONFINITE:
        raise refusal(
            path,
            f"{share:.1%} of its voxels are NaN or infinite",
            "check how it was made, and write it again",
        )
    finite = voxels[np.isfinite(voxels)] if nonfinite else voxels
    low, high = float(finite.min()), float(finite.max())
    if low == high:
        raise refusal(path, f"all its voxels are {low:g}: no brain in it", "check how it was made")


def _same_file(path: Path, other: Path) -> bool:
    try:
        return path.samefile(other)
    except (OSError, ValueError):  # one of them does not exist (yet)
        return False


def _map_header(like: Volume, own: NDArray[Any]) -> nib.Nifti1Header:
    # The input's NIfTI version: NIfTI-2 keeps its affine in float64, which NIfTI-1 would round.
    header = type(like.header)(endianness="<")
    header.set_data_dtype(own.dtype)
    header.set_data_shape(own.shape)
    for field in _SPACE_FIELDS:
        header[field] = like.header[field]
    header["pixdim"][:4] = like.header["pixdim"][:4]
    header["scl_slope"], header["scl_inter"] = 1, 0
    header["vox_offset"] = header.single_vox_offset
    header["descrip"] = OWN_MARK + (b"mask" if own.dtype == np.uint8 else b"map")
    return header


def _write_nifti(file: io.BufferedIOBase, header: nib.Nifti1Header, own: NDArray[Any]) -> None:
    file.write(header.binaryblock)
    file.write(bytes(header.single_vox_offset - len(header.binaryblock)))  # no extensions
    step = max(1, _CHUNK_VOXELS // (own.shape[0] * own.shape[1]))
    for start in range(0, own.shape[2], step):
        # NIfTI's first axis is the fastest. In pieces, because this copies.
        file.write(own[:, :, start : start + step].astype(own.dtype.newbyteorder("<")).tobytes(order="F"))
