"""How a chunk is compared with what else the policy draws, with real weights that are random."""

from dataclasses import replace

import pytest
import torch
from builders import TINY_SMOOTHVLA
from episodes import sampled_episode, sampled_group

from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig
from lerobot_smoothvla.episode import Embodiment, Episode
from lerobot_smoothvla.grpo.algorithm import GRPOAlgorithm
from lerobot_smoothvla.grpo.configuration import GRPOConfig
from lerobot_smoothvla.grpo.counterfactual import draw_again, smoother_than_others, smoothest
from lerobot_smoothvla.jerk_reward import JerkRewardConfig
from lerobot_smoothvla.modeling_smoothvla import SmoothVLAPolicy
from lerobot_smoothvla.processor_smoothvla import make_smoothvla_pre_post_processors
from lerobot_smoothvla.rollout.engine import Actor

POLICY = SmoothVLAConfig(**TINY_SMOOTHVLA | {"num_steps": 3})


def algorithm(
    ratio: str = "flow_matching", signal: str = "jerk_rms", advantage: str = "counterfactual", **settings
) -> GRPOAlgorithm:
    torch.manual_seed(0)
    actor = Actor(SmoothVLAPolicy(POLICY).eval(), *make_smoothvla_pre_post_processors(POLICY))
    reward = JerkRewardConfig(weight=2.0, signal=signal)
    return GRPOAlgorithm(
        actor, GRPOConfig(advantage=advantage, ratio=ratio, reward=reward, group_size=4, **settings)
    )


def compared(grpo: GRPOAlgorithm, episode: Episode, seed: int = 0, n_draws: int = 7) -> torch.Tensor:
    return smoother_than_others(draw_again(episode, grpo.actor, grpo.estimator, n_draws, (seed,)).jerks)


@pytest.mark.parametrize(("commands", "n_unknown"), [("displacement", 1), ("position", 2)])
def test_a_chunk_is_compared_once_there_are_actions_before_it(commands, n_unknown):
    grpo = algorithm()
    episode = sampled_episode(grpo.actor, grpo.estimator, 0, [2, 8, 8, 3])
    episode = replace(episode, embodiment=Embodiment(commands=commands))
    result = compared(grpo, episode)
    assert result.isnan().tolist() == [index < n_unknown for index in range(4)]
    assert result[n_unknown:].abs().max() < 1


def test_what_is_executed_decides_and_steps_that_were_not_do_not():
    grpo = algorithm()
    episode = sampled_episode(grpo.actor, grpo.estimator, 0, [8, 8, 8])
    smooth, rough = episode.actions.clone(), episode.actions.clone()
    smooth[8:16, :-1] = episode.actions[6:8, :-1].mean(0)
    smooth[6:8] = smooth[8]
    rough[8:16, :-1] = torch.tensor([3.0, -3.0]).repeat(4)[:, None]
    assert compared(grpo, replace(episode, actions=smooth))[1] > 0.3
    assert compared(grpo, replace(episode, actions=rough))[1] < -0.1

    cut = replace(episode, executed=torch.tensor([8, 8, 4]), actions=episode.actions[:20])
    rough_end = replace(episode, actions=torch.cat([episode.actions[:20], rough[8:12]]))
    assert compared(grpo, cut)[2] > compared(grpo, rough_end)[2]


def test_a_gripper_has_no_part_in_it():
    grpo = algorithm()
    episode = sampled_episode(grpo.actor, grpo.estimator, 0, [8, 8, 8])
    closing = episode.actions.clone()
    closing[:, -1] = torch.tensor([1.0, -1.0]).repeat(12)
    torch.testing.assert_close(
        compared(grpo, replace(episode, actions=closing)), compared(grpo, episode), equal_nan=True
    )


@pytest.mark.parametrize("ratio", ["flow_matching", "flow_sde"])
def test_what_the_policy_drew_itself_is_on_average_no_smoother_than_what_else_it_draws(ratio):
    grpo = algorithm(ratio)
    episode = sampled_episode(grpo.actor, grpo.estimator, 1, [8] * 64)
    d = compared(grpo, episode)[1:]
    assert abs(d.mean()) < 3 * d.std() / 63**0.5
    assert d.std() > 0.01


def test_the_same_seed_draws_the_same_and_another_one_does_not():
    grpo = algorithm()
    episode = sampled_episode(grpo.actor, grpo.estimator, 0, [8, 8, 8])
    first, again, other = compared(grpo, episode), compared(grpo, episode), compared(grpo, episode, seed=1)
    assert first[1:].equal(again[1:])
    assert not first[1:].equal(other[1:])


def test_what_is_drawn_for_a_look_does_not_depend_on_those_beside_it():
    grpo = algorithm()
    episode = sampled_episode(grpo.actor, grpo.estimator, 0, [8] * 5)
    one, all_ = (
        draw_again(episode, grpo.actor, grpo.estimator, 3, (0,), batch_size=size) for size in (1, 16)
    )
    torch.testing.assert_close(one.jerks, all_.jerks, equal_nan=True)
    for name in one.records[0]:
        torch.testing.assert_close(one.records[2][name], all_.records[2][name])


def test_by_length_a_chunk_that_goes_less_far_is_no_smoother():
    grpo = algorithm()
    episode = sampled_episode(grpo.actor, grpo.estimator, 0, [8] * 12)
    slower = replace(episode, actions=episode.actions / 2)

    def own(of: Episode, by_length: bool) -> torch.Tensor:
        return draw_again(of, grpo.actor, grpo.estimator, 7, (0,), by_length).jerks[0, 1:]

    torch.testing.assert_close(own(slower, by_length=False), own(episode, by_length=False) / 2)
    ratio = own(slower, by_length=True) / own(episode, by_length=True)
    assert ratio.min() > 0.8 and ratio.max() <= 1


def mean_jerk(grpo: GRPOAlgorithm, episode: Episode) -> float:
    """Of 16 draws for everything that was seen in an episode."""
    by_length = grpo.config.reward.is_ldlj
    return draw_again(episode, grpo.actor, grpo.estimator, 16, (0,), by_length).jerks[1:].nanmean().item()


@pytest.mark.parametrize("advantage", ["counterfactual", "best_draw"])
@pytest.mark.parametrize("signal", ["jerk_rms", "ldlj"])
def test_updates_make_commands_smoother_where_all_succeed(signal, advantage):
    loose = {"clip_low": 0.5, "clip_high": 1.0, "negative_weight": 1.0}
    grpo = algorithm(signal=signal, advantage=advantage, lr=1e-3, epochs=8, minibatch_size=32, **loose)
    for update in range(4):  # What is seen is the same in each.
        group = sampled_group(grpo.actor, grpo.estimator, (1, 1, 1, 1), lengths=[[8] * 12] * 4)
        if update == 0:
            seen = group.episodes[0].episode
            before = mean_jerk(grpo, seen)
        grpo.update(iter([[group]]))
    assert mean_jerk(grpo, seen) < 0.85 * before


def test_successes_alone_have_something_to_imitate():
    grpo = algorithm(advantage="best_draw", epochs=2)
    lengths = [[8] * 12, [8] * 4, [8] * 12, [8] * 12]
    group = sampled_group(grpo.actor, grpo.estimator, (1, 1, 0, 1), lengths=lengths)
    # The first chunk of an episode has no actions before it.
    assert grpo.update(iter([[group]])).extra["n_chunks"] == 12 + 4 + 12 + 12 + 11 + 3 + 11


@pytest.mark.parametrize("advantage", ["counterfactual", "best_draw"])
def test_without_weight_on_smoothness_nothing_is_drawn(monkeypatch, advantage):
    grpo = algorithm(advantage=advantage)
    grpo.config.reward = JerkRewardConfig(weight=0.0)
    monkeypatch.setattr("lerobot_smoothvla.grpo.algorithm.draw_again", None)
    stats = grpo.update(iter([[sampled_group(grpo.actor, grpo.estimator)]]))
    assert stats.extra["n_chunks"] > 0


@pytest.mark.parametrize("ratio", ["flow_matching", "flow_sde"])
def test_the_smoothest_draw_is_one_of_those_that_are_compared(ratio):
    grpo = algorithm(ratio)
    episode = sampled_episode(grpo.actor, grpo.estimator, 0, [8] * 12)
    how = (grpo.actor, grpo.estimator, 7, (0,))
    record, known = smoothest(draw_again(episode, *how))
    assert known.tolist() == [False] + [True] * 11
    assert {key: value.shape for key, value in record.items()} == {
        key: value.shape for key, value in episode.record.items()
    }
    if ratio == "flow_matching":
        chunks = grpo.actor.env_actions(record["chunk"])[:, :8].flatten(0, 1)
        drawn = replace(episode, actions=torch.cat([episode.actions[:8], chunks[8:]]))
        # The second chunk's actions before it are those of the first, as when it was drawn.
        best = draw_again(drawn, *how).jerks[0, 1]
        torch.testing.assert_close(best, draw_again(episode, *how).jerks[1:, 1].min())
