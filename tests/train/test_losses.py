"""The losses against the authors' own numbers (tests/data/losses.npz), their definitions, and hard cases.

Conventions found in the reference, by trial:
- `logps` are divided by C but not yet by the normaliser 10; every function of BGAD here takes logps / 10;
- `boundaries` = (normal, anomaly), already divided by 10; the quantile is the order statistic of
  rank int(0.05 N), counted from 0;
- `spp` and `spp_weighted` = (normal part, anomaly part): means over the samples that are moved, with the
  sample on the boundary counted; weights multiply before the mean, which divides by the count and not by the
  weights' sum;
- `log_p` is not divided by C.
"""

from pathlib import Path

import numpy as np
import pytest
import torch

from ssn.train.losses import (
    NORMALISER,
    boundaries,
    focal_weights,
    hard_separation,
    likelihood_loss,
    log_likelihood,
    semi_push_pull,
    total_loss,
    triplet_loss,
    uses_noised,
)


@pytest.fixture(scope="module")
def reference():
    with np.load(Path(__file__).parents[1] / "data" / "losses.npz") as file:
        return {name: torch.from_numpy(file[name]) for name in file.files}


@pytest.fixture(scope="module")
def normalised(reference):
    return reference["logps"] / NORMALISER, reference["is_anomaly"].bool()


def batch(normal, anomaly):
    logp = torch.tensor([*normal, *anomaly], dtype=torch.float32, requires_grad=True)
    return logp, torch.tensor([False] * len(normal) + [True] * len(anomaly), dtype=torch.bool)


def test_log_likelihood_agrees_with_the_authors(reference):
    got = log_likelihood(reference["z"], reference["log_det"])
    torch.testing.assert_close(got, reference["log_p"], rtol=1e-6, atol=1e-4)


def test_log_likelihood_agrees_with_torchs_normal_distribution():
    z = torch.randn(2, 5, 7, generator=torch.Generator().manual_seed(0))
    expected = torch.distributions.Normal(0, 1).log_prob(z).sum(-1) + 0.25
    torch.testing.assert_close(log_likelihood(z, torch.full((2, 5), 0.25)), expected)


def test_boundaries_agree_with_the_authors(reference, normalised):
    logp, is_anomaly = normalised
    got = torch.stack(boundaries(logp[~is_anomaly])).double()
    torch.testing.assert_close(got, reference["boundaries"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("weighted", [False, True])
def test_semi_push_pull_agrees_with_the_authors(reference, normalised, weighted):
    logp, is_anomaly = normalised
    weights = focal_weights(logp, is_anomaly) if weighted else None
    got = torch.stack(semi_push_pull(logp, is_anomaly, weights=weights)).double()
    expected = reference["spp_weighted" if weighted else "spp"]
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_boundary_of_few_normals_is_the_smallest():
    b_n, b_a = boundaries(torch.tensor([0.5, -0.3, 0.2]))
    assert b_n.item() == pytest.approx(-0.3)
    assert b_a.item() == pytest.approx(-0.4)


def test_boundary_carries_no_gradient():
    logp = torch.randn(40, requires_grad=True)
    assert not any(boundary.requires_grad for boundary in boundaries(logp))


def test_boundary_without_normals_is_an_error():
    with pytest.raises(ValueError, match="none"):
        boundaries(torch.empty(0))


def test_focal_weights_follow_their_formula_and_thresholds():
    normal, anomaly = [-0.19, -0.2, -2.0], [-1.0, -0.99, -0.1, 0.2]
    got = focal_weights(*batch(normal, anomaly))
    expected = [1.0, *(11.7 * (1 - np.exp(x)) ** 0.5 * abs(x) for x in normal[1:])]
    expected += [1.0, *(0.53 * (1 + np.exp(x)) ** 2 / abs(x) for x in anomaly[1:])]
    np.testing.assert_allclose(got.numpy(), expected, rtol=1e-5)
    assert not got.requires_grad


@pytest.mark.parametrize("value", [0.0, -0.0, 1e-30, -1e-30, 80.0, 1e6, -1e6, -0.2, -1.0])
def test_focal_weights_are_finite_for_every_finite_log_likelihood(value):
    weights = focal_weights(*batch([value], [value]))
    assert torch.isfinite(weights).all()


def test_only_normals_below_and_anomalies_above_their_boundary_get_a_gradient():
    normal = [-5.0, *np.linspace(-0.5, 0.5, 38), -4.0]  # rank int(0.05 * 40) = 2: b_n = -0.5
    logp, is_anomaly = batch(normal, [-0.61, -0.55, 3.0])
    sum(semi_push_pull(logp, is_anomaly)).backward()
    pulled = {0, 1, 39}
    expected = [-1 / 3 if index in pulled else 0.0 for index in range(40)] + [0.0, 0.5, 0.5]
    np.testing.assert_allclose(logp.grad.numpy(), expected, atol=1e-6)


def test_no_anomaly_above_the_boundary_counts_zero():
    logp, is_anomaly = batch([0.0, 0.1], [-9.0])
    normal, anomaly = semi_push_pull(logp, is_anomaly, weights=focal_weights(logp, is_anomaly))
    (normal + anomaly).backward()
    assert anomaly.item() == 0
    assert torch.isfinite(logp.grad).all()


@pytest.mark.parametrize(("normal", "anomaly"), [([], []), ([], [0.5]), ([0.5], [])])
def test_empty_sets_count_zero_and_still_go_backward(normal, anomaly):
    logp, is_anomaly = batch(normal, anomaly)
    parts = semi_push_pull(logp, is_anomaly, weights=focal_weights(logp, is_anomaly))
    sum(parts).backward()
    assert [part.item() for part in parts] == [0, 0]
    assert torch.isfinite(logp.grad).all()


def test_likelihood_loss_is_the_mean_softplus_of_the_negative():
    logp = torch.tensor([-3.0, 0.0, 2.0])
    weights = torch.tensor([2.0, 0.0, 1.0])
    softplus = np.log1p(np.exp([3.0, 0.0, -2.0]))
    assert likelihood_loss(logp).item() == pytest.approx(softplus.mean(), rel=1e-6)
    assert likelihood_loss(logp, weights=weights).item() == pytest.approx((2 * softplus[0] + softplus[2]) / 3, rel=1e-6)


def test_likelihood_loss_of_nothing_is_zero_and_of_extremes_is_finite():
    assert likelihood_loss(torch.empty(0)).item() == 0
    logp = torch.tensor([-1e4, 1e4], requires_grad=True)
    loss = likelihood_loss(logp)
    loss.backward()
    assert loss.item() == pytest.approx(5e3)
    assert logp.grad.tolist() == [-0.5, 0.0]


@pytest.mark.parametrize("noise", [0.1, 1.3])
def test_triplet_loss_agrees_with_torchs_on_one_dimensional_input(noise):
    generator = torch.Generator().manual_seed(1)
    true = torch.randn(64, generator=generator)
    noised = true - noise * torch.rand(64, generator=generator)
    permutation = torch.randperm(64, generator=generator)
    expected = torch.nn.TripletMarginLoss(margin=1.0, p=2)(true, true[permutation], noised)
    assert triplet_loss(true, noised, permutation).item() == pytest.approx(expected.item(), abs=1e-4)


def test_triplet_loss_is_zero_once_the_noised_are_far_away():
    true = torch.zeros(4, requires_grad=True)
    loss = triplet_loss(true, torch.full((4,), -9.0), torch.tensor([1, 0, 3, 2]))
    loss.backward()
    assert loss.item() == 0
    assert true.grad.tolist() == [0] * 4


def test_triplet_loss_of_identical_samples_has_a_finite_gradient():
    true = torch.full((4,), -1.0, requires_grad=True)
    loss = triplet_loss(true, true.detach(), torch.arange(4))
    loss.backward()
    assert loss.item() == 1
    assert torch.isfinite(true.grad).all()


def test_semi_push_pull_run_starts_with_the_weighted_likelihood_alone():
    true = torch.tensor([-5.0, 1.0])  # normalised: -0.5 is hard, 0.1 weighs 1
    weight = 11.7 * (1 - np.exp(-0.5)) ** 0.5 * 0.5
    expected = (weight * np.log1p(np.exp(5)) + np.log1p(np.exp(-1))) / 2
    for noised in (None, torch.tensor([3.0, 4.0])):
        loss = total_loss("spp", true, noised, epoch=0)
        assert loss.item() == pytest.approx(expected, rel=1e-5)


def test_semi_push_pull_run_goes_on_with_both_terms(reference):
    logps, is_anomaly = reference["logps"], reference["is_anomaly"].bool()
    true, noised = logps[~is_anomaly], logps[is_anomaly]
    loss = total_loss("spp", true, noised, epoch=1)
    likelihood = total_loss("spp", true, None, epoch=0)
    assert loss.item() == pytest.approx((likelihood + reference["spp_weighted"].sum()).item(), rel=1e-6)


def test_triplet_run_is_repeatable_under_its_generator():
    true, noised = torch.randn(32), torch.randn(32)
    first, second = (
        total_loss("triplet", true, noised, epoch=0, generator=torch.Generator().manual_seed(3)) for _ in range(2)
    )
    assert first == second
    permutation = torch.randperm(32, generator=torch.Generator().manual_seed(3))
    assert first == likelihood_loss(true) + triplet_loss(true, noised, permutation)


def test_loss_none_is_the_plain_likelihood():
    true = torch.tensor([-5.0, 1.0])
    loss = total_loss("none", true, None, epoch=7)
    assert loss.item() == pytest.approx(likelihood_loss(true).item())


@pytest.mark.parametrize("kind", ["spp", "triplet", "hard", "none"])
@pytest.mark.parametrize("epoch", [0, 1])
@pytest.mark.parametrize("value", [0.0, -2.0, -10.0, 700.0, -1e5])
def test_every_loss_has_a_finite_gradient_on_degenerate_batches(kind, epoch, value):
    true = torch.full((6,), value, requires_grad=True)
    noised = torch.full((6,), value, requires_grad=True)
    loss = total_loss(kind, true, noised, epoch=epoch)
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(true.grad).all()
    assert (noised.grad is not None) == uses_noised(kind, epoch)
    assert noised.grad is None or torch.isfinite(noised.grad).all()


def test_hard_separation_pulls_every_normal_to_the_median_and_pushes_every_anomaly_half_a_unit_below():
    normal, anomaly = torch.tensor([-0.3, -0.1, 0.2]), torch.tensor([-0.7, -0.2, 0.4])
    logp = torch.cat([normal, anomaly]).requires_grad_()
    pulled, pushed = hard_separation(logp, torch.arange(6) >= 3)
    assert pulled.item() == pytest.approx(0.2 / 3)  # median -0.1
    assert pushed.item() == pytest.approx((0 + 0.4 + 1.0) / 3)  # target -0.6; beyond it nothing
    (pulled + pushed).backward()
    assert logp.grad.sign().tolist() == [-1, 0, 0, 0, 1, 1]
    assert hard_separation(anomaly, torch.ones(3, dtype=torch.bool)) == (0, 0)


def test_missing_noised_samples_and_unknown_losses_are_errors():
    with pytest.raises(ValueError, match="noised"):
        total_loss("triplet", torch.zeros(2), None, epoch=0)
    with pytest.raises(ValueError, match="unknown loss"):
        total_loss("hinge", torch.zeros(2), None, epoch=0)


def test_hard_run_goes_on_with_both_terms_of_the_normalised_log_likelihoods():
    true, noised = torch.linspace(-8, 2, 40), torch.linspace(-12, 1, 30)
    parts = hard_separation(torch.cat([true, noised]) / NORMALISER, torch.arange(70) >= 40)
    assert min(parts) > 0
    torch.testing.assert_close(total_loss("hard", true, noised, epoch=1), likelihood_loss(true) + sum(parts))
    torch.testing.assert_close(total_loss("hard", true, None, epoch=0), likelihood_loss(true))


def test_the_rank_of_the_boundary_is_rounded_down():
    assert boundaries(torch.arange(39.0)).normal == 1
    assert boundaries(torch.arange(40.0)).normal == 2
