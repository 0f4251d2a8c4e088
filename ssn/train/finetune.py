"""Fine-tuning of an encoder on healthy 2D slices by encoder-decoder contrast (docs/train.md, finetune)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ssn.core.atomic import atomic_together, write_json_atomic
from ssn.core.errors import DataError, first_line
from ssn.train.checkpoint import optimiser_tensors, restore_optimiser, training_step
from ssn.train.distributed import ONE_PROCESS, Ranks
from ssn.train.edc import EncoderDecoder, contrast_loss
from ssn.train.encoder import EncoderConfig, EncoderWeights, weights_identity
from ssn.train.slice_images import SliceImages
from ssn.train.tensor_files import refuse_other_step, save_tensors

ENCODER_FILE, NETWORK_FILE, RECORD_FILE = "encoder.safetensors", "finetune.safetensors", "finetune.json"
OPTIMISER_FILE = "finetune-optimiser.safetensors"


@dataclass(frozen=True)
class FinetuneOptions:
    """How to fine-tune. The defaults are the published ones.

    Attributes
    ----------
    iterations : steps of `batch` slices
    validate_every : steps between two points of the validation curve, at which a checkpoint is written too
    accumulate : pieces that a batch is computed in, for less memory; batch normalisation sees a piece at a time
    """

    iterations: int = 4000
    batch: int = 32
    encoder_learning_rate: float = 5e-5
    decoder_learning_rate: float = 5e-4
    weight_decay: float = 1e-4
    gradient_clip: float = 1.0
    validate_every: int = 200
    accumulate: int = 1
    seed: int = 0


@dataclass(frozen=True)
class Point:
    """One point of the learning curves: losses since the last one, and on the validation slices."""

    iteration: int
    loss: float
    validation_loss: float


def finetune(
    config: EncoderConfig,
    images: SliceImages,
    folder: Path,
    options: FinetuneOptions,
    *,
    weights: EncoderWeights = "imagenet",
    resume: bool = False,
    ranks: Ranks = ONE_PROCESS,
    progress: Callable[[int, float], None] = lambda iteration, loss: None,
) -> list[Point]:
    """Fine-tune an encoder and write `encoder.safetensors`, which `build_encoder` takes, to `folder`.

    The last step's weights are kept, not those of the lowest validation loss: the decoder can only say what the
    encoder says, so a low loss is not a better encoder, and the curve is there to be looked at.

    Parameters
    ----------
    weights : that the encoder starts from
    resume : go on from `folder`, with the same slices as an uninterrupted run
    ranks : processes that train together; batch normalisation sees each one's share, its statistics are averaged
    progress : called after each step with the number of steps done and the step's loss

    Raises
    ------
    DataError
        Slices of an unusable size, too few of them, other settings than before, fewer steps, or divergence.
    """
    torch.manual_seed(options.seed)
    network = EncoderDecoder(config, "none" if resume else weights)
    _check(images, network.multiple, options, ranks)
    optimiser = _optimiser(network, options)
    settings = {name: value for name, value in asdict(options).items() if name != "iterations"}
    record: dict[str, Any] = {
        "encoder": asdict(config),
        "options": settings,
        "weights": weights_identity(weights),
        "slices": _digest(images),
        "history": [],
    }
    if resume:
        record = _restore(folder, network, optimiser, record)
    network.to(ranks.device)
    done = record["history"][-1]["iteration"] if record["history"] else 0
    if done > options.iterations:
        raise DataError(
            f"{folder}: has been fine-tuned for {done} steps, more than the {options.iterations} asked for; "
            "resume with as many or more"
        )
    losses: list[float] = []
    for iteration in range(done, options.iterations):
        losses.append(_train_step(network, optimiser, images.train, options, iteration, ranks))
        progress(iteration + 1, losses[-1])
        if (iteration + 1) % options.validate_every == 0 or iteration + 1 == options.iterations:
            validation = validation_loss(network, images.validation, options.batch)
            point = Point(iteration + 1, sum(losses) / len(losses), validation)
            losses = []
            record["history"].append(asdict(point))
            if ranks.rank == 0:
                _save(folder, network, optimiser, record)
            ranks.wait()
    return [Point(**point) for point in record["history"]]


def _digest(images: SliceImages) -> str:
    digest = hashlib.sha256()
    for slices in (images.train, images.validation):
        digest.update(repr(tuple(slices.shape)).encode() + slices.numpy().tobytes())
    return digest.hexdigest()


def _check(images: SliceImages, multiple: int, options: FinetuneOptions, ranks: Ranks) -> None:
    size = images.train.shape[-1]
    if size % multiple:
        raise DataError(f"slices of {size} pixels don't fit this encoder; choose a multiple of {multiple} with --size")
    pieces = options.accumulate * ranks.count
    if min(options.batch, len(images.train)) < 2 * pieces:
        # Batch normalisation of one slice would be normalisation by itself.
        raise DataError(
            f"a batch of {options.batch} out of {len(images.train)} slices cannot be cut into {pieces} pieces of two "
            "slices at least; take more slices, or fewer pieces"
        )


def _optimiser(network: EncoderDecoder, options: FinetuneOptions) -> torch.optim.AdamW:
    decoder = [*network.bottleneck.parameters(), *network.decoder.parameters()]
    groups = [
        {"params": list(network.encoder.parameters()), "lr": options.encoder_learning_rate},
        {"params": decoder, "lr": options.decoder_learning_rate},
    ]
    return torch.optim.AdamW(groups, weight_decay=options.weight_decay)


def batch_at(iteration: int, slices: int, options: FinetuneOptions) -> Tensor:
    """Draw the indices (B,) of a step's slices, none twice, from seed and step alone: a resumed run draws the same."""
    generator = torch.Generator().manual_seed(options.seed * 1_000_003 + iteration)
    return torch.randperm(slices, generator=generator)[: options.batch]


def _train_step(
    network: EncoderDecoder,
    optimiser: torch.optim.Optimizer,
    slices: Tensor,
    options: FinetuneOptions,
    iteration: int,
    ranks: Ranks,
) -> float:
    network.train()
    optimiser.zero_grad(set_to_none=True)
    batch = batch_at(iteration, len(slices), options)
    mine = batch[ranks.share(len(batch))]
    total = torch.zeros((), device=ranks.device)
    for piece in mine.tensor_split(options.accumulate):
        with _mixed_precision(ranks.device):
            encoded, decoded = network(as_input(slices[piece], ranks.device))
        loss = contrast_loss(encoded, decoded) * (len(piece) / len(batch))
        loss.backward()
        total += loss.detach()
    parameters = [p for p in network.parameters() if p.requires_grad]
    ranks.sum_gradients(parameters)
    ranks.sum_([total])
    if not torch.isfinite(total):
        raise DataError(f"fine-tuning diverged in step {iteration}; try smaller learning rates")
    nn.utils.clip_grad_norm_(parameters, options.gradient_clip)
    optimiser.step()
    if ranks.count > 1:
        statistics = [b for b in network.buffers() if b.is_floating_point()]
        ranks.sum_(statistics)
        torch._foreach_div_(statistics, ranks.count)
    return float(total)


def as_input(slices: Tensor, device: torch.device) -> Tensor:
    """Slices (N, S, S) uint8 as the encoder takes them: (N, 1, S, S) in 0..1."""
    return slices[:, None].to(device).float() / 255


def _mixed_precision(device: torch.device) -> AbstractContextManager[None]:
    """Convolutions in bfloat16 where the GPU has it; the loss is computed in float32 outside."""
    wanted = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=wanted)


@torch.no_grad()
def validation_loss(network: EncoderDecoder, slices: Tensor, batch: int) -> float:
    """Mean contrast loss of slices (N, S, S), with the running statistics."""
    network.eval()
    device = next(network.parameters()).device
    total = 0.0
    for piece in slices.split(batch):
        with _mixed_precision(device):
            encoded, decoded = network(as_input(piece, device))
        total += float(contrast_loss(encoded, decoded)) * len(piece)
    return total / len(slices)


def _save(folder: Path, network: EncoderDecoder, optimiser: torch.optim.Optimizer, record: dict[str, Any]) -> None:
    """Write everything, all of it or nothing."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        ENCODER_FILE: network.encoder.state_dict(),
        NETWORK_FILE: network.state_dict(),
        OPTIMISER_FILE: optimiser_tensors(optimiser),
    }
    with atomic_together(overwrite=True) as held:
        for name, tensors in files.items():
            # `--encoder-weights` takes the encoder, and tells it by its bytes.
            save_tensors(folder / name, tensors, of=None if name == ENCODER_FILE else training_step(record), held=held)
        write_json_atomic(folder / RECORD_FILE, record, overwrite=True, held=held)


def _restore(
    folder: Path, network: EncoderDecoder, optimiser: torch.optim.Optimizer, wanted: dict[str, Any]
) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads((folder / RECORD_FILE).read_text())
        same = json.loads(json.dumps(wanted))
        for name, what in (("encoder", "another encoder"), ("options", "other settings"),
                           ("weights", "other --encoder-weights"), ("slices", "other slices")):  # fmt: skip
            if record[name] != same[name]:
                raise DataError(f"{folder}: was fine-tuned with {what}; resume with the same")
        for point in record["history"]:
            Point(**point)  # a TypeError here, and not after hours
        refuse_other_step(folder / NETWORK_FILE, training_step(record))
        network.load_state_dict(load_file(folder / NETWORK_FILE))
        restore_optimiser(optimiser, folder / OPTIMISER_FILE, record)
    except OSError as error:
        reason = f"{error.filename}: {error.strerror}" if error.filename else error  # safetensors' own has no name
        raise DataError(f"{folder}: holds nothing to resume ({reason})") from error
    except (KeyError, IndexError, TypeError, ValueError, RuntimeError, SafetensorError) as error:
        raise DataError(f"{folder}: is damaged or of another version ({first_line(error)})") from error
    return record
