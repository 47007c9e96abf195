"""What a study trains, and on what it evaluates what it has trained.

Every stage is a command that a user would type; see `stages`.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig

from lerobot_smoothvla.envs.shift import ShiftKind
from lerobot_smoothvla.evaluation.evaluate import EvaluationConfig
from lerobot_smoothvla.evaluation.report import EVAL_INFO
from lerobot_smoothvla.filters.configuration import (
    ActionFilterConfig,
    ChunkBlendConfig,
    ExponentialFilterConfig,
    JerkLimitConfig,
    NoFilterConfig,
    RealTimeChunkingConfig,
)
from lerobot_smoothvla.stages import LAST, Stage, grpo_stage, libero_flags, program, sft_stage

WARM_START = "sft"
LIMITS = "limits.json"
_PIXELS = 64
"""What the policy scales every image to."""

ARMS: dict[str, tuple[str, ...]] = {
    "success": ("--algorithm.reward.weight=0",),
    "sum": (
        "--algorithm.reward.weight=0.5",
        "--algorithm.reward.combination=sum",
        "--algorithm.advantage=joint",
    ),
    "smooth": (
        "--algorithm.reward.weight=2",
        "--algorithm.reward.signal=ldlj",
        "--algorithm.reward.combination=gated",
        "--algorithm.advantage=counterfactual",
    ),
    "best": (
        "--algorithm.reward.weight=2",
        "--algorithm.reward.signal=ldlj",
        "--algorithm.reward.combination=gated",
        "--algorithm.advantage=best_draw",
    ),
}
"""Flags in which the arms of GRPO differ: success alone; the paper's sum; ours, by advantage or imitation."""

GRPO = (
    "--algorithm.lr=1e-4",
    "--algorithm.lr_schedule=linear",
    "--algorithm.freeze=[vision,vlm]",
    "--algorithm.epochs=4",
    "--algorithm.clip_low=0.2",
    "--algorithm.clip_high=0.2",
)
"""Flags that all of them share; docs/study.md says where they come from."""

FILTERS: dict[str, type[ActionFilterConfig]] = {
    "none": NoFilterConfig,
    "exponential": ExponentialFilterConfig,
    "jerk_limited": JerkLimitConfig,
    "blend": ChunkBlendConfig,
    "rtc": RealTimeChunkingConfig,
}
_ALL = tuple(name for name in FILTERS if name != "none")
FILTERED: dict[str, tuple[str, ...]] = {WARM_START: _ALL, "success": _ALL, "best": ("blend",)}
"""The arms that are also evaluated through filters."""


@dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes:
        suites: LIBERO's.
        trained: Task ids, of every suite.
        unseen: Task ids that are only evaluated on.
        demonstrations: Per task.
        sft_steps: Updates of the warm start.
        iterations: Of GRPO.
        n_groups: Starts an iteration.
        group_size: Rollouts of a start.
        seeds: Of GRPO, for every arm.
        episodes: Of an evaluation, per trained task.
        unseen_episodes: Per unseen task.
        shifts: Kinds of them, each on starts of its own.
        shift_episodes: Per trained task and kind.
        filters: Beside none, of `FILTERS`.
        horizon: Control steps of a rollout and of an evaluated episode; None for the suites' own.
    """

    suites: tuple[str, ...] = ("libero_object", "libero_spatial")
    trained: tuple[int, ...] = (0, 1, 2, 3)
    unseen: tuple[int, ...] = (5, 6, 7, 8)
    demonstrations: int = 16
    sft_steps: int = 2400
    iterations: int = 5
    n_groups: int = 16
    group_size: int = 4
    seeds: tuple[int, ...] = (1, 2, 3)
    episodes: int = 8
    unseen_episodes: int = 7
    shifts: tuple[ShiftKind, ...] = ("camera", "light", "arm", "placement")
    shift_episodes: int = 2
    filters: tuple[str, ...] = _ALL
    horizon: int | None = None


SIZES = {
    "full": Size(),
    "smoke": Size(
        suites=("libero_object",),
        trained=(0,),
        unseen=(1,),
        demonstrations=4,
        sft_steps=120,
        iterations=1,
        n_groups=1,
        group_size=4,
        seeds=(1,),
        episodes=2,
        unseen_episodes=1,
        shifts=("camera",),
        shift_episodes=1,
        filters=("exponential",),
    ),
}


@dataclass
class StudyConfig:
    """Which study, and where.

    Attributes:
        size: `full` takes some ten hours of two cores, `smoke` five minutes.
        output_dir: All of it, from demonstrations to tables; default `outputs/study/<size>`.
        n_workers: Processes at a time, one a core: of rollouts, or GRPO runs.
    """

    size: Literal["full", "smoke"] = "full"
    output_dir: Path | None = None
    n_workers: int = 2

    def __post_init__(self) -> None:
        """Reject a size that does not exist."""
        if self.size not in SIZES:
            raise ValueError(f"`size` should be one of {', '.join(SIZES)}, got '{self.size}'.")

    @property
    def plan(self) -> Size:
        """How much of everything."""
        return SIZES[self.size]

    @property
    def directory(self) -> Path:
        """Of everything."""
        return self.output_dir or Path("outputs/study") / self.size


@dataclass(frozen=True)
class Condition:
    """On what is evaluated.

    Attributes:
        name: `trained`, `shifted` or `unseen`.
        env: Its tasks.
        evaluation: Its starts, and the shift of their scenes.
    """

    name: str
    env: LiberoEnvConfig = field(compare=False)
    evaluation: EvaluationConfig

    @property
    def kind(self) -> str:
        """Its name, or that of its shift: several of them make the condition `shifted`."""
        return self.name if self.evaluation.shift == "none" else self.evaluation.shift


@dataclass(frozen=True)
class Trial:
    """One evaluation of one checkpoint.

    Attributes:
        arm: `sft`, or a key of `ARMS`.
        seed: Of its training; 0 of the warm start, which there is one of.
        condition: On what.
        filter: A key of `FILTERS`.
    """

    arm: str
    seed: int
    condition: Condition
    filter: str = "none"

    def checkpoint(self, directory: Path) -> Path:
        """What is evaluated."""
        run = WARM_START if self.arm == WARM_START else run_name(self.arm, self.seed)
        return directory / run / LAST

    def output_dir(self, directory: Path) -> Path:
        """Where its `eval_info.json` is."""
        return directory / "evaluations" / self.condition.kind / self.filter / f"{self.arm}_{self.seed}"


def action_filter(name: str, config: "StudyConfig") -> ActionFilterConfig:
    """What answers the objection that a filter would do the same.

    Limits are those of the demonstrations, kept in a file, as the demonstrations need not be kept.
    """
    if name != "jerk_limited":
        return FILTERS[name]()
    kept = config.directory / LIMITS
    if not kept.is_file():
        found = JerkLimitConfig(demonstrations=config.directory / "dataset").limits(_env(config.plan, (0,)))
        limits = {"max_acceleration": found.acceleration, "max_jerk": found.jerk}
        kept.write_text(json.dumps(limits) + "\n")
    return JerkLimitConfig(**json.loads(kept.read_text()))


def run_name(arm: str, seed: int) -> str:
    """Directory of a GRPO run in the study's."""
    return f"grpo/{arm}_{seed}"


def conditions(plan: Size) -> list[Condition]:
    """Trained tasks on held-out starts, the same in shifted scenes, and unseen tasks."""
    env, unseen = _env(plan, plan.trained), _env(plan, plan.unseen)
    trained = EvaluationConfig(n_episodes=plan.episodes)
    first, n = trained.init_states[0], plan.shift_episodes
    states = [(first + index * n, first + (index + 1) * n) for index in range(len(plan.shifts))]
    return [
        Condition("trained", env, trained),
        *(
            Condition("shifted", env, EvaluationConfig(init_states=of_kind, shift=kind))
            for kind, of_kind in zip(plan.shifts, states, strict=True)
        ),
        Condition("unseen", unseen, EvaluationConfig(n_episodes=plan.unseen_episodes)),
    ]


def trials(plan: Size) -> list[Trial]:
    """All evaluations, those that share scenes and a filter beside one another."""
    policies = [(WARM_START, 0), *((arm, seed) for arm in ARMS for seed in plan.seeds)]
    found = [Trial(arm, seed, condition) for condition in conditions(plan) for arm, seed in policies]
    trained = conditions(plan)[0]
    return found + [
        Trial(arm, seed, trained, name)
        for name in plan.filters
        for arm, seed in policies
        if name in FILTERED.get(arm, ())
    ]


def missing(planned: Sequence[Trial], directory: Path) -> list[Trial]:
    """Trials whose result is not there."""
    return [t for t in planned if not (t.output_dir(directory) / EVAL_INFO).is_file()]


def stages(config: StudyConfig, seeds: Sequence[int] | None = None) -> list[Stage]:
    """What makes the checkpoints, in their order.

    What is no longer needed counts as done: demonstrations that were learned from, runs that were evaluated.

    Args:
        config: Of the study.
        seeds: Of GRPO; None for all.
    """
    plan, out = config.plan, config.directory
    workers = f"--n_workers={config.n_workers}"
    tasks = ",".join(plan.suites), plan.trained, _PIXELS
    env = libero_flags(*tasks)
    dataset = ["--dataset.repo_id=smoothvla/study", f"--dataset.root={out / 'dataset'}"]
    demonstrations = Stage(
        "dataset",
        [
            program("smoothvla"),
            "demos",
            *env,
            *dataset,
            "--dataset.video=false",
            f"--episodes_per_task={plan.demonstrations}",
            "--jerky_share=0.5",
            "--speed_spread=0.3",
            workers,
        ],
        lambda: (out / "dataset").is_dir() or ((out / LIMITS).is_file() and warm_start.done()),
    )
    warm_start = sft_stage(out / WARM_START, dataset, plan.sft_steps, batch_size=32, seed=1)
    sizes = [f"--algorithm.n_groups={plan.n_groups}", f"--algorithm.group_size={plan.group_size}"]
    # Runs go beside one another, each in one process, as an update keeps no more than a core busy.
    grpo = [*libero_flags(*tasks, plan.horizon), *GRPO, *sizes, "--n_workers=0"]
    return [demonstrations, warm_start] + [
        _unless_evaluated(
            grpo_stage(
                run_name(arm, seed), out, out / WARM_START, plan.iterations, [*grpo, *flags, f"--seed={seed}"]
            ),
            [trial for trial in trials(plan) if (trial.arm, trial.seed) == (arm, seed)],
            out,
        )
        for seed in seeds or plan.seeds
        for arm, flags in ARMS.items()
    ]


def _unless_evaluated(stage: Stage, of_run: Sequence[Trial], directory: Path) -> Stage:
    return replace(stage, done=lambda: stage.done() or not missing(of_run, directory))


def _env(plan: Size, task_ids: Sequence[int]) -> LiberoEnvConfig:
    return LiberoEnvConfig(
        task=",".join(plan.suites),
        task_ids=list(task_ids),
        episode_length=plan.horizon,
        observation_height=_PIXELS,
        observation_width=_PIXELS,
    )
