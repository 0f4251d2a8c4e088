"""The model bundle: a folder whose every file is checked against its hash before it is used.

bundle.json       what the model is, and the size and SHA-256 of the other files
encoder.onnx      slices [N,1,H,W] -> features [N/S,C,G,G]; S slices a window, 1 where they are thick
flow.onnx         features, places [L], first [1] -> log_likelihood [L]
calibration.npz   what healthy volumes look like to it
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ssn.core.atomic import printable, replace_folder
from ssn.core.calibration_file import pack_calibration, unpack_calibration
from ssn.core.errors import BundleError, OutputError, VolumeError
from ssn.core.geometry import GridConfig, ThickSlice
from ssn.core.hashed_files import file_entry, is_file_entry, read_hashed
from ssn.core.intensity import Normalisation
from ssn.core.likeness import block_shape
from ssn.core.onnx_data import has_external_data
from ssn.core.outputs import check_folder
from ssn.core.scoring import Calibration
from ssn.core.slices import SliceStack, cut_slices
from ssn.core.volume import Volume

SCHEMA = 1
MANIFEST_FILE, CALIBRATION_FILE = "bundle.json", "calibration.npz"
ENCODER_FILE, FLOW_FILE = "encoder.onnx", "flow.onnx"
CARD_FILE = "MODEL_CARD.md"  # for people, where there is one
CHECKPOINT_FILE = "model.json"  # what is no bundle, but can become one, has this
INTENDED_USE = "Research use only. Not a medical device; not for diagnosis or treatment decisions."
_LARGEST_MANIFEST = 4 * 2**20


@dataclass(frozen=True)
class ModelSpec:
    """What a runtime must know to run a bundle.

    Attributes
    ----------
    name, modality : for people, for example "t1-compact" and "t1"
    cells : map cells a row (G)
    features : channels between encoder and flow (C)
    occupancy : a map cell is computed when this share of it is brain
    thick : how a window becomes the one slice that the encoder sees; None: it sees all of them
    """

    name: str
    modality: str
    grid: GridConfig
    normalisation: Normalisation
    cells: int
    features: int
    occupancy: float
    thick: ThickSlice | None = None

    @property
    def slices_a_window(self) -> int:
        """Slices that the encoder sees of a window."""
        return 1 if self.thick else self.grid.window

    def cut(self, volume: Volume) -> SliceStack:
        """Cut a volume into what the encoder sees; raises VolumeError if it is not a usable brain."""
        stack = cut_slices(volume, self.grid, self.cells, self.normalisation, self.thick)
        if not (stack.occupancy >= self.occupancy).any():
            raise VolumeError(
                f"{printable(volume.path)}: is nowhere solid: what differs from the background is scattered; check "
                "that it is a skull-stripped brain"
            )
        return stack


@dataclass(frozen=True)
class Bundle:
    """An opened bundle.

    Attributes
    ----------
    manifest : contents of bundle.json
    digest : SHA-256 of the folder's bundle.json, which holds the hashes of all else: it names that model exactly
    changed : contents of graphs that stand for those in the folder
    """

    folder: Path
    manifest: Mapping[str, Any]
    digest: str
    spec: ModelSpec
    calibration: Calibration
    changed: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def encoder_name(self) -> str | None:
        """The encoder's network, as timm calls it; None where the bundle does not say."""
        return self.manifest.get("architecture", {}).get("encoder", {}).get("name")

    @property
    def trained_on(self) -> Sequence[str]:
        """SHA-256 of each file that it was trained on; none where the bundle does not say."""
        return self.manifest.get("training", {}).get("made_of", {}).get("volumes", ())

    def read(self, name: str) -> bytes:
        """Read a listed file and check it: the bytes returned are the bytes that were hashed.

        Raises
        ------
        BundleError
            If the file is missing, or isn't the one that was exported.
        """
        return self.changed[name] if name in self.changed else _read_checked(self.folder, name, self.manifest["files"])

    def with_graphs(self, graphs: Mapping[str, bytes]) -> Bundle:
        """Replace graphs in memory, for any backend; engines of the old ones are not of them."""
        files = {**self.manifest["files"], **{name: file_entry(data) for name, data in graphs.items()}}
        return replace(self, manifest={**self.manifest, "files": files}, changed={**self.changed, **graphs})


def _again(path: Path) -> str:
    return f"Get the bundle again, or make it anew with: ssn-export onnx CHECKPOINT -o {path.parent}"


def _read_checked(folder: Path, name: str, files: Mapping[str, Any]) -> bytes:
    path = folder / name
    data = read_hashed(folder, name, files, _again(path))
    if name.endswith(".onnx"):
        try:
            external = has_external_data(data)
        except ValueError as error:
            raise BundleError(f"{path}: is not an ONNX model ({error}). {_again(path)}") from error
        if external:
            raise BundleError(f"{path}: keeps weights in another file, which is refused. {_again(path)}")
    return data


def load_bundle(folder: Path) -> Bundle:
    """Open a bundle and check its manifest and calibration; graphs are checked when they are read.

    Raises
    ------
    BundleError
        If it is no bundle, of another schema, incomplete or modified.
    """
    path = folder / MANIFEST_FILE
    try:
        with path.open("rb") as stream:
            data = stream.read(_LARGEST_MANIFEST + 1)
    except OSError as error:
        if (folder / CHECKPOINT_FILE).exists():
            raise BundleError(f"{folder}: is a checkpoint; make a bundle of it with ssn-export onnx") from error
        raise BundleError(
            f"{folder}: is not a model bundle ({MANIFEST_FILE}: {error.strerror}); give a folder that ssn-export made"
        ) from error
    try:
        manifest = json.loads(data)
        schema = manifest["schema"]
        files = manifest["files"]
        if schema == SCHEMA:
            values = manifest["model"]
            spec = ModelSpec(**{**values, "grid": GridConfig(**values["grid"])})
            _check_spec(spec)
            for name in {ENCODER_FILE, FLOW_FILE, CALIBRATION_FILE, *files}:
                if not is_file_entry(files[name]):
                    raise TypeError(f"{name} has no size or hash")
            _check_texts(manifest)
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        what = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise BundleError(f"{path}: is damaged ({what}). {_again(path)}") from error
    if schema != SCHEMA:
        raise BundleError(f"{path}: has schema {schema}; this version of ssn reads schema {SCHEMA}")
    try:
        calibration = unpack_calibration(_read_checked(folder, CALIBRATION_FILE, files))
    except ValueError as error:
        raise BundleError(f"{folder / CALIBRATION_FILE}: {error}. {_again(path)}") from error
    blocks = block_shape(spec.grid.windows, spec.cells)
    if calibration.mean.shape != (spec.grid.windows, spec.cells, spec.cells) or (
        calibration.grey is not None and calibration.grey.shape != blocks
    ):
        raise BundleError(f"{folder / CALIBRATION_FILE}: is of another model. {_again(path)}")
    return Bundle(folder, manifest, hashlib.sha256(data).hexdigest(), spec, calibration)


def _check_texts(manifest: Mapping[str, Any]) -> None:
    """Refuse what nothing computes with and people read, where it is not what they would read."""
    if not isinstance(manifest["intended_use"], str):
        raise TypeError("intended_use is no text")
    architecture = manifest.get("architecture", {})
    encoder = architecture.get("encoder", {}) if isinstance(architecture, dict) else None
    if not isinstance(encoder, dict) or not isinstance(encoder.get("name", ""), str):
        raise TypeError("architecture names no encoder")
    training = manifest.get("training", {})
    if not isinstance(training, dict) or not isinstance(training.get("made_of", {}), dict):
        raise TypeError("training is no record")


def _check_spec(spec: ModelSpec) -> None:
    grid = spec.grid
    for name, count in {**asdict(grid), "cells": spec.cells, "features": spec.features}.items():
        if name != "paper" and (type(count) is not int or count < 1):  # a bool is an int too
            raise ValueError(f"{name} is {count!r}, not a positive integer")
    if not isinstance(grid.paper, bool):
        raise TypeError(f"paper is {grid.paper!r}, not true or false")
    if not isinstance(spec.name, str) or not isinstance(spec.modality, str):
        raise TypeError(f"name or modality is no text: {spec.name!r}, {spec.modality!r}")
    if spec.normalisation not in ("robust", "minmax"):
        raise ValueError(f"normalisation {spec.normalisation!r} is unknown")
    if grid.plane % spec.cells:
        raise ValueError(f"{spec.cells} cells do not divide the plane")
    if spec.thick not in (None, "slab", "middle"):
        raise ValueError(f"thick slice {spec.thick!r} is unknown")
    if not 0 <= spec.occupancy <= 1:
        raise ValueError(f"occupancy {spec.occupancy} is out of range")


def refuse_existing_bundle(folder: Path, *, overwrite: bool) -> None:
    """Raise OutputError if a bundle can't be written there; before minutes of computing."""
    if folder.is_symlink():
        raise OutputError(f"{folder}: is a link, so it is not replaced; give the folder itself, or another name")
    if folder.exists():
        if not overwrite:
            raise OutputError(f"{folder}: exists already; use --force to replace it, or another name")
        if not (folder / MANIFEST_FILE).exists():
            raise OutputError(f"{folder}: is not a model bundle, so it is not replaced; use another name")
    check_folder(folder.parent)


def write_bundle(
    folder: Path,
    spec: ModelSpec,
    graphs: Mapping[str, bytes],
    calibration: Calibration,
    about: Mapping[str, Any],
    *,
    overwrite: bool = False,
    outdated: Collection[str] = (),
) -> Bundle:
    """Write a whole bundle or none.

    Parameters
    ----------
    graphs : contents of `encoder.onnx` and `flow.onnx`
    about : further entries of the manifest (training data, measured accuracy, tool versions)
    outdated : files and folders of the bundle that is replaced which are not true of the new one

    Raises
    ------
    OutputError
        If `folder` exists and is not to be overwritten, is not a bundle, or can't be written, or the calibration is
        one that no bundle may have.
    """
    refuse_existing_bundle(folder, overwrite=overwrite)
    files = {**graphs, CALIBRATION_FILE: pack_calibration(calibration)}
    try:
        unpack_calibration(files[CALIBRATION_FILE])
    except ValueError as error:
        raise OutputError(f"{folder}: is not written, because what was measured is {error}") from error
    manifest = {
        "schema": SCHEMA,
        "model": asdict(spec),
        **about,
        "intended_use": INTENDED_USE,
        "files": {name: file_entry(data) for name, data in files.items()},
    }
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".bundle-") as scratch:
            made = Path(scratch) / "bundle"
            made.mkdir()
            for name, data in files.items():
                (made / name).write_bytes(data)
            (made / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1) + "\n")
            old = Path(scratch) / "old"
            if folder.exists():
                # What else lies there stays: documents, and engines, which are held against the graphs before they run.
                for extra in folder.iterdir():
                    if extra.is_file() and extra.name not in (*files, MANIFEST_FILE, *outdated):
                        shutil.copy2(extra, made / extra.name)
            replace_folder(folder, made, old)
            for extra in old.iterdir() if old.exists() else ():
                if extra.is_dir() and extra.name not in outdated:
                    extra.rename(folder / extra.name)
    except OSError as error:
        raise OutputError(f"{folder}: cannot be written ({error.strerror or error}); choose another folder") from error
    return load_bundle(folder)
