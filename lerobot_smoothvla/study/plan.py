"""What a study trains, and on what it evaluates what it has trained.

Every stage is a command that a user would type; see `stages`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig

from lerobot_smoothvla.envs.shift import ShiftKind
from lerobot_smoothvla.evaluation.evaluate import EvaluationConfig
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
        "--algorithm.reward.combination=gated",
        "--algorithm.advantage=chunkwise",
    ),
}
"""Flags in which the arms of GRPO differ: success alone; the paper's sum; ours."""

GRPO = (
    "--algorithm.lr=3e-4",
    "--algorithm.epochs=4",
    "--algorithm.clip_low=0.2",
    "--algorithm.clip_high=0.2",
)
"""Flags that all of them share; docs/study.md says where they come from."""

FILTERED = (WARM_START, "success")
"""The arms that are also evaluated through the filters."""


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
        shifts: Conditions beside the plain one.
        filters: Beside none, of `filters`.
        horizon: Control steps of a rollout and of an evaluated episode; None for the suites' own.
    """

    suites: tuple[str, ...] = ("libero_object", "libero_spatial")
    trained: tuple[int, ...] = (0, 1, 2, 3)
    unseen: tuple[int, ...] = (5, 6, 7, 8)
    demonstrations: int = 24
    sft_steps: int = 2400
    iterations: int = 5
    n_groups: int = 16
    group_size: int = 8
    seeds: tuple[int, ...] = (1, 2, 3)
    episodes: int = 8
    unseen_episodes: int = 7
    shifts: tuple[ShiftKind, ...] = ("camera", "light", "arm", "placement")
    filters: tuple[str, ...] = ("exponential", "jerk_limited", "blend", "rtc")
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
        filters=("exponential",),
    ),
}


@dataclass
class StudyConfig:
    """Which study, and where.

    Attributes:
        size: `full` takes some ten hours of two cores, `smoke` twenty minutes.
        output_dir: Demonstrations, runs and evaluations; default `outputs/study/<size>`.
        results_dir: Table, episodes and page; default `<output_dir>/results`.
        n_workers: Processes at a time, one a core: of rollouts, or GRPO runs.
    """

    size: Literal["full", "smoke"] = "full"
    output_dir: Path | None = None
    results_dir: Path | None = None
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
        """Of everything that is made on the way."""
        return self.output_dir or Path("outputs/study") / self.size

    @property
    def results(self) -> Path:
        """Of what comes out."""
        return self.results_dir or self.directory / "results"


@dataclass(frozen=True)
class Condition:
    """On what is evaluated.

    Attributes:
        name: `trained`, `unseen`, or the kind of shift.
        env: Its tasks.
        evaluation: Its starts, and the shift of their scenes.
    """

    name: str
    env: LiberoEnvConfig = field(compare=False)
    evaluation: EvaluationConfig = field(compare=False)


@dataclass(frozen=True)
class Trial:
    """One evaluation of one checkpoint.

    Attributes:
        arm: `sft`, or a key of `ARMS`.
        seed: Of its training; 0 of the warm start, which there is one of.
        condition: On what.
        filter: A key of `filters`.
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
        return directory / "evaluations" / self.condition.name / self.filter / f"{self.arm}_{self.seed}"


def filters(directory: Path) -> dict[str, ActionFilterConfig]:
    """What answers the objection that a filter would do the same; limits are those of the demonstrations."""
    return {
        "none": NoFilterConfig(),
        "exponential": ExponentialFilterConfig(),
        "jerk_limited": JerkLimitConfig(demonstrations=directory / "dataset"),
        "blend": ChunkBlendConfig(),
        "rtc": RealTimeChunkingConfig(),
    }


def run_name(arm: str, seed: int) -> str:
    """Directory of a GRPO run in the study's."""
    return f"grpo/{arm}_{seed}"


def conditions(plan: Size) -> list[Condition]:
    """Trained tasks on held-out starts, the same in shifted scenes, and unseen tasks."""
    env, unseen = _env(plan, plan.trained), _env(plan, plan.unseen)
    trained = EvaluationConfig(n_episodes=plan.episodes)
    return [
        Condition("trained", env, trained),
        *(
            Condition(kind, env, EvaluationConfig(n_episodes=plan.episodes, shift=kind))
            for kind in plan.shifts
        ),
        Condition("unseen", unseen, EvaluationConfig(n_episodes=plan.unseen_episodes)),
    ]


def trials(plan: Size) -> list[Trial]:
    """All evaluations, those that share a condition and a filter beside one another."""
    policies = [(WARM_START, 0), *((arm, seed) for arm in ARMS for seed in plan.seeds)]
    found = [Trial(arm, seed, condition) for condition in conditions(plan) for arm, seed in policies]
    trained = conditions(plan)[0]
    return found + [
        Trial(arm, seed, trained, name) for name in plan.filters for arm, seed in policies if arm in FILTERED
    ]


def stages(config: StudyConfig) -> list[Stage]:
    """What makes the checkpoints, in their order."""
    plan, out = config.plan, config.directory
    workers = f"--n_workers={config.n_workers}"
    env = libero_flags(",".join(plan.suites), plan.trained, _PIXELS)
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
            "--tremor_std=0.1",
            "--speed_spread=0.3",
            workers,
        ],
        (out / "dataset").is_dir,
    )
    warm_start = sft_stage(out / WARM_START, dataset, plan.sft_steps, batch_size=32, seed=1)
    sizes = [f"--algorithm.n_groups={plan.n_groups}", f"--algorithm.group_size={plan.group_size}"]
    # Runs go beside one another, each in one process, as an update keeps no more than a core busy. Seed by
    # seed, so that a study that is stopped early has whole comparisons.
    horizon = [] if plan.horizon is None else [f"--env.episode_length={plan.horizon}"]
    grpo = [*env, *horizon, *GRPO, *sizes, "--n_workers=0"]
    return [demonstrations, warm_start] + [
        grpo_stage(
            run_name(arm, seed), out, out / WARM_START, plan.iterations, [*grpo, *flags, f"--seed={seed}"]
        )
        for seed in plan.seeds
        for arm, flags in ARMS.items()
    ]


def _env(plan: Size, task_ids: Sequence[int]) -> LiberoEnvConfig:
    return LiberoEnvConfig(
        task=",".join(plan.suites),
        task_ids=list(task_ids),
        episode_length=plan.horizon,
        observation_height=_PIXELS,
        observation_width=_PIXELS,
    )
