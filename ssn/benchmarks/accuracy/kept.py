"""Methods that were measured before: kept in files named by what decides the result.

Of ssn itself that is its version: between releases a change of the source makes no other name.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ssn import __version__
from ssn.benchmarks.accuracy.autoencoder import AutoencoderBudget
from ssn.benchmarks.accuracy.backbone import Backbone
from ssn.benchmarks.accuracy.measured import MethodAccuracy, Pooled, Splits, TestedVolume, Thresholds
from ssn.benchmarks.accuracy.methods import PEERS
from ssn.benchmarks.accuracy.peers import PeerBudget
from ssn.benchmarks.accuracy.workers import Measured
from ssn.benchmarks.measure import package_versions
from ssn.core.atomic import atomic_path
from ssn.core.errors import DataError
from ssn.core.hashed_files import file_sha256
from ssn.train.cases import case_contents
from ssn.train.distributed import choose_device
from ssn.train.encoder import weights_identity
from ssn.train.trained import model_digests


@dataclass(frozen=True)
class Kept:
    """A folder of measured methods.

    Attributes
    ----------
    made_of : what decides each method's result, in plain values, by the method's name
    """

    folder: Path
    made_of: Mapping[str, Any]

    def paths(self, splits: Splits, shown: Mapping[str, int]) -> dict[str, Path]:
        """Name each method's file: another method, other volumes or other slices to be shown have another."""
        volumes = _volumes(splits)
        paths = {}
        for name, method in self.made_of.items():
            decides = {"method": method, "volumes": volumes, "shown": dict(shown)}
            key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
            paths[name] = self.folder / f"{key[:16]}.npz"
        return paths


def save_measured(path: Path, measured: Measured) -> None:
    """Write a method's result; a file that is there is replaced.

    Raises
    ------
    OutputError
        If it cannot be written.
    """
    accuracy = measured.accuracy
    plain = {
        "thresholds": asdict(accuracy.thresholds),
        "volumes": [asdict(row) for row in accuracy.rows],
        "controls": dict(accuracy.controls),
        "seconds": dict(measured.seconds),
        "slices": list(accuracy.slices),
    }
    arrays: dict[str, Any] = {f"slice{index}": values for index, values in enumerate(accuracy.slices.values())}
    arrays |= vars(accuracy.pooled) | {"plain": np.array(json.dumps(plain))}
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path, overwrite=True) as temporary:
        np.savez_compressed(temporary, **arrays)


def load_measured(path: Path, name: str) -> Measured:
    """Read back what `save_measured` wrote, as the method `name`.

    Raises
    ------
    DataError
        If the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as stored:
            plain = json.loads(str(stored["plain"]))
            accuracy = MethodAccuracy(
                Thresholds(**plain["thresholds"]),
                [TestedVolume(**row) for row in plain["volumes"]],
                plain["controls"],
                Pooled(stored["thresholds"], stored["lesion"], stored["other"]),
                {case: stored[f"slice{index}"] for index, case in enumerate(plain["slices"])},
            )
    except Exception as error:  # of damaged bytes zipfile, zlib and numpy raise whatever they like
        raise DataError(f"{path}: is damaged ({error}); remove it to have this method measured again") from error
    return Measured(name, accuracy, plain["seconds"])


def describe_methods(
    models: Mapping[str, Path], names: Sequence[str], train: Sequence[Path], backbone: Backbone | None, sigma: float
) -> dict[str, Any]:
    """Say in plain values what decides the result of each method that `all_methods` makes of the same arguments."""
    where = {"version": __version__, "packages": package_versions(), "device": choose_device("auto").type}
    trained = {name: where | {"model": model_digests(folder)} for name, folder in models.items()}
    learned = where | {"train": [file_sha256(path) for path in train], "sigma": sigma}
    known: dict[str, Any] = {name: learned | {"name": name} for name in names}
    for name in names:
        if name in PEERS:
            assert backbone is not None
            looks = asdict(backbone) | {"weights": weights_identity(backbone.weights)}
            known[name] |= {"backbone": looks, "budget": asdict(PeerBudget())}
        elif name == "autoencoder 3d":
            known[name] |= {"budget": asdict(AutoencoderBudget())}
    return trained | known


def _volumes(splits: Splits) -> dict[str, Any]:
    """Return what a result has of the splits, in plain values."""
    named = {"calibration": splits.calibration, "validation": splits.validation, "test": splits.test}
    controls = {name: case_contents(cases) for name, cases in splits.controls.items()}
    return {name: case_contents(cases) for name, cases in named.items()} | {"controls": controls}
