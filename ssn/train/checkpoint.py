"""Checkpoints: a folder with `model.safetensors` and `model.json`. Nothing is pickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ssn.core.atomic import atomic_together, write_json_atomic
from ssn.core.bundle import CALIBRATION_FILE, CHECKPOINT_FILE, MANIFEST_FILE
from ssn.core.errors import DataError, first_line
from ssn.train.flow import ConditionalFlow
from ssn.train.network import FeatureNetwork, LocationCodes, ModelConfig, build_flow
from ssn.train.tensor_files import refuse_other_step, save_tensors

WEIGHTS_FILE, RECORD_FILE, OPTIMISER_FILE = "model.safetensors", CHECKPOINT_FILE, "optimiser.safetensors"
_NOTHING = torch.empty(0)


@dataclass
class Detector:
    """The networks of one detector, and the record of how they were made."""

    config: ModelConfig
    network: FeatureNetwork
    flow: ConditionalFlow
    codes: LocationCodes
    record: dict[str, Any]

    def to(self, device: torch.device) -> Detector:
        """Move all networks, in place."""
        for module in (self.network, self.flow, self.codes):
            module.to(device)
        return self

    def log_likelihood(self, features: Tensor, places: Tensor) -> Tensor:
        """Log-likelihood per dimension (L,) of features before whitening (L, C) at places (L,)."""
        result: Tensor = self.flow(self.network.whitened(features.float()), self.codes(places))
        return result


def build_detector(config: ModelConfig, network: FeatureNetwork, seed: int) -> Detector:
    """Build an untrained flow and its codes around a feature network."""
    flow = build_flow(config, network.components, seed)
    return Detector(config, network, flow, LocationCodes(config, network.cells), {"seed": seed})


def save_checkpoint(folder: Path, detector: Detector, optimiser: dict[str, Tensor] | None = None) -> None:
    """Write a checkpoint over an older one, all of it or nothing; each file says the step of training that it is from.

    A calibration that lies there goes: it is of other weights.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        **{f"network.{name}": tensor for name, tensor in detector.network.state_dict().items()},
        **{f"flow.{name}": tensor for name, tensor in detector.flow.state_dict().items()},
    }
    files = {WEIGHTS_FILE: tensors} | ({OPTIMISER_FILE: optimiser} if optimiser is not None else {})
    record = {"config": detector.config.to_dict(), **detector.record}
    with atomic_together(overwrite=True) as held:
        for name, content in files.items():
            save_tensors(folder / name, content, of=training_step(record), held=held)
        write_json_atomic(folder / RECORD_FILE, record, overwrite=True, held=held)
        (folder / CALIBRATION_FILE).unlink(missing_ok=True)


def training_step(record: Mapping[str, Any]) -> str:
    """Where training stood, in words."""
    epochs, rounds = (len(record.get(name, ())) for name in ("history", "tuning"))
    return f"epoch {epochs}" + (f", round {rounds}" if rounds else "")


def load_checkpoint(folder: Path) -> Detector:
    """Load a checkpoint for inference or for more training.

    Raises
    ------
    DataError
        If the folder is no checkpoint, or its files don't belong together.
    """
    try:
        record = json.loads((folder / RECORD_FILE).read_text())
        config = ModelConfig.from_dict(record.pop("config"))
        network = FeatureNetwork(config, weights="none")
        detector = build_detector(config, network, record["seed"])
        refuse_other_step(folder / WEIGHTS_FILE, training_step(record))
        state = load_file(folder / WEIGHTS_FILE)
        for prefix, module in (("network.", network), ("flow.", detector.flow)):
            module.load_state_dict(
                {name.removeprefix(prefix): t for name, t in state.items() if name.startswith(prefix)}
            )
    except OSError as error:
        if (folder / MANIFEST_FILE).exists():
            raise DataError(
                f"{folder}: is a bundle, where a checkpoint of ssn-train fit is needed; a bundle is calibrated with "
                "ssn-export calibrate"
            ) from error
        reason = f"{error.filename}: {error.strerror}" if error.filename else error  # safetensors' own has no name
        raise DataError(f"{folder}: is not a checkpoint ({reason}). Make one with ssn-train fit.") from error
    except (KeyError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        reason = first_line(error)
        raise DataError(f"{folder}: the checkpoint is damaged or of another version ({reason}).") from error
    detector.record = record
    network.eval()
    detector.flow.eval()
    return detector


def optimiser_tensors(optimiser: torch.optim.Optimizer) -> dict[str, Tensor]:
    """State of an Adam optimiser as named tensors."""
    state = optimiser.state_dict()["state"]
    return {f"{index}.{name}": torch.as_tensor(value) for index, slot in state.items() for name, value in slot.items()}


def restore_optimiser(optimiser: torch.optim.Optimizer, path: Path, record: Mapping[str, Any]) -> None:
    """Put back what `optimiser_tensors` made and a file beside a record keeps.

    Raises
    ------
    DataError
        If it is missing, damaged, or of another network or step: training would go on as another.
    """
    slots: dict[int, dict[str, Tensor]] = {}
    try:
        refuse_other_step(path, training_step(record))
        for key, tensor in load_file(path).items():
            index, name = key.split(".", 1)
            slots.setdefault(int(index), {})[name] = tensor
    except (OSError, ValueError, SafetensorError) as error:
        raise DataError(f"{path}: cannot be read ({error}), so training can't go on; train again") from error
    _check_slots(path, optimiser, slots)
    groups = optimiser.state_dict()["param_groups"]
    optimiser.load_state_dict({"state": slots, "param_groups": groups})


def _check_slots(path: Path, optimiser: torch.optim.Optimizer, slots: Mapping[int, Mapping[str, Tensor]]) -> None:
    """Raise DataError if what is there are not Adam's averages of these parameters; one without gradient has none."""
    shapes = dict(enumerate(parameter.shape for group in optimiser.param_groups for parameter in group["params"]))
    for index, slot in slots.items():
        if any(slot.get(name, _NOTHING).shape != shapes.get(index) for name in ("exp_avg", "exp_avg_sq")):
            raise DataError(f"{path}: is not of this network, or incomplete, so training can't go on; train again")
