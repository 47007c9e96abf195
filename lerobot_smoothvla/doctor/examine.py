"""The doctor's visit: what to measure in which order, and what a failure leaves out."""

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from platform import python_version
from typing import Any

import torch
from lerobot.configs import PreTrainedConfig
from lerobot.envs.configs import EnvConfig
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig

from lerobot_smoothvla.checkpoint_loading import load_actor
from lerobot_smoothvla.doctor import checks, measure
from lerobot_smoothvla.doctor.checks import Check
from lerobot_smoothvla.envs.adapters import prepare_env
from lerobot_smoothvla.envs.assets import prepare_libero, require_gl
from lerobot_smoothvla.envs.tasks import has_init_states, require_init_states, selected_tasks
from lerobot_smoothvla.episode import Start
from lerobot_smoothvla.flow.adapters import adapter_class
from lerobot_smoothvla.flow.sampling import DeployedSampler
from lerobot_smoothvla.grpo.algorithm import GRPOAlgorithm
from lerobot_smoothvla.grpo.configuration import GRPOPipelineConfig
from lerobot_smoothvla.grpo.trainer import sample_starts
from lerobot_smoothvla.machine import machine_bytes, resident_bytes
from lerobot_smoothvla.rollout.engine import Actor, RolloutEngine, Sampler
from lerobot_smoothvla.rollout.local import make_engine

_PACKAGES = ("lerobot", "torch", "transformers", checks.DISTRIBUTION)
_LIBERO_PACKAGES = ("mujoco", "robosuite", "hf-libero")
_RATIO_CHUNKS = 4
_ON_THE_POLICY = ("precision", "first ratio")
_ON_ROLLOUTS = ("mixed groups", "exploration", "update", "time", "memory")
_EXPECTED = (ValueError, RuntimeError, OSError, ImportError)
"""What a part that does not work raises, out of memory and a worker's death among them."""


@dataclass(frozen=True)
class DoctorSizes:
    """How much the doctor rolls out, as deployed and once more exploring.

    Attributes:
        n_starts: Starts, among those of the run.
        group_size: Rollouts of each.
    """

    n_starts: int = 2
    group_size: int = 4

    def __post_init__(self) -> None:
        """Reject what cannot be compared.

        Raises:
            ValueError: If a number is too small.
        """
        for name, least in (("n_starts", 1), ("group_size", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"`doctor.{name}` should be at least {least}, got {getattr(self, name)}.")


@dataclass(kw_only=True)
class DoctorConfig(GRPOPipelineConfig):
    """A run of `smoothvla grpo`, and in `doctor` how closely to look at it."""

    doctor: DoctorSizes = field(default_factory=DoctorSizes)


def examine(config: DoctorConfig) -> Iterator[Check]:
    """Check after check, each as it is made; nothing is written and no weight changed.

    Args:
        config: With the policy's config.

    Returns:
        The checks to come.

    Raises:
        ValueError: At once, if the ratio does not suit the policy, or a task or initial state does not exist.
    """
    config.algorithm.estimator(config.policy)
    simulator = list(_simulator(config))
    works = all(check.verdict == "ok" for check in simulator)
    return _examine(config, simulator, _starts(config) if works else None)


def _simulator(config: DoctorConfig) -> Iterator[Check]:
    """Whether the environment can run here. Before LIBERO or MuJoCo is imported."""
    if isinstance(config.env, LiberoEnvConfig):
        yield _found("assets", lambda: f"LIBERO's at {prepare_libero(allow_download=False)}")
        yield _found("rendering", lambda: f"MuJoCo renders with {require_gl() or 'its default'}")
    else:
        yield _found("environment", lambda: _installed(config.env))


def _installed(config: EnvConfig) -> str:
    prepare_env(config)
    return f"what '{config.type}' needs is installed"


def _starts(config: DoctorConfig) -> list[Start]:
    tasks = selected_tasks(config.env)
    require_init_states(config.env, tasks, config.algorithm.init_states)
    few = replace(config.algorithm, n_groups=config.doctor.n_starts)
    return sample_starts(tasks, few, config.seed or 0, 0, has_init_states(config.env))


def _examine(config: DoctorConfig, simulator: list[Check], starts: list[Start] | None) -> Iterator[Check]:
    available, total = machine_bytes()
    packages = _PACKAGES + (_LIBERO_PACKAGES if isinstance(config.env, LiberoEnvConfig) else ())
    versions = {"python": python_version(), **measure.installed(packages)}
    yield checks.versions(versions, measure.uncompiled(("torch", "transformers")))
    yield checks.machine(
        device=config.policy.device,
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        n_cores=len(os.sched_getaffinity(0)),
        n_threads=torch.get_num_threads(),
        n_workers=config.n_workers,
        load=os.getloadavg()[0],
    )
    yield checks.plugin(measure.discovered_plugins(), list(PreTrainedConfig.get_known_choices()))
    yield from simulator
    actor = _attempt(lambda: _actor(config))
    if isinstance(actor, Exception):
        yield _failed("checkpoint", actor)
        yield from _skipped((*_ON_THE_POLICY, "rollouts", *_ON_ROLLOUTS), "the checkpoint")
        return
    yield from _policy(config, actor)
    if starts is None:
        yield from _skipped(("rollouts", *_ON_ROLLOUTS), "the simulator")
        return
    n_workers = min(config.n_workers, len(starts) * config.doctor.group_size)
    with closing(make_engine(config.env, actor, n_workers)) as engine:
        yield from _rollouts(config, actor, engine, n_workers, starts, (available, total))


def _actor(config: DoctorConfig) -> Actor:
    """The actor of the run: with its adapter, frozen parts and precision."""
    actor = load_actor(config.policy, config.peft, config.seed or 0)
    return GRPOAlgorithm(actor, config.algorithm).actor


def _policy(config: DoctorConfig, actor: Actor) -> Iterator[Check]:
    """What needs no simulator."""
    yield checks.checkpoint(config.policy.type, measure.parameters_by_part(actor.adapter))
    yield checks.precision(*measure.rounding(actor.adapter, config.algorithm.lr), config.algorithm.lr)
    estimator = config.algorithm.estimator(config.policy)
    deviation = _attempt(lambda: measure.ratio_deviation(actor, estimator, _RATIO_CHUNKS, config.seed or 0))
    if isinstance(deviation, Exception):
        yield _failed("first ratio", deviation)
    else:
        yield checks.first_ratio("first ratio", deviation, _RATIO_CHUNKS)


def _rollouts(
    config: DoctorConfig,
    actor: Actor,
    engine: RolloutEngine,
    n_workers: int,
    starts: Sequence[Start],
    memory: tuple[int, int],
) -> Iterator[Check]:
    """What needs rollouts: the run's own, and others from the same starts to compare and to time."""
    size = config.doctor.group_size
    estimator = config.algorithm.estimator(config.policy)
    own = _attempt(lambda: measure.roll_out(engine, starts, estimator, size, "rollouts of the run"))
    if isinstance(own, Exception):
        yield _failed("rollouts", own)
        yield from _skipped(_ON_ROLLOUTS, "the rollouts")
        return
    steps = own.steps / own.outcome.n
    finding = f"{own.outcome} (n = {own.outcome.n} on the run's own starts, {steps:.0f} control steps each)"
    yield Check("rollouts", "ok", finding, numbers={**vars(own.outcome), "steps": steps})
    successes = [[episode.success for episode in group] for group in own.groups]
    yield checks.mixed_groups(successes, config.algorithm.reward.weight)

    other = _attempt(
        lambda: measure.roll_out(engine, starts, _comparison(config), size, "rollouts to compare with")
    )
    yield _exploration(config, own, other)
    # By now the workers have built their simulators, so the second rollouts show the speed.
    warm = own if isinstance(other, Exception) else other
    yield from _costs(config, actor, own, warm.steps / warm.wall_s, n_workers, memory)


def _costs(
    config: DoctorConfig,
    actor: Actor,
    own: measure.Rollouts,
    steps_per_s: float,
    n_workers: int,
    memory: tuple[int, int],
) -> Iterator[Check]:
    """What the run will take, from an update on the rollouts while the workers are there."""
    algorithm = config.algorithm
    update = _attempt(lambda: measure.update(actor, algorithm, own.groups))
    if isinstance(update, Exception):
        yield _failed("update", update, "If memory ran out: a smaller --algorithm.microbatch_size.")
        yield from _skipped(("time", "memory"), "the update")
        return
    yield checks.first_ratio("update", {"rollouts replayed": update.ratio_deviation}, update.n_chunks)
    worker_bytes, server_bytes = measure.bytes_of_workers()
    cost = checks.Cost(
        steps_per_s=steps_per_s * max(config.n_workers, 1) / max(n_workers, 1),
        startup_s=max(own.wall_s - own.steps / steps_per_s, 0.0),
        steps=own.steps / own.outcome.n,
        chunks=sum(len(episode.executed) for episode in own.episodes) / own.outcome.n,
        chunk_s=update.chunk_s,
        update_chunks=update.n_chunks,
        update_bytes=update.n_bytes,
        worker_bytes=worker_bytes,
        server_bytes=server_bytes,
        learner_bytes=resident_bytes("self", peak=True),
        episode_bytes=own.episode_bytes,
    )
    run = checks.Run(
        steps=config.steps,
        episodes=algorithm.n_groups * algorithm.group_size,
        epochs=algorithm.epochs,
        microbatch_size=algorithm.microbatch_size,
        n_workers=config.n_workers,
    )
    yield checks.time(cost, run)
    yield checks.memory(cost, run, *memory)
    if torch.device(config.policy.device).type == "cuda":
        free, total = torch.cuda.mem_get_info(config.policy.device)
        yield checks.gpu_memory(total - free, total, update.n_chunks, algorithm.microbatch_size)


def _explores(config: DoctorConfig) -> bool:
    """Whether the run's rollouts are others than the deployed ones."""
    return config.algorithm.ratio_for(config.policy) != "flow_matching"


def _exact_ratio(config: DoctorConfig) -> str:
    """The exact ratio that suits the policy."""
    return next(ratio for ratio in adapter_class(config.policy).ratios if ratio != "flow_matching")


def _comparison(config: DoctorConfig) -> Sampler:
    """What is deployed where the run explores, else the exploration that it could have chosen.

    Raises:
        ValueError: If the policy's settings do not allow that one.
    """
    if _explores(config):
        return DeployedSampler()
    exact: Any = _exact_ratio(config)
    return replace(config.algorithm, ratio=exact).estimator(config.policy)


def _exploration(config: DoctorConfig, own: measure.Rollouts, other: measure.Rollouts | Exception) -> Check:
    ratio = _exact_ratio(config)
    if isinstance(other, Exception):
        if _explores(config):
            return _failed("exploration", other)
        finding = f"no gap: flow_matching rolls out what is deployed. {ratio} cannot be compared: {other}"
        return Check("exploration", "ok", finding)
    deployed, exploring = (other, own) if _explores(config) else (own, other)
    return checks.exploration(deployed.outcome, exploring.outcome, ratio, _explores(config))


def _attempt[T](part: Callable[[], T]) -> T | Exception:
    try:
        return part()
    except _EXPECTED as error:
        return error


def _found(name: str, part: Callable[[], str]) -> Check:
    """What `part` returns, or fails with."""
    finding = _attempt(part)
    return _failed(name, finding) if isinstance(finding, Exception) else Check(name, "ok", finding)


def _failed(name: str, error: Exception, advice: str = "") -> Check:
    return Check(name, "fail", " ".join(str(error).split()) or type(error).__name__, advice)


def _skipped(names: Iterable[str], without: str) -> Iterator[Check]:
    for name in names:
        yield Check(name, "skip", f"not looked at without {without}")
