"""How much smoother each chunk is than those that the policy could as well have drawn where it drew it.

Most of a chunk's jerk is the situation's: a hand that closes, a stroke that ends. What the policy chose is
told apart by drawing again for what it saw, a group at every look beside the one at the start. Nothing of
this is executed, so a chunk is judged by the motion that it commands, on from the actions before it. The
policy may be told how each chunk compares, or be shown the smoothest of the others.

Dims: C chunks of an episode, n steps at most that are executed of a chunk, A dimensions of the arm, K draws.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lerobot_smoothvla.episode import Episode, arm_dimensions
from lerobot_smoothvla.flow.noise import RowGenerators
from lerobot_smoothvla.rollout.engine import Actor, Sampler
from lerobot_smoothvla.smoothness import commanded_jerk_rms, commanded_path_length

STILL = 0.1
"""Of the mean length that chunks command, added to each, so that a hand that should be still may be."""


@dataclass(frozen=True)
class Draws:
    """What else the policy draws for what it saw in an episode.

    Attributes:
        jerks: (1 + K, C) by `smoothness.commanded_jerk_rms`, or that over a length, the chunks' own first;
            NaN where there are too few actions before.
        records: K, of the sampler, each (C, ...) on the CPU.
    """

    jerks: Tensor
    records: list[dict[str, Tensor]]


def smoother_than_others(jerks: Tensor) -> Tensor:
    """Smoothness s of each chunk less the mean of all that were drawn for what the policy saw.

    s = 1 / (1 + J / mean J); the means are over the chunk and its K draws.

    Args:
        jerks: (1 + K, C) J, see `Draws`.

    Returns:
        (C,) in [−1, 1]; NaN where J is, or nothing is commanded.
    """
    s = 1 / (1 + jerks / jerks.mean(0))
    return s[0] - s.mean(0)


def smoothest(draws: Draws) -> tuple[dict[str, Tensor], Tensor]:
    """The draw for each look that commands the least jerk.

    Args:
        draws: Of an episode.

    Returns:
        (C, ...) the sampler's records of them, and (C,) bool, which there are.
    """
    best = draws.jerks[1:].argmin(0)
    chunks = torch.arange(len(best))
    records = {key: torch.stack([of[key] for of in draws.records])[best, chunks] for key in draws.records[0]}
    return records, ~draws.jerks[0].isnan()


@torch.no_grad()
def draw_again(
    episode: Episode,
    actor: Actor,
    sampler: Sampler,
    n_draws: int,
    seed: tuple[int, ...],
    by_length: bool = False,
    batch_size: int = 16,
) -> Draws:
    """Other chunks for what the policy saw in an episode, compared over the steps that its own were run.

    Args:
        episode: With its observations.
        actor: The policy that acted in it.
        sampler: How it drew.
        n_draws: K.
        seed: Of the draws.
        by_length: Whether to divide by the length of the commanded path. As all have the same time, that is
            the dimensionless jerk of the LDLJ, which a chunk does not lower by going less far.
        batch_size: Looks a forward pass: bounds memory, changes nothing else.
    """
    embodiment, executed = episode.embodiment, episode.executed
    order, n = embodiment.jerk_order, int(executed.max())
    arm = arm_dimensions(episode.actions.shape[-1], embodiment.grippers)
    begun = executed.cumsum(0) - executed
    # The last actions before each chunk, and its own; what is clamped does not count.
    steps = (begun[:, None] + torch.arange(-order, n)).clamp(0, episode.n_steps - 1)
    own = episode.actions[steps][..., arm]
    drawn, records = [own[:, order:]], []
    batches = [
        _sample(episode, looks, actor, sampler, n_draws, seed)
        for looks in torch.arange(len(executed)).split(batch_size)
    ]
    for parts in zip(*batches, strict=True):
        drawn.append(torch.cat([actions for actions, _ in parts])[:, :n, arm])
        records.append({key: torch.cat([record[key] for _, record in parts]) for key in parts[0][1]})
    asked = torch.stack([torch.cat([own[:, :order], chunk], 1) for chunk in drawn])
    jerks = commanded_jerk_rms(asked, executed, order)
    if by_length:
        lengths = commanded_path_length(asked, executed, order)
        jerks = jerks / (lengths + STILL * lengths.mean())
    return Draws(torch.where(begun >= order, jerks, torch.nan), records)


def _sample(
    episode: Episode, looks: Tensor, actor: Actor, sampler: Sampler, n_draws: int, seed: tuple[int, ...]
) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """K draws for some looks, as actions of the environment and what the sampler records, on the CPU."""
    observations = {key: value[looks] for key, value in episode.observations.items()}
    context = actor.adapter.encode(actor.model_input(observations, [episode.instruction] * len(looks)))
    # One for each, so that what is drawn for a look does not depend on those beside it.
    generators = RowGenerators([_generator(actor, (*seed, look)) for look in looks.tolist()])
    samples = [sampler.sample(actor.adapter, context, generators, len(looks)) for _ in range(n_draws)]
    return [
        (actor.env_actions(sample.actions), {key: value.cpu() for key, value in sample.record.items()})
        for sample in samples
    ]


def _generator(actor: Actor, seed: tuple[int, ...]) -> torch.Generator:
    generator = torch.Generator(actor.policy.config.device)
    return generator.manual_seed(int(np.random.default_rng(seed).integers(2**63)))
