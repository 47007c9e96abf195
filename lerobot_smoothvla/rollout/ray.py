"""Workers that are Ray actors: on this machine, or wherever a Ray cluster has room.

They give the episodes of the serial worker, bit by bit on the same kind of CPU.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import ray
import torch
from lerobot.envs.configs import EnvConfig
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig
from lerobot.policies import PreTrainedPolicy
from lerobot.utils.import_utils import register_third_party_plugins
from torch import Tensor

from lerobot_smoothvla.envs.assets import prepare_libero
from lerobot_smoothvla.episode import Episode
from lerobot_smoothvla.processes import ONE_THREAD
from lerobot_smoothvla.rollout.engine import Actor, RolloutEngine, RolloutError, RolloutRequest
from lerobot_smoothvla.rollout.local import ActorRecipe, Simulators, rollout

_PLACED_WITHIN_S = 120.0
"""How long the loss of an actor may hold a run up, where the cluster has no other core for it."""


class RayWorker:
    """Runs requests in a Ray actor, with its own simulators and its own copy of the policy."""

    def __init__(
        self, env_config: EnvConfig, recipe: ActorRecipe, weights: ray.ObjectRef, gpu_share: float = 0.0
    ) -> None:
        """Ask for an actor with a core of its own.

        Args:
            env_config: LeRobot's environment config.
            recipe: Of the policy.
            weights: Its state, in the object store.
            gpu_share: Of a GPU, which Ray then lets it see; it sees none with 0.
        """
        actor_class = ray.remote(num_cpus=1, num_gpus=gpu_share)(_Remote)
        self._remote: Any = actor_class.remote(env_config, recipe, weights)

    def submit(self, request: RolloutRequest) -> None:
        """Send the request."""
        self.episode: ray.ObjectRef = self._remote.run.remote(request)

    def collect(self) -> Episode:
        """Wait for the episode.

        Raises:
            RolloutError: If the rollout failed in its actor, or the actor was lost.
        """
        try:
            return ray.get(self.episode)
        except ray.exceptions.RayTaskError as error:
            raise RolloutError(f"In its Ray actor: {error}", cause=error.cause) from None
        except ray.exceptions.RayError as error:
            raise RolloutError(f"Its Ray actor was lost: {error}", worker_lost=True) from None

    def load_weights(self, weights: ray.ObjectRef) -> None:
        """Let the actor fetch these weights before its next request."""
        self._remote.load_weights.remote(weights)

    def starts_within(self, seconds: float) -> bool:
        """Whether the cluster finds a core for it."""
        ready, _ = ray.wait([self._remote.is_there.remote()], timeout=seconds)
        return bool(ready)

    def kill(self) -> None:
        """End the actor at once."""
        ray.kill(self._remote)

    def close(self) -> None:
        """End the actor."""
        self.kill()


class _Remote:
    """What a Ray actor does."""

    def __init__(self, env_config: EnvConfig, recipe: ActorRecipe, weights: dict[str, Tensor]) -> None:
        torch.set_num_threads(1)
        if isinstance(env_config, LiberoEnvConfig):
            prepare_libero()  # Its node may be another than the learner's.
        register_third_party_plugins()
        self._simulators = Simulators(env_config)
        # What the object store hands out is read-only, and these will be written over.
        self._actor = recipe.build({name: tensor.clone() for name, tensor in weights.items()})

    def is_there(self) -> None:
        """Answers."""

    def run(self, request: RolloutRequest) -> Episode:
        return rollout(self._simulators, self._actor, request)

    def load_weights(self, weights: dict[str, Tensor]) -> None:
        self._actor.policy.load_state_dict(weights)


class RayEngine(RolloutEngine[RayWorker]):
    """Ray actors around one copy of the weights in each node's object store."""

    def __init__(
        self,
        env_config: EnvConfig,
        actor: Actor,
        n_workers: int,
        address: str | None = None,
        timeout_s: float = math.inf,
        device: str | None = None,
    ) -> None:
        """Join or start a cluster, and ask it for `n_workers` actors; it places them where a core is free.

        Args:
            env_config: LeRobot's environment config.
            actor: Whose weights, config and execution they start with. Its checkpoint's directory, where the
                processors are, has to be there on every node.
            n_workers: Actors, each of which takes a core.
            address: Of a cluster, as `ray.init` takes it; None starts one on this machine, on loopback.
            timeout_s: See `RolloutEngine`.
            device: On which they act; None for the actor's.

        Raises:
            ConnectionError: If there is no cluster at the address.
            ValueError: If it has fewer cores than actors are asked for, or no GPU for a policy on one.
        """
        device = device or actor.policy.config.device
        self._own = not ray.is_initialized()
        if self._own:
            _join(address, n_workers)
        try:
            share = _gpu_share(device, n_workers, ray.cluster_resources())
        except ValueError:
            self._leave()
            raise
        # Without a number: Ray shows an actor its own GPU alone.
        recipe = ActorRecipe.of(actor, torch.device(device).type)
        self._weights = _put(actor.policy)

        def worker() -> RayWorker:
            return RayWorker(env_config, recipe, self._weights, share)

        def another() -> RayWorker | None:
            new = worker()
            if new.starts_within(_PLACED_WITHIN_S):
                return new
            new.kill()
            return None

        super().__init__([worker() for _ in range(n_workers)], _wait_for_actors, another, timeout_s)

    def load_weights(self, policy: PreTrainedPolicy) -> None:
        """Put the weights into the object store once, and tell every actor."""
        self._weights = _put(policy)
        for worker in self._workers:
            worker.load_weights(self._weights)

    def close(self) -> None:
        """End the actors, and the cluster where it was started for them."""
        super().close()
        self._leave()

    def _leave(self) -> None:
        if self._own:
            ray.shutdown()


def _join(address: str | None, n_workers: int) -> None:
    """Join the cluster, or start one."""
    common: dict[str, Any] = {
        "runtime_env": {"env_vars": ONE_THREAD},
        "log_to_driver": False,
        "logging_level": "WARNING",
    }
    if address is not None:
        ray.init(address=address, **common)
    else:
        ray.init("local", num_cpus=n_workers, include_dashboard=False, **common)


def _gpu_share(device: str, n_workers: int, resources: Mapping[str, float]) -> float:
    """Of a GPU, for each actor: so that every core of the cluster could have one.

    Raises:
        ValueError: If the cluster has fewer cores than actors are asked for, or no GPU for a policy on one.
    """
    n_cores, n_gpus = (int(resources.get(name, 0)) for name in ("CPU", "GPU"))
    if n_workers > n_cores:
        raise ValueError(
            f"`n_workers` should be at most {n_cores}, the cores of the Ray cluster, got {n_workers}."
        )
    if not device.startswith("cuda"):
        return 0.0
    if n_gpus == 0:
        raise ValueError(
            f"A policy on '{device}' needs a GPU beside every worker, and the Ray cluster has none; pass "
            "--rollout.device=cpu."
        )
    return 1 / math.ceil(n_cores / n_gpus)


def _put(policy: PreTrainedPolicy) -> ray.ObjectRef:
    return ray.put({name: tensor.detach().cpu() for name, tensor in policy.state_dict().items()})


def _wait_for_actors(workers: Iterable[RayWorker], timeout_s: float) -> list[RayWorker]:
    workers = list(workers)
    timeout = None if math.isinf(timeout_s) else timeout_s
    ready, _ = ray.wait([worker.episode for worker in workers], timeout=timeout)
    return [worker for worker in workers if worker.episode in ready]
