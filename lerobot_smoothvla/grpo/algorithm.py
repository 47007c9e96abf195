"""GRPO's update: scored groups in, a better policy and the figures about it out.

Dims: N chunks of all kept episodes, H steps a chunk, R ratio terms a chunk, G rollouts of a group.
"""

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import torch
from lerobot.rl.algorithms.base import RLAlgorithm
from lerobot.rl.algorithms.configs import TrainingStats
from safetensors.torch import save_file
from torch import Tensor
from torch.optim import AdamW, Optimizer

from lerobot_smoothvla.episode import Episode, Group, ScoredEpisode
from lerobot_smoothvla.flow.adapters.execution import store_frozen_in_bf16
from lerobot_smoothvla.grpo.configuration import GRPOConfig
from lerobot_smoothvla.grpo.counterfactual import Draws, draw_again, smoother_than_others, smoothest
from lerobot_smoothvla.grpo.objective import chunk_advantages, chunk_weights, clipped_objective, keep_group
from lerobot_smoothvla.grpo.ranks import Ranks
from lerobot_smoothvla.rollout.engine import Actor

DROPPED_IN_A_ROW = 5
"""Minibatches without a finite gradient after which nothing better is to be expected."""
_OF_CHUNKS = ("loss", "ratio_deviation", "clip_fraction", "approx_kl")
_MEANS = ("grad_norm", *_OF_CHUNKS)
"""Averaged over an update's minibatches; NaN where no group had something to teach."""


@dataclass(frozen=True)
class Replay:
    """The chunks that an update learns from, flattened over episodes.

    Attributes:
        observations: N views of what the episodes hold; images are uint8 on the CPU.
        instructions: N task strings.
        record: (N, ...) of the ratio estimator.
        executed: (N, H) bool.
        advantages: (N,).
        weights: (N,), each episode's sum to 1; of what is imitated no more than that.
        imitated: (N,) bool, whether the policy is to imitate the chunk, which was not run.
    """

    observations: dict[str, list[Tensor]]
    instructions: list[str]
    record: dict[str, Tensor]
    executed: Tensor
    advantages: Tensor
    weights: Tensor
    imitated: Tensor

    def __len__(self) -> int:
        """N."""
        return len(self.instructions)

    def __getitem__(self, index: Tensor) -> Self:
        """The chunks of `index`."""
        return type(self)(
            {key: [rows[i] for i in index.tolist()] for key, rows in self.observations.items()},
            [self.instructions[i] for i in index.tolist()],
            {key: value[index] for key, value in self.record.items()},
            self.executed[index],
            self.advantages[index],
            self.weights[index],
            self.imitated[index],
        )

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The chunks of one part after those of the other."""
        return cls(
            {key: [row for part in parts for row in part.observations[key]] for key in parts[0].observations},
            [instruction for part in parts for instruction in part.instructions],
            {key: torch.cat([part.record[key] for part in parts]) for key in parts[0].record},
            *(
                torch.cat([getattr(part, name) for part in parts])
                for name in ("executed", "advantages", "weights", "imitated")
            ),
        )

    def save(self, file: Path, baseline: Tensor) -> None:
        """Write it as safetensors, with its baseline (N, R, H); the instructions are in the header.

        Raises:
            OSError: If it cannot be written.
        """
        file.parent.mkdir(parents=True, exist_ok=True)
        header = {"instructions": json.dumps(self.instructions)}
        save_file(self._tensors() | {"baseline": baseline.contiguous()}, file, header)

    def size(self) -> int:
        """Bytes of what `save` writes, without the baseline."""
        return sum(tensor.nbytes for tensor in self._tensors().values())

    def _tensors(self) -> dict[str, Tensor]:
        tensors = {key: torch.stack(rows) for key, rows in self.observations.items()}
        tensors |= {f"record.{key}": value.contiguous() for key, value in self.record.items()}
        return tensors | {
            name: getattr(self, name) for name in ("executed", "advantages", "weights", "imitated")
        }

    @classmethod
    def from_groups(cls, groups: Sequence[Group], config: GRPOConfig, first_step: int = 0) -> Self | None:
        """Flatten the groups that have something to teach; None if there are none.

        Args:
            groups: Of one iteration.
            config: Says what an advantage is.
            first_step: Of a chunk that is executed.
        """
        episodes: list[Episode] = []
        advantages: list[Tensor] = []
        for group in groups:
            success, smoothness, total = (
                torch.tensor([getattr(scored, name) for scored in group.episodes])
                for name in ("success", "smoothness", "total")
            )
            if not keep_group(success, config.reward.weight):
                continue
            advantages.append(
                chunk_advantages(
                    success,
                    smoothness,
                    total,
                    [scored.chunk_smoothness for scored in group.episodes],
                    mode=config.advantage,
                    smoothness_weight=config.reward.weight,
                    std_floor=config.std_floor,
                )
            )
            episodes += [scored.episode for scored in group.episodes]
        if not episodes:
            return None
        return cls.from_episodes(episodes, torch.cat(advantages), [e.record for e in episodes], first_step)

    @classmethod
    def from_episodes(
        cls,
        episodes: Sequence[Episode],
        advantages: Tensor,
        records: Sequence[Mapping[str, Tensor]],
        first_step: int = 0,
        *,
        imitated: bool = False,
    ) -> Self:
        """Flatten episodes.

        Args:
            episodes: At least one.
            advantages: (N,).
            records: Of the chunks to learn from, those that were run or others in their place.
            first_step: Of a chunk that is executed.
            imitated: Whether they are to be imitated.
        """
        chunks = torch.tensor([len(episode.executed) for episode in episodes])
        steps = torch.arange(episodes[0].chunks.shape[1]) - first_step
        n_executed = torch.cat([episode.executed for episode in episodes])[:, None]
        return cls(
            observations={
                key: [row for episode in episodes for row in episode.observations[key]]
                for key in episodes[0].observations
            },
            instructions=[e.instruction for e in episodes for _ in range(len(e.executed))],
            record={key: torch.cat([record[key] for record in records]) for key in records[0]},
            executed=(steps >= 0) & (steps < n_executed),
            advantages=advantages,
            weights=chunk_weights(chunks),
            imitated=torch.full_like(advantages, imitated, dtype=torch.bool),
        )


class GRPOAlgorithm(RLAlgorithm):
    """LeRobot's `RLAlgorithm` for GRPO; a batch of its iterator is the list of an iteration's groups.

    A minibatch without a finite gradient is dropped: no step is made.

    Attributes:
        lr: Learning rate that the next update begins with.
        dropped: Chunks and baseline of the first minibatch that the last update dropped; None if it had to
            drop none, or none of this rank's.
        dropped_in_a_row: Minibatches dropped since the last step; at `DROPPED_IN_A_ROW` an update ends.
    """

    config_class = GRPOConfig
    name = "grpo"

    def __init__(self, actor: Actor, config: GRPOConfig, ranks: Ranks | None = None) -> None:
        """Take the policy to train, with its processors; parts of it are frozen as the config says.

        Args:
            actor: The policy.
            config: Of the update.
            ranks: That learn together, each from groups of its own; None for this process alone.

        Raises:
            ValueError: If the policy has no part of a name to freeze, nothing of it is trainable, or it takes
                too few steps to explore in.
        """
        actor.adapter.freeze(config.freeze)
        if config.bf16 and actor.adapter.frozen_in_bf16:
            store_frozen_in_bf16(actor.policy)
        self.actor = replace(actor, execution=config.execution)
        self.config = config
        self.lr = config.lr
        self.ranks = ranks or Ranks()
        self.estimator = config.estimator(actor.policy.config)
        if actor.adapter.num_steps < self.estimator.least_steps:
            raise ValueError(
                f"The policy denoises in {actor.adapter.num_steps} step, and the last does not explore; give "
                f"it at least {self.estimator.least_steps}, or set --algorithm.noise_last_step=true."
            )
        self._parameters = [p for p in actor.policy.parameters() if p.requires_grad]
        if not self._parameters:
            raise ValueError(
                "The policy has no trainable parameter: its own flags (as --policy.train_expert_only) and "
                f"--algorithm.freeze=[{','.join(config.freeze)}] freeze all of it; leave a part to train."
            )
        self._optimizers = self.make_optimizers_and_scheduler()
        self.optimization_step: int = 0
        self.dropped: tuple[Replay, Tensor] | None = None
        self.dropped_in_a_row = 0

    def make_optimizers_and_scheduler(self) -> dict[str, Optimizer]:
        """AdamW without weight decay over what is trainable."""
        return {"policy": AdamW(self._parameters, lr=self.config.lr, weight_decay=0.0)}

    def get_optimizers(self) -> dict[str, Optimizer]:
        """The optimizer, for checkpoints."""
        return self._optimizers

    def update(
        self, batch_iterator: Iterator[Any], behaviour: Sequence[Tensor] | None = None
    ) -> TrainingStats:
        """One iteration's update on the groups that `batch_iterator` yields, every rank on its own.

        The order of the minibatches depends on `optimization_step` alone, so a resumed run repeats it, and
        every rank takes those of a minibatch's chunks that it has.

        Args:
            batch_iterator: Of lists of groups, of which one is taken.
            behaviour: `trained_weights` of the policy that sampled them; None if it is the present one.
        """
        groups: list[Group] = next(batch_iterator)
        # Dropout and random crops would make other ratios than 1 before the first step.
        self.actor.policy.eval()
        with self._acting_with(behaviour):
            replay = self._replay(groups)
            baseline = None if replay is None else self._baseline(replay)
        generator = torch.Generator().manual_seed(self.optimization_step)
        self.optimization_step += 1
        counts = self.ranks.gather(0 if replay is None else len(replay))
        n_chunks, first = sum(counts), sum(counts[: self.ranks.rank])
        self.dropped = None
        totals = dict.fromkeys(_MEANS, 0.0)
        steps = n_dropped = 0
        minibatches = self._minibatches(n_chunks, generator)
        for number, index in enumerate(minibatches):
            self._set_lr(number / len(minibatches))
            own = index[(index >= first) & (index < first + counts[self.ranks.rank])] - first
            figures = self._step(replay, baseline, own)
            if figures is None:
                n_dropped += 1
                self.dropped_in_a_row += 1
                if self.dropped is None and replay is not None and baseline is not None and len(own):
                    self.dropped = replay[own], baseline[own]
                if self.dropped_in_a_row == DROPPED_IN_A_ROW:
                    break
                continue
            self.dropped_in_a_row = 0
            steps += 1
            for name, value in figures.items():
                totals[name] += value
            if self.config.target_kl is not None and figures["approx_kl"] > self.config.target_kl:
                break
        means = {name: total / steps if steps else math.nan for name, total in totals.items()}
        return _stats(means, n_chunks, steps, n_dropped)

    def _against_draws(self, group: Group) -> Group:
        """The group with each success's chunks against others that were drawn where they were."""

        def against_draws(index: int, scored: ScoredEpisode) -> ScoredEpisode:
            draws = self._draw_again(group, index)
            return replace(scored, chunk_smoothness=smoother_than_others(draws.jerks))

        return Group(
            tuple(
                against_draws(index, scored) if scored.success else scored
                for index, scored in enumerate(group.episodes)
            )
        )

    def _replay(self, groups: Sequence[Group]) -> Replay | None:
        """What the groups have to teach, one after the other, so that ranks have shares of what one has."""
        mode = self.config.advantage if self.config.reward.weight > 0 else None
        parts = []
        for group in groups:
            if mode == "counterfactual":
                group = self._against_draws(group)
            part = Replay.from_groups([group], self.config, self.actor.adapter.first_step)
            if part is not None:
                parts += [part, self._best_draws(group)] if mode == "best_draw" else [part]
        return Replay.joined(parts) if parts else None

    def _best_draws(self, group: Group) -> Replay:
        """The smoothest of what is drawn for each look of its successes, to be imitated."""
        episodes, records, known = [], [], []
        for index, scored in enumerate(group.episodes):
            if scored.success:
                record, there = smoothest(self._draw_again(group, index))
                episodes.append(scored.episode)
                records.append(record)
                known.append(there)
        there = torch.cat(known)
        advantages = torch.full(there.shape, float(self.config.reward.weight))
        first_step = self.actor.adapter.first_step
        drawn = Replay.from_episodes(episodes, advantages, records, first_step, imitated=True)
        return drawn[there.nonzero()[:, 0]]

    def _draw_again(self, group: Group, index: int) -> Draws:
        """For the looks of an episode of the group, the same whatever the rank that has it."""
        episode, start = group.episodes[index].episode, group.start
        seed = (self.optimization_step, start.task_id, start.init_state, start.seed, index)
        by_length = self.config.reward.is_ldlj
        return draw_again(
            episode,
            self.actor,
            self.estimator,
            self.config.n_draws,
            seed,
            by_length=by_length,
            batch_size=self.config.microbatch_size,
        )

    def _minibatches(self, n_chunks: int, generator: torch.Generator) -> list[Tensor]:
        """Indices of the chunks of each, over all epochs."""
        return [
            index
            for _ in range(self.config.epochs if n_chunks else 0)
            for index in torch.randperm(n_chunks, generator=generator).split(self.config.minibatch_size)
        ]

    def _set_lr(self, progress: float) -> None:
        """The learning rate of a step, `progress` in [0, 1) of the way through an update."""
        factor = 1 - progress if self.config.lr_schedule == "linear" else 1.0
        for group in self._optimizers["policy"].param_groups:
            group["lr"] = self.lr * factor

    def _encode(self, replay: Replay) -> Any:
        observations = {key: torch.stack(rows) for key, rows in replay.observations.items()}
        return self.actor.adapter.encode(self.actor.model_input(observations, replay.instructions))

    def _record(self, replay: Replay) -> dict[str, Tensor]:
        device = self.actor.policy.config.device
        return {key: value.to(device) for key, value in replay.record.items()}

    @torch.no_grad()
    def _baseline(self, replay: Replay) -> Tensor:
        """(N, R, H) values of the policy that sampled."""
        parts = []
        for index in torch.arange(len(replay)).split(self.config.microbatch_size):
            part = replay[index]
            parts.append(
                self.estimator.baseline(self.actor.adapter, self._encode(part), self._record(part)).cpu()
            )
        return torch.cat(parts)

    def _step(
        self, replay: Replay | None, baseline: Tensor | None, minibatch: Tensor
    ) -> dict[str, float] | None:
        """One optimizer step, on the chunks `minibatch` and the other ranks' chunks of it.

        Args:
            replay: Of this rank, None if it has nothing to learn from.
            baseline: (N, R, H) of its chunks.
            minibatch: Their indices; there may be none.

        Returns:
            Its figures; None if the gradient was not finite, so that there was no step.
        """
        optimizer = self._optimizers["policy"]
        optimizer.zero_grad()
        weight, acted = torch.zeros(2) if replay is None else _total_weights(replay, minibatch)
        self.ranks.sum([weight, acted])
        means = dict.fromkeys(_OF_CHUNKS, 0.0)
        if replay is not None and baseline is not None and len(minibatch):
            totals = weight.item(), acted.item()
            for index in minibatch.split(self.config.microbatch_size):
                for name, value in self._accumulate(replay[index], baseline[index], *totals).items():
                    means[name] += value
        if self.ranks.size > 1:
            summed = torch.tensor(list(means.values()), dtype=torch.float64)
            self.ranks.sum([summed])
            means = dict(zip(means, summed.tolist(), strict=True))
            self.ranks.sum(self._gradients())
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self.config.grad_clip_norm)
        if not norm.isfinite():
            return None
        optimizer.step()
        return {**means, "grad_norm": norm.item()}

    def _accumulate(self, part: Replay, baseline: Tensor, weight: float, acted: float) -> dict[str, float]:
        """Add the gradient of some chunks; the weights are those of the whole minibatch over all ranks."""
        device = self.actor.policy.config.device
        clip_low, clip_high = self.config.clip_for(self.actor.policy.config)
        log_ratio = self.estimator.log_ratio(
            self.actor.adapter,
            self._encode(part),
            self._record(part),
            baseline.to(device),
            part.executed.to(device),
        )
        stats = clipped_objective(
            log_ratio,
            part.advantages.to(device),
            part.weights.to(device),
            clip_low=clip_low,
            clip_high=clip_high,
            negative=self.config.negative,
            negative_weight=self.config.negative_weight,
            kl_weight=self.config.kl_weight,
            imitated=part.imitated.to(device),
        )
        own_weight, own_acted = _total_weights(part, slice(None)).tolist()
        loss = stats.loss * (own_weight / weight)
        loss.backward()
        share = own_acted / acted if acted else 0.0
        return {"loss": loss.item()} | {name: share * getattr(stats, name) for name in _OF_CHUNKS[1:]}

    def _gradients(self) -> Iterator[Tensor]:
        """Of all parameters, 0 where this rank has none: every rank has to give the same."""
        for parameter in self._parameters:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            yield parameter.grad

    def trained_weights(self) -> list[Tensor]:
        """A copy of what is trained, as it is now."""
        return [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def _put_back(self, weights: Sequence[Tensor]) -> None:
        for parameter, weight in zip(self._parameters, weights, strict=True):
            parameter.copy_(weight)

    @contextmanager
    def _acting_with(self, weights: Sequence[Tensor] | None) -> Iterator[None]:
        """The policy with other weights for a while; None for its own."""
        if weights is None:
            yield
            return
        present = self.trained_weights()
        self._put_back(weights)
        try:
            yield
        finally:
            self._put_back(present)

    def snapshot(self) -> Callable[[], None]:
        """Remember weights and optimizer as they are now; calling what is returned brings them back."""
        weights = self.trained_weights()
        optimizers = {name: deepcopy(of.state_dict()) for name, of in self._optimizers.items()}
        n_updates = self.optimization_step

        def restore() -> None:
            self._put_back(weights)
            for name, state in optimizers.items():
                self._optimizers[name].load_state_dict(state)
            self.optimization_step = n_updates

        return restore

    def load_weights(self, weights: dict[str, Any], device: str | torch.device = "cpu") -> None:
        """Load a policy state."""
        self.actor.policy.load_state_dict(weights)

    def get_weights(self) -> dict[str, Any]:
        """The policy's state."""
        return self.actor.policy.state_dict()

    def state_dict(self) -> dict[str, Tensor]:
        """Nothing: GRPO has no tensors beside the policy's."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Tensor], device: str | torch.device = "cpu") -> None:
        """Nothing to load."""


def _total_weights(replay: Replay, index: Tensor | slice) -> Tensor:
    """(2,) of all chunks of `index`, and of those of them that were run."""
    weights = replay.weights[index]
    return torch.stack([weights.sum(), weights[~replay.imitated[index]].sum()])


def _stats(means: dict[str, float], n_chunks: int, n_steps: int, n_dropped: int) -> TrainingStats:
    counts = {"n_chunks": n_chunks, "n_minibatches": n_steps, "minibatches_dropped": n_dropped}
    return TrainingStats(
        losses={"loss": means["loss"]},
        grad_norms={"policy": means["grad_norm"]},
        extra={name: means[name] for name in _OF_CHUNKS[1:]} | {k: float(v) for k, v in counts.items()},
    )
