"""One rollout, and many of them over workers: requests in, episodes out, in the order of the requests.

Dims: C policy calls, H steps a chunk, P padded action dimensions, A real ones, T control steps.
"""

from __future__ import annotations

import logging
import math
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lerobot.policies import PreTrainedPolicy
from lerobot.processor import PolicyProcessorPipeline
from torch import Tensor

from lerobot_smoothvla.envs.chunked import ChunkedEnv, DivergedError, Observation, Picture
from lerobot_smoothvla.envs.shift import Shift
from lerobot_smoothvla.episode import Episode, Start, Task
from lerobot_smoothvla.filters.steps import ActionFilterStep
from lerobot_smoothvla.flow.adapters import PolicyAdapter, adapt
from lerobot_smoothvla.flow.adapters.execution import Execution
from lerobot_smoothvla.flow.noise import Randomness
from lerobot_smoothvla.flow.sampling import ChunkSample
from lerobot_smoothvla.interruption import raise_if_asked

ATTEMPTS = 3
"""How often a rollout is tried."""
SIMULATORS = 3
"""A worker keeps at once: those of the tasks that it had last."""


class Sampler(Protocol):
    """How a chunk is drawn: any `RatioEstimator`, `DeployedSampler` or `RealTimeChunkingSampler`."""

    def sample(self, policy: Any, context: Any, generator: Randomness, batch_size: int = 1) -> ChunkSample:
        """Chunks (B, H, P) and what a replay needs."""
        ...


@dataclass(frozen=True)
class RolloutRequest:
    """One episode to run.

    Attributes:
        start: Where it begins.
        noise_seed: Seed of everything that the policy draws.
        sampler: How chunks are drawn.
        video: Where to write a video of every control step, or None.
        shift: What of the scene is not as the start says, or None.
    """

    start: Start
    noise_seed: int
    sampler: Sampler
    video: Path | None = None
    shift: Shift | None = None


@dataclass(frozen=True)
class Decision:
    """What comes of one policy call in one episode.

    Attributes:
        sample: Of the chunk, (1, H, P).
        actions: (n, A) of the environment, those that are to be executed.
    """

    sample: ChunkSample
    actions: Tensor


class Player(Protocol):
    """Plays episodes: an `Actor`, or what asks one elsewhere."""

    @property
    def n_obs_steps(self) -> int:
        """How many of the last control steps it looks at."""
        ...

    def begin(self, request: RolloutRequest) -> Callable[[Observation, str], Decision]:
        """Begin an episode.

        Returns:
            What decides, given observations as for `Actor.model_input` with B = 1, and the task string.
        """
        ...


@dataclass(frozen=True)
class Actor:
    """A policy with its processors, ready to act.

    Attributes:
        policy: LeRobot's.
        preprocessor: Observation to model input.
        postprocessor: Model output to action.
        execution: How its networks are run.
        action_filter: What its actions go through before they are executed, or None.
    """

    policy: PreTrainedPolicy
    preprocessor: PolicyProcessorPipeline[Any, Any]
    postprocessor: PolicyProcessorPipeline[Any, Any]
    execution: Execution = Execution()
    action_filter: ActionFilterStep | None = None

    @cached_property
    def adapter(self) -> PolicyAdapter:
        """The policy behind the seam."""
        return self.execution.apply(adapt(self.policy))

    @property
    def n_obs_steps(self) -> int:
        """How many of the last control steps the policy looks at."""
        return self.policy.config.n_obs_steps

    def begin(self, request: RolloutRequest) -> Callable[[Observation, str], Decision]:
        """Begin an episode; see `Player`."""
        self.reset()
        generator = torch.Generator(self.policy.config.device).manual_seed(request.noise_seed)
        sampler = copy(request.sampler)  # It may remember what it draws, of this episode only.

        def decide(observation: Observation, instruction: str) -> Decision:
            return self.decide(observation, [instruction], sampler, generator)[0]

        return decide

    def reset(self) -> None:
        """Begin an episode: forget the last one's actions."""
        for stateful in (self.preprocessor, self.postprocessor, self.action_filter):
            if stateful is not None:
                stateful.reset()

    @torch.no_grad()
    def decide(
        self, observations: Observation, instructions: list[str], sampler: Sampler, generator: Randomness
    ) -> list[Decision]:
        """One policy call for the observations of B episodes; arguments as in `model_input` and `Sampler`."""
        context = self.adapter.encode(self.model_input(observations, instructions))
        sample = sampler.sample(self.adapter, context, generator, len(instructions))
        chunks = self.env_actions(sample.actions)[:, : self.policy.config.n_action_steps]
        return [Decision(sample.row(index), chunk) for index, chunk in enumerate(chunks)]

    def model_input(self, observations: Observation, instructions: list[str]) -> dict[str, Tensor]:
        """Preprocessed batch for `ChunkPolicy.encode`.

        Args:
            observations: Images (B, 3, h, w) uint8 and state (B, S), as an `Episode` keeps them; (B, N, ...)
                for a policy that reads the last N > 1 control steps.
            instructions: B task strings.
        """
        # On its device first, in rollouts and replay alike: CUDA divides by a constant to another last bit.
        there = {key: value.to(self.policy.config.device) for key, value in observations.items()}
        batch: dict[str, Any] = {
            key: value.float() / 255 if value.dtype == torch.uint8 else value for key, value in there.items()
        }
        return self.preprocessor({**batch, "task": instructions})

    def env_actions(self, chunks: Tensor) -> Tensor:
        """(B, H, P) sampled chunks to (B, n, A) actions of the environment, float32 on the CPU.

        They begin at the chunk's first executed step. Relative actions count from the state of the last
        `model_input`, and a filter goes on from the actions since the last `reset`.
        """
        actions = self.postprocessor(self.adapter.to_actions(chunks)).float().cpu()
        return actions if self.action_filter is None else self.action_filter.action(actions)


def run_episode(
    env: ChunkedEnv,
    player: Player,
    request: RolloutRequest,
    on_frame: Callable[[Picture], None] | None = None,
) -> Episode:
    """Roll the policy out from the request's start until success or the horizon.

    Args:
        env: Of the start's task.
        player: Of the policy; its `n_action_steps` of every chunk are executed.
        request: What to run.
        on_frame: Called with the first camera's picture after every control step; needs every one rendered.

    Raises:
        DivergedError: If the simulation diverged; it has the actions.
        FloatingPointError: If the policy's actions are not finite.
    """
    decide = player.begin(request)
    # What the policy has seen of the last control steps; before the first one it has always seen the same.
    first = env.reset_to(request.start, request.shift)
    seen = deque([first] * player.n_obs_steps, maxlen=player.n_obs_steps)
    positions, observations, samples, executed = [env.position[None]], [], [], []
    actions: list[Tensor] = []
    joints = [] if env.joints is None else [env.joints[None]]
    done = success = False
    while not done:
        raise_if_asked()
        batch = _batch(seen)
        decision = decide(batch, env.task_description)
        sample, chunk = decision.sample, decision.actions
        if not chunk.isfinite().all():
            raise FloatingPointError("The policy's actions should be finite; its weights may not be.")
        try:
            outcome = env.step_chunk(chunk.numpy(), on_frame, player.n_obs_steps)
        except DivergedError as error:
            error.actions = torch.cat([*actions, chunk])
            raise
        observations.append(batch)
        samples.append(sample)
        executed.append(outcome.n_steps)
        actions.append(chunk[: outcome.n_steps])
        positions.append(outcome.positions)
        if outcome.joints is not None:
            joints.append(outcome.joints)
        seen.extend(outcome.frames)
        done, success = outcome.done, outcome.success
    return Episode(
        start=request.start,
        instruction=env.task_description,
        observations=_concatenate(observations),
        record=_concatenate([sample.record for sample in samples]),
        chunks=torch.cat([sample.actions for sample in samples]),
        executed=torch.tensor(executed),
        actions=torch.cat(actions),
        positions=torch.from_numpy(np.concatenate(positions)),
        dt=env.dt,
        success=success,
        max_steps=env.max_steps,
        embodiment=env.embodiment,
        joints=torch.from_numpy(np.concatenate(joints)) if joints else None,
    )


def _batch(frames: Sequence[Observation]) -> Observation:
    """One row of a batch: the frame, or where there are several all of them, in a dimension of their own."""
    if len(frames) == 1:
        return {key: value[None] for key, value in frames[0].items()}
    return {key: torch.stack([frame[key] for frame in frames])[None] for key in frames[0]}


def _concatenate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.cat([row[key] for row in rows]) for key in rows[0]}


class RolloutError(ChildProcessError):
    """A rollout gave no episode, but another try may.

    Attributes:
        worker_lost: Whether its worker is gone, too: dead, or killed because it hung.
        actions: (t, A) with which its simulation diverged; None if it did not.
    """

    def __init__(self, reason: str, worker_lost: bool = False, cause: BaseException | None = None) -> None:
        """Say why."""
        super().__init__(reason)
        self.worker_lost = worker_lost
        self.actions = cause.actions if isinstance(cause, DivergedError) else None


class Worker(Protocol):
    """Runs one request at a time."""

    def submit(self, request: RolloutRequest) -> None:
        """Begin a request; the worker must be free. If it is gone, `collect` says so."""
        ...

    def collect(self) -> Episode:
        """Wait for the episode of the last request.

        Raises:
            RolloutError: If there is none, with the reason.
        """
        ...

    def load_weights(self, policy: PreTrainedPolicy) -> None:
        """Act with these weights from the next request on."""
        ...

    def kill(self) -> None:
        """End it at once, whatever it does; `collect` then says that it is lost."""
        ...

    def close(self) -> None:
        """Release the simulators."""
        ...


class RolloutEngine[W: Worker]:
    """Spreads requests over workers, and those that failed over others.

    Episodes depend on their requests and the weights alone, not on the number of workers or on what they ran
    before: starts reset everything, and every request has its own seed. So an episode that is tried again
    elsewhere is the one that it would have been.

    Attributes:
        n_failures: Rollouts that failed since the engine was made.
    """

    def __init__(
        self,
        workers: Sequence[W],
        wait: Callable[[Iterable[W], float], list[W]] | None = None,
        replace: Callable[[], W | None] | None = None,
        timeout_s: float = math.inf,
    ) -> None:
        """Take ownership of the workers.

        Args:
            workers: At least one.
            wait: Returns those of the busy workers that have an episode or a failure ready, within seconds
                of which there are as many as the second argument; none if there is none by then. None where
                all of them answer when asked.
            replace: Makes a worker in the place of a lost one, with the weights that were loaded last, or
                None where there is no room for it; None if no worker can be lost.
            timeout_s: How long a rollout may take; a worker that takes longer is taken to hang.
        """
        self._workers = list(workers)
        self._wait = wait or (lambda busy, timeout_s: list(busy))
        self._replace = replace
        self._timeout_s = timeout_s
        self._busy: dict[W, tuple[int, float]] = {}
        self._tasks: dict[W, deque[Task]] = defaultdict(partial(deque, maxlen=SIMULATORS))
        self._proven: set[W] = set()
        self._stopped = False
        self.n_failures = 0

    def run(
        self,
        requests: Sequence[RolloutRequest],
        on_episode: Callable[[int, Episode], None] | None = None,
    ) -> list[Episode]:
        """Run all requests.

        Args:
            requests: What to run; sorted by task they need the fewest simulators.
            on_episode: Called as each episode ends, with its request's index, in the order of completion.

        Returns:
            Episodes in the order of the requests.

        Raises:
            RolloutError: If a request failed as often as it may, or the engine is stopped.
        """
        episodes = self.run_those_that_can(requests, on_episode)
        for request, episode in zip(requests, episodes, strict=True):
            if isinstance(episode, RolloutError):
                raise RolloutError(f"{_described(request)} failed {ATTEMPTS} times. {episode}") from episode
        return [episode for episode in episodes if isinstance(episode, Episode)]

    def run_those_that_can(
        self,
        requests: Sequence[RolloutRequest],
        on_episode: Callable[[int, Episode], None] | None = None,
    ) -> list[Episode | RolloutError]:
        """As `run`, with the last failure in the place of an episode that there is none of."""
        outcomes: dict[int, Episode | RolloutError] = {}
        queue = list(enumerate(requests))
        attempts = [0] * len(requests)
        busy: dict[W, tuple[int, float]] = {}
        self._busy = busy
        while queue or busy:
            for worker in self._workers:
                if worker not in busy and queue:
                    index, request = self._next(worker, queue)
                    attempts[index] += 1
                    worker.submit(request)
                    busy[worker] = index, time.monotonic()
            for worker in self._ready(busy):
                index, _ = busy.pop(worker)
                try:
                    outcomes[index] = episode = worker.collect()
                except RolloutError as failure:
                    if self._stopped:
                        raise
                    self._take_note(failure, worker, requests[index], attempts[index])
                    outcomes[index] = failure
                    if attempts[index] < ATTEMPTS:
                        queue.insert(0, (index, requests[index]))
                    continue
                self._proven.add(worker)
                if on_episode is not None:
                    on_episode(index, episode)
        return [outcomes[index] for index in range(len(requests))]

    def _next(self, worker: W, queue: list[tuple[int, RolloutRequest]]) -> tuple[int, RolloutRequest]:
        """Take out of the queue what the worker has a simulator for, else what no other has one for.

        Building a simulator of LIBERO takes as long as rolling out an episode or two in it.
        """
        own = self._tasks[worker]
        others = {task for other, tasks in self._tasks.items() if other is not worker for task in tasks}

        def cost(position: int) -> int:
            task = queue[position][1].start.task
            return 0 if task in own else 2 if task in others else 1

        index, request = queue.pop(min(range(len(queue)), key=cost))
        task = request.start.task
        if task in own:
            own.remove(task)
        own.append(task)
        return index, request

    def _ready(self, busy: Mapping[W, tuple[int, float]]) -> list[W]:
        """Workers with an answer; those that have taken too long are killed, which is an answer."""
        first = min(begun for _, begun in busy.values())
        ready = self._wait(busy, max(0.0, first + self._timeout_s - time.monotonic()))
        if ready:
            return ready
        late = [w for w, (_, begun) in busy.items() if time.monotonic() >= begun + self._timeout_s]
        for worker in late:
            logging.warning("A rollout worker has not answered for %g s and is killed.", self._timeout_s)
            worker.kill()
        return late

    def _take_note(self, failure: RolloutError, worker: W, request: RolloutRequest, attempt: int) -> None:
        """Count and log a failure, and replace the worker where it is lost.

        Also before the last attempt where it has given an episode before: it may be what is broken by now,
        without memory or files.
        """
        self.n_failures += 1
        logging.warning("%s failed, attempt %d of %d: %s", _described(request), attempt, ATTEMPTS, failure)
        broken = failure.worker_lost or (attempt == ATTEMPTS - 1 and worker in self._proven)
        if broken and self._replace is not None:
            worker.close()
            self._workers.remove(worker)
            self._tasks.pop(worker, None)
            self._proven.discard(worker)
            if (another := self._replace()) is not None:
                self._workers.append(another)
            elif not self._workers:
                raise RolloutError(f"All rollout workers are lost. {failure}") from failure

    def load_weights(self, policy: PreTrainedPolicy) -> None:
        """Let every worker act with these weights from now on."""
        for worker in self._workers:
            worker.load_weights(policy)

    def stop(self) -> None:
        """End all workers at once; a `run` in another thread raises `RolloutError`. `close` is left to do."""
        self._stopped = True
        for worker in list(self._workers):
            worker.kill()

    def close(self) -> None:
        """Release all workers; those that still roll out, as the run was interrupted, at once."""
        for worker in self._busy:
            worker.kill()
        for worker in self._workers:
            worker.close()


def _described(request: RolloutRequest) -> str:
    start = request.start
    return (
        f"The rollout of {start.suite} task {start.task_id}, initial state {start.init_state}, seed "
        f"{start.seed}"
    )
