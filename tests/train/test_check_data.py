import json
import shutil
from itertools import permutations, product

import nibabel as nib
import numpy as np
import pytest
from brains import brain_array, brain_file, save
from trees import br35h, brats, ixi, mask, plain, table, volume
from typer.testing import CliRunner

from ssn.cli.train import app
from ssn.core.errors import DataError
from ssn.train.cases import Case
from ssn.train.check import file_problems, header_problems
from ssn.train.datasets import open_split


def check(path, *options):
    return CliRunner().invoke(app, ["check-data", str(path), *options])


def fit(path, tmp_path):
    return CliRunner().invoke(app, ["fit", str(path), "-o", str(tmp_path / "model"), "--encoder-weights", "none"])


@pytest.mark.parametrize("make", [ixi, brats, br35h, plain])
def test_a_sound_data_set_is_described_and_passes(tmp_path, make):
    result = check(make(tmp_path / "data"), "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["problems"] == []
    assert report["summary"]["volumes"] == len(report["cases"]) > 0


def test_shapes_voxel_sizes_contrasts_and_lesions_are_listed(tmp_path):
    report = json.loads(check(brats(tmp_path), "--json").stdout)
    summary = report["summary"]
    assert summary["subjects"] == 4
    assert summary["contrasts"] == {"t1": 4, "flair": 4}
    assert summary["voxel_sizes_mm"] == {"6 x 6 x 6": 8}
    assert summary["with_lesion"] == 8
    assert report["cases"][0]["lesion_ml"] == pytest.approx(4 / 3 * np.pi * 1.6**3, rel=0.2)


def test_a_head_whose_top_is_cut_off_and_a_header_without_left_are_noted(tmp_path):
    folder = ixi(tmp_path, subjects=6)
    first, second = sorted(folder.iterdir())[:2]
    image = nib.load(first)
    data = np.asarray(image.dataobj)
    nib.save(nib.Nifti1Image(data[:, :, : np.flatnonzero(data.any((0, 1)))[-1] - 4], image.affine), first)
    image = nib.load(second)
    image.set_sform(None, 0), image.set_qform(None, 0)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), None, image.header), second)
    report = json.loads(check(folder, "--json").stdout)
    assert report["problems"] == []
    top = [note for note in report["notes"] if "the top of the head is cut off" in note]
    left = [note for note in report["notes"] if "its header does not say how it lies" in note]
    assert [note.split(":")[0] for note in top + left] == [case["name"] for case in report["cases"][:2]]
    assert any("the top of the head" in doubt for doubt in report["cases"][0]["doubts"])


def test_a_volume_of_another_contrast_and_a_turned_one_are_noted_though_their_names_say_nothing(tmp_path):
    folder = ixi(tmp_path, subjects=6)
    first, second = sorted(folder.iterdir())[:2]
    for path, change in (
        (first, lambda data: np.where(data > 0, data.max() + 1 - data, 0)),
        (second, lambda data: data[:, :, ::-1].copy()),
    ):
        image = nib.load(path)
        nib.save(nib.Nifti1Image(change(np.asarray(image.dataobj)), image.affine), path)
    report = json.loads(check(folder, "--json").stdout)
    contrast, turned = report["notes"]
    assert contrast.startswith(
        f"{report['cases'][0]['name']}: its grey values do not lie as those of the other volumes"
    )
    assert turned.startswith(f"{report['cases'][1]['name']}: it is more like the other volumes here when it is turned")
    assert report["problems"] == []


def test_contrasts_are_compared_with_their_own_and_one_can_be_chosen(tmp_path):
    for path in ixi(tmp_path, subjects=5, contrasts=("T1", "T2")).glob("*-T2.nii.gz"):
        image = nib.load(path)
        data = np.asarray(image.dataobj)
        nib.save(nib.Nifti1Image(np.where(data > 0, data.max() + 1 - data, 0), image.affine), path)
    whole, chosen = (json.loads(check(tmp_path, *given, "--json").stdout) for given in ((), ("--contrast", "T2")))
    assert whole["notes"] == ["several contrasts (t1, t2): other commands take one, with --contrast"]
    assert whole["summary"]["contrasts"] == {"t1": 5, "t2": 5}
    assert (chosen["summary"]["contrasts"], chosen["notes"]) == ({"t2": 5}, [])


def test_a_mask_that_marks_nothing_is_no_lesion_and_pictures_need_no_training_split(tmp_path):
    volume(tmp_path / "a.nii.gz", 1), mask(tmp_path / "m.nii.gz", 0.0)
    report = json.loads(check(table(tmp_path, "a.nii.gz,m.nii.gz,train"), "--json").stdout)
    assert (report["cases"][0]["lesion_ml"], report["summary"]["with_lesion"]) == (0.0, 0)
    tumours = br35h(tmp_path / "2d", normals=0, variant=True) / "Br35H-Mask-RCNN"
    assert json.loads(check(tumours, "--json").stdout)["notes"] == []


def rename(path, name):
    path.rename(path.with_name(name))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-2000])


def other_shape(path):
    brain_file(path, (5.0, 6.0, 6.0))


def mark(path, where):
    image = nib.load(path.with_name(path.name.replace("seg", "t1")))
    save(path, where(np.asarray(image.dataobj)), image.affine, dtype=np.uint8)


def fill(path, value):
    image = nib.load(path)
    save(path, np.full(image.shape, value), image.affine, dtype=np.float32)


def lost_affine(path):
    image = nib.load(path)
    save(path, np.asanyarray(image.dataobj), np.eye(4), dtype=np.uint8)


def seg(folder, number):
    return folder / f"BraTS2021_{number:05d}" / f"BraTS2021_{number:05d}_seg.nii.gz"


def mix_modalities(folder):
    rename(folder / "h0.nii.gz", "h0_T1.nii.gz")
    rename(folder / "h1.nii.gz", "h1_T2.nii.gz")


def with_skull(path):
    data, affine = brain_array((6.0, 6.0, 6.0))
    save(path, data + np.random.default_rng(0).uniform(1, 50, data.shape), affine)


BROKEN = {
    # what is done to a sound tree: (layout, change, what the message names)
    "a truncated volume": (plain, lambda d: truncate(d / "h2.nii.gz"), "h2.nii.gz"),
    "a head that was not skull-stripped": (plain, lambda d: with_skull(d / "h1.nii.gz"), "h1.nii.gz"),
    "mixed modalities": (plain, mix_modalities, "h1_T2.nii.gz"),
    "a mask among the images": (plain, lambda d: mask(d / "h1_mask.nii.gz"), "h1_mask.nii.gz"),
    "a mask of no image": (plain, lambda d: mask(d / "masks" / "h9.nii.gz"), "h9.nii.gz"),
    "two volumes of one name": (plain, lambda d: volume(d / "h3.nii", 8), "h3.nii.gz"),
    "a missing segmentation": (brats, lambda d: seg(d, 1).unlink(), "00001_seg"),
    "a missing contrast": (brats, lambda d: seg(d, 1).with_name("BraTS2021_00001_t1.nii.gz").unlink(), "00001_t1"),
    "a mask of another shape": (brats, lambda d: other_shape(seg(d, 2)), "00002_seg"),
    "a mask that lost its affine": (brats, lambda d: lost_affine(seg(d, 2)), "00002_seg"),
    "a mask without lesion": (brats, lambda d: mask(seg(d, 3), 0.0), "00003_seg"),
    "a soft mask": (brats, lambda d: fill(seg(d, 3), 0.4), "00003_seg"),
    "a mask with NaN": (brats, lambda d: fill(seg(d, 3), np.nan), "00003_seg"),
    "a mask of the whole brain": (brats, lambda d: mark(seg(d, 3), lambda grey: grey > 0), "00003_seg"),
    "a mask of nothing in the brain": (brats, lambda d: mark(seg(d, 3), lambda grey: grey == 0), "00003_seg"),
    "no image at all": (br35h, lambda d: (d / "no/no1.jpg").write_text("hello"), "no1.jpg"),
    "an image in two splits": (br35h, lambda d: shutil.copy(d / "no/no1.jpg", d / "yes/y9.jpg"), "y9.jpg"),
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_named_with_its_file_and_exit_code_1(tmp_path, what):
    make, change, name = BROKEN[what]
    data = make(tmp_path / "data")
    change(data)
    result = check(data)
    assert result.exit_code == 1
    assert isinstance(result.exception, SystemExit)
    lines = result.stderr.strip().splitlines()
    assert all(line.startswith("Error: ") for line in lines)
    assert any(name in line for line in lines), result.stderr


def test_the_same_voxels_in_two_splits_are_found_whatever_their_compression(tmp_path):
    volume(tmp_path / "a.nii.gz", 1), volume(tmp_path / "b.nii", 1)
    result = check(table(tmp_path, "a.nii.gz,,train", "b.nii,,test"))
    assert "a.nii.gz and b.nii: same contents, in splits train and test" in result.stderr


def test_a_subject_in_two_splits_is_refused_by_its_id(tmp_path):
    volume(tmp_path / "a.nii.gz", 1), volume(tmp_path / "b.nii.gz", 2)
    path = table(tmp_path, "a.nii.gz,,train,x", "b.nii.gz,,test,x", columns="image,mask,split,subject")
    for result in (check(path), fit(path, tmp_path)):
        assert result.exit_code == 1
        assert "a.nii.gz and b.nii.gz: subject x is in splits train and test" in result.stderr


def test_equal_file_names_are_one_subject_until_the_table_says_otherwise(tmp_path):
    for folder, seed in (("sub-00", 1), ("sub-01", 2)):
        (tmp_path / folder).mkdir()
        volume(tmp_path / folder / "T1.nii.gz", seed)
    rows = ["sub-00/T1.nii.gz,,train", "sub-01/T1.nii.gz,,test"]
    refused = check(table(tmp_path, *rows))
    assert refused.exit_code == 1
    assert "name each in the table's column 'subject'" in refused.stderr
    told = check(table(tmp_path, rows[0] + ",sub-00", rows[1] + ",sub-01", columns="image,mask,split,subject"))
    assert told.exit_code == 0, told.stderr


def test_training_on_a_volume_with_a_lesion_is_refused_before_it_starts(tmp_path):
    volume(tmp_path / "a.nii.gz", 1), mask(tmp_path / "m.nii.gz")
    path = table(tmp_path, "a.nii.gz,m.nii.gz,train")
    for result in (check(path), fit(path, tmp_path)):
        assert result.exit_code == 1
        assert "m.nii.gz: marks a lesion, but a.nii.gz is in split 'train'" in result.stderr
    assert not (tmp_path / "model").exists()
    mask(tmp_path / "m.nii.gz", radius=0.0)
    assert check(path).exit_code == 0, "an empty mask says that the volume is healthy"


def test_fit_refuses_from_headers_what_check_data_finds(tmp_path):
    volume(tmp_path / "a.nii.gz", 1)
    brain_file(tmp_path / "m.nii.gz", (5.0, 6.0, 6.0))
    for row, message in (
        ("a.nii.gz,m.nii.gz,train", "m.nii.gz: the mask has shape"),
        ("nowhere.nii.gz,,train", "nowhere.nii.gz: does not exist"),
    ):
        result = fit(table(tmp_path, row), tmp_path)
        assert result.exit_code == 1
        assert message in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "model").exists()


def test_how_many_more_problems_there_are_is_said(tmp_path):
    result = fit(table(tmp_path, "a.nii.gz,,train", "b.nii.gz,,train"), tmp_path)
    assert "(and 1 more; ssn-train check-data lists them all)" in result.stderr


def test_the_grid_is_read_from_the_header_of_an_oriented_volume(tmp_path):
    from ssn.train.check import read_grid

    plain_volume = brain_file(tmp_path / "a.nii.gz", (5.0, 6.0, 7.0))
    image = nib.load(plain_volume)
    flipped = nib.as_closest_canonical(image).as_reoriented(np.array([[1, -1], [2, 1], [0, -1]]))
    nib.save(flipped, tmp_path / "b.nii.gz")
    one, other = read_grid(plain_volume), read_grid(tmp_path / "b.nii.gz")
    assert one.shape == other.shape
    assert one.zooms == other.zooms == (5.0, 6.0, 7.0)
    assert not one.far_from(other)


def test_a_mask_whose_affine_is_rounded_lies_with_its_image_in_all_48_orientations(tmp_path):
    data, affine = brain_array((6.0, 6.0, 6.0))
    for axes in permutations(range(3)):
        for flips in product((1, -1), repeat=3):
            turned = nib.Nifti1Image(data, affine).as_reoriented(np.array(list(zip(axes, flips, strict=True))))
            image, marked = turned, nib.Nifti1Image((turned.get_fdata() > 800).astype(np.uint8), turned.affine)
            marked.set_qform(turned.affine, 1)
            marked.set_sform(None, 0)  # a quaternion says the same with other last digits
            nib.save(image, tmp_path / "i.nii")
            nib.save(marked, tmp_path / "m.nii")
            assert header_problems(Case(tmp_path / "i.nii", "i", "i", "test", tmp_path / "m.nii")) == []


def test_one_file_under_two_spellings_is_listed_twice(tmp_path):
    volume(tmp_path / "a.nii", 1)
    (tmp_path / "b.nii").symlink_to(tmp_path / "a.nii")
    (problem,) = file_problems([Case(tmp_path / name, name, name, "train") for name in ("a.nii", "b.nii")])
    assert problem == "b.nii: is listed more than once"


def test_a_mask_that_marks_nothing_is_refused_before_anything_is_measured(tmp_path):
    brats(tmp_path, contrasts=("t1",))
    for number in range(4):
        mask(seg(tmp_path, number), 0.0)
    with pytest.raises(DataError, match=r"seg\.nii\.gz: marks nothing"):
        open_split(tmp_path, "test")


def test_a_mask_lies_elsewhere_when_a_corner_is_more_than_half_a_voxel_s_shortest_edge_away(tmp_path):
    data, zooms = np.ones((20, 20, 8), np.uint8), (2.0, 2.0, 8.0)
    save(tmp_path / "i.nii", data, np.diag([*zooms, 1]))

    def lies(affine, unit="mm"):
        image = nib.Nifti1Image(data, affine)
        image.header.set_xyzt_units(unit)
        nib.save(image, tmp_path / "m.nii")
        problems = header_problems(Case(tmp_path / "i.nii", "i", "i", "test", tmp_path / "m.nii"))
        assert all("the mask lies elsewhere" in problem for problem in problems)
        return not problems

    def shifted(x):
        affine = np.diag([*zooms, 1])
        affine[0, 3] = x
        return affine

    assert lies(shifted(0.9))
    assert not lies(shifted(1.1)), "half of 2 mm, not of 8"
    assert not lies(np.diag([2.2, 2.0, 8.0, 1])), "one corner is where it was"
    assert lies(np.diag([2000.0, 2000.0, 8000.0, 1]), "micron"), "the same places in another unit"
