"""Workers on this machine: in this process, or one process each.

The serial worker is the oracle: the processes give the same episodes, bit by bit.
"""

import math
import os
import pickle
import signal
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from typing import Any, Self

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.envs.configs import EnvConfig
from lerobot.policies import PreTrainedPolicy, get_policy_class, make_pre_post_processors
from lerobot.processor.pipeline import ProcessorMigrationError
from lerobot.utils.import_utils import register_third_party_plugins
from lerobot.utils.io_utils import write_video
from torch import Tensor

from lerobot_smoothvla.checkpoint_safety import UNREADABLE, require_safe_processors, said
from lerobot_smoothvla.envs.chunked import ChunkedEnv, Picture
from lerobot_smoothvla.envs.tasks import chunked_env
from lerobot_smoothvla.episode import Episode, Task
from lerobot_smoothvla.filters.guard import MotionGuardStep
from lerobot_smoothvla.filters.steps import ActionFilterStep
from lerobot_smoothvla.flow.adapters.execution import Execution
from lerobot_smoothvla.peft_loading import adapter_of, with_structure
from lerobot_smoothvla.processes import ONE_THREAD, in_environment, started_with, worker_context
from lerobot_smoothvla.rollout import stock
from lerobot_smoothvla.rollout.configuration import RolloutConfig
from lerobot_smoothvla.rollout.engine import (
    SIMULATORS,
    Actor,
    Player,
    RolloutEngine,
    RolloutError,
    RolloutRequest,
    run_episode,
)

_A_DAY_S = 86_400.0
"""As long as one wait lasts at most: the system counts its milliseconds in 32 bits."""
_ALIGNMENT = 64
"""Of weights in shared memory, bytes, as torch has it elsewhere."""


@dataclass
class Simulators:
    """The simulators of one worker: those that it shares, else its own, built on first use.

    Attributes:
        config: LeRobot's environment config.
        limit: Of its own kept at once, the least recently used makes room; one of LIBERO takes a gigabyte.
    """

    config: EnvConfig
    limit: int = SIMULATORS
    _envs: OrderedDict[Task, ChunkedEnv] = field(default_factory=OrderedDict)

    def get(self, suite: str, task_id: int) -> ChunkedEnv:
        """The environment of a task."""
        key = (suite, task_id)
        if shared := stock.take(self.config, key):
            return shared
        if key not in self._envs:
            if len(self._envs) >= self.limit:
                self._envs.popitem(last=False)[1].close()
            self._envs[key] = chunked_env(self.config, suite, task_id)
        self._envs.move_to_end(key)
        return self._envs[key]

    def close(self) -> None:
        """Close its own."""
        while self._envs:
            self._envs.popitem()[1].close()


def rollout(simulators: Simulators, player: Player, request: RolloutRequest) -> Episode:
    """Run one request, with its video if it wants one."""
    env = simulators.get(*request.start.task)
    if request.video is None:
        return run_episode(env, player, request)
    frames: list[Picture] = []
    episode = run_episode(env, player, request, frames.append)
    request.video.parent.mkdir(parents=True, exist_ok=True)
    write_video(str(request.video), frames, fps=round(1 / env.dt))
    return episode


class SerialWorker:
    """Runs requests in this process."""

    def __init__(self, env_config: EnvConfig, actor: Actor) -> None:
        """Prepare; no simulator is built before the first request."""
        self._simulators = Simulators(env_config)
        self._actor = actor
        self._request: RolloutRequest | None = None

    def submit(self, request: RolloutRequest) -> None:
        """Keep the request for `collect`."""
        self._request = request

    def collect(self) -> Episode:
        """Run the submitted request, on one thread as the processes do: more could change the last bits.

        Raises:
            RolloutError: If it fails.
        """
        assert self._request is not None
        n_threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            return rollout(self._simulators, self._actor, self._request)
        except Exception as error:
            raise RolloutError(f"{type(error).__name__}: {error}", cause=error) from error
        finally:
            torch.set_num_threads(n_threads)

    def load_weights(self, policy: PreTrainedPolicy) -> None:
        """Copy the weights, unless the policy is the actor's own."""
        if policy is not self._actor.policy:
            self._actor.policy.load_state_dict(policy.state_dict())

    def kill(self) -> None:
        """Nothing: it answers before anybody waits for it."""

    def close(self) -> None:
        """Close the simulators."""
        self._simulators.close()


@dataclass(frozen=True)
class ActorRecipe:
    """What another process needs, beside the weights, to build the same actor.

    Attributes:
        config: Of the policy, with `pretrained_path`, where the processors are loaded from.
        peft: The `peft.PeftConfig` that the policy is wrapped with, or None.
        execution: How its networks are run.
        action_filter: What its actions go through, or None.
    """

    config: PreTrainedConfig
    peft: Any
    execution: Execution
    action_filter: ActionFilterStep | None

    @classmethod
    def of(cls, actor: Actor, device: str | None = None) -> Self:
        """The recipe of an actor, for another device than that of its config where one is given."""
        config = copy(actor.policy.config)
        config.device = device or config.device
        return cls(config, adapter_of(actor.policy), actor.execution, actor.action_filter)

    def build(self, weights: dict[str, Tensor]) -> Actor:
        """The actor with these weights, in their types; on the CPU it shares their memory."""
        policy = with_structure(get_policy_class(self.config.type)(self.config), self.peft)
        policy.load_state_dict(weights, assign=True)
        actor = make_actor(self.config, policy)
        return replace(actor, execution=self.execution, action_filter=self.action_filter)


class ProcessWorker:
    """Runs requests in a process of its own, with its own simulators."""

    def __init__(self, serve: Callable[..., None], *arguments: Any, device: str = "cpu") -> None:
        """Start the process.

        Args:
            serve: What it does, given its end of the connection and `arguments`, until that is closed.
            arguments: Of `serve`.
            device: On which it computes.
        """
        context = worker_context(device)
        self.connection, child = context.Pipe()
        with started_with(ONE_THREAD):
            does = (dict(os.environ), serve, child, *arguments)
            self._process = context.Process(target=in_environment, args=does, daemon=True)
            self._process.start()
        child.close()

    def submit(self, request: RolloutRequest) -> None:
        """Send the request."""
        self.send(request)

    def collect(self) -> Episode:
        """Wait for the episode.

        Raises:
            RolloutError: If the rollout failed in the worker, or the worker died.
        """
        try:
            answer = self._answer()
        except (EOFError, OSError):
            self._process.join(5)
            raise RolloutError(
                f"Its worker died (exit code {self._process.exitcode}). With 1 its own error stands above; "
                "with -9 it was killed: for memory, then use fewer workers (--n_workers), or as it hung.",
                worker_lost=True,
            ) from None
        if isinstance(answer, RolloutError):
            raise answer
        return answer

    def load_weights(self, policy: PreTrainedPolicy) -> None:
        """Tell the process to read the shared weights, which the caller has updated."""
        self.send("load_weights")

    def kill(self) -> None:
        """End the process at once."""
        self._process.kill()

    def close(self) -> None:
        """End the process."""
        self.connection.close()
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()

    def send(self, message: Any) -> None:
        """To a process that may be gone, which `collect` will find."""
        with suppress(OSError):
            send(self.connection, message)

    def _answer(self) -> Episode | RolloutError:
        return self.connection.recv()


class SharedWeights:
    """A state dict in one block of shared memory, which another process gets as a single file descriptor.

    Names and places are in the block, too: starting a process waits for whatever its pipe cannot hold (64
    KiB, less than the names of a large policy's weights) until that has imported, and for ever if it dies.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        """Take a copy."""
        places: list[tuple[str, int, torch.dtype, torch.Size]] = []
        end = 0
        for name, value in weights.items():
            places.append((name, end, value.dtype, value.shape))
            end += -(-value.nbytes // _ALIGNMENT) * _ALIGNMENT
        index = torch.frombuffer(bytearray(pickle.dumps(places)), dtype=torch.uint8)
        self._end = end
        self._memory = torch.empty(end + len(index), dtype=torch.uint8).share_memory_()
        self._memory[end:] = index
        self.write(weights)

    def write(self, weights: Mapping[str, Tensor]) -> None:
        """Copy other weights of the same policy into it."""
        for name, value in self.tensors().items():
            value.copy_(weights[name])

    def tensors(self) -> dict[str, Tensor]:
        """The state dict, in the shared memory."""
        places = pickle.loads(self._memory[self._end :].numpy().tobytes())
        return {
            name: self._memory[begin : begin + shape.numel() * dtype.itemsize].view(dtype).view(shape)
            for name, begin, dtype, shape in places
        }


def _act(connection: Connection, env_config: EnvConfig, recipe: ActorRecipe, weights: SharedWeights) -> None:
    """What a worker process with a policy does."""
    register_third_party_plugins()  # The policy's adapter may be one's; the config's module need not know it.
    actor = recipe.build(weights.tensors())
    serve(connection, env_config, actor, lambda: actor.policy.load_state_dict(weights.tensors()))


def serve(
    connection: Connection, env_config: EnvConfig, player: Player, load_weights: Callable[[], Any]
) -> None:
    """Roll out what is asked for, until the connection is closed.

    Args:
        connection: To whoever asks.
        env_config: LeRobot's environment config.
        player: Of the policy.
        load_weights: Called where the policy is to act with new weights.
    """
    # Ctrl-C and a closed terminal reach the whole process group; the parent decides what ends when.
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    torch.set_num_threads(1)
    simulators = Simulators(env_config)
    while True:
        try:
            request = connection.recv()
        except EOFError:
            simulators.close()
            return
        if request == "load_weights":
            load_weights()
            continue
        try:
            answer: Episode | RolloutError = rollout(simulators, player, request)
        except Exception as error:
            answer = RolloutError(f"In its worker process: {traceback.format_exc()}", cause=error)
        send(connection, answer)


def send(connection: Connection, message: Any) -> None:
    """As `connection.send`, but by value: that passes tensors as file descriptors, too few for a long run.

    And where the connection is broken, CPython 3.12 can crash when it collects what `send` left behind.
    """
    connection.send_bytes(pickle.dumps(message))


def make_actor(config: PreTrainedConfig, policy: PreTrainedPolicy) -> Actor:
    """A policy of this config in evaluation mode, with the processors saved beside its checkpoint.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If they are not safe, or none that LeRobot can make.
    """
    path, revision = str(config.pretrained_path), config.pretrained_revision
    require_safe_processors(path, revision)
    try:
        preprocessor, postprocessor = make_pre_post_processors(
            config,
            pretrained_path=path,
            pretrained_revision=revision,
            preprocessor_overrides={"device_processor": {"device": config.device}},
        )
    except (ProcessorMigrationError, ValueError, *UNREADABLE) as error:
        raise ValueError(f"The processors of '{path}' cannot be made: {said(error)}") from error
    return Actor(policy.to(config.device).eval(), preprocessor, postprocessor)


class ProcessEngine(RolloutEngine[ProcessWorker]):
    """Worker processes around one copy of the weights in shared memory."""

    def __init__(
        self,
        env_config: EnvConfig,
        actor: Actor,
        n_workers: int,
        timeout_s: float = math.inf,
        device: str | None = None,
    ) -> None:
        """Start `n_workers` processes; each builds its simulators on first use.

        Args:
            env_config: LeRobot's environment config.
            actor: Whose weights, config and execution they start with.
            n_workers: Processes; one a core.
            timeout_s: See `RolloutEngine`.
            device: On which they act; None for the actor's.
        """
        policy = actor.policy
        self._shared = SharedWeights(policy.state_dict())
        # With its number: where a launcher has given each of its processes a GPU, `cuda` is that one there
        # and the first one in a process of theirs.
        recipe = ActorRecipe.of(actor, device or str(next(policy.parameters()).device))

        def worker() -> ProcessWorker:
            return ProcessWorker(_act, env_config, recipe, self._shared, device=str(recipe.config.device))

        super().__init__([worker() for _ in range(n_workers)], wait_for_processes, worker, timeout_s)

    def load_weights(self, policy: PreTrainedPolicy) -> None:
        """Write the weights to shared memory once, and tell every worker."""
        self._shared.write(policy.state_dict())
        super().load_weights(policy)

    def close(self) -> None:
        """End all processes, at the same time."""
        for worker in self._workers:
            worker.connection.close()
        super().close()


def make_engine(
    env_config: EnvConfig, actor: Actor, n_workers: int, config: RolloutConfig | None = None
) -> RolloutEngine[Any]:
    """An engine with `n_workers` processes, or with the serial worker in this process for 0.

    Args:
        env_config: LeRobot's environment config.
        actor: Whose weights, config and execution it starts with.
        n_workers: Processes; one a core.
        config: Where they are; None for this machine.

    Raises:
        ValueError: If the policy acts behind a guard, which counts on every action being executed on an arm.
    """
    if any(isinstance(step, MotionGuardStep) for step in actor.postprocessor.steps):
        raise ValueError(
            f"The checkpoint '{actor.policy.config.pretrained_path}' has a motion guard, which is for an "
            "arm; take the one that it was exported from. --filter.type=jerk_limited has such limits."
        )
    config = config or RolloutConfig()
    if config.backend == "ray":
        if config.address is None:
            # Whatever its name says: with it, Ray's own cluster listens on loopback alone. Read on import.
            os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        from lerobot_smoothvla.rollout.ray import RayEngine

        return RayEngine(env_config, actor, n_workers, config.address, config.timeout_s, config.device)
    if n_workers == 0:
        return RolloutEngine([SerialWorker(env_config, actor)])
    with started_with(stock.order(env_config)):
        if config.inference == "central":
            from lerobot_smoothvla.rollout.central import CentralEngine

            return CentralEngine(env_config, actor, n_workers, config.timeout_s)
        return ProcessEngine(env_config, actor, n_workers, config.timeout_s, config.device)


def wait_for_processes[W: ProcessWorker](workers: Iterable[W], timeout_s: float) -> list[W]:
    """Those of the workers that have sent something, or are gone, within the time; none if there is none."""
    workers = list(workers)
    ready = wait([worker.connection for worker in workers], min(timeout_s, _A_DAY_S))
    return [worker for worker in workers if worker.connection in ready]
