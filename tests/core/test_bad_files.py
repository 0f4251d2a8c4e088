"""Every file that is not one whole NIfTI volume is refused by one clear line, never by a traceback."""

import gzip
import os
import struct
import tracemalloc
import warnings

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nifti_files import DIM, MAGIC, QFORM_CODE, SHAPE, nifti_bytes, patched, refused, scan

from ssn.core.errors import SsnError, VolumeError
from ssn.core.volume import read_volume

# --- not a readable file


def test_a_file_that_does_not_exist_is_refused(nii):
    assert "does not exist" in refused(nii)


def test_a_link_to_nowhere_is_refused(nii):
    nii.symlink_to("annexed/object")
    assert "link to a file that is not there" in refused(nii)


def test_a_folder_is_refused_with_a_word_on_dicom(tmp_path):
    assert "dcm2niix" in refused(tmp_path)


def test_a_file_under_a_file_is_refused(nii):
    nii.write_bytes(b"x")
    assert "cannot be read" in refused(nii / "inner.nii")


def test_a_pipe_is_refused_without_waiting_for_it(nii):
    os.mkfifo(nii)
    assert "not a regular file" in refused(nii)


def test_an_empty_file_is_refused(nii):
    assert "is empty" in refused(nii, b"")


@pytest.mark.skipif(os.geteuid() == 0, reason="permission bits do not bind root")
def test_a_file_without_read_permission_is_refused(nii):
    nii.write_bytes(nifti_bytes())
    nii.chmod(0)
    assert "Permission denied" in refused(nii)


def test_a_name_with_a_line_break_is_still_refused_in_one_line(tmp_path):
    with pytest.raises(VolumeError) as caught:
        read_volume(tmp_path / "two\nlines\udc80.nii")
    assert "\n" not in str(caught.value)
    assert r"two\nlines" in str(caught.value)


def test_a_name_with_a_null_byte_is_refused(tmp_path):
    with pytest.raises(VolumeError, match="cannot be read"):
        read_volume(tmp_path / "a\0b.nii")


# --- not NIfTI


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (bytes(128) + b"DICM" + bytes(400), "convert with dcm2niix"),
        (b"NRRD0005\n" + bytes(400), "NRRD"),
        (b"\x89HDF\r\n\x1a\n" + bytes(400), "MINC"),
        (b"\0\0\0\x01" + bytes(400), "mri_convert"),
        (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        (b"hello", "not a NIfTI file"),
        (bytes(range(3, 250)) * 3, "not a NIfTI file"),
    ],
    ids=["dicom", "nrrd", "minc", "mgh", "git-lfs", "text", "noise"],
)
def test_another_format_is_named_with_the_way_to_convert_it(nii, content, words):
    assert words in refused(nii, content)
    assert words in refused(nii, gzip.compress(content))


@pytest.mark.parametrize("kind", [nib.Nifti1Pair, nib.Nifti2Pair, nib.AnalyzeImage])
def test_a_pair_of_hdr_and_img_is_refused(tmp_path, kind):
    nib.save(kind(scan(), np.eye(4)), tmp_path / "scan.img")
    word = "Analyze" if kind is nib.AnalyzeImage else ".hdr/.img pair"
    assert word in refused(tmp_path / "scan.hdr")
    assert ".hdr/.img pair" in refused(tmp_path / "scan.img")


def test_an_invalid_magic_is_refused(nii):
    assert "invalid NIfTI magic" in refused(nii, patched(MAGIC, "4s", b"n+9\0"))


def test_a_file_compressed_twice_is_refused(packed):
    noise = nifti_bytes(np.random.default_rng(1).integers(0, 9999, SHAPE, dtype=np.int16))
    assert "compressed twice" in refused(packed, gzip.compress(gzip.compress(noise)))


# --- damaged


def test_a_flipped_byte_inside_the_gzip_is_refused(packed):
    """Every byte of a small file is flipped in turn: what still loads must be the very same voxels."""
    whole = gzip.compress(nifti_bytes(scan((8, 8, 8), np.uint8)), mtime=0)
    packed.write_bytes(whole)
    expected = read_volume(packed).data
    accepted = []
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << position % 8
        packed.write_bytes(damaged)
        try:
            np.testing.assert_array_equal(read_volume(packed).data, expected)
            accepted.append(position)
        except VolumeError:
            pass
    # Bytes without meaning for the content: flags, time, extra flags, system; and the bits that fill up the
    # last byte before the trailer.
    assert set(accepted) <= {3, *range(4, 10), len(whole) - 9}


@pytest.mark.parametrize("from_end", range(1, 9))
def test_a_flipped_byte_in_the_gzip_checksum_or_length_is_refused(packed, from_end):
    damaged = bytearray(gzip.compress(nifti_bytes()))
    damaged[-from_end] ^= 0x10
    assert "damaged gzip file" in refused(packed, damaged)


@pytest.mark.parametrize("level", [0, 1, 9])
def test_a_gzip_cut_anywhere_is_refused(packed, level):
    whole = gzip.compress(nifti_bytes(), level)
    for length in (1, 5, 10, 12, 200, len(whole) // 2, len(whole) - 9, len(whole) - 8, len(whole) - 1):
        refused(packed, whole[:length])


@pytest.mark.parametrize("garbage", [b"x", b"\0\0x", b"\x1f\x8b", b"trailing" * 1000])
def test_garbage_behind_the_gzip_is_refused(packed, garbage):
    assert "damaged gzip file" in refused(packed, gzip.compress(nifti_bytes()) + garbage)


@pytest.mark.parametrize("missing", [1, 1000, 2 * 9 * 11 * 13])
def test_a_file_shorter_than_its_header_declares_is_refused(nii, missing):
    assert "cut short" in refused(nii, nifti_bytes()[:-missing])
    assert "cut short" in refused(nii, gzip.compress(nifti_bytes()[:-missing]))


@pytest.mark.parametrize("extra", [b"x", bytes(513), b"\1" * 10_000])
def test_more_data_than_the_header_declares_is_refused(nii, extra):
    assert "more data than its header declares" in refused(nii, nifti_bytes() + extra)
    assert "more data than its header declares" in refused(nii, gzip.compress(nifti_bytes() + extra))


def test_zero_padding_to_a_whole_block_is_tolerated(nii):
    nii.write_bytes(nifti_bytes() + bytes(512))
    np.testing.assert_array_equal(read_volume(nii).data, scan())


# --- too large


def peak_memory_of(action):
    tracemalloc.start()
    try:
        action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_small_file_that_declares_a_giant_volume_is_refused_before_memory_is_taken(packed, compress):
    content = compress(patched(DIM, "4h", 3, 2000, 2000, 2000))
    assert peak_memory_of(lambda: refused(packed, content)) < 8e6
    assert "more than the limit" in refused(packed, content)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_a_small_file_within_the_voxel_limit_that_cannot_hold_its_voxels_takes_no_memory(packed, compress):
    content = compress(patched(DIM, "4h", 3, 500, 500, 500))
    assert peak_memory_of(lambda: refused(packed, content)) < 8e6
    assert "cut short" in refused(packed, content)


def test_a_gzip_bomb_is_refused_without_unpacking_it(packed):
    content = gzip.compress(nifti_bytes() + bytes(50_000_000))
    assert peak_memory_of(lambda: refused(packed, content)) < 8e6
    assert "more data" in refused(packed, content)


def test_nifti2_dimensions_whose_product_overflows_64_bits_are_refused(nii):
    image = nib.Nifti2Image(scan(), np.eye(4)).to_bytes()
    changed = bytearray(image)
    struct.pack_into("<4q", changed, 16, 3, 2**40, 2**40, 2**40)
    assert "more than the limit" in refused(nii, bytes(changed))


# --- anything at all


def load_or_refuse(path, content):
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            volume = read_volume(path)
        except SsnError as error:
            assert "\n" not in str(error)
        else:
            assert np.isfinite(volume.data).all()
            assert min(volume.data.shape) >= 8


PLAIN = nifti_bytes()
PLAIN_QFORM = patched(QFORM_CODE, "2h", 1, 0)
FLIPS = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8)


def flipped(content, flips):
    damaged = bytearray(content)
    for where, value in flips:
        damaged[int(where * len(damaged))] = value
    return bytes(damaged)


@settings(max_examples=100, deadline=None)
@given(flips=FLIPS, cut=st.floats(0, 1), packed_first=st.booleans())
def test_flipped_and_cut_files_load_or_are_refused(tmp_path_factory, flips, cut, packed_first):
    path = tmp_path_factory.getbasetemp() / "fuzz.nii.gz"
    content = gzip.compress(PLAIN, mtime=0) if packed_first else PLAIN
    damaged = flipped(content, flips)
    load_or_refuse(path, damaged)
    load_or_refuse(path, damaged[: int(cut * len(damaged))])


@settings(max_examples=150, deadline=None)
@given(flips=FLIPS, by_qform=st.booleans(), repacked=st.booleans())
def test_flipped_headers_load_or_are_refused(tmp_path_factory, flips, by_qform, repacked):
    """Damage in the header only, and behind a valid checksum: every field takes every kind of value."""
    path = tmp_path_factory.getbasetemp() / "fuzz_header.nii.gz"
    plain = PLAIN_QFORM if by_qform else PLAIN
    content = flipped(plain[:348], flips) + plain[348:]
    load_or_refuse(path, gzip.compress(content, 1) if repacked else content)


@settings(max_examples=50, deadline=None)
@given(content=st.binary(max_size=700))
def test_noise_is_refused(tmp_path_factory, content):
    path = tmp_path_factory.getbasetemp() / "noise.nii.gz"
    load_or_refuse(path, content)
    load_or_refuse(path, b"\x1f\x8b\x08" + content)
