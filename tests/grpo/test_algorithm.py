"""GRPO's update on the real policy; episodes are sampled from it on random images, without a simulator."""

import json
import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from itertools import accumulate
from typing import get_args

import episodes
import pytest
import torch
from builders import TINY_SMOOTHVLA
from lerobot.rl.algorithms.base import RLAlgorithm
from lerobot.rl.algorithms.configs import TrainingStats
from lerobot.utils.constants import OBS_STATE
from safetensors import safe_open
from torch import Tensor

from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig
from lerobot_smoothvla.episode import Group
from lerobot_smoothvla.grpo.algorithm import DROPPED_IN_A_ROW, GRPOAlgorithm, Replay
from lerobot_smoothvla.grpo.configuration import GRPOConfig
from lerobot_smoothvla.grpo.objective import AdvantageMode, chunk_advantages
from lerobot_smoothvla.modeling_smoothvla import SmoothVLAPolicy
from lerobot_smoothvla.processor_smoothvla import make_smoothvla_pre_post_processors
from lerobot_smoothvla.rollout.engine import Actor

RATIOS = ("flow_matching", "flow_sde")
POLICY = SmoothVLAConfig(**TINY_SMOOTHVLA | {"num_steps": 3})


def algorithm(**settings) -> GRPOAlgorithm:
    """The algorithm around a policy that is the same at every call."""
    torch.manual_seed(0)
    policy = SmoothVLAPolicy(POLICY).eval()
    settings = {"group_size": 4, "n_groups": 1, "lr": 1e-4} | settings
    return GRPOAlgorithm(Actor(policy, *make_smoothvla_pre_post_processors(POLICY)), GRPOConfig(**settings))


def sampled_group(algorithm: GRPOAlgorithm, success: Sequence[int] = (1, 0, 1, 0), seed: int = 0) -> Group:
    return episodes.sampled_group(algorithm.actor, algorithm.estimator, success, seed=seed)


def update(
    algorithm: GRPOAlgorithm, *groups: Group, behaviour: Sequence[Tensor] | None = None
) -> TrainingStats:
    algorithm.actor.policy.train()
    return algorithm.update(iter([list(groups)]), behaviour)


def weights(algorithm: GRPOAlgorithm) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in algorithm.get_weights().items()}


def difference(first: dict[str, Tensor], second: dict[str, Tensor]) -> float:
    return max((first[key].float() - second[key].float()).abs().max().item() for key in first)


@torch.no_grad()
def log_ratios(algorithm: GRPOAlgorithm, baseline: Tensor, replay: Replay) -> Tensor:
    return algorithm.estimator.log_ratio(
        algorithm.actor.adapter, algorithm._encode(replay), replay.record, baseline, replay.executed
    )


def log_ratio(algorithm: GRPOAlgorithm, baseline: Tensor, replay: Replay) -> Tensor:
    return log_ratios(algorithm, baseline, replay).mean(1)


# --- replay


@pytest.mark.parametrize("mode", get_args(AdvantageMode))
def test_a_replay_holds_the_chunks_of_all_episodes_in_their_order(mode):
    grpo = algorithm(advantage=mode)
    groups = [sampled_group(grpo), sampled_group(grpo, (0, 0, 0, 1), seed=1)]
    replay = Replay.from_groups(groups, grpo.config)
    episodes = [scored.episode for group in groups for scored in group.episodes]
    assert len(replay) == len(replay.instructions) == 2 * 8
    chunk = 0
    for group in groups:
        success, smoothness, total = (
            torch.tensor([getattr(s, name) for s in group.episodes])
            for name in ("success", "smoothness", "total")
        )
        by_chunk = [scored.chunk_smoothness for scored in group.episodes]
        advantages = iter(chunk_advantages(success, smoothness, total, by_chunk, mode=mode))
        for scored in group.episodes:
            for call, n_steps in enumerate(scored.episode.executed):
                for key, value in scored.episode.observations.items():
                    assert replay.observations[key][chunk].equal(value[call])
                for key, value in scored.episode.record.items():
                    assert replay.record[key][chunk].equal(value[call])
                assert replay.executed[chunk].tolist() == [step < n_steps for step in range(8)]
                assert replay.advantages[chunk] == next(advantages)
                chunk += 1
    assert chunk == sum(len(episode.executed) for episode in episodes)


def test_an_index_picks_the_same_chunks_of_everything():
    grpo = algorithm()
    replay = Replay.from_groups([sampled_group(grpo)], grpo.config)
    replay.instructions[:] = [f"instruction {index}" for index in range(len(replay))]
    index = torch.tensor([6, 0, 3])
    part = replay[index]
    assert len(part) == 3 and part.instructions == ["instruction 6", "instruction 0", "instruction 3"]
    for key, rows in replay.observations.items():
        assert all(row.equal(rows[i]) for row, i in zip(part.observations[key], index, strict=True))
    assert all(part.record[key].equal(value[index]) for key, value in replay.record.items())
    for name in ("executed", "advantages", "weights"):
        assert getattr(part, name).equal(getattr(replay, name)[index])


def test_every_episode_weighs_the_same_however_long():
    grpo = algorithm()
    replay = Replay.from_groups([sampled_group(grpo)], grpo.config)
    of_episode = replay.weights.split([2, 2, 1, 3])
    assert torch.stack([part.sum() for part in of_episode]).tolist() == pytest.approx([1.0] * 4)


def test_groups_without_a_success_are_left_out_and_the_others_stay():
    grpo = algorithm()
    mixed = sampled_group(grpo, seed=1)
    failed = sampled_group(grpo, (0, 0, 0, 0))
    replay = Replay.from_groups([failed, mixed], grpo.config)
    assert replay.record["chunk"].equal(Replay.from_groups([mixed], grpo.config).record["chunk"])
    assert Replay.from_groups([failed], grpo.config) is None


# --- update


def test_it_is_an_algorithm_of_lerobot():
    grpo = algorithm()
    assert isinstance(grpo, RLAlgorithm)
    assert list(grpo.get_optimizers()) == ["policy"]


@pytest.mark.parametrize("ratio", RATIOS)
def test_before_the_first_step_every_ratio_is_one(ratio):
    grpo = algorithm(ratio=ratio, microbatch_size=3)
    stats = update(grpo, sampled_group(grpo)).to_log_dict()
    assert stats["n_minibatches"] == 1
    # Rollouts encode one observation at a time, replays several: sums in another order.
    assert stats["ratio_deviation"] < 1e-4
    assert stats["clip_fraction"] == 0 and stats["approx_kl"] < 1e-6


@pytest.mark.parametrize("ratio", RATIOS)
def test_ratios_are_to_the_policy_that_sampled_where_another_one_learns(ratio):
    grpo = algorithm(ratio=ratio)
    group = sampled_group(grpo)
    behaviour = grpo.trained_weights()
    replay = Replay.from_groups([group], grpo.config)
    baseline = grpo._baseline(replay)
    update(grpo, group)
    learned = weights(grpo)
    moved = log_ratios(grpo, baseline, replay)
    stats = update(grpo, group, behaviour=behaviour).to_log_dict()
    deviation = ((moved.exp() - 1).abs().mean(1) * replay.weights).sum() / replay.weights.sum()
    assert deviation > 1e-3
    assert stats["ratio_deviation"] == pytest.approx(deviation.item(), rel=1e-3)
    assert 0 < difference(weights(grpo), learned) < 1.1 * grpo.config.lr, "it goes on from where it was"


@pytest.mark.parametrize("ratio", RATIOS)
def test_microbatches_change_nothing_but_memory(ratio):
    results = []
    for microbatch_size in (1, 3, 64):
        grpo = algorithm(ratio=ratio, microbatch_size=microbatch_size, negative_weight=1.0)
        stats = update(grpo, sampled_group(grpo))
        # Not weights: Adam's first step is lr·sign(gradient), also of a gradient that only rounding made.
        gradients = {n: p.grad for n, p in grpo.actor.policy.named_parameters() if p.grad is not None}
        results.append((gradients, stats.to_log_dict()))
    assert results[0][1]["n_chunks"] == 8 and max(g.abs().max() for g in results[0][0].values()) > 1e-3
    for gradients, stats in results[1:]:
        assert difference(results[0][0], gradients) < 1e-5  # of a gradient of norm 1
        assert stats == pytest.approx(results[0][1], rel=1e-3, abs=1e-5)


def test_the_update_is_the_same_bit_by_bit_from_the_same_state():
    results = []
    for _ in range(2):
        grpo = algorithm(minibatch_size=3, epochs=2)
        group = sampled_group(grpo)
        torch.manual_seed(len(results))  # which random state surrounds it does not matter
        stats = update(grpo, group)
        results.append((weights(grpo), stats))
    assert difference(results[0][0], results[1][0]) == 0
    assert results[0][1] == results[1][1]


def test_iterations_shuffle_differently_and_a_resumed_one_as_it_would_have():
    first, resumed = algorithm(minibatch_size=3), algorithm(minibatch_size=3)
    group = sampled_group(first)
    update(first, group)
    assert first.optimization_step == 1
    resumed.load_weights(first.get_weights())
    state = deepcopy(first.get_optimizers()["policy"].state_dict())
    resumed.get_optimizers()["policy"].load_state_dict(state)
    resumed.optimization_step = 1
    for grpo in (first, resumed):
        update(grpo, group)
    assert difference(weights(first), weights(resumed)) == 0
    resumed.load_weights(weights(first))
    resumed.optimization_step = 0
    update(first, group)
    update(resumed, group)
    assert difference(weights(first), weights(resumed)) > 0


@pytest.mark.parametrize("success", [(0, 0, 0, 0), (1, 1, 1, 1)])
def test_groups_that_teach_nothing_leave_the_weights_alone(success):
    grpo = algorithm(reward=replace(GRPOConfig().reward, weight=0.0))
    before = weights(grpo)
    stats = update(grpo, sampled_group(grpo, success)).to_log_dict()
    assert difference(before, weights(grpo)) == 0
    assert stats["n_chunks"] == 0
    assert grpo.optimization_step == 1


def test_what_an_update_reports_does_not_depend_on_whether_there_was_one():
    grpo = algorithm()
    learned, idle = update(grpo, sampled_group(grpo)), update(grpo, sampled_group(grpo, (0, 0, 0, 0)))
    assert learned.to_log_dict().keys() == idle.to_log_dict().keys()


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("negative", ["clip", "quadratic"])
def test_good_chunks_become_likelier_and_bad_ones_less_likely(ratio, negative):
    grpo = algorithm(ratio=ratio, negative=negative, negative_weight=1.0, lr=1e-5)
    replay = Replay.from_groups([sampled_group(grpo)], grpo.config)
    baseline = grpo._baseline(replay)
    for _ in range(3):
        grpo._step(replay, baseline, torch.arange(len(replay)))
    after = log_ratio(grpo, baseline, replay)
    good = replay.advantages > 0
    assert after[good].mean() > 0 > after[~good].mean()


def test_without_weight_on_the_negative_side_failures_teach_nothing():
    updated = []
    for seed in (1, 2):  # the same successes, other failures
        grpo = algorithm(negative_weight=0.0)
        good, other = sampled_group(grpo), sampled_group(grpo, seed=seed)
        pairs = zip(good.episodes, other.episodes, strict=True)
        group = Group(tuple(mine if mine.success else theirs for mine, theirs in pairs))
        update(grpo, group)
        updated.append(weights(grpo))
    assert difference(*updated) < 1e-6


# --- freezing


@pytest.mark.parametrize("frozen", [("vision",), ("vlm", "state"), ("expert",), ("vision", "vlm", "state")])
def test_frozen_parts_stay_as_they_are_and_the_others_learn(frozen):
    grpo = algorithm(freeze=frozen)
    before = weights(grpo)
    update(grpo, sampled_group(grpo))
    after = grpo.get_weights()
    changed = {grpo.actor.adapter.part_of(key) for key in before if not before[key].equal(after[key])}
    assert changed == {*grpo.actor.adapter.parts, "expert"} - set(frozen)


def test_the_policys_own_flags_freeze_as_well():
    policy = SmoothVLAPolicy(SmoothVLAConfig(**TINY_SMOOTHVLA | {"train_expert_only": True})).eval()
    actor = Actor(policy, *make_smoothvla_pre_post_processors(POLICY))
    GRPOAlgorithm(actor, GRPOConfig(freeze=("state",)))
    trained = {actor.adapter.part_of(name) for name, p in policy.named_parameters() if p.requires_grad}
    assert trained == {"expert"}


def test_a_part_that_the_policy_does_not_have_is_rejected_with_those_it_has():
    expected = r"type 'smoothvla' has no part eyes, vit to freeze; it has vision, vlm, state, expert"
    with pytest.raises(ValueError, match=expected):
        algorithm(freeze=("vit", "vision", "eyes"))


def test_a_policy_whose_steps_leave_none_to_explore_in_is_rejected():
    policy = SmoothVLAPolicy(replace(POLICY, num_steps=1))
    actor = Actor(policy, *make_smoothvla_pre_post_processors(policy.config))
    with pytest.raises(ValueError, match=r"denoises in 1 step.*at least 2, or set.*noise_last_step=true"):
        GRPOAlgorithm(actor, GRPOConfig(ratio="flow_sde"))
    GRPOAlgorithm(actor, GRPOConfig(ratio="flow_sde", noise_last_step=True))


def test_a_policy_without_a_trainable_parameter_is_rejected():
    with pytest.raises(
        ValueError, match=r"no trainable parameter.*freeze=\[vision,vlm,state,expert\] freeze"
    ):
        algorithm(freeze=("vision", "vlm", "state", "expert"))


# --- memory


def peak_bytes(n_episodes: int, microbatch_size: int = 2) -> int:
    """The most memory that an update takes beside what was there, by torch's own account of it."""
    grpo = algorithm(microbatch_size=microbatch_size)
    group = sampled_group(grpo, [1, 0] * (n_episodes // 2))
    cpu = torch.profiler.ProfilerActivity.CPU
    with torch.profiler.profile(profile_memory=True, activities=[cpu], acc_events=True) as profile:
        update(grpo, group)
    events = [event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"]
    return max(accumulate(event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())))


def test_what_an_update_takes_does_not_grow_with_the_rollouts():
    """Four times as many of them: what they hold themselves is all that grows."""
    few = peak_bytes(4)
    assert peak_bytes(16) < 1.05 * few < peak_bytes(4, microbatch_size=8)


@pytest.mark.parametrize("advantage", get_args(AdvantageMode))
def test_no_forward_pass_has_more_looks_than_the_microbatch(monkeypatch, advantage):
    grpo = algorithm(microbatch_size=2, advantage=advantage)
    group = episodes.sampled_group(grpo.actor, grpo.estimator, lengths=[[8] * 5])
    adapter, n_looks = grpo.actor.adapter, []
    encode = adapter.encode
    monkeypatch.setattr(
        adapter, "encode", lambda batch: n_looks.append(len(batch[OBS_STATE])) or encode(batch)
    )
    update(grpo, group)
    assert max(n_looks) == 2


# --- what cannot be learned from


def broken(group: Group, n_chunks: int) -> Group:
    """The group with observations of its first chunks that are not finite."""
    episode = group.episodes[0].episode
    state = episode.observations["observation.state"].clone()
    state[:n_chunks] = torch.nan
    spoilt = replace(episode, observations=episode.observations | {"observation.state": state})
    return Group((replace(group.episodes[0], episode=spoilt), *group.episodes[1:]))


def test_a_minibatch_without_a_finite_gradient_is_dropped_and_the_others_are_learned_from(tmp_path):
    grpo = algorithm(minibatch_size=2, epochs=1)
    group = broken(sampled_group(grpo), 1)
    before = weights(grpo)
    stats = update(grpo, group)
    n_chunks = stats.extra["n_chunks"]
    assert (stats.extra["minibatches_dropped"], stats.extra["n_minibatches"]) == (1, n_chunks / 2 - 1)
    after = weights(grpo)
    assert all(value.isfinite().all() for value in after.values()) and difference(before, after) > 0
    assert all(math.isfinite(value) for value in (stats.losses["loss"], stats.extra["approx_kl"]))

    replay, baseline = grpo.dropped
    replay.save(tmp_path / "dropped" / "1.safetensors", baseline)
    with safe_open(tmp_path / "dropped" / "1.safetensors", "pt") as kept:
        assert kept.get_tensor("observation.state").isnan().any(1).tolist().count(True) == 1
        torch.testing.assert_close(kept.get_tensor("baseline"), baseline, equal_nan=True)
        assert json.loads(kept.metadata()["instructions"]) == replay.instructions
    update(grpo, sampled_group(grpo, seed=2))
    assert grpo.dropped is None


def test_an_update_ends_where_minibatch_after_minibatch_is_dropped():
    grpo = algorithm(minibatch_size=1, epochs=9)
    with torch.no_grad():
        grpo._parameters[0].fill_(torch.nan)
    stats = update(grpo, sampled_group(algorithm()))
    assert (stats.extra["minibatches_dropped"], stats.extra["n_minibatches"]) == (DROPPED_IN_A_ROW, 0)
    assert grpo.dropped_in_a_row == DROPPED_IN_A_ROW and math.isnan(stats.losses["loss"])


@pytest.mark.parametrize("schedule", ["constant", "linear"])
def test_the_learning_rate_of_an_update_is_as_the_schedule_says(schedule, monkeypatch):
    grpo = algorithm(lr=1e-3, lr_schedule=schedule, minibatch_size=2, epochs=2)
    optimizer = grpo.get_optimizers()["policy"]
    rates: list[float] = []
    step = optimizer.step

    def noted(*args, **kwargs):
        rates.append(optimizer.param_groups[0]["lr"])
        return step(*args, **kwargs)

    monkeypatch.setattr(optimizer, "step", noted)
    group = sampled_group(grpo)
    for _ in range(2):
        rates.clear()
        update(grpo, group)
        assert len(rates) == 8
        expected = [1e-3 * (1 - k / 8 if schedule == "linear" else 1) for k in range(8)]
        assert rates == pytest.approx(expected)


def test_an_update_ends_after_a_minibatch_beyond_the_target_kl():
    free, bound = (algorithm(lr=1e-2, minibatch_size=2, epochs=4, target_kl=kl) for kl in (None, 1e-5))
    group = sampled_group(free)
    assert update(free, group).extra["n_minibatches"] == 16
    # The first minibatch meets the policy that sampled, at a divergence of 0 but for rounding.
    assert update(bound, group).extra["n_minibatches"] == 2


def test_a_snapshot_brings_weights_and_optimizer_back():
    grpo, again = algorithm(), algorithm()
    groups = [sampled_group(grpo, seed=seed) for seed in range(3)]
    update(grpo, groups[0])
    restore = grpo.snapshot()
    update(grpo, groups[1])
    restore()
    update(grpo, groups[2])
    update(again, groups[0])
    update(again, groups[2])
    assert difference(weights(grpo), weights(again)) == 0
