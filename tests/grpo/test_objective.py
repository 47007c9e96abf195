"""Advantages by hand, the clipped objective against naive loops."""

import math
from typing import get_args

import pytest
import torch

from lerobot_smoothvla.grpo.objective import (
    AdvantageMode,
    chunk_advantages,
    chunk_weights,
    clipped_objective,
    keep_group,
)

FLOOR = 0.1


def normalise(values):
    mean = sum(values) / len(values)
    std = math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))
    return [(v - mean) / (std + FLOOR) for v in values]


def advantages_of(success, smoothness, by_chunk=None, **kwargs):
    """One chunk an episode where nothing else is said."""
    success, smoothness = torch.tensor(success), torch.tensor(smoothness)
    by_chunk = smoothness[:, None] if by_chunk is None else [torch.tensor(chunks) for chunks in by_chunk]
    return chunk_advantages(success, smoothness, success + smoothness, by_chunk, std_floor=FLOOR, **kwargs)


def objective(log_ratio, advantages, **kwargs):
    """One chunk a row, equal weights."""
    kwargs = {"clip_low": 0.2, "clip_high": 0.28} | kwargs
    return clipped_objective(log_ratio, advantages, torch.ones(len(advantages)), **kwargs)


def gradient(ratio, advantage, **kwargs):
    """d gain / d log_ratio of a single term."""
    log_ratio = torch.tensor([[math.log(ratio)]], requires_grad=True)
    (-objective(log_ratio, torch.tensor([advantage]), **kwargs).loss).backward()
    return log_ratio.grad.item()


def test_separate_normalises_apart_and_compares_smoothness_among_successes_only():
    result = advantages_of([1.0, 0.0, 1.0, 0.0], [0.3, 0.9, 0.7, 0.1], mode="separate", smoothness_weight=0.5)
    by_success, (rough, smooth) = normalise([1, 0, 1, 0]), normalise([0.3, 0.7])
    expected = [by_success[0] + 0.5 * rough, by_success[1], by_success[2] + 0.5 * smooth, by_success[3]]
    torch.testing.assert_close(result, torch.tensor(expected))


def test_joint_normalises_the_total_reward():
    result = advantages_of([1.0, 0.0, 1.0], [0.3, 0.9, 0.7], mode="joint")
    torch.testing.assert_close(result, torch.tensor(normalise([1.3, 0.9, 1.7])))


def test_chunkwise_compares_each_chunk_of_the_successes_with_those_of_its_phase():
    nan = math.nan
    # Six chunks, one in each phase; three, in phases 1, 3 and 5; a failure, which has no part in it.
    by_chunk = [[0.5, 0.2, 0.6, 0.8, nan, 0.4], [0.4, 0.6, 0.4], [0.9] * 4]
    result = advantages_of(
        [1.0, 1.0, 0.0], [0.5, 0.5, 0.9], by_chunk, mode="chunkwise", smoothness_weight=0.5
    )
    by_success = normalise([1, 1, 0])
    differences = [0.0, -0.1, 0.0, 0.1, 0.0, 0.0, 0.1, -0.1, 0.0]
    std = math.sqrt(sum(d**2 for d in differences) / 8)
    expected = [by_success[0] + 0.5 * d / (std + FLOOR) for d in differences] + [by_success[2]] * 4
    torch.testing.assert_close(result, torch.tensor(expected))


@pytest.mark.parametrize("mode", get_args(AdvantageMode))
def test_episodes_of_several_chunks_come_in_their_order(mode):
    by_chunk = [[0.5] * 3, [0.5], [0.5] * 2]
    result = advantages_of([1.0, 0.0, 0.0], [0.5, 0.5, 0.5], by_chunk, mode=mode)
    good, bad = normalise([1, 0, 0])[:2]
    torch.testing.assert_close(result, torch.tensor([good] * 3 + [bad] * 3))


@pytest.mark.parametrize("mode", get_args(AdvantageMode))
def test_advantages_sum_to_zero_and_do_not_touch_the_rewards(mode):
    success, smoothness = torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.rand(4)
    before = success.clone()
    result = chunk_advantages(success, smoothness, success + smoothness, smoothness[:, None], mode=mode)
    assert result.sum().item() == pytest.approx(0, abs=1e-5)
    assert torch.equal(success, before)


@pytest.mark.parametrize("mode", get_args(AdvantageMode))
def test_floor_damps_successes_that_hardly_differ(mode):
    result = advantages_of([1.0] * 4, [0.50, 0.51, 0.50, 0.51], mode=mode, smoothness_weight=1.0)
    assert result.abs().max() < 0.1


@pytest.mark.parametrize("success", [[0.0] * 4, [1.0] * 4, [1.0, 0.0, 0.0, 0.0]])
def test_advantages_are_zero_where_success_and_smoothness_do_not_differ(success):
    result = advantages_of(success, [0.4] * 4, mode="separate")
    assert result.isfinite().all()
    assert result.any() == (0 < sum(success) < 4)


@pytest.mark.parametrize(
    ("success", "smoothness_weight", "kept"),
    [
        ([0, 0], 0.5, False),
        ([0, 1], 0.5, True),
        ([0, 1], 0.0, True),
        ([1, 1], 0.5, True),
        ([1, 1], 0.0, False),
    ],
)
def test_groups_are_filtered_on_success_only(success, smoothness_weight, kept):
    assert keep_group(torch.tensor(success), smoothness_weight) is kept


def test_every_episode_weighs_the_same():
    weights = chunk_weights(torch.tensor([2, 5, 1]))
    torch.testing.assert_close(weights, torch.tensor([0.5] * 2 + [0.2] * 5 + [1.0]))
    log_ratio, advantages = torch.zeros(8, 3), torch.tensor([1.0] * 2 + [-3.0] * 5 + [4.0])
    stats = clipped_objective(log_ratio, advantages, weights, clip_low=0.2, clip_high=0.28)
    assert stats.loss.item() == pytest.approx(-(1 - 3 + 4) / 3)


@pytest.mark.parametrize("negative", ["clip", "quadratic"])
def test_objective_equals_a_naive_loop(negative):
    generator = torch.Generator().manual_seed(0)
    log_ratio, advantages = 0.5 * torch.randn(6, 4, generator=generator), torch.linspace(-1, 1.5, 6)
    weights = torch.rand(6, generator=generator)
    low, high, negative_weight, kl_weight = 0.2, 0.28, 0.3, 0.1
    loss = deviation = clipped = kl = 0.0
    for lr_row, a, w in zip(log_ratio.tolist(), advantages.tolist(), weights.tolist(), strict=True):
        for lr in lr_row:
            r, share = math.exp(lr), w / 4 / weights.sum().item()
            bounded = min(max(r, 1 - low), 1 + high)
            if a < 0 and negative == "quadratic":
                gain = r * a - abs(a) / (2 * low) * (r - 1) ** 2
            else:
                gain = min(r * a, bounded * a)
            k3 = r - 1 - lr
            loss += share * (kl_weight * k3 - (negative_weight if a < 0 else 1) * gain)
            deviation += share * abs(r - 1)
            clipped += share * (r != bounded)
            kl += share * k3
    stats = clipped_objective(
        log_ratio, advantages, weights, clip_low=low, clip_high=high, negative=negative,
        negative_weight=negative_weight, kl_weight=kl_weight,
    )  # fmt: skip
    found = [stats.loss.item(), stats.ratio_deviation, stats.clip_fraction, stats.approx_kl]
    assert found == pytest.approx([loss, deviation, clipped, kl], rel=1e-4)


@pytest.mark.parametrize("negative", ["clip", "quadratic"])
@pytest.mark.parametrize("advantage", [-2.0, 0.0, 1.5])
def test_gradient_at_ratio_one_is_the_policy_gradient(advantage, negative):
    assert gradient(1.0, advantage, negative=negative) == pytest.approx(advantage)


def test_positive_side_is_flat_above_the_upper_bound_only():
    assert gradient(1.3, 1.0) == 0
    assert gradient(1.27, 1.0) > 0
    assert gradient(0.5, 1.0) > 0


def test_negative_side_is_flat_or_turns_round_below_the_lower_bound():
    assert gradient(0.75, -1.0, negative="clip") == 0
    assert gradient(0.75, -1.0, negative="quadratic") > 0
    assert gradient(0.85, -1.0, negative="quadratic") < 0
    assert gradient(0.8, -1.0, negative="quadratic") == pytest.approx(0, abs=1e-6)


def test_weight_zero_silences_the_negative_side():
    assert gradient(1.0, -1.0, negative_weight=0.0) == 0
    assert gradient(1.0, 1.0, negative_weight=0.0) == 1


def test_kl_pulls_back_to_the_sampling_policy_from_both_sides():
    assert gradient(2.0, 0.0, kl_weight=1.0) < 0 < gradient(0.5, 0.0, kl_weight=1.0)


def test_unmoved_policy_has_no_deviation():
    stats = objective(torch.zeros(5, 2), torch.linspace(-1, 1, 5))
    assert (stats.ratio_deviation, stats.clip_fraction, stats.approx_kl) == (0, 0, 0)


@pytest.mark.parametrize("negative", ["clip", "quadratic"])
@pytest.mark.parametrize("log_ratio", [-1e4, 1e4])
@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_extreme_log_ratios_stay_finite(log_ratio, advantage, negative):
    terms = torch.tensor([[log_ratio]], requires_grad=True)
    stats = objective(terms, torch.tensor([advantage]), negative=negative, kl_weight=0.1)
    stats.loss.backward()
    assert stats.loss.isfinite()
    assert terms.grad.isfinite().all()


def test_wrong_shapes_and_names_are_rejected():
    with pytest.raises(ValueError, match=r"log_ratio \(N, R\).*got \(3,\)"):
        objective(torch.zeros(3), torch.zeros(3))
    with pytest.raises(ValueError, match="negative.*got 'dual'"):
        objective(torch.zeros(3, 1), torch.zeros(3), negative="dual")
    with pytest.raises(ValueError, match="mode.*got 'both'"):
        advantages_of([1.0, 0.0], [0.5, 0.5], mode="both")


@pytest.mark.parametrize("log_ratio", [-30.0, 30.0])
def test_what_is_imitated_is_so_however_far_the_policy_is_from_it(log_ratio):
    far = torch.tensor([[log_ratio]], requires_grad=True)
    one = torch.ones(1)
    clipped_objective(far, one, one, clip_low=0.2, clip_high=0.2, imitated=one.bool()).loss.backward()
    assert far.grad is not None and far.grad.item() == -1


def test_what_is_imitated_has_no_clip_and_tells_nothing_of_how_far_the_policy_moved():
    log_ratio = torch.tensor([[0.1], [2.0]], requires_grad=True)
    advantages, weights = torch.tensor([1.0, 2.0]), torch.tensor([1.0, 3.0])
    imitated = torch.tensor([False, True])
    stats = clipped_objective(
        log_ratio, advantages, weights, clip_low=0.2, clip_high=0.2, kl_weight=0.5, imitated=imitated
    )
    alone = clipped_objective(
        log_ratio[:1], advantages[:1], weights[:1], clip_low=0.2, clip_high=0.2, kl_weight=0.5
    )
    torch.testing.assert_close(stats.loss, (alone.loss - 3 * 2 * 2.0) / 4)
    figures = ("ratio_deviation", "clip_fraction", "approx_kl")
    assert [getattr(stats, name) for name in figures] == [getattr(alone, name) for name in figures]
    stats.loss.backward()
    assert log_ratio.grad is not None and log_ratio.grad[1].item() == -3 * 2 / 4

    everything = torch.ones_like(imitated)
    nothing_run = clipped_objective(
        log_ratio, advantages, weights, clip_low=0.2, clip_high=0.2, imitated=everything
    )
    assert [getattr(nothing_run, name) for name in figures] == [0, 0, 0]
