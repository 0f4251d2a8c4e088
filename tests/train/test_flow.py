"""The flow is an exact change of variables, reproducible from its seed, and the paper's in size."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from ssn.train.flow import ConditionalFlow, FlowConfig, location_code, sincos_code
from ssn.train.losses import log_likelihood

DATA = Path(__file__).parents[1] / "data" / "losses.npz"
SMALL = FlowConfig(features=6, blocks=3, plane_channels=8)


def perturbed(config: FlowConfig, seed: int = 0) -> ConditionalFlow:
    """A flow that is far from the near-identity couplings it starts with."""
    flow = ConditionalFlow(config, seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in flow.parameters():
            if parameter.requires_grad:
                parameter.add_(0.5 * torch.randn(parameter.shape, generator=generator))
    return flow


def authors(name: str) -> Tensor:
    with np.load(DATA) as data:
        return torch.from_numpy(data[name])


def test_location_code_is_the_authors():
    torch.testing.assert_close(location_code((6, 8), 128), authors("position_code"), atol=1e-6, rtol=0)


def test_sines_and_cosines_are_interleaved():
    code = sincos_code(torch.tensor([[0.0, 2.0]]), 4)
    assert code.shape == (1, 2, 4)
    expected = [math.sin(2), math.cos(2), math.sin(0.02), math.cos(0.02)]
    torch.testing.assert_close(code[0, 1], torch.tensor(expected))
    assert code[0, 0].tolist() == [0, 1, 0, 1]


def test_log_likelihood_is_the_authors():
    log_p = log_likelihood(authors("z"), authors("log_det"))
    torch.testing.assert_close(log_p, authors("log_p"), atol=1e-3, rtol=0)


def test_the_flow_divides_the_log_likelihood_by_its_dimensions():
    flow = perturbed(SMALL)
    x, code = torch.randn(5, 6), torch.randn(5, 8)
    torch.testing.assert_close(flow(x, code) * 6, log_likelihood(*flow.z_and_log_det(x, code)))


def test_log_det_is_that_of_the_jacobian():
    flow = perturbed(SMALL).double()
    x, code = torch.randn(4, 6).double(), torch.randn(4, 8).double()
    _, log_det = flow.z_and_log_det(x, code)
    for i in range(4):
        jacobian = torch.autograd.functional.jacobian(
            lambda v, i=i: flow.z_and_log_det(v[None], code[i : i + 1])[0][0], x[i]
        )
        torch.testing.assert_close(torch.linalg.slogdet(jacobian).logabsdet, log_det[i])


def test_the_papers_flow_has_4_85_million_weights():
    flow = ConditionalFlow(FlowConfig(features=512), seed=0)
    # The paper's 4.85 M are the matrices that a location goes through: each block's two Linears and its
    # rotation (fixed, not trained). Leaves out biases, the global affine, and the rotation's stored inverse.
    linears = sum(m.weight.numel() for m in flow.modules() if isinstance(m, nn.Linear))
    rotations = sum(p.numel() for name, p in flow.named_parameters() if name.endswith("w_perm"))
    assert linears + rotations == 4_849_664
    trained = sum(p.numel() for p in flow.parameters() if p.requires_grad)
    assert trained == linears + 8 * (384 + 512) + 8 * 2 * 512, "weights, biases, global scale and offset"


def test_the_clamp_is_alpha_times_tanh():
    # FrEIA's newer source, with the same version string, has alpha * tanh(a / alpha): a flow trained under one
    # is wrong under the other. One block, its subnet a constant: the log-scale can be read from the log-det.
    flow = ConditionalFlow(FlowConfig(features=2, blocks=1, plane_channels=4), seed=0)
    block = flow.inn[0]
    with torch.no_grad():
        block.subnet[2].weight.zero_()
        block.subnet[2].bias.copy_(torch.tensor([7.0, 0.0]))
    _, log_det = flow.z_and_log_det(torch.randn(1, 2), torch.zeros(1, 4))
    assert log_det.item() == pytest.approx(1.9 * math.tanh(0.1 * 7.0), abs=1e-5)


def test_same_seed_same_weights_other_seed_other_rotation():
    first, again, other = (ConditionalFlow(SMALL, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], again[name]) for name in first)
    rotations = [name for name in first if name.endswith("w_perm")]
    assert len(rotations) == 3
    assert not any(torch.allclose(first[name], other[name]) for name in rotations)


def test_building_a_flow_leaves_the_global_generators_alone():
    torch.manual_seed(5)
    np.random.seed(5)
    expected = torch.rand(1).item(), np.random.rand()
    torch.manual_seed(5)
    np.random.seed(5)
    ConditionalFlow(SMALL, 1)
    assert (torch.rand(1).item(), np.random.rand()) == expected


def test_the_hidden_layer_is_as_wide_as_the_input_unless_told():
    assert ConditionalFlow(SMALL, 0).inn[0].subnet[0].weight.shape == (11, 11)
    narrow = FlowConfig(features=7, blocks=1, plane_channels=8, depth_channels=4, hidden=5)
    assert narrow.code_channels == 12
    subnet = ConditionalFlow(narrow, 0).inn[0].subnet
    assert (subnet[0].weight.shape, subnet[2].weight.shape) == ((5, 16), (6, 5))


@pytest.mark.parametrize(
    "wrong",
    [
        {"features": 1},
        {"plane_channels": 6},
        {"depth_channels": 3},
        {"plane_channels": -4},
        {"blocks": 0},
        {"clamp": 0},
    ],
)
def test_impossible_shapes_are_refused(wrong: dict[str, int]):
    with pytest.raises(ValueError, match="got"):
        FlowConfig(**{"features": 6, **wrong})


def test_a_flow_without_code_is_a_flow_of_the_features_alone():
    flow = perturbed(FlowConfig(features=6, blocks=2, plane_channels=0))
    x = torch.randn(5, 6)
    assert flow.config.code_channels == 0
    assert location_code((3, 4), 0).shape == (0, 3, 4)
    torch.testing.assert_close(flow(x, torch.zeros(5, 0)), flow(x, location_code((1, 5), 0).flatten(1).T))
    assert torch.isfinite(flow(x, torch.zeros(5, 0))).all()
