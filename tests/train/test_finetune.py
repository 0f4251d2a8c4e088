import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from trees import br35h, picture, plain
from typer.testing import CliRunner

from ssn.cli.train import app
from ssn.core.errors import DataError
from ssn.train.edc import BATCH_NORM_MOMENTUM, EncoderDecoder, contrast_loss
from ssn.train.encoder import PAPER, EncoderConfig, build_encoder
from ssn.train.finetune import (
    ENCODER_FILE,
    NETWORK_FILE,
    FinetuneOptions,
    as_input,
    batch_at,
    finetune,
    validation_loss,
)
from ssn.train.slice_images import SliceImages, read_slice_images

TINY = EncoderConfig("tf_efficientnet_lite0", out_indices=(1, 2))  # strides 4 and 8; compared at 2, 4 and 8
OPTIONS = FinetuneOptions(iterations=6, batch=4, decoder_learning_rate=3e-3, validate_every=3, seed=3)


@pytest.fixture(scope="module")
def images():
    rng = np.random.default_rng(0)
    waves = np.sin(np.indices((32, 32)).sum(0)[None] / rng.uniform(2, 6, (10, 1, 1))) * 100 + 128
    slices = torch.from_numpy((waves + rng.normal(0, 5, waves.shape)).clip(0, 255).astype(np.uint8))
    return SliceImages(slices[:8], slices[8:])


@pytest.fixture(scope="module")
def tuned(images, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tuned")
    return folder, finetune(TINY, images, folder, OPTIONS, weights="none")


def test_the_loss_falls_and_the_encoders_weights_change(images, tmp_path):
    torch.manual_seed(OPTIONS.seed)
    before = EncoderDecoder(TINY, "none").encoder.state_dict()
    losses = []
    curve = finetune(TINY, images, tmp_path, OPTIONS, weights="none", progress=lambda _, loss: losses.append(loss))
    assert losses[-1] < 0.9 * losses[0]
    assert [point.loss for point in curve] == pytest.approx([np.mean(losses[:3]), np.mean(losses[3:])])
    after = load_file(tmp_path / ENCODER_FILE)
    weights = [name for name in after if name.endswith("weight")]
    assert all(not torch.equal(before[name], after[name]) for name in weights)


def test_the_curve_is_kept_with_the_settings(tuned):
    folder, curve = tuned
    record = json.loads((folder / "finetune.json").read_text())
    assert [point["iteration"] for point in record["history"]] == [3, 6] == [point.iteration for point in curve]
    assert all(np.isfinite(point.validation_loss) for point in curve)


def test_a_resumed_run_ends_in_the_same_weights(images, tuned, tmp_path):
    finetune(TINY, images, tmp_path, FinetuneOptions(**{**vars(OPTIONS), "iterations": 3}), weights="none")
    finetune(TINY, images, tmp_path, OPTIONS, weights="none", resume=True)
    whole, parts = (load_file(folder / "finetune.safetensors") for folder in (tuned[0], tmp_path))
    assert all(torch.equal(whole[name], parts[name]) for name in whole)
    with pytest.raises(DataError, match="other settings"):
        finetune(TINY, images, tmp_path, FinetuneOptions(iterations=9, batch=4), weights="none", resume=True)
    with pytest.raises(DataError, match="has been fine-tuned for 6 steps"):
        finetune(
            TINY, images, tmp_path, FinetuneOptions(**{**vars(OPTIONS), "iterations": 3}), weights="none", resume=True
        )
    with pytest.raises(DataError, match="other --encoder-weights"):
        finetune(TINY, images, tmp_path, OPTIONS, resume=True)
    for others in (
        SliceImages(images.train.flip(1), images.validation), SliceImages(images.train, images.validation.flip(1))
    ):  # fmt: skip
        with pytest.raises(DataError, match="other slices"):
            finetune(TINY, others, tmp_path, OPTIONS, weights="none", resume=True)


def test_a_network_of_another_step_than_its_record_is_not_gone_on_with(images, tuned, tmp_path):
    finetune(TINY, images, tmp_path, replace(OPTIONS, iterations=3), weights="none")
    shutil.copy(tuned[0] / NETWORK_FILE, tmp_path)
    with pytest.raises(DataError, match=rf"{NETWORK_FILE}: is from "):
        finetune(TINY, images, tmp_path, OPTIONS, weights="none", resume=True)


def test_a_batch_in_pieces_has_about_the_loss_of_the_whole_and_its_weights_are_kept(images, tmp_path):
    losses = []
    for pieces in (1, 2):
        once = replace(OPTIONS, iterations=1, batch=8, accumulate=pieces)
        folder = tmp_path / f"{pieces}"
        curve = finetune(TINY, images, folder, once, weights="none", progress=lambda _, loss: losses.append(loss))
        assert [point.iteration for point in curve] == [1], "the last step is, whatever lies between two points"
        assert (folder / ENCODER_FILE).exists()
    assert losses[1] == pytest.approx(losses[0], rel=0.2)
    few = SliceImages(images.train[:3], images.validation)
    with pytest.raises(DataError, match="out of 3 slices cannot be cut into 2 pieces"):
        finetune(TINY, few, tmp_path / "few", replace(OPTIONS, accumulate=2), weights="none")


def test_validation_is_the_mean_over_its_slices_and_leaves_the_network_as_it_is(images):
    network = EncoderDecoder(TINY, "none").train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    alone = [validation_loss(network, images.train[i : i + 1], 1) for i in range(3)]
    assert validation_loss(network, images.train[:3], 2) == pytest.approx(np.mean(alone), rel=1e-4)
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())
    assert as_input(torch.full((2, 4, 4), 255, dtype=torch.uint8), torch.device("cpu")).unique().tolist() == [1.0]


def test_the_detectors_encoder_takes_the_file(tuned):
    encoder = build_encoder(TINY, tuned[0] / ENCODER_FILE)
    saved = load_file(tuned[0] / ENCODER_FILE)
    assert all(torch.equal(tensor, saved[name]) for name, tensor in encoder.state_dict().items())
    assert not any(parameter.requires_grad for parameter in encoder.parameters())


def test_no_gradient_passes_through_the_encoders_side_of_the_loss():
    encoded = [torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(3)]
    decoded = [torch.randn(2, 3, 4, 4, requires_grad=True) for _ in range(3)]
    contrast_loss(encoded, decoded).backward()
    assert all(level.grad is None for level in encoded)
    assert all(level.grad.abs().sum() > 0 for level in decoded)


def test_the_loss_is_one_minus_the_cosine_of_each_samples_whole_map_summed_over_levels():
    torch.manual_seed(0)
    encoded, decoded = ([torch.randn(2, 3, s, s) for s in (4, 2, 1)] for _ in range(2))
    expected = 0.0
    for ours, theirs in zip(encoded, decoded, strict=True):
        for sample in range(2):
            a, b = ours[sample].flatten(), theirs[sample].flatten()
            expected += float(1 - a @ b / (a.norm() * b.norm())) / 2
    assert float(contrast_loss(encoded, decoded)) == pytest.approx(expected, rel=1e-5)
    assert float(contrast_loss(encoded, encoded)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("config", [TINY, EncoderConfig("resnet18", (2, 3))])
def test_the_decoder_mirrors_any_encoder_and_every_weight_is_trained(config):
    network = EncoderDecoder(config, "none").train()
    encoded, decoded = network(torch.rand(2, 1, 64, 64))
    assert [level.shape for level in encoded] == [level.shape for level in decoded]
    assert len(encoded) == 3
    contrast_loss(encoded, decoded).backward()
    assert [name for name, p in network.named_parameters() if p.grad is None] == []
    assert {m.momentum for m in network.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {BATCH_NORM_MOMENTUM}


def test_the_papers_encoder_is_compared_at_layer1_to_layer3():
    with torch.device("meta"):  # shapes alone: 100 million weights are not drawn
        network = EncoderDecoder(PAPER, "none")
    assert network.encoder.channels == [256, 512, 1024]
    assert [block.main[1].out_channels for block in network.decoder.blocks] == [1024, 512, 256]


def test_a_batch_holds_no_slice_twice_and_differs_from_step_to_step():
    first, second = (batch_at(step, 50, OPTIONS) for step in (0, 1))
    assert len(first.unique()) == 4
    assert not torch.equal(first, second)
    assert torch.equal(first, batch_at(0, 50, OPTIONS))


def test_slices_come_from_br35hs_normals_pictures_or_volumes(tmp_path):
    brain = read_slice_images(br35h(tmp_path / "br35h"), size=64)
    assert (brain.train.shape, brain.validation.shape) == ((4, 64, 64), (2, 64, 64))
    for number in range(5):
        picture(tmp_path / "pictures" / f"{number}.png", number)
    loose = read_slice_images(tmp_path / "pictures")
    assert (loose.train.shape, loose.validation.shape) == ((4, 256, 256), (1, 256, 256))
    volumes = read_slice_images(plain(tmp_path / "volumes"), slices_a_volume=2)
    assert (volumes.train.shape, volumes.validation.shape) == ((4, 192, 192), (2, 192, 192))
    assert (volumes.train > 0).float().mean((1, 2)).min() > 0.05, "no empty slice"


def test_what_cannot_be_tuned_on_is_one_clear_line(tmp_path):
    def run(path, *options):
        return CliRunner().invoke(
            app, ["finetune", str(path), "-o", str(tmp_path / "out"), "--encoder-weights", "none", *options]
        )

    tumours = br35h(tmp_path / "a", normals=0, variant=True) / "Br35H-Mask-RCNN"
    good = br35h(tmp_path / "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "0.png").write_text("no image")
    picture(tmp_path / "c" / "1.png")
    picture(plain(tmp_path / "d") / "qc.png")
    for result, message in (
        (run(tumours), "has 0 healthy images"),
        (run(good, "--size", "40"), "multiple of 32"),
        (run(good, "--size", "32", "--batch", "4", "--accumulate", "3"), "3 pieces"),
        (run(tmp_path / "d"), "holds pictures (qc.png) and a data set (layout folder)"),
        (run(tmp_path / "c"), "0.png: cannot be read as an image"),
    ):
        assert result.exit_code == 1, result.output
        assert message in result.stderr
        assert len(result.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
