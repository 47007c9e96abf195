"""From rewards to the loss of one update.

Dims: G rollouts of one start, N replayed chunks, C_e of them in episode e of E, R ratio terms a chunk.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

AdvantageMode = Literal["joint", "separate", "chunkwise", "counterfactual", "best_draw"]
DRAWING: tuple[AdvantageMode, ...] = ("counterfactual", "best_draw")
"""Those that compare what a chunk commands with other draws."""
NegativeSide = Literal["clip", "quadratic"]

# exp(20) squared is still finite in float32.
_MAX_LOG_RATIO = 20.0
_PHASES: dict[AdvantageMode, int] = {
    "chunkwise": 6,  # Reach, grasp, lift, carry, lower, release.
    "counterfactual": 1,
}
"""Of the movement, within which the smoothness of chunks is compared."""


def keep_group(success: Tensor, smoothness_weight: float) -> bool:
    """Whether a group has something to learn from, judged by success and never by total reward.

    Without a success there is nothing to imitate (and smooth failures would be rewarded); a group of
    successes alone is kept where smoothness tells them apart.

    Args:
        success: (G,) 0 or 1.
        smoothness_weight: λ.
    """
    return bool(success.any()) and (smoothness_weight > 0 or not bool(success.all()))


def chunk_advantages(
    success: Tensor,
    smoothness: Tensor,
    total: Tensor,
    chunk_smoothness: Sequence[Tensor],
    *,
    mode: AdvantageMode = "separate",
    smoothness_weight: float = 0.5,
    std_floor: float = 0.1,
) -> Tensor:
    """How much better each chunk was than its group.

    normalise(r) = (r − mean(r)) / (std(r) + std_floor), std over the population.
    - `joint`: A = normalise(total). A failure in the group hides what smoothness says.
    - `separate` (GDPO, arXiv 2601.05242): A = normalise(success) + smoothness_weight·S, where
      S = normalise(smoothness) among the successes and 0 for failures.
    - `chunkwise`: as `separate`, but with S of each chunk by its own smoothness, see `_phase_advantages`.
      Averaged over an episode of 20 chunks, what one of them did is lost in what the others did.
    - `counterfactual`: the same with one phase, for a smoothness that is already relative to what else the
      policy draws for what it saw, see `grpo.counterfactual`.
    - `best_draw`: A = normalise(success). Smoothness is learned from other chunks than those that were run.
    The floor keeps a group whose rewards hardly differ from full-size advantages.

    Args:
        success: (G,) 0 or 1.
        smoothness: (G,) in [0, 1].
        total: (G,) combined reward, used by `joint` only.
        chunk_smoothness: G of (C_e,) in [0, 1], the smoothness of each chunk, or with `counterfactual` how
            much greater it is than that of others; NaN is neither better nor worse.
        mode: `joint`, `separate`, `chunkwise`, `counterfactual` or `best_draw`.
        smoothness_weight: λ after normalisation, not used by `best_draw`, nor by `joint`, as `total` already
            holds its own.
        std_floor: Added to each std; all rewards are of order one.

    Returns:
        (Σ C_e,) float32, episodes in order. With `joint` and `separate` all chunks of an episode have the
        same.

    Raises:
        ValueError: If `mode` is unknown.
    """
    if mode not in get_args(AdvantageMode):
        raise ValueError(f"`mode` should be one of {', '.join(get_args(AdvantageMode))}, got {mode!r}.")
    by_success = _normalise((total if mode == "joint" else success).float(), std_floor)
    advantages = [by_success[e].repeat(len(chunks)) for e, chunks in enumerate(chunk_smoothness)]
    solved = (success > 0.5).nonzero()[:, 0].tolist()
    if mode not in ("joint", "best_draw") and solved:
        if mode in _PHASES:
            by_smoothness = _phase_advantages([chunk_smoothness[e] for e in solved], _PHASES[mode], std_floor)
        else:
            by_smoothness = list(_normalise(smoothness[solved].float(), std_floor))
        for e, of_episode in zip(solved, by_smoothness, strict=True):
            advantages[e] += smoothness_weight * of_episode
    return torch.cat(advantages)


def _phase_advantages(smoothness: Sequence[Tensor], n_phases: int, std_floor: float) -> list[Tensor]:
    """How much smoother each chunk was than the group's others at the same phase of the movement.

    A reaching arm, a closing gripper and a carried object have jerks of their own, so a chunk is compared
    with those of its phase: chunk c of C is in phase ⌊n_phases·(c + ½) / C⌋.
    A_c = (s_c − mean of its phase) / (std of all these differences + std_floor).

    Args:
        smoothness: (C_e,) s of the chunks of each episode; NaN where nothing moved: A = 0.
        n_phases: Of the movement.
        std_floor: Added to the std; s is of order one.

    Returns:
        (C_e,) float32 of each episode.
    """
    lengths = [len(chunks) for chunks in smoothness]
    phase = torch.cat([((torch.arange(n) + 0.5) * n_phases / n).long() for n in lengths])
    s = torch.cat(list(smoothness)).double()
    there = ~s.isnan()
    s = torch.where(there, s, 0.0)
    counts, sums = (s.new_zeros(n_phases).index_add(0, phase, of) for of in (there.double(), s))
    difference = torch.where(there, s - (sums / counts)[phase], 0.0)
    std = (difference.square().sum() / there.sum().clamp(min=1)).sqrt()
    return list((difference / (std + std_floor)).float().split(lengths))


def _normalise(reward: Tensor, std_floor: float) -> Tensor:
    return (reward - reward.mean()) / (reward.std(correction=0) + std_floor)


def chunk_weights(chunks_per_episode: Tensor) -> Tensor:
    """Weights under which every episode counts the same, however many chunks it took.

    Args:
        chunks_per_episode: (E,) int64, C_e.

    Returns:
        (N,) float32, 1/C_e for each chunk of episode e, episodes in order; they sum to E.
    """
    return (1.0 / chunks_per_episode).repeat_interleave(chunks_per_episode)


@dataclass(frozen=True)
class ObjectiveStats:
    """The loss, and how far the policy has moved from the one that sampled, by the chunks that were run.

    Attributes:
        loss: Scalar with gradient, to be minimised.
        ratio_deviation: Weighted mean of |ratio − 1|; this and the others are 0 where no chunk was run.
        clip_fraction: Weighted share of ratios outside [1 − clip_low, 1 + clip_high].
        approx_kl: Weighted mean of ratio − 1 − log ratio, which estimates KL(old ‖ new), nats.
    """

    loss: Tensor
    ratio_deviation: float
    clip_fraction: float
    approx_kl: float


def clipped_objective(
    log_ratio: Tensor,
    advantages: Tensor,
    weights: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    negative: NegativeSide = "quadratic",
    negative_weight: float = 1.0,
    kl_weight: float = 0.0,
    imitated: Tensor | None = None,
) -> ObjectiveStats:
    """PPO's clipped objective with asymmetric bounds and a bounded negative side, and imitation without any.

    With ratio = exp(log_ratio) and A = advantages, the gain of a term is
    - A ≥ 0: min(ratio·A, clamp(ratio, 1 − clip_low, 1 + clip_high)·A), flat above 1 + clip_high;
    - A < 0, `clip`: the same, flat below 1 − clip_low: nothing calls an overshoot back;
    - A < 0, `quadratic`: ratio·A − |A| / (2·clip_low) · (ratio − 1)², greatest at ratio = 1 − clip_low:
      beyond it the gradient turns round (SPO, arXiv 2401.16025; FPO++: for negative advantages only).
    Negative gains are multiplied by negative_weight: pushing up the loss of failures has no floor of its own.
    The bounds are around the policy that sampled, so they hold within an iteration; over many iterations of
    negative advantages alone a flow-matching policy still drifts.
    Chunks that are imitated have the gain A·log_ratio and no KL: a likelihood to be raised as in supervised
    training, which has an end of its own.
    loss = Σ w·(mean over R of kl_weight·(ratio − 1 − log_ratio) − gain) / Σ w.

    Args:
        log_ratio: (N, R), cut to ±20, where the exponential is still safe.
        advantages: (N,) of the episode that each chunk is from.
        weights: (N,) w, see `chunk_weights`.
        clip_low: Distance of the lower bound from 1, in (0, 1).
        clip_high: Distance of the upper bound from 1, positive.
        negative: `clip` or `quadratic`.
        negative_weight: In [0, 1]; 0 learns from positive advantages only.
        kl_weight: Weight of the KL divergence from the policy that sampled.
        imitated: (N,) bool; None for none.

    Returns:
        `ObjectiveStats`. To accumulate minibatches, weight each loss with its Σ w.

    Raises:
        ValueError: If shapes do not match or `negative` is unknown.
    """
    if log_ratio.ndim != 2 or advantages.shape != log_ratio.shape[:1] or weights.shape != log_ratio.shape[:1]:
        raise ValueError(
            "Expected log_ratio (N, R), advantages (N,) and weights (N,), got "
            f"{tuple(log_ratio.shape)}, {tuple(advantages.shape)} and {tuple(weights.shape)}."
        )
    if negative not in ("clip", "quadratic"):
        raise ValueError(f"`negative` should be 'clip' or 'quadratic', got {negative!r}.")
    advantage, imitation = advantages[:, None], -log_ratio.float() * advantages[:, None]
    log_ratio = log_ratio.float().clamp(-_MAX_LOG_RATIO, _MAX_LOG_RATIO)
    ratio = log_ratio.exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    gain = torch.minimum(ratio * advantage, clipped * advantage)
    if negative == "quadratic":
        penalised = ratio * advantage - advantage.abs() / (2 * clip_low) * (ratio - 1).square()
        gain = torch.where(advantage < 0, penalised, gain)
    gain = torch.where(advantage < 0, negative_weight * gain, gain)
    kl = ratio - 1 - log_ratio
    loss = kl_weight * kl - gain
    acted = weights
    if imitated is not None:
        loss = torch.where(imitated[:, None], imitation, loss)
        acted = weights * ~imitated

    def mean(term: Tensor, of: Tensor) -> Tensor:
        total = of.sum()
        return (of * term.mean(1)).sum() / torch.where(total > 0, total, 1.0)

    return ObjectiveStats(
        loss=mean(loss, weights),
        ratio_deviation=mean((ratio - 1).abs(), acted).item(),
        clip_fraction=mean((ratio != clipped).float(), acted).item(),
        approx_kl=mean(kl, acted).item(),
    )
