"""The folded flow is the trained one, in plainer operators."""

import pytest
import torch
from torch import nn

from ssn.export.folded_flow import FoldedFlow
from ssn.train.flow import ConditionalFlow, FlowConfig, location_code


def perturbed(config: FlowConfig) -> ConditionalFlow:
    """A flow whose couplings, scales and offsets have all moved, as training moves them."""
    flow = ConditionalFlow(config, seed=0)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in flow.named_parameters():
            if parameter.requires_grad:
                step = 0.05 if "weight" in name else 0.5
                parameter.add_(step * torch.randn(parameter.shape, generator=generator))
    return flow.eval()


@pytest.mark.parametrize(
    "config",
    [
        FlowConfig(features=512),
        FlowConfig(features=64, blocks=4, plane_channels=32, depth_channels=8),
        FlowConfig(features=7, blocks=3, plane_channels=8, hidden=5),
        FlowConfig(features=8, blocks=2, plane_channels=0),
    ],
    ids=["paper", "with depth", "odd and narrow", "without code"],
)
def test_folding_does_not_change_the_log_likelihood(config: FlowConfig):
    flow = perturbed(config)
    features, code = torch.randn(40, config.features), torch.randn(40, config.code_channels)
    folded = FoldedFlow(flow)
    with torch.no_grad():
        expected = flow(features, code)
        found = folded(features, folded.condition_tables(code))
    assert expected.std() > 1e-3, "the flow under test is not trivial"
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


def test_tables_made_once_for_the_grid_serve_every_window():
    config = FlowConfig(features=16, blocks=2, plane_channels=8)
    flow = perturbed(config)
    code = location_code((3, 4), 8).flatten(1).T
    features = torch.randn(5, 12, 16)  # 5 windows of 3 x 4 places
    folded = FoldedFlow(flow)
    conditions = [table.repeat(5, 1) for table in folded.condition_tables(code)]
    assert [tuple(table.shape) for table in folded.condition_tables(code)] == [(12, 16), (12, 16)]
    with torch.no_grad():
        expected = flow(features.flatten(0, 1), code.repeat(5, 1))
    torch.testing.assert_close(folded(features.flatten(0, 1), conditions), expected, atol=1e-5, rtol=1e-5)


def test_the_folded_flow_is_frozen_and_keeps_no_part_of_the_flow():
    flow = perturbed(FlowConfig(features=6, blocks=2, plane_channels=4))
    folded = FoldedFlow(flow)
    assert not any(p.requires_grad for p in folded.parameters())
    features, code = torch.randn(3, 6), torch.randn(3, 4)
    before = folded(features, folded.condition_tables(code))
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.zero_()
    torch.testing.assert_close(folded(features, folded.condition_tables(code)), before, atol=0, rtol=0)


def test_in_half_precision_the_sums_stay_in_single():
    flow = perturbed(FlowConfig(features=128, plane_channels=16))
    features, code = torch.randn(20, 128), torch.randn(20, 16)
    with torch.no_grad():
        expected = flow(features, code)
    folded = FoldedFlow(flow).half()
    found = folded(features.half(), folded.condition_tables(code.half()))
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=0, rtol=5e-3)


def test_the_folded_flow_has_two_linears_a_block_and_a_rotation_between_blocks_and_nothing_twice():
    folded = FoldedFlow(ConditionalFlow(FlowConfig(features=512), seed=0))
    weights = sum(m.weight.numel() for m in folded.modules() if isinstance(m, nn.Linear))
    spared = 8 * 384 * 128 + 512**2
    assert weights == 4_849_664 - spared, "the paper's matrices less those of the condition and the last rotation"
