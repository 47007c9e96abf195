"""Episodes as rollouts leave them, without a simulator: what a policy samples for random observations."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import torch
from builders import random_observation

from lerobot_smoothvla.episode import Episode, Group, ScoredEpisode, Start
from lerobot_smoothvla.flow.adapters import adapter_class
from lerobot_smoothvla.rollout.engine import Actor

INSTRUCTION = "pick up the milk"


def ratio_settings(policy_config: Any) -> list[dict[str, Any]]:
    """Settings of every ratio that suits a policy."""
    ratios = adapter_class(policy_config).ratios
    return [{"ratio": ratio} for ratio in ratios] + [{"ratio": ratios[-1], "stochastic_steps": "all"}]


def own_chunk(policy: Any, batch: dict[str, Any], noise: torch.Tensor) -> torch.Tensor:
    """What a flow policy's own sampling makes of the noise.

    `multi_task_dit` draws its own, from a global seed of 0, and its public method knows only what its queues
    hold.
    """
    if policy.config.type != "multi_task_dit":
        return policy.predict_action_chunk(batch, noise=noise)
    torch.manual_seed(0)
    return policy._generate_actions(policy._prepare_batch(batch))


def sampled_episode(
    actor: Actor, estimator: Any, seed: int, executed: Sequence[int], instruction: str = INSTRUCTION
) -> Episode:
    """An episode of one policy call for each entry of `executed`, the steps run of its chunk."""
    generator = torch.Generator(actor.policy.config.device).manual_seed(seed)
    observations = random_observation(actor.policy.config, len(executed), seed)
    samples, actions = [], []
    for call, n_steps in enumerate(executed):
        one = {key: value[call : call + 1] for key, value in observations.items()}
        with torch.no_grad():
            context = actor.adapter.encode(actor.model_input(one, [instruction]))
            sample = estimator.sample(actor.adapter, context, generator)
        samples.append(sample.row(0))
        actions.append(actor.env_actions(sample.actions)[0, :n_steps])
    return Episode(
        start=Start("libero_object", 0, 0, 0),
        instruction=instruction,
        observations=observations,
        record={key: torch.cat([sample.record[key] for sample in samples]) for key in samples[0].record},
        chunks=torch.cat([sample.actions for sample in samples]),
        executed=torch.tensor(executed),
        actions=torch.cat(actions),
        positions=torch.zeros(sum(executed) + 1, 3),
        dt=0.05,
        success=False,
        max_steps=100,
    )


def sampled_group(
    actor: Actor,
    estimator: Any,
    success: Sequence[int] = (1, 0, 1, 0),
    n_steps: int = 8,
    seed: int = 0,
    lengths: Sequence[Sequence[int]] | None = None,
    instruction: str = INSTRUCTION,
) -> Group:
    """Episodes with given outcomes, which take turns in their lengths.

    Args:
        actor: Samples them.
        estimator: Says how.
        success: Of each episode.
        n_steps: The most that run of a chunk.
        seed: Of noise and observations.
        lengths: Steps run of each chunk of an episode; of different lengths where left out.
        instruction: Of all episodes.
    """
    lengths = lengths or ([n_steps, n_steps], [n_steps, n_steps - 1], [n_steps // 2], [n_steps, n_steps, 2])
    scored = []
    for index, solved in enumerate(success):
        executed = lengths[index % len(lengths)]
        episode = sampled_episode(actor, estimator, 100 * seed + index, executed, instruction)
        smoothness = 0.2 + 0.1 * index
        total = solved * (1 + 0.5 * smoothness)
        by_chunk = smoothness + 0.1 * torch.arange(len(episode.executed))
        episode = replace(episode, success=bool(solved))
        scored.append(ScoredEpisode(episode, float(solved), smoothness, total, by_chunk))
    return Group(tuple(scored))


def assert_same(episode: Episode, expected: Episode) -> None:
    """Of all that they hold, to the last bit."""
    for field in fields(Episode):
        value, reference = getattr(episode, field.name), getattr(expected, field.name)
        values = value.values() if isinstance(value, dict) else [value]
        references = reference.values() if isinstance(reference, dict) else [reference]
        for x, y in zip(values, references, strict=True):
            assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y, field.name
