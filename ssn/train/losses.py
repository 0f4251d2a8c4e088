"""Training losses of the flow: likelihood, boundary-guided semi-push-pull, hard separation, and triplet.

Sources: METHOD.md, "Training"; Yao et al., *Explicit Boundary Guided Semi-Push-Pull Contrastive Learning for
Supervised Anomaly Detection* (BGAD, CVPR 2023; arXiv 2207.01463) for boundaries, focal weights and
semi-push-pull; the journal version of SimpleSliceNet (2025) for the triplet loss.

Two scales occur. `logp` is the log-likelihood of a location divided by its number of features C, which is
what the flow's caller holds. `logp_normalised` is `logp / NORMALISER`; boundaries, focal weights and
semi-push-pull are stated in it. `total_loss` does that division.
"""

import math
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

LossKind = Literal["spp", "triplet", "hard", "none"]
# The losses that push any anomalous locations down; the triplet loss needs a noised copy of each true one.
PUSHING_LOSSES: tuple[LossKind, ...] = ("spp", "hard")

NORMALISER = 10.0
NORMAL_QUANTILE = 0.05
BOUNDARY_MARGIN = 0.1
TRIPLET_MARGIN = 1.0
HARD_SEPARATION = 0.5

# An anomaly's focal weight has a pole at log p = 0 and grows with exp(2 log p). Both are cut off, so that a
# weight is a finite float32 whatever the flow says; between the limits the authors' formula is untouched.
_SMALLEST_MAGNITUDE = 1e-4
_LARGEST_LOG_LIKELIHOOD = 10.0


class Boundaries(NamedTuple):
    """Decision boundaries on the normalised log-likelihood, both scalars () without gradient."""

    normal: Tensor
    anomaly: Tensor


class SemiPushPull(NamedTuple):
    """The two halves of the semi-push-pull loss, scalars (): normals pulled up, anomalies pushed down."""

    normal: Tensor
    anomaly: Tensor


def log_likelihood(z: Tensor, log_det: Tensor) -> Tensor:
    """Log-likelihood of locations under a standard normal base (METHOD.md, "Conditional normalizing flow").

    log p = -C/2 ln(2 pi) - |z|^2 / 2 + log|det J|. It is not divided by C: the caller does that.

    Parameters
    ----------
    z : (..., C), the flow's output; its squares are summed in float32.
    log_det : (...), log|det J| of the flow at the same locations.

    Returns
    -------
    (...), in nats.
    """
    log_two_pi = math.log(2 * math.pi)
    return -0.5 * z.shape[-1] * log_two_pi - 0.5 * z.float().square().sum(-1) + log_det


def boundaries(log_likelihoods_normal: Tensor) -> Boundaries:
    """Find the normal and the anomaly boundary of a minibatch (BGAD).

    b_n is the 5 % quantile of the normals, taken as the order statistic of rank floor(0.05 N) counted from 0
    (no interpolation), and b_a = b_n - 0.1.

    Parameters
    ----------
    log_likelihoods_normal : (N,), normalised log-likelihoods of normal samples, N >= 1.

    Raises
    ------
    ValueError
        If there is no normal sample.
    """
    count = log_likelihoods_normal.numel()
    if count == 0:
        raise ValueError("the boundary is a quantile of normal samples, and this minibatch has none")
    rank = int(NORMAL_QUANTILE * count)
    normal = log_likelihoods_normal.detach().kthvalue(rank + 1).values
    return Boundaries(normal, normal - BOUNDARY_MARGIN)


def focal_weights(logp_normalised: Tensor, is_anomaly: Tensor) -> Tensor:
    """Weigh hard samples more: unlikely normals and likely anomalies (BGAD's focal weighting; METHOD.md).

    With l = `logp_normalised` and p = exp(l): a normal weighs 1 where l > -0.2, else 11.7 (1 - p)^0.5 |l|;
    an anomaly weighs 1 where l <= -1, else 0.53 (1 + p)^2 / |l|.

    Parameters
    ----------
    logp_normalised : (N,).
    is_anomaly : (N,), bool.

    Returns
    -------
    (N,), without gradient, finite for every finite input.
    """
    logp = logp_normalised.detach()
    p = logp.clamp(max=_LARGEST_LOG_LIKELIHOOD).exp()
    magnitude = logp.abs()
    # 1 - p is negative only where p > 1, and there the weight is 1.
    hard_normal = 11.7 * (1 - p).clamp(min=0).sqrt() * magnitude
    hard_anomaly = 0.53 * (1 + p).square() / magnitude.clamp(min=_SMALLEST_MAGNITUDE)
    one = torch.ones_like(logp)
    normal = torch.where(logp > -0.2, one, hard_normal)
    anomaly = torch.where(logp <= -1.0, one, hard_anomaly)
    return torch.where(is_anomaly, anomaly, normal)


def semi_push_pull(logp_normalised: Tensor, is_anomaly: Tensor, *, weights: Tensor | None = None) -> SemiPushPull:
    """Pull normals at or below b_n up to it, push anomalies at or above b_a down to it (BGAD).

    The boundaries come from the normals of this minibatch. Each half is the mean over the samples it moves;
    all others get no gradient. A half that moves nothing is 0, and so are both where there is no normal
    sample to find the boundary from.

    Parameters
    ----------
    logp_normalised : (N,).
    is_anomaly : (N,), bool.
    weights : (N,), multiplied onto each sample's distance before the mean (which still divides by the number
        of samples, not by the sum of weights). None weighs all alike.
    """
    normal, anomaly = logp_normalised[~is_anomaly], logp_normalised[is_anomaly]
    if normal.numel() == 0:
        nothing = _mean(normal)
        return SemiPushPull(nothing, nothing)
    b_n, b_a = boundaries(normal)
    below, above = normal <= b_n, anomaly >= b_a
    pulled, pushed = b_n - normal[below], anomaly[above] - b_a
    if weights is not None:
        pulled = pulled * weights[~is_anomaly][below]
        pushed = pushed * weights[is_anomaly][above]
    return SemiPushPull(_mean(pulled), _mean(pushed))


def hard_separation(logp_normalised: Tensor, is_anomaly: Tensor) -> SemiPushPull:
    """Separate all samples by a fixed distance, with a truncated L1 distance: the control to semi-push-pull.

    With m the median of this minibatch's normals (detached): mean of max(0, m - l) over *all* normals, and
    mean of max(0, l - (m - 0.5)) over *all* anomalies. Truncated, because a sample beyond its target costs
    nothing. Where semi-push-pull moves the few samples about its boundary and stops 0.1 below it, this moves half
    of the normals and every anomaly that is not five such margins away. The paper gives no formula; this is ours.

    Parameters
    ----------
    logp_normalised : (N,).
    is_anomaly : (N,), bool.

    Returns
    -------
    Both parts; 0, joined to the graph, where there is no normal sample to measure from.
    """
    normal, anomaly = logp_normalised[~is_anomaly], logp_normalised[is_anomaly]
    if normal.numel() == 0:
        nothing = _mean(normal)
        return SemiPushPull(nothing, nothing)
    middle = normal.detach().median()
    return SemiPushPull(
        _mean(F.relu(middle - normal)),
        _mean(F.relu(anomaly - (middle - HARD_SEPARATION))),
    )


def likelihood_loss(logp: Tensor, *, weights: Tensor | None = None) -> Tensor:
    """Mean of -log sigmoid(log p), each sample times its weight (METHOD.md, "Training"); 0 for no samples.

    Parameters
    ----------
    logp : (N,), not normalised.
    weights : (N,) or None. The mean divides by N, not by the sum of weights.
    """
    loss = -F.logsigmoid(logp)
    return _mean(loss if weights is None else loss * weights)


def triplet_loss(true: Tensor, noised: Tensor, permutation: Tensor) -> Tensor:
    """Triplet margin loss on log-likelihoods: max(0, |t - t[permutation]| - |t - f| + 1), a scalar ().

    On 1-D input each |.| is one Euclidean norm over the whole batch, not a distance a sample, so the
    margin is small beside it at 4,096 samples. That is how the authors run it (METHOD.md, last section).

    Parameters
    ----------
    true, noised : (N,), log-likelihoods t and f of the features and of their noised copies.
    permutation : (N,), integer; gives each anchor another true sample as its positive.
    """
    positive = torch.linalg.vector_norm(true - true[permutation])
    negative = torch.linalg.vector_norm(true - noised)
    return F.relu(positive - negative + TRIPLET_MARGIN)


def uses_noised(kind: LossKind, epoch: int) -> bool:
    """Say whether `total_loss` looks at noised samples; where it does not, they need not be computed."""
    return kind == "triplet" or (kind in PUSHING_LOSSES and epoch > 0)


def total_loss(
    kind: LossKind,
    logp_true: Tensor,
    logp_noised: Tensor | None,
    *,
    epoch: int,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Loss of one minibatch, a scalar (), as the authors train (METHOD.md, "Training" and last section).

    - `spp`: in epoch 0 the likelihood term alone, weighted by the normals' focal weights; from epoch 1 on,
      the same weighted term + both halves of the focally weighted semi-push-pull.
    - `hard`: in epoch 0 the unweighted likelihood term; from epoch 1 on, that + both parts of the hard separation.
    - `triplet`: the unweighted likelihood term + the triplet loss, from epoch 0 on.
    - `none`: the unweighted likelihood term alone.

    Parameters
    ----------
    logp_true : (N,), log-likelihoods (divided by C, not by the normaliser) of true features.
    logp_noised : (M,), of their noised copies; M = N for `triplet`. May be None where `uses_noised` is False.
    epoch : counted from 0.
    generator : draws the triplet's positives; None takes torch's global one.

    Raises
    ------
    ValueError
        If `kind` is unknown, or noised samples are needed and not given.
    """
    if kind not in get_args(LossKind):
        raise ValueError(f"unknown loss {kind!r}: choose one of {', '.join(get_args(LossKind))}")
    if not uses_noised(kind, epoch):
        logp_noised = logp_true.new_empty(0)
    elif logp_noised is None:
        raise ValueError(f"loss {kind!r} needs the log-likelihoods of noised samples in epoch {epoch}")

    if kind == "spp":
        logp = torch.cat([logp_true, logp_noised]) / NORMALISER
        is_anomaly = torch.arange(logp.numel(), device=logp.device) >= logp_true.numel()
        weights = focal_weights(logp, is_anomaly)
        loss = likelihood_loss(logp_true, weights=weights[: logp_true.numel()])
        if uses_noised(kind, epoch):
            pulled, pushed = semi_push_pull(logp, is_anomaly, weights=weights)
            loss = loss + (pulled + pushed)
    else:
        loss = likelihood_loss(logp_true)
        if kind == "hard" and uses_noised(kind, epoch):
            logp = torch.cat([logp_true, logp_noised]) / NORMALISER
            is_anomaly = torch.arange(logp.numel(), device=logp.device) >= logp_true.numel()
            pulled, pushed = hard_separation(logp, is_anomaly)
            loss = loss + (pulled + pushed)
        elif kind == "triplet":
            device = logp_true.device if generator is None else generator.device
            permutation = torch.randperm(logp_true.numel(), generator=generator, device=device)
            loss = loss + triplet_loss(logp_true, logp_noised, permutation.to(logp_true.device))
    return loss


def _mean(values: Tensor) -> Tensor:
    """Mean over all values; 0, still joined to the graph, where there are none."""
    return values.sum() / max(values.numel(), 1)
