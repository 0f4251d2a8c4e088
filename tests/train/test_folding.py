import pytest
import torch

from ssn.train.encoder import EncoderConfig
from ssn.train.folding import folded
from ssn.train.network import FeatureNetwork, ModelConfig


@pytest.mark.parametrize(("name", "stages"), [("tf_efficientnet_lite0", (1, 2, 3)), ("resnet18", (2, 3))])
def test_a_folded_network_says_the_same_and_leaves_the_original_alone(name, stages):
    torch.manual_seed(0)
    network = FeatureNetwork(ModelConfig(encoder=EncoderConfig(name, stages), width=None), "none").eval()
    for module in network.modules():  # statistics and scales as training would have left them
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
            module.weight.data.uniform_(0.5, 1.5)
            module.bias.data.normal_(0, 0.2)
    slices = torch.rand(6, 1, 96, 96)
    with torch.inference_mode():
        before = network(slices)
        fast = folded(network)
        after = fast(slices)
        again = network(slices)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in fast.modules())
    torch.testing.assert_close(after, before, rtol=1e-4, atol=1e-4 * float(before.abs().max()))
    assert torch.equal(again, before)
