import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))  # tests share `brains`


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    """Keep what is remembered of a machine out of the user's own cache folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="session")
def tiny_detector():
    """An untrained but perturbed detector with a real encoder's shape, small enough for tests."""
    import torch

    from ssn.core.geometry import GridConfig
    from ssn.train.checkpoint import build_detector
    from ssn.train.encoder import EncoderConfig
    from ssn.train.network import FeatureNetwork, ModelConfig

    torch.manual_seed(0)
    config = ModelConfig(
        encoder=EncoderConfig("tf_efficientnet_lite0", out_indices=(1, 2)),
        grid=GridConfig(),
        width=None,
        whiten=True,
        blocks=2,
        plane_channels=16,
        depth_channels=8,
    )
    network = FeatureNetwork(config, weights="none").eval()
    detector = build_detector(config, network, seed=3)
    with torch.no_grad():
        network.feature_mean.copy_(torch.randn(network.channels) * 0.1)
        network.whitening.copy_(torch.eye(network.channels) + 0.05 * torch.randn(network.channels, network.channels))
        for parameter in detector.flow.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.02)
    detector.flow.eval()
    return detector


@pytest.fixture(scope="session")
def thick_detector(tiny_detector):
    """The same networks, but the encoder sees the mean of three slices."""
    from copy import deepcopy

    from ssn.train.checkpoint import Detector

    config = tiny_detector.config.pooled("slab")
    network = deepcopy(tiny_detector.network)
    network.config = config
    return Detector(config, network, tiny_detector.flow, tiny_detector.codes, tiny_detector.record)


@pytest.fixture(scope="session")
def tiny_calibration(tiny_detector):
    from ssn.core.scoring import Calibration

    shape = (tiny_detector.config.grid.windows, tiny_detector.network.cells, tiny_detector.network.cells)
    rng = np.random.default_rng(0)
    return Calibration(
        mean=rng.normal(-1.4, 0.1, shape).astype(np.float32),
        deviation=rng.uniform(0.2, 0.3, shape).astype(np.float32),
        gain=1.3,
        sigma=3.0,
        threshold=2.5,
        threshold_rate=0.005,
        healthy_scores=np.linspace(2, 5, 40, dtype=np.float32),
    )


@pytest.fixture(scope="session")
def tiny_bundle(tiny_detector, tiny_calibration, tmp_path_factory) -> Path:
    from ssn.export.onnx import export_bundle

    folder = tmp_path_factory.mktemp("bundles") / "tiny"
    export_bundle(tiny_detector, tiny_calibration, folder, name="tiny", modality="t1")
    return folder


@pytest.fixture(scope="session")
def bundle(tiny_bundle):
    from ssn.core.bundle import load_bundle

    return load_bundle(tiny_bundle)


@pytest.fixture(scope="session")
def thick_bundle(thick_detector, tiny_calibration, tmp_path_factory) -> Path:
    from ssn.export.onnx import export_bundle

    folder = tmp_path_factory.mktemp("bundles") / "thick"
    export_bundle(thick_detector, tiny_calibration, folder, name="thick", modality="t1")
    return folder
