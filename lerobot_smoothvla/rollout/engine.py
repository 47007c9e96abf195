"""One rollout, and many of them over workers: requests in, episodes out, in the order of the requests.

Dims: C policy calls, H steps a chunk, P padded action dimensions, A real ones, T control steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from lerobot.policies import PreTrainedPolicy
from lerobot.processor import PolicyProcessorPipeline
from torch import Tensor

from lerobot_smoothvla.envs.chunked import ChunkedEnv, Observation, Picture
from lerobot_smoothvla.envs.shift import Shift
from lerobot_smoothvla.episode import Episode, Start
from lerobot_smoothvla.filters.steps import ActionFilterStep
from lerobot_smoothvla.flow.adapters import PolicyAdapter, adapt
from lerobot_smoothvla.flow.adapters.execution import Execution
from lerobot_smoothvla.flow.sampling import ChunkSample


class Sampler(Protocol):
    """How a chunk is drawn: any `RatioEstimator`, `DeployedSampler` or `RealTimeChunkingSampler`."""

    def sample(
        self, policy: Any, context: Any, generator: torch.Generator, batch_size: int = 1
    ) -> ChunkSample:
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

    def reset(self) -> None:
        """Begin an episode: forget the last one's actions."""
        for stateful in (self.preprocessor, self.postprocessor, self.action_filter):
            if stateful is not None:
                stateful.reset()

    def model_input(self, observations: Observation, instructions: list[str]) -> dict[str, Tensor]:
        """Preprocessed batch for `ChunkPolicy.encode`.

        Args:
            observations: Images (B, 3, h, w) uint8 and state (B, S), as an `Episode` keeps them; (B, N, ...)
                for a policy that reads the last N > 1 control steps.
            instructions: B task strings.
        """
        batch: dict[str, Any] = {
            key: value.float() / 255 if value.dtype == torch.uint8 else value
            for key, value in observations.items()
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
    actor: Actor,
    request: RolloutRequest,
    on_frame: Callable[[Picture], None] | None = None,
) -> Episode:
    """Roll the policy out from the request's start until success or the horizon.

    Args:
        env: Of the start's task.
        actor: The policy; its `n_action_steps` of every chunk are executed.
        request: What to run.
        on_frame: Called with the first camera's picture after every control step; needs every one rendered.
    """
    config, adapter = actor.policy.config, actor.adapter
    generator = torch.Generator(config.device).manual_seed(request.noise_seed)
    sampler = copy(request.sampler)  # It may remember what it draws, of this episode only.
    actor.reset()
    # What the policy has seen of the last control steps; before the first one it has always seen the same.
    seen = deque([env.reset_to(request.start, request.shift)] * config.n_obs_steps, maxlen=config.n_obs_steps)
    positions, observations, samples, executed, actions = [env.position[None]], [], [], [], []
    done = success = False
    while not done:
        batch = _batch(seen)
        with torch.no_grad():
            context = adapter.encode(actor.model_input(batch, [env.task_description]))
            sample = sampler.sample(adapter, context, generator)
        chunk = actor.env_actions(sample.actions)[0, : config.n_action_steps]
        outcome = env.step_chunk(chunk.numpy(), on_frame, config.n_obs_steps)
        observations.append(batch)
        samples.append(sample)
        executed.append(outcome.n_steps)
        actions.append(chunk[: outcome.n_steps])
        positions.append(outcome.positions)
        seen.extend(outcome.frames)
        done, success = outcome.done, outcome.success
    return Episode(
        start=request.start,
        instruction=env.task_description,
        observations=_concatenate(observations),
        record=_concatenate([sample.record for sample in samples]),
        chunks=torch.cat([sample.actions for sample in samples]).cpu(),
        executed=torch.tensor(executed),
        actions=torch.cat(actions),
        positions=torch.from_numpy(np.concatenate(positions)),
        dt=env.dt,
        success=success,
        max_steps=env.max_steps,
        embodiment=env.embodiment,
    )


def _batch(frames: Sequence[Observation]) -> Observation:
    """One row of a batch: the frame, or where there are several all of them, in a dimension of their own."""
    if len(frames) == 1:
        return {key: value[None] for key, value in frames[0].items()}
    return {key: torch.stack([frame[key] for frame in frames])[None] for key in frames[0]}


def _concatenate(rows: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {key: torch.cat([row[key].cpu() for row in rows]) for key in rows[0]}


class Worker(Protocol):
    """Runs one request at a time."""

    def submit(self, request: RolloutRequest) -> None:
        """Begin a request; the worker must be free."""
        ...

    def collect(self) -> Episode:
        """Wait for the episode of the last request.

        Raises:
            RuntimeError: If the rollout failed, with the reason.
        """
        ...

    def load_weights(self, policy: PreTrainedPolicy) -> None:
        """Act with these weights from the next request on."""
        ...

    def close(self) -> None:
        """Release the simulators."""
        ...


class RolloutEngine[W: Worker]:
    """Spreads requests over workers.

    Episodes depend on their requests and the weights alone, not on the number of workers or on what they ran
    before: starts reset everything, and every request has its own seed.
    """

    def __init__(self, workers: Sequence[W], wait: Callable[[Iterable[W]], list[W]]) -> None:
        """Take ownership of the workers.

        Args:
            workers: At least one.
            wait: Returns those of the busy workers that have an episode ready, at least one.
        """
        self._workers = list(workers)
        self._wait = wait

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
        """
        episodes: dict[int, Episode] = {}
        queue = list(enumerate(requests))[::-1]
        busy: dict[W, int] = {}
        while queue or busy:
            for worker in self._workers:
                if worker not in busy and queue:
                    index, request = queue.pop()
                    worker.submit(request)
                    busy[worker] = index
            for worker in self._wait(busy):
                index = busy.pop(worker)
                episodes[index] = worker.collect()
                if on_episode is not None:
                    on_episode(index, episodes[index])
        return [episodes[index] for index in range(len(requests))]

    def load_weights(self, policy: PreTrainedPolicy) -> None:
        """Let every worker act with these weights from now on."""
        for worker in self._workers:
            worker.load_weights(policy)

    def close(self) -> None:
        """Release all workers."""
        for worker in self._workers:
            worker.close()
