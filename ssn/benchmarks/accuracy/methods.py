"""The methods that `ssn-bench accuracy` knows by name, and how each is made from the healthy volumes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache, partial
from importlib.util import find_spec
from math import isclose
from pathlib import Path
from typing import TYPE_CHECKING, get_args

from ssn.benchmarks.accuracy.autoencoder import AutoencoderBudget, fit_autoencoder
from ssn.benchmarks.accuracy.backbone import Backbone
from ssn.benchmarks.accuracy.measured import HEALTHY_QUANTILE
from ssn.benchmarks.accuracy.peers import LAYERS, PeerBudget, PeerName, fit_peer, peer_method, require_anomalib
from ssn.benchmarks.measure import Tell
from ssn.benchmarks.results import OURS
from ssn.core.errors import BackendError, DataError, installing
from ssn.train.encoder import EncoderWeights
from ssn.train.evaluate import Method
from ssn.train.references import healthy_blocks, intensity_method, reference_method, residual_method
from ssn.train.trained import calibration_of, open_trained

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

DEFAULT = ("z-score", "pca")
PEERS: tuple[PeerName, ...] = get_args(PeerName)
NAMES = (*DEFAULT, "bright voxels", "dark voxels", "autoencoder 3d", *PEERS)
Build = Callable[[], Method]


def choose_methods(names: Sequence[str] | None) -> tuple[str, ...]:
    """Methods by name: the default two if none is named, every one for "all".

    Raises
    ------
    DataError
        If a name is unknown.
    BackendError
        If a peer or the autoencoder is wanted and its package not installed.
    """
    if not names:
        return DEFAULT
    unknown = [name for name in names if name not in (*NAMES, "all")]
    if unknown:
        raise DataError(f"{', '.join(unknown)}: no such method; there are: {', '.join(NAMES)}, all")
    chosen = NAMES if "all" in names else tuple(dict.fromkeys(names))
    if set(chosen) & set(PEERS):
        require_anomalib()
    if "autoencoder 3d" in chosen and find_spec("monai") is None:
        raise BackendError(f"the 3D autoencoder needs monai, which is not installed: {installing('bench')}")
    return chosen


def trained_models(model: Path, also: Sequence[str]) -> dict[str, Path]:
    """Look at the model (`OURS`) and those of `also` ("NAME=MODEL"); give their folders by name.

    Raises
    ------
    DataError, BundleError
        If one is neither a calibrated checkpoint nor a bundle, or its threshold is another quantile than the other
        methods', or a name is missing or taken.
    """
    paths = {OURS: model}
    for text in also:
        name, _, folder = text.partition("=")
        if not (name and folder):
            raise DataError(f"--also {text}: expected NAME=MODEL")
        if name in paths or name in NAMES:
            raise DataError(f"--also {text}: the name {name!r} is taken; give another")
        paths[name] = Path(folder)
    wanted = 1 - HEALTHY_QUANTILE
    for path in paths.values():
        rate = calibration_of(path).threshold_rate
        if not isclose(rate, wanted, rel_tol=1e-6):
            raise DataError(
                f"{path}: has {rate:.2%} of healthy brain above its threshold, the other methods {wanted:.2%}; "
                f"calibrate it with ssn-train calibrate --rate {wanted:.3g}"
            )
    return paths


def peers_backbone(model: Path, weights: EncoderWeights, names: Sequence[str]) -> Backbone | None:
    """Give the peers among `names` the model's slices and kind of encoder, with these weights; None without a peer.

    Raises
    ------
    SsnError
        If the model does not name its encoder, or the weights are out of reach or not the network's: said before any
        work.
    """
    deepest = [LAYERS[peer][-1] for peer in PEERS if peer in names]
    if not deepest:
        return None
    backbone = Backbone.of(model, weights)
    backbone.build((max(deepest),))
    return backbone


def all_methods(
    models: Mapping[str, Path],
    names: Sequence[str],
    train: Sequence[Path],
    backbone: Backbone | None,
    sigma: float,
    tell: Tell,
) -> dict[str, Build]:
    """Say how to open each trained model, and how to make each named method.

    What several learn from is read once, when the first is made.

    Parameters
    ----------
    models : folders of the trained models, by name
    train : healthy volumes
    backbone : of the peers, if there is one among `names`
    sigma : mm, of the Gaussian over every named method's scores

    Raises
    ------
    DataError
        If the volumes are too few for one of the methods.
    """
    if "pca" in names and len(train) < 2:
        raise DataError("pca needs two healthy volumes to learn from, and there is one; choose other methods")

    @cache
    def blocks() -> NDArray[np.float32]:
        done = iter(range(1, len(train) + 1))
        return healthy_blocks(train, lambda: tell("healthy volumes", next(done), len(train)))

    @cache
    def slices() -> Tensor:
        assert backbone is not None
        return backbone.healthy_slices(train, PeerBudget().slices_a_volume, partial(tell, "healthy slices"))

    def autoencoder() -> Method:
        residual = fit_autoencoder(blocks(), AutoencoderBudget(), partial(tell, "autoencoder 3d: training"))
        return residual_method(residual, sigma)

    def peer(name: PeerName) -> Method:
        assert backbone is not None
        budget = PeerBudget()
        model = fit_peer(name, slices(), backbone, budget, partial(tell, f"{name}: training"))
        return peer_method(name, model, backbone, budget, sigma)

    makers: dict[str, Build] = {
        "z-score": lambda: reference_method("z-score", blocks(), sigma),
        "pca": lambda: reference_method("pca", blocks(), sigma),
        "bright voxels": lambda: intensity_method(bright=True, sigma=sigma),
        "dark voxels": lambda: intensity_method(bright=False, sigma=sigma),
        "autoencoder 3d": autoencoder,
        **{name: partial(peer, name) for name in PEERS},
    }
    trained: dict[str, Build] = {name: partial(open_trained, path) for name, path in models.items()}
    return trained | {name: makers[name] for name in names}
