"""The encoder reads the stages it is asked for, and nothing behind them."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ssn.core.errors import SsnError
from ssn.train.encoder import COMPACT, PAPER, EncoderConfig, SliceEncoder, build_encoder, import_timm


@pytest.fixture(scope="module")
def compact() -> SliceEncoder:
    return build_encoder(COMPACT, "imagenet")


def test_compact_encoder_gives_three_maps_of_the_stated_channels_and_strides(compact: SliceEncoder):
    maps = compact(torch.rand(2, 1, 64, 96))
    assert (compact.channels, compact.strides) == ([24, 40, 112], [4, 8, 16])
    assert [tuple(m.shape) for m in maps] == [(2, 24, 16, 24), (2, 40, 8, 12), (2, 112, 4, 6)]


def test_the_papers_encoder_is_layer2_and_layer3_of_wide_resnet50_2():
    encoder = build_encoder(PAPER, "none")
    assert (encoder.channels, encoder.strides) == ([512, 1024], [8, 16])
    parameters = sum(p.numel() for p in encoder.parameters())
    assert parameters == pytest.approx(24.86e6, abs=0.01e6), "layer4 and the head are cut off"
    assert [tuple(m.shape) for m in encoder(torch.rand(1, 1, 64, 64))] == [(1, 512, 8, 8), (1, 1024, 4, 4)]


@pytest.mark.parametrize("config", [COMPACT, EncoderConfig("resnet18", (1, 2)), EncoderConfig("efficientnet_b0", (1,))])
def test_every_layer_left_in_the_trunk_is_needed(config: EncoderConfig):
    encoder = build_encoder(config, "none").requires_grad_(True).train()
    sum(m.sum() for m in encoder(torch.rand(2, 1, 64, 64))).backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None] == []


def test_the_encoder_is_frozen_and_in_evaluation_mode(compact: SliceEncoder):
    assert not any(p.requires_grad for p in compact.parameters())
    assert not any(m.training for m in compact.modules())


def test_grey_slices_are_repeated_and_normalised_inside(compact: SliceEncoder):
    slices = torch.rand(1, 1, 64, 64)
    by_hand = compact.trunk((slices.repeat(1, 3, 1, 1) - 0.5) / 0.5)
    for ours, expected in zip(compact(slices), by_hand, strict=True):
        torch.testing.assert_close(ours, expected)


def test_the_short_name_of_the_wheel_means_timms_same_padding_model():
    assert EncoderConfig("efficientnet_lite0", (1, 2, 3)) == COMPACT


def test_weights_from_the_wheel_are_trained_ones(compact: SliceEncoder):
    # A trained first BatchNorm has moved; a fresh one has mean 0 and variance 1.
    state = compact.trunk.state_dict()
    assert state["bn1.running_mean"].abs().max() > 0.1
    assert all(torch.isfinite(m).all() and m.std() > 0.05 for m in compact(torch.rand(1, 1, 64, 64)))


def test_random_weights_follow_the_callers_seed():
    config = EncoderConfig("resnet18", (1,))
    torch.manual_seed(3)
    first = build_encoder(config, "none").state_dict()
    torch.manual_seed(3)
    second = build_encoder(config, "none").state_dict()
    assert all(torch.equal(first[k], second[k]) for k in first)


def test_a_saved_encoder_comes_back_from_its_safetensors_file(compact: SliceEncoder, tmp_path: Path):
    save_file(compact.state_dict(), tmp_path / "encoder.safetensors")
    again = build_encoder(COMPACT, tmp_path / "encoder.safetensors")
    slices = torch.rand(1, 1, 64, 64)
    assert all(torch.equal(a, b) for a, b in zip(compact(slices), again(slices), strict=True))


def test_the_file_that_timm_publishes_is_read_too(tmp_path: Path):
    whole = import_timm().create_model("resnet18", pretrained=False)
    save_file(whole.state_dict(), tmp_path / "model.safetensors")
    encoder = build_encoder(EncoderConfig("resnet18", (1, 2)), tmp_path / "model.safetensors")
    assert torch.equal(encoder.trunk.state_dict()["layer1.0.conv1.weight"], whole.layer1[0].conv1.weight)


def test_weights_of_another_encoder_are_refused_with_the_layer_named(compact: SliceEncoder, tmp_path: Path):
    save_file(compact.state_dict(), tmp_path / "lite0.safetensors")
    with pytest.raises(SsnError, match=r"lite0\.safetensors.*conv1\.weight"):
        build_encoder(EncoderConfig("resnet18", (1,)), tmp_path / "lite0.safetensors")


def test_unusable_weight_files_are_named(tmp_path: Path):
    with pytest.raises(SsnError, match="no such encoder weights file"):
        build_encoder(COMPACT, tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not safetensors at all")
    with pytest.raises(SsnError, match=r"bad\.safetensors: not a readable"):
        build_encoder(COMPACT, tmp_path / "bad.safetensors")


def test_offline_imagenet_weights_name_the_model_and_the_way_out(monkeypatch: pytest.MonkeyPatch):
    timm = import_timm()
    create = timm.create_model

    def offline(name: str, pretrained: bool = False, **options: object):
        if pretrained:
            raise ConnectionError("no route to host")
        return create(name, pretrained=pretrained, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    way_out = r"'wide_resnet50_2'.*timm/wide_resnet50_2\.\w+, .*--encoder-weights FILE"
    with pytest.raises(SsnError, match=way_out) as caught:
        build_encoder(PAPER, "imagenet")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "indices"), [("no_such_model", (1,)), ("resnet18", (7,))])
def test_unknown_models_and_stages_are_refused(name: str, indices: tuple[int, ...]):
    with pytest.raises(SsnError, match=name):
        build_encoder(EncoderConfig(name, indices), "none")


@pytest.mark.parametrize("indices", [(), (3, 2), (2, 2), (-1,)])
def test_stages_must_be_increasing(indices: tuple[int, ...]):
    with pytest.raises(ValueError, match="increasing"):
        EncoderConfig("resnet18", indices)
