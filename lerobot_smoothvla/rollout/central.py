"""Rollouts whose policy acts in the learner, on the observations of all workers that wait for it.

For policies too large for a copy in every worker, which then holds simulators alone. Every episode has its
own source of noise, so it does not depend on the others but for the last bits of a batched network.
"""

import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection

import torch
from lerobot.envs.configs import EnvConfig
from lerobot.policies import PreTrainedPolicy

from lerobot_smoothvla.envs.chunked import Observation
from lerobot_smoothvla.episode import Episode
from lerobot_smoothvla.flow.noise import RowGenerators
from lerobot_smoothvla.rollout.engine import Actor, Decision, RolloutEngine, RolloutError, RolloutRequest
from lerobot_smoothvla.rollout.local import ProcessWorker, send, serve, wait_for_processes


@dataclass(frozen=True)
class Question:
    """What a worker sees, and would do something about.

    Attributes:
        observation: As for `Actor.model_input`, B = 1.
        instruction: The task string.
    """

    observation: Observation
    instruction: str


@dataclass(frozen=True)
class RemotePlayer:
    """Asks the learner at every policy call.

    Attributes:
        connection: To it.
        n_obs_steps: How many of the last control steps the policy looks at.
    """

    connection: Connection
    n_obs_steps: int

    def begin(self, request: RolloutRequest) -> Callable[[Observation, str], Decision]:
        """See `Player`; the learner knows the request."""

        def decide(observation: Observation, instruction: str) -> Decision:
            send(self.connection, Question(observation, instruction))
            return self.connection.recv()

        return decide


class CentralWorker(ProcessWorker):
    """A process with simulators alone.

    Attributes:
        request: That it runs.
        generator: What its policy calls draw from.
        question: That it waits for an answer to.
    """

    def __init__(self, env_config: EnvConfig, n_obs_steps: int, device: str) -> None:
        """Start the process.

        Args:
            env_config: LeRobot's environment config.
            n_obs_steps: Of the policy.
            device: Of the policy.
        """
        super().__init__(_ask, env_config, n_obs_steps)
        self.generator = torch.Generator(device)
        self.question: Question | None = None
        self._end: Episode | RolloutError | None = None

    def submit(self, request: RolloutRequest) -> None:
        """Send the request."""
        self.request = request
        self.generator.manual_seed(request.noise_seed)
        self._end = None
        super().submit(request)

    def load_weights(self, policy: PreTrainedPolicy) -> None:
        """Nothing: it has none."""

    def listen(self) -> None:
        """Take what it says, which is there: its `question` if there is one, else its end is near."""
        self.question = None
        try:
            said = self.connection.recv()
        except (EOFError, OSError):
            return
        if isinstance(said, Question):
            self.question = said
        else:
            self._end = said

    def _answer(self) -> Episode | RolloutError:
        if self._end is None:
            raise EOFError
        return self._end


def _ask(connection: Connection, env_config: EnvConfig, n_obs_steps: int) -> None:
    """What a worker process without a policy does."""
    serve(connection, env_config, RemotePlayer(connection, n_obs_steps), lambda: None)


class CentralEngine(RolloutEngine[CentralWorker]):
    """Worker processes around one policy."""

    def __init__(
        self, env_config: EnvConfig, actor: Actor, n_workers: int, timeout_s: float = math.inf
    ) -> None:
        """Start `n_workers` processes; each builds its simulators on first use.

        Args:
            env_config: LeRobot's environment config.
            actor: That acts, with the weights that it has at that moment.
            n_workers: Processes; one a core.
            timeout_s: See `RolloutEngine`.

        Raises:
            ValueError: If the actor has a filter, which remembers one episode.
        """
        if actor.action_filter is not None:
            raise ValueError("A filter acts on one episode; use --rollout.inference=worker with it.")
        self._actor = actor

        def worker() -> CentralWorker:
            return CentralWorker(env_config, actor.n_obs_steps, str(actor.policy.config.device))

        super().__init__([worker() for _ in range(n_workers)], self._serve, worker, timeout_s)

    def _serve(self, busy: Iterable[CentralWorker], timeout_s: float) -> list[CentralWorker]:
        """Answer questions until some of the workers have no more, or are gone."""
        workers, until = list(busy), time.monotonic() + timeout_s
        while ready := wait_for_processes(workers, max(0.0, until - time.monotonic())):
            for worker in ready:
                worker.listen()
            asking = [worker for worker in ready if worker.question is not None]
            for sampler in dict.fromkeys(worker.request.sampler for worker in asking):
                self._answer([worker for worker in asking if worker.request.sampler == sampler])
            if ended := [worker for worker in ready if worker.question is None]:
                return ended
        return []

    def _answer(self, asking: Sequence[CentralWorker]) -> None:
        """One policy call for workers that have the same sampler."""
        questions = [worker.question for worker in asking if worker.question is not None]
        observations = {
            key: torch.cat([question.observation[key] for question in questions])
            for key in questions[0].observation
        }
        decisions = self._actor.decide(
            observations,
            [question.instruction for question in questions],
            asking[0].request.sampler,
            RowGenerators([worker.generator for worker in asking]),
        )
        for worker, decision in zip(asking, decisions, strict=True):
            worker.send(decision)
