"""2D anomaly detectors of anomalib as they were published, on the detector's own slices and with its backbone.

CFLOW (Gudovskiy et al., WACV 2022), FastFlow (Yu et al., 2021), PatchCore (Roth et al., CVPR 2022) and PaDiM (Defard et
al., ICPR 2021) are anomalib's torch models. Here are a plain training loop and the way from per-slice maps to a volume:

- *Backbone.* The network of the detector that they are compared with, frozen (`ssn.benchmarks.accuracy.backbone`). The
  constructors build their own extractor; ours is put in its place. FastFlow's refuses every name but its own four: it
  is built for a resnet18, and its norms and flows are then made anew for our channels by anomalib's own function.
- *Layers* are those each peer usually reads, by stride: PaDiM and FastFlow 4, 8, 16, PatchCore 8, 16, CFLOW 8, 16, 32.
- *Maps.* PatchCore's and PaDiM's own blur is taken out. The maps of a window's slices are averaged over cells of the
  peer's finest stride, and then go through the Gaussian and the geometry that every method has.
- No calibration by place: it is ours, not theirs.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssn.benchmarks.accuracy.backbone import Backbone
from ssn.core.errors import BackendError, installing
from ssn.core.scoring import smooth_map
from ssn.core.volume import read_volume
from ssn.train.encoder import import_timm
from ssn.train.evaluate import Method, ScoredVolume

PeerName = Literal["patchcore", "padim", "cflow", "fastflow"]
LAYERS: dict[PeerName, tuple[int, ...]] = {
    "patchcore": (2, 3),
    "padim": (1, 2, 3),
    "cflow": (2, 3, 4),
    "fastflow": (1, 2, 3),
}
_SLICES_AT_ONCE = 16
_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of malloc.h
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class PeerBudget:
    """What a peer may use. With 40 training volumes each learns within a few minutes on one core.

    Attributes
    ----------
    slices_a_volume : slices of each healthy volume that peers learn from, evenly spread over the brain
    slices_a_window : slices of each window of 3 that are scored: 1, the middle one, or 3
    patches, bank : PatchCore: patches drawn at random, and how many of them the coreset keeps
    padim_channels : PaDiM: channels drawn at random, as in its paper
    cflow_epochs, cflow_rows, cflow_rate : CFLOW: passes, locations a step, Adam's rate
    fastflow_epochs, fastflow_batch, fastflow_rate : FastFlow: passes, slices a step, Adam's rate
    """

    slices_a_volume: int = 15
    slices_a_window: int = 1
    patches: int = 40_000
    bank: int = 5_000
    padim_channels: int = 100
    cflow_epochs: int = 3
    cflow_rows: int = 256
    cflow_rate: float = 2e-4
    fastflow_epochs: int = 8
    fastflow_batch: int = 16
    fastflow_rate: float = 1e-3
    seed: int = 0


def require_anomalib() -> None:
    """Refuse in one line, before any work, if anomalib can't be imported.

    Raises
    ------
    BackendError
        If it, or a package that it needs, is missing.
    """
    import_timm()  # makes torchvision importable beside a CPU torch, which anomalib needs too
    try:
        import anomalib.models.image.cflow.torch_model
        import anomalib.models.image.fastflow.torch_model
        import anomalib.models.image.padim.torch_model
        import anomalib.models.image.patchcore.torch_model  # noqa: F401
    except ImportError as error:
        raise BackendError(
            f"patchcore, padim, cflow and fastflow need {error.name or error}; "
            f"{installing('peers')} (beside a CPU torch: docs/bench.md)"
        ) from error


def _collect_embeddings(model: nn.Module, slices: Tensor, backbone: Backbone, progress: Progress) -> None:
    """Show a model all healthy slices once; in training mode PatchCore and PaDiM keep what they see."""
    model.to(backbone.device).train()
    batches = slices.split(_SLICES_AT_ONCE)
    for index, batch in enumerate(batches):
        model(batch.to(backbone.device))
        progress(index + 1, len(batches))


def _fit_patchcore(slices: Tensor, backbone: Backbone, budget: PeerBudget, progress: Progress) -> nn.Module:
    from anomalib.models.image.patchcore.torch_model import PatchcoreModel

    layers = LAYERS["patchcore"]
    model = PatchcoreModel(layers=layers, backbone=backbone.name, pre_trained=False)
    model.feature_extractor.feature_extractor = backbone.build(layers)
    model.anomaly_map_generator.blur = nn.Identity()
    _collect_embeddings(model, slices, backbone, progress)
    rows = torch.vstack(model.embedding_store)
    # Patches of brain only: no other is ever scored, so the bank holds more of what matters.
    inside = (F.avg_pool2d((slices > 0).float(), 2 ** (layers[0] + 1)) >= 0.5).flatten().nonzero()[:, 0]
    kept = rows[inside[torch.randperm(len(inside))[: budget.patches]].to(rows.device)]
    model.embedding_store = [kept]
    with _large_blocks_given_back():
        model.subsample_embedding(min(1.0, (budget.bank + 0.5) / len(kept)))
    return model


@contextmanager
def _large_blocks_given_back() -> Iterator[None]:
    """Have glibc return freed blocks of a megabyte and more to the system.

    Kept, those of the coreset's steps (27 MB each with WideResNet-50) can leave holes that the next step's do not fit
    into: 20 GB after 800 steps of 5,000 were seen.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:  # another C library
        yield
        return
    mallopt(_MMAP_THRESHOLD, 2**20)
    try:
        yield
    finally:
        mallopt(_MMAP_THRESHOLD, 2**25)  # where glibc's own adjustment ends


def _fit_padim(slices: Tensor, backbone: Backbone, budget: PeerBudget, progress: Progress) -> nn.Module:
    from anomalib.models.image.padim.torch_model import PadimModel

    layers = LAYERS["padim"]
    model = PadimModel(backbone.name, list(layers), pre_trained=False, n_features=budget.padim_channels)
    model.feature_extractor.feature_extractor = backbone.build(layers)
    model.anomaly_map_generator.blur = nn.Identity()
    _collect_embeddings(model, slices, backbone, progress)
    model.fit()
    return model


class _HealthyScale(nn.Module):
    """CFLOW's map: the sum over layers of the likelihood relative to the highest one, turned round.

    anomalib takes the highest of the batch and the paper that of the whole test set; here it is that of the healthy
    training slices, so that a volume's score does not depend on what is scored beside it.
    """

    def __init__(self, highest: Sequence[float]) -> None:
        super().__init__()
        self.highest = list(highest)

    def forward(
        self, distribution: list[Tensor], height: list[int], width: list[int], image_size: torch.Size
    ) -> Tensor:
        """Map (N, H, W) from log-likelihoods per dimension of each layer's locations."""
        maps = [
            F.interpolate(
                (values - top).clamp_max(0).exp().reshape(-1, 1, rows, columns), size=image_size, mode="bilinear"
            )
            for values, top, rows, columns in zip(distribution, self.highest, height, width, strict=True)
        ]
        return len(maps) - torch.stack(maps).sum(0)[:, 0]


def _fit_cflow(slices: Tensor, backbone: Backbone, budget: PeerBudget, progress: Progress) -> nn.Module:
    from anomalib.models.image.cflow.torch_model import CflowModel
    from anomalib.models.image.cflow.utils import get_logp, positional_encoding_2d

    layers = LAYERS["cflow"]
    model = CflowModel(backbone.name, layers, pre_trained=False)
    model.encoder.feature_extractor = backbone.build(layers)
    model.to(backbone.device).decoders.train()
    optimiser = torch.optim.Adam(model.decoders.parameters(), budget.cflow_rate)
    count = -(-len(slices) // _SLICES_AT_ONCE)
    highest = [-np.inf] * len(layers)
    for epoch in range(budget.cflow_epochs):
        for index, chosen in enumerate(torch.randperm(len(slices)).split(_SLICES_AT_ONCE)):
            features = model.encoder(slices[chosen].to(backbone.device))
            for place, (layer, decoder) in enumerate(zip(layers, model.decoders, strict=True)):
                images, channels, rows, columns = features[layer].shape
                values = features[layer].permute(0, 2, 3, 1).flatten(0, 2)
                codes = positional_encoding_2d(model.condition_vector, rows, columns).flatten(1).T
                codes = codes.repeat(images, 1).to(backbone.device)
                for part in torch.randperm(len(values)).split(budget.cflow_rows):
                    latent, log_determinant = decoder(values[part], [codes[part]])
                    log_likelihood = get_logp(channels, latent, log_determinant) / channels
                    loss = -F.logsigmoid(log_likelihood).mean()
                    optimiser.zero_grad()
                    loss.backward()
                    optimiser.step()
                    if epoch == budget.cflow_epochs - 1:
                        highest[place] = max(highest[place], float(log_likelihood.detach().max()))
            progress(epoch * count + index + 1, budget.cflow_epochs * count)
    model.fiber_batch_size = 8192  # rows are independent: only speed depends on it
    model.anomaly_map_generator = _HealthyScale(highest)
    return model


def _fit_fastflow(slices: Tensor, backbone: Backbone, budget: PeerBudget, progress: Progress) -> nn.Module:
    from anomalib.models.image.fastflow.loss import FastflowLoss
    from anomalib.models.image.fastflow.torch_model import FastflowModel, create_fast_flow_block

    encoder: Any = backbone.build(LAYERS["fastflow"])
    size = (backbone.grid.plane, backbone.grid.plane)
    model = FastflowModel(size, "resnet18", pre_trained=False)
    model.feature_extractor = encoder
    shapes = [
        [channels, backbone.grid.plane // stride, backbone.grid.plane // stride]
        for channels, stride in zip(encoder.channels, encoder.strides, strict=True)
    ]
    model.norms = nn.ModuleList(nn.LayerNorm(shape) for shape in shapes)
    # The constructor's own defaults: kernels of 3 and 1 in turn, as many hidden channels as inputs, 8 steps.
    model.fast_flow_blocks = nn.ModuleList(
        create_fast_flow_block(shape, conv3x3_only=False, hidden_ratio=1.0, flow_steps=8) for shape in shapes
    )
    model.to(backbone.device).train()
    loss_of = FastflowLoss()
    trained = [*model.norms.parameters(), *model.fast_flow_blocks.parameters()]
    optimiser = torch.optim.Adam(trained, budget.fastflow_rate, weight_decay=1e-5)
    count = -(-len(slices) // budget.fastflow_batch)
    for epoch in range(budget.fastflow_epochs):
        for index, chosen in enumerate(torch.randperm(len(slices)).split(budget.fastflow_batch)):
            loss = loss_of(*model(slices[chosen].to(backbone.device)))
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            progress(epoch * count + index + 1, budget.fastflow_epochs * count)
    return model


_FITS: dict[PeerName, Callable[[Tensor, Backbone, PeerBudget, Progress], nn.Module]] = {
    "patchcore": _fit_patchcore,
    "padim": _fit_padim,
    "cflow": _fit_cflow,
    "fastflow": _fit_fastflow,
}
# FastFlow's map is minus a probability; in `smooth_map` 0 stands for "no evidence", so it is brought to 0..1.
_OFFSETS: dict[PeerName, float] = {"fastflow": 1.0}


def fit_peer(
    name: PeerName,
    slices: Tensor,
    backbone: Backbone,
    budget: PeerBudget,
    progress: Progress = lambda step, steps: None,
) -> nn.Module:
    """Train a peer on the backbone's healthy slices (n, 1, H, W); the same seed and slices give the same model."""
    require_anomalib()  # in a process of its own nothing has imported it yet, and it must come after timm
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(budget.seed)
        np.random.seed(budget.seed)  # PatchCore's random projection draws from numpy's global generator
        return _FITS[name](slices, backbone, budget, progress).eval()


def peer_method(name: PeerName, model: nn.Module, backbone: Backbone, budget: PeerBudget, sigma: float) -> Method:
    """Make a trained peer a method; `sigma` is the Gaussian's, mm."""
    step = 2 ** (LAYERS[name][0] + 1)
    grid = backbone.grid
    cells = grid.plane // step
    spare = (grid.window - budget.slices_a_window) // 2  # slices of a window before the scored ones, and after

    @torch.inference_mode()
    def method(path: Path) -> ScoredVolume:
        volume = read_volume(path)
        stack = backbone.cut(volume, cells)
        slices = torch.from_numpy(stack.slices).reshape(-1, grid.window, 1, grid.plane, grid.plane)
        found = []
        for batch in slices[:, spare : grid.window - spare].flatten(0, 1).split(_SLICES_AT_ONCE):
            anomaly_map = model(batch.to(backbone.device)).anomaly_map.reshape(len(batch), 1, grid.plane, grid.plane)
            found.append(F.avg_pool2d(anomaly_map, step).cpu())
        values = torch.cat(found).reshape(-1, budget.slices_a_window, cells * cells).mean(1).flatten().numpy()
        places = stack.occupied_places(0.5)
        scores = values[places - stack.first * cells**2] + np.float32(_OFFSETS.get(name, 0.0))
        return ScoredVolume.of(smooth_map(scores, places, stack, sigma), stack.brain, volume)

    return method
