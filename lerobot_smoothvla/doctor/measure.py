"""What the doctor measures of a policy, its rollouts and the machine.

Dims: N chunks, H steps a chunk, R ratio terms a chunk. Units: s, bytes.
"""

import ctypes
import importlib.metadata
import importlib.util
import math
import multiprocessing
import os
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from lerobot.configs import FeatureType, PreTrainedConfig
from torch import Tensor
from tqdm import tqdm

from lerobot_smoothvla.doctor.checks import DISTRIBUTION, Outcome
from lerobot_smoothvla.episode import Episode, Group, ScoredEpisode, Start
from lerobot_smoothvla.evaluation.evaluate import measure_episode
from lerobot_smoothvla.flow.adapters import PolicyAdapter
from lerobot_smoothvla.flow.ratio import RatioEstimator
from lerobot_smoothvla.grpo.algorithm import GRPOAlgorithm
from lerobot_smoothvla.grpo.configuration import GRPOConfig
from lerobot_smoothvla.machine import parent_of, private_bytes, resident_bytes
from lerobot_smoothvla.rollout.engine import Actor, RolloutEngine, RolloutRequest, Sampler

_INSTRUCTION = "pick it up"


def installed(names: Sequence[str]) -> dict[str, str | None]:
    """The version of each distribution, None where it is missing."""
    found: dict[str, str | None] = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def uncompiled(names: Sequence[str]) -> list[str]:
    """Those of the installed packages that have no bytecode, as uv leaves them.

    Python writes it on first import, unless PYTHONDONTWRITEBYTECODE forbids it, as in many containers.
    """
    specs = {name: importlib.util.find_spec(name) for name in names}
    return [name for name, spec in specs.items() if spec and spec.cached and not Path(spec.cached).exists()]


def discovered_plugins() -> list[str]:
    """Distributions that LeRobot takes for policies of others, by their names."""
    names = {distribution.metadata["Name"] for distribution in importlib.metadata.distributions()}
    prefix = DISTRIBUTION.removesuffix("smoothvla")
    return sorted(name for name in names if name and name.startswith(prefix))


def parameters_by_part(adapter: PolicyAdapter) -> dict[str, tuple[int, int]]:
    """Trainable and all parameters of each of the policy's parts."""
    trainable: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for name, parameter in adapter.policy.named_parameters():
        part = adapter.part_of(name)
        total[part] += parameter.numel()
        trainable[part] += parameter.numel() * parameter.requires_grad
    return {part: (trainable[part], total[part]) for part in sorted(total)}


@torch.no_grad()
def rounding(adapter: PolicyAdapter, lr: float) -> tuple[dict[str, int], float]:
    """Trainable parameters of each type, and the share of them that a step of `lr` leaves as they are.

    Adam's first steps are about `lr` long in every weight. No weight is changed.
    """
    dtypes: Counter[str] = Counter()
    unchanged = 0
    for parameter in adapter.policy.parameters():
        if parameter.requires_grad:
            dtypes[str(parameter.dtype).removeprefix("torch.")] += parameter.numel()
            unchanged += int((parameter - lr == parameter).sum())
    return dict(dtypes), unchanged / max(dtypes.total(), 1)


@torch.no_grad()
def ratio_deviation(actor: Actor, estimator: RatioEstimator, n: int, seed: int) -> dict[str, float]:
    """Largest |ratio − 1| of chunks that are sampled one by one, as in a rollout, and replayed at once.

    Args:
        actor: Samples and replays.
        estimator: Of the run.
        n: Chunks.
        seed: Of the observations, which are random, and of the chunks.

    Returns:
        Of replaying them `alone`, and `batched` in another order.
    """
    config, adapter = actor.policy.config, actor.adapter
    observations = _random_observations(config, n, seed)
    generator = torch.Generator(config.device).manual_seed(seed)

    def encode(index: Tensor) -> Any:
        rows = {key: value[index] for key, value in observations.items()}
        return adapter.encode(actor.model_input(rows, [_INSTRUCTION] * len(index)))

    one_by_one = torch.arange(n)[:, None]
    samples = [estimator.sample(adapter, encode(index), generator) for index in one_by_one]
    record = {key: torch.cat([sample.record[key] for sample in samples]) for key in samples[0].record}
    baseline = estimator.baseline(adapter, encode(torch.arange(n)), record)
    steps = torch.arange(adapter.chunk_size, device=config.device) - adapter.first_step
    executed = ((steps >= 0) & (steps < config.n_action_steps)).expand(n, -1)

    def worst(batches: Sequence[Tensor]) -> float:
        deviations = [
            estimator.log_ratio(
                adapter,
                encode(index),
                {key: value[index] for key, value in record.items()},
                baseline[index],
                executed[index],
            ).expm1()
            for index in batches
        ]
        return torch.cat(deviations).abs().max().item()

    return {"alone": worst(list(one_by_one)), "batched": worst([torch.arange(n).flip(0)])}


def _random_observations(config: PreTrainedConfig, n: int, seed: int) -> dict[str, Tensor]:
    """As an `Episode` keeps them: images (n, 3, h, w) uint8, state (n, S)."""
    generator = torch.Generator().manual_seed(seed)
    history = () if config.n_obs_steps == 1 else (config.n_obs_steps,)
    observations = {}
    for key, feature in config.input_features.items():
        shape = (n, *history, *feature.shape)
        observations[key] = (
            torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
            if feature.type is FeatureType.VISUAL
            else torch.randn(shape, generator=generator)
        )
    return observations


@dataclass(frozen=True)
class Rollouts:
    """Episodes, and the time until the last had ended.

    Attributes:
        groups: The episodes of each start.
        wall_s: For all of them.
    """

    groups: list[list[Episode]]
    wall_s: float

    @property
    def episodes(self) -> list[Episode]:
        """All of them."""
        return [episode for group in self.groups for episode in group]

    @property
    def steps(self) -> int:
        """Control steps of all."""
        return sum(episode.n_steps for episode in self.episodes)

    @property
    def outcome(self) -> Outcome:
        """Successes and jerk."""
        measured = [measure_episode(episode) for episode in self.episodes]
        jerks = [m.terms["jerk_rms"] for m in measured if not math.isnan(m.terms["jerk_rms"])]
        successes = sum(m.success for m in measured)
        return Outcome(len(measured), successes, fmean(jerks) if jerks else math.nan)

    @property
    def episode_bytes(self) -> float:
        """Mean size of what an episode holds until the update."""
        tensors = [t for e in self.episodes for t in (*e.observations.values(), *e.record.values())]
        return sum(tensor.nbytes for tensor in tensors) / len(self.episodes)


def roll_out(
    engine: RolloutEngine, starts: Sequence[Start], sampler: Sampler, group_size: int, description: str
) -> Rollouts:
    """`group_size` rollouts of each start; the same noise for the same place in a group.

    Raises:
        RolloutError: If one fails.
    """
    requests = [RolloutRequest(start, seed, sampler) for start in starts for seed in range(group_size)]
    began = time.perf_counter()
    with tqdm(total=len(requests), desc=description, unit="episode", leave=False) as bar:
        episodes = engine.run(requests, lambda index, episode: bar.update())
    groups = [episodes[i : i + group_size] for i in range(0, len(episodes), group_size)]
    return Rollouts(groups, time.perf_counter() - began)


@dataclass(frozen=True)
class Update:
    """What one update took.

    Attributes:
        n_chunks: It was on.
        chunk_s: Time for one of them.
        n_bytes: By which the memory of its device grew, at most.
        ratio_deviation: Mean |ratio − 1| of the workers' chunks, replayed by the learner.
    """

    n_chunks: int
    chunk_s: float
    n_bytes: int
    ratio_deviation: float


def update(actor: Actor, config: GRPOConfig, groups: Sequence[Sequence[Episode]]) -> Update:
    """An update that moves no weight, on enough whole groups to fill a microbatch.

    Time and memory do not depend on rewards, so the episodes succeed by turns here: a group without a success
    would be left out.

    Raises:
        ValueError: If nothing of the policy is trainable.
        RuntimeError: If the memory does not suffice.
    """
    algorithm = GRPOAlgorithm(actor, replace(config, epochs=1))
    algorithm.lr = 0.0
    chosen: list[Group] = []
    n_chunks = 0
    for episodes in groups:
        if n_chunks < config.microbatch_size:
            turns = [float(index % 2) for index in range(len(episodes))]
            scored = (
                ScoredEpisode(e, turn, 0.5, turn, torch.full((len(e.executed),), 0.5))
                for e, turn in zip(episodes, turns, strict=True)
            )
            chosen.append(Group(tuple(scored)))
            n_chunks += sum(len(episode.executed) for episode in episodes)
    peak = _PeakMemory(actor.policy.config.device)
    began = time.perf_counter()
    stats = algorithm.update(iter([chosen]))
    wall_s = time.perf_counter() - began
    return Update(n_chunks, wall_s / n_chunks, peak.grown(), stats.extra["ratio_deviation"])


class _PeakMemory:
    """By how much the memory of a device grows from here on, at most."""

    def __init__(self, device: str) -> None:
        """Begin."""
        self._cuda = torch.device(device) if device.startswith("cuda") else None
        if self._cuda:
            # What was freed but is still reserved would be used again, and not be seen.
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._cuda)
            self._before = torch.cuda.memory_reserved(self._cuda)
        else:
            # What was freed but is still resident would be used again, and not be seen.
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # The peak is the present from here on.
            self._before = resident_bytes("self", peak=True)

    def grown(self) -> int:
        """Bytes."""
        peak = torch.cuda.max_memory_reserved(self._cuda) if self._cuda else resident_bytes("self", peak=True)
        return max(peak - self._before, 0)  # The kernel's counters are batched, so off by some pages.


def bytes_of_workers() -> tuple[int, int]:
    """Of its own in the largest child process, and what those share that forked them; 0 without any."""
    pids = [process.pid for process in multiprocessing.active_children() if process.pid is not None]
    servers = {parent_of(pid) for pid in pids} - {os.getpid()}
    return max(map(private_bytes, pids), default=0), sum(map(resident_bytes, servers))
