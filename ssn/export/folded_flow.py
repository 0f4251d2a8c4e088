"""The flow as it is shipped: the same function as `ConditionalFlow`, in fewer and plainer operators.

METHOD.md, 'Export'. One block of FrEIA, with x = [x1 | x2], condition c and subnet W1, b1, W2, b2:

    [s | t] = 0.1 (W2 relu(W1 [x1 | c] + b1) + b2)
    u = [x1 | x2 exp(alpha tanh s) + t]
    y = R (g u + o)                              g = 0.1 softplus(scale), o = offset, R the rotation
    log|det| = sum(alpha tanh s) + sum(log g)

Everything but x is known in advance: W1 [x1 | c] + b1 = W1x x1 + (W1c c + b1), whose bracket is a table
with one row a place; 0.1 goes into W2 and b2; R (g u + o) = (R diag g) u + R o is one Linear; sum(log g) is
one number for all blocks together. After the last block only |y|^2 is asked for, which no rotation changes: its R
is left out.
"""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from FrEIA.modules import AllInOneBlock
from torch import Tensor, nn

from ssn.train.flow import ConditionalFlow


class FoldedFlow(nn.Module):
    """A `ConditionalFlow` for inference only, made of Gemm, Relu, Tanh, Exp, Mul and Add.

    Parameters
    ----------
    flow : ConditionalFlow
        Its weights are copied; later changes to it do not reach this module.
    """

    def __init__(self, flow: ConditionalFlow) -> None:
        super().__init__()
        features = flow.config.features
        end = len(flow.inn) - 1
        self.blocks = nn.ModuleList(_FoldedBlock(block, last=at == end) for at, block in enumerate(flow.inn))
        # Per dimension: the blocks' global log-determinants, and the normal distribution's own constant.
        log_scales = torch.stack([_global_scale(block).log().sum() for block in flow.inn]).sum()
        # A number and not a buffer, because `half()` would round a buffer.
        self.constant = float(log_scales / features - 0.5 * math.log(2 * math.pi))
        self.requires_grad_(False)
        self.eval()

    def condition_tables(self, code: Tensor) -> list[Tensor]:
        """Return each block's condition bias, `[K, n]`, its first Linear's own included, of `code` `[K, P]`."""
        return [F.linear(code, weight, bias) for weight, bias in self.condition_maps()]

    def condition_maps(self) -> list[tuple[Tensor, Tensor]]:
        """Return each block's linear map from code to condition bias: weight `[n, P]` and bias `[n]`."""
        return [(block.condition_weight, block.condition_bias) for block in self.blocks]  # type: ignore[misc]

    def forward(self, features: Tensor, conditions: Sequence[Tensor]) -> Tensor:
        """Return the log-likelihood per dimension, float32.

        Parameters
        ----------
        features : Tensor
            `[L, C]`.
        conditions : sequence of Tensor
            One a block, `[L, n]`: the rows of its condition table for the L locations.

        Returns
        -------
        Tensor
            `[L]`.
        """
        x = features
        log_det = torch.zeros((), dtype=torch.float32, device=features.device)
        for block, condition in zip(self.blocks, conditions, strict=True):
            x, block_log_det = block(x, condition)
            log_det = log_det + block_log_det
        # A mean of squares, in FP32: in FP16 their sum would lose its last digits.
        return self.constant - 0.5 * x.float().square().mean(dim=-1) + log_det


class _FoldedBlock(nn.Module):
    """One coupling block; see this module's docstring for the algebra."""

    condition_weight: Tensor
    condition_bias: Tensor

    def __init__(self, block: AllInOneBlock, *, last: bool = False) -> None:
        super().__init__()
        self.splits: list[int] = list(block.splits)
        self.clamp = float(block.clamp)
        inner, outer = block.subnet[0], block.subnet[2]
        passive, active = self.splits
        self.first = linear(inner.weight[:, :passive], None)
        self.register_buffer("condition_weight", inner.weight[:, passive:].detach().clone())
        self.register_buffer("condition_bias", inner.bias.detach().clone())
        self.log_scale = linear(0.1 * outer.weight[:active], 0.1 * outer.bias[:active])
        self.shift = linear(0.1 * outer.weight[active:], 0.1 * outer.bias[active:])
        # Multiplied in float64, so that folding itself costs no accuracy.
        rotation, scale = block.w_perm.detach().double(), _global_scale(block)
        offset = block.global_offset.detach().double().flatten()
        self.outward = _Scaling(scale, offset) if last else linear(rotation * scale, rotation @ offset)

    def forward(self, x: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Return the block's output `[L, C]` and its log-determinant over C, `[L]`, float32."""
        passive, active = x[:, : self.splits[0]], x[:, self.splits[0] :]
        hidden = torch.relu(self.first(passive) + condition)
        log_scale = self.clamp * torch.tanh(self.log_scale(hidden))
        active = active * torch.exp(log_scale) + self.shift(hidden)
        share = self.splits[1] / sum(self.splits)  # mean over the active half -> sum over C
        log_det = share * log_scale.float().mean(dim=-1)
        return self.outward(torch.cat([passive, active], dim=-1)), log_det


class _Scaling(nn.Module):
    """g u + o, of each dimension by itself."""

    scale: Tensor
    offset: Tensor

    def __init__(self, scale: Tensor, offset: Tensor) -> None:
        super().__init__()
        self.register_buffer("scale", scale.float())
        self.register_buffer("offset", offset.float())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.offset


def _global_scale(block: AllInOneBlock) -> Tensor:
    """Return the block's global scale g, `[C]`, float64."""
    activated: Tensor = block.global_scale_activation(block.global_scale.detach().double())
    return activated.flatten()


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Make a Linear of weight (out, in) and bias (out,), rounded to FP32."""
    result = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    with torch.no_grad():
        result.weight.copy_(weight)
        if bias is not None:
            result.bias.copy_(bias)
    return result
