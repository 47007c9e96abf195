"""The GRPO loop: starts → rollouts → scored groups → update → log → checkpoint.

Everything random in iteration i comes from (seed, i) alone, so a run that is stopped and resumed goes on as
if it had not been; but for `--rollout.overlap=true`, whose rollouts under way are lost.
"""

import json
import logging
import math
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from lerobot.common.train_utils import should_save_checkpoint
from lerobot.common.wandb_utils import WandBLogger
from lerobot.rl.algorithms.configs import TrainingStats
from torch import Tensor
from tqdm import tqdm

from lerobot_smoothvla.envs.tasks import TRAINING_SEEDS, has_init_states
from lerobot_smoothvla.episode import Episode, Group, ScoredEpisode, Start, Task
from lerobot_smoothvla.evaluation.evaluate import action_magnitude
from lerobot_smoothvla.grpo import checkpoint
from lerobot_smoothvla.grpo.algorithm import DROPPED_IN_A_ROW, GRPOAlgorithm
from lerobot_smoothvla.grpo.configuration import GRPOConfig, GRPOPipelineConfig
from lerobot_smoothvla.interruption import Interrupted
from lerobot_smoothvla.jerk_reward import JerkRewardProcessorStep, reference_medians, score, task_key
from lerobot_smoothvla.rollout.engine import RolloutEngine, RolloutError, RolloutRequest
from lerobot_smoothvla.writing import WritingError, writing

METRICS = "metrics.jsonl"
DROPPED = "dropped"
"""Directory of minibatches that had no finite gradient, and of starts that were set aside."""
_ADVICE = {
    True: "look for observations or advantages that are not, or for a ratio that overflows (a smaller "
    "--algorithm.lr, fewer --algorithm.epochs).",
    False: "a step has broken them; a smaller --algorithm.lr or --algorithm.grad_clip_norm may prevent it.",
}
_SMOOTHNESS = ("jerk_rms", "ldlj", "sparc", "joint_jerk_rms", "joint_ldlj")
_SHOWN = ("success_rate", "jerk_rms", "ratio_deviation")
"""On the progress bar."""
_SEEDS = 2**31


def sample_starts(
    tasks: Sequence[Task], config: GRPOConfig, seed: int, iteration: int, init_states: bool = True
) -> list[Start]:
    """The starts of an iteration: tasks in turn, initial state and simulator seed at random.

    Args:
        tasks: (suite, task id) to train on.
        config: Says how many, and which initial states.
        seed: Of the run.
        iteration: Of the run.
        init_states: Whether the tasks have fixed initial states; without them, the seeds are those that no
            evaluation takes.
    """
    random = np.random.default_rng([seed, iteration])
    first = iteration * config.n_groups
    chosen = sorted(tasks[(first + group) % len(tasks)] for group in range(config.n_groups))
    if not init_states:
        return [
            Start(suite, task_id, 0, TRAINING_SEEDS + int(random.integers(_SEEDS)))
            for suite, task_id in chosen
        ]
    return [
        Start(suite, task_id, int(random.integers(*config.init_states)), int(random.integers(_SEEDS)))
        for suite, task_id in chosen
    ]


@dataclass(frozen=True)
class Rollouts:
    """An iteration's, of this rank.

    Attributes:
        episodes: In the order of their starts; all of a group or none.
        n_starts: Over all ranks, those included that were set aside.
        n_failures: Rollouts that failed.
        seconds: They took.
    """

    episodes: list[Episode]
    n_starts: int
    n_failures: int
    seconds: float


class GRPOTrainer:
    """Runs iterations until the config's `steps`, with a checkpoint every `save_freq`."""

    def __init__(
        self,
        config: GRPOPipelineConfig,
        algorithm: GRPOAlgorithm,
        engine: RolloutEngine,
        tasks: Sequence[Task],
        iteration: int = 0,
        after_save: Callable[[Path], None] = lambda checkpoint: None,
    ) -> None:
        """Prepare a run.

        Args:
            config: Of the run.
            algorithm: That learns.
            engine: That rolls out.
            tasks: To learn.
            iteration: Iterations done; lines of a later one that was not checkpointed leave the log.
            after_save: Told of every checkpoint, in the first process.
        """
        self.config = config
        self.algorithm = algorithm
        self.engine = engine
        self.tasks = tasks
        self.iteration = iteration
        self.ranks = algorithm.ranks
        self._after_save = after_save
        assert config.output_dir is not None
        self._log = config.output_dir / METRICS
        if self.ranks.first and self._log.exists():
            with self._writing(f"The log {self._log}", lambda: self._log.stat().st_size):
                _keep_lines(self._log, iteration)
        self._saved = iteration if config.resume else -1
        self._restore: Callable[[], None] | None = None
        self._thread = ThreadPoolExecutor(1)
        self._ahead: tuple[Future[Rollouts], list[Tensor]] | None = None
        """The next iteration's rollouts, and the weights that act in them."""
        self._wandb = WandBLogger(config) if config.wandb.enable and self.ranks.first else None

    def train(self) -> Path:
        """Run the remaining iterations.

        Where it ends early, whatever the reason, the last iteration that was finished is saved, and can be
        resumed from; unless nothing can be written.

        Returns:
            The last checkpoint's directory.

        Raises:
            ValueError: If none remains.
            WritingError: If a checkpoint, the log or a dropped minibatch cannot be written.
            RolloutError: If nothing can be rolled out.
            FloatingPointError: If an update finds no finite gradient.
            Interrupted: If the process was asked to end.
        """
        if self.iteration >= self.config.steps:
            raise ValueError(
                f"The run has already done {self.iteration} of {self.config.steps} iterations; "
                "raise --steps to continue it."
            )
        try:
            if not self.config.resume:
                # What can be resumed from the first moment on, and shows a disk that cannot be written to.
                self._save()
            bar = self._bar(total=self.config.steps, initial=self.iteration, desc="GRPO", unit="iteration")
            with bar:
                while self.iteration < self.config.steps:
                    metrics = self.step()
                    bar.update()
                    bar.set_postfix({name: f"{metrics[name]:.3g}" for name in _SHOWN})
                    if should_save_checkpoint(self.iteration, self.config.save_freq, self.config.steps):
                        saved = self._save()
                        if self._wandb is not None:
                            self._wandb.log_policy(saved)
        except WritingError:
            raise
        except (Interrupted, Exception) as reason:
            self._save_before_the_end(reason)
            raise
        finally:
            if self._ahead is not None:
                self.engine.stop()
            self._thread.shutdown()
        return saved

    def step(self) -> dict[str, float]:
        """One iteration.

        Returns:
            Its metrics, which are also one JSON line of the log.
        """
        rollouts, behaviour = self._rollouts()
        updating = time.perf_counter()
        light = [_without_observations(episode) for episode in rollouts.episodes]
        of_ranks = self.ranks.gather((light, rollouts.n_failures))
        of_all = [episode for of_rank, _ in of_ranks for episode in of_rank]
        if not of_all:
            raise RolloutError(
                f"No start of iteration {self.iteration + 1} could be rolled out; the warnings above say why."
            )
        self._measure_reference(of_all)
        if self._saved != self.iteration:
            self._restore = self.algorithm.snapshot()
        stats = self.algorithm.update(iter([self._groups(rollouts.episodes)]), behaviour)
        self._keep_dropped()
        metrics = {
            "iteration": self.iteration + 1,
            **iteration_metrics(self._groups(of_all), stats),
            "rollout_failures": sum(failures for _, failures in of_ranks),
            "starts_set_aside": rollouts.n_starts - len(of_all) // self.config.algorithm.group_size,
            "rollout_s": rollouts.seconds,
            "update_s": time.perf_counter() - updating,
        }
        self._write(metrics)
        self.iteration += 1
        self._restore = None
        if self._wandb is not None:
            finite = {k: v for k, v in metrics.items() if not math.isnan(v)}
            self._wandb.log_dict(finite, step=self.iteration)
        return metrics

    def _write(self, metrics: Mapping[str, float]) -> None:
        """Append a line to the log, on the first rank."""
        if not self.ranks.first:
            return
        line = json.dumps({k: None if math.isnan(v) else v for k, v in metrics.items()}) + "\n"
        with self._writing(f"The log {self._log}", lambda: len(line)), self._log.open("a") as log:
            log.write(line)

    def _writing(self, what: str, size: Callable[[], int]) -> AbstractContextManager[None]:
        then = "and continue from the last checkpoint with --resume=true."
        return writing(what, self._log.parent, size, then)

    @property
    def _seed(self) -> int:
        return self.config.seed or 0

    def _save(self) -> Path:
        """A checkpoint, by the first rank while the others wait; returns its directory."""
        saved = checkpoint.save(self.config, self.algorithm, self.iteration) if self.ranks.first else None
        self._saved = self.iteration
        path = next(path for path in self.ranks.gather(saved) if path is not None)
        if self.ranks.first:
            self._after_save(path)
        return path

    def _save_before_the_end(self, reason: BaseException) -> None:
        """The last finished iteration, unless it is saved or none is; the other ranks may be gone."""
        if self._restore is not None:
            self._restore()
        if self.ranks.first and self._saved != self.iteration:
            checkpoint.save(self.config, self.algorithm, self.iteration)
        logging.warning(
            "The run ends (%s) after %d of %d iterations, which are saved; continue with --resume=true.",
            type(reason).__name__,
            self.iteration,
            self.config.steps,
        )

    def _bar(self, **settings: Any) -> tqdm:
        return tqdm(**settings, disable=None if self.ranks.first else True)

    def _rollouts(self) -> tuple[Rollouts, list[Tensor] | None]:
        """This iteration's, and the weights that acted in them; None for the present ones.

        With `overlap`, those of the next iteration begin.
        """
        overlap = self.config.rollout.overlap
        if self._ahead is None:
            self.engine.load_weights(self.algorithm.actor.policy)
            done, behaviour = self._roll_out(self.iteration), None
        else:
            future, behaviour = self._ahead
            done = future.result()
            self._ahead = None
        if overlap and self.iteration + 1 < self.config.steps:
            self.engine.load_weights(self.algorithm.actor.policy)
            next_ones = self._thread.submit(self._roll_out, self.iteration + 1)
            self._ahead = next_ones, self.algorithm.trained_weights()
        return done, behaviour

    def _roll_out(self, iteration: int) -> Rollouts:
        """G rollouts of each of this rank's starts, in their order; the noise is that of one process.

        A start of which a rollout failed as often as it may is set aside: its group has nothing to compare.
        """
        began, failures_before = time.perf_counter(), self.engine.n_failures
        algorithm = self.config.algorithm
        starts = sample_starts(self.tasks, algorithm, self._seed, iteration, has_init_states(self.config.env))
        random = np.random.default_rng([self._seed, iteration, 1])
        size = algorithm.group_size
        seeds = [[int(random.integers(_SEEDS)) for _ in range(size)] for _ in starts]
        own = self.ranks.share(len(starts))
        requests = [
            RolloutRequest(start, seed, self.algorithm.estimator)
            for start, of_start in zip(starts[own], seeds[own], strict=True)
            for seed in of_start
        ]
        with self._bar(total=len(requests), desc="rollouts", unit="episode", leave=False) as bar:
            outcomes = self.engine.run_those_that_can(requests, lambda index, episode: bar.update())
        episodes: list[Episode] = []
        rolled_out = list(zip(requests, outcomes, strict=True))
        for first in range(0, len(rolled_out), size):
            group = rolled_out[first : first + size]
            if failed := [(its, why) for its, why in group if isinstance(why, RolloutError)]:
                self._set_aside(iteration, *failed[0])
            else:
                episodes += [episode for _, episode in group if isinstance(episode, Episode)]
        failures = self.engine.n_failures - failures_before
        return Rollouts(episodes, len(starts), failures, time.perf_counter() - began)

    def _set_aside(self, iteration: int, request: RolloutRequest, failure: RolloutError) -> None:
        """Name a start that cannot be rolled out, and keep what it takes to look at it.

        Raises:
            WritingError: If it cannot be written.
        """
        file = self._log.parent / DROPPED / f"starts_{self.ranks.rank}.jsonl"
        record = {
            "iteration": iteration + 1,
            **asdict(request.start),
            "noise_seed": request.noise_seed,
            "actions": None if failure.actions is None else failure.actions.tolist(),
            "reason": str(failure),
        }
        line = json.dumps(record) + "\n"
        with self._writing(f"The start that is set aside in {file}", lambda: len(line)):
            file.parent.mkdir(exist_ok=True)
            with file.open("a") as kept:
                kept.write(line)
        logging.warning("%s is set aside in %s: %s", request.start, file, failure)

    def _keep_dropped(self) -> None:
        """Save the first minibatch that had to be dropped, and end a run that drops one after the other.

        Raises:
            FloatingPointError: If `DROPPED_IN_A_ROW` of them were dropped.
            WritingError: If it cannot be written.
        """
        place = self._log.parent / DROPPED
        if self.algorithm.dropped is not None:
            replay, baseline = self.algorithm.dropped
            file = place / f"{self.iteration + 1:06d}_{self.ranks.rank}.safetensors"
            with self._writing(f"The dropped minibatch {file}", replay.size):
                replay.save(file, baseline)
            logging.warning("Minibatches without a finite gradient were dropped; the first is %s.", file)
        if self.algorithm.dropped_in_a_row >= DROPPED_IN_A_ROW:
            whole = all(weight.isfinite().all() for weight in self.algorithm.get_weights().values())
            raise FloatingPointError(
                f"{DROPPED_IN_A_ROW} minibatches in a row had no finite gradient in iteration "
                f"{self.iteration + 1}, the first of them is in {place}. The weights are "
                f"{'finite' if whole else 'not finite'}: {_ADVICE[whole]} Continue from the last checkpoint "
                "with --resume=true, or begin anew with other settings."
            )

    def _measure_reference(self, episodes: Sequence[Episode]) -> None:
        """The jerk reference of tasks that the run meets for the first time."""
        reward = self.config.algorithm.reward
        known = reward.reference
        if known is None or isinstance(known, dict):
            known = known or {}
            new = [episode for episode in episodes if task_key(episode.start) not in known]
            reward = replace(reward, reference={**reference_medians(new, reward), **known})
            self.config.algorithm.reward = reward

    def _groups(self, episodes: Sequence[Episode]) -> list[Group]:
        """Scored, in groups of one start."""
        step = JerkRewardProcessorStep(self.config.algorithm.reward)
        scored = [score(episode, step) for episode in episodes]
        size = self.config.algorithm.group_size
        return [Group(tuple(scored[i : i + size])) for i in range(0, len(scored), size)]


def _without_observations(episode: Episode) -> Episode:
    """What an episode is scored and counted by, a hundredth of its size."""
    return replace(episode, observations={}, record={})


def iteration_metrics(groups: Sequence[Group], stats: TrainingStats) -> dict[str, float]:
    """What an iteration's rollouts and its update say, by the names of docs/glossary.md."""
    scored = [episode for group in groups for episode in group.episodes]
    mixed = [0 < sum(s.success for s in group.episodes) < len(group.episodes) for group in groups]
    solved = [s for s in scored if s.success]
    return {
        "success_rate": fmean(s.success for s in scored),
        "mixed_group_share": fmean(mixed),
        "reward": fmean(s.total for s in scored),
        "smoothness": fmean(s.smoothness for s in scored),
        **{name: _mean(scored, name) for name in _SMOOTHNESS if name in scored[0].terms},
        "jerk_rms_success": _mean(solved, "jerk_rms"),
        "time_to_success": _mean(scored, "time_to_success"),
        "episode_steps": fmean(s.episode.n_steps for s in scored),
        "action_magnitude": fmean(action_magnitude(s.episode.actions, s.episode.embodiment) for s in scored),
        **stats.to_log_dict(),
    }


def _mean(scored: Sequence[ScoredEpisode], term: str) -> float:
    values = [s.terms[term] for s in scored if not math.isnan(s.terms[term])]
    return fmean(values) if values else math.nan


def _keep_lines(log: Path, iterations: int) -> None:
    """Leave out what is of later iterations, or was torn when the run was killed."""
    lines = log.read_text().splitlines(keepends=True)
    partial = log.with_suffix(".partial")
    partial.write_text("".join(line for line in lines if _iteration_of(line) <= iterations))
    partial.replace(log)


def _iteration_of(line: str) -> float:
    try:
        return json.loads(line)["iteration"]
    except json.JSONDecodeError:
        return math.inf
