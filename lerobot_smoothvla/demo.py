"""The whole path on real LIBERO: demonstrations → `lerobot-train` → `smoothvla grpo` → comparison.

Every stage is the command that a user would type; see `stages`.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lerobot_smoothvla.locking import sole_writer
from lerobot_smoothvla.settings import require_same, settings_of
from lerobot_smoothvla.stages import LAST, Stage, grpo_stage, libero_flags, program, run_stages, sft_stage

SETTINGS = "settings.json"
_MAY_DIFFER = ("output_dir", "n_workers")


@dataclass
class DemoConfig:
    """Sizes for at most 30 minutes on two cores; smaller ones make a smoke test.

    Attributes:
        output_dir: Datasets, checkpoints, videos and `summary.json`.
        task: LIBERO suite.
        task_ids: Tasks of it.
        image_size: Rendered pixels.
        demonstrations: Per task.
        sft_steps: Updates of the supervised training.
        sft_batch_size: Observations an update.
        grpo_steps: GRPO iterations.
        n_groups: Starts an iteration.
        group_size: Rollouts of a start.
        eval_episodes: Held-out starts per task.
        horizon: Control steps of GRPO's and evaluation's episodes; None for the suite's.
        n_workers: Processes.
        seed: Of training, GRPO and evaluation.
    """

    output_dir: Path = Path("outputs/demo")
    task: str = "libero_object"
    task_ids: list[int] = field(default_factory=lambda: [0])
    image_size: int = 128
    demonstrations: int = 24
    sft_steps: int = 800
    sft_batch_size: int = 32
    grpo_steps: int = 3
    n_groups: int = 4
    group_size: int = 8
    eval_episodes: int = 20
    horizon: int | None = None
    n_workers: int = 2
    seed: int = 1


def stages(config: DemoConfig) -> list[Stage]:
    """The demo's stages, in their order."""
    out, smoothvla, workers = config.output_dir, program("smoothvla"), f"--n_workers={config.n_workers}"
    env = libero_flags(config.task, config.task_ids, config.image_size)
    dataset = [f"--dataset.repo_id=smoothvla/{config.task}_demo", f"--dataset.root={out / 'dataset'}"]
    rollouts = libero_flags(config.task, config.task_ids, config.image_size, config.horizon)
    grpo = [
        *rollouts,
        f"--algorithm.n_groups={config.n_groups}",
        f"--algorithm.group_size={config.group_size}",
        f"--seed={config.seed}",
        workers,
    ]
    return [
        Stage(
            "dataset",
            [smoothvla, "demos", *env, *dataset, f"--episodes_per_task={config.demonstrations}", workers],
            (out / "dataset").is_dir,
        ),
        sft_stage(out / "sft", dataset, config.sft_steps, config.sft_batch_size, config.seed),
        grpo_stage("grpo", out, out / "sft", config.grpo_steps, grpo),
        Stage(
            "evaluation",
            [
                smoothvla,
                "eval",
                *rollouts,
                f"--policy.path={out / 'grpo' / LAST}",
                f"--compare.path={out / 'sft' / LAST}",
                f"--output_dir={out / 'evaluation'}",
                f"--eval.n_episodes={config.eval_episodes}",
                f"--eval.n_workers={config.n_workers}",
                "--eval.n_videos=1",
            ],
            (out / "evaluation" / "eval_info.json").is_file,
        ),
    ]


def run(config: DemoConfig) -> Path:
    """Run what is not done yet and sum it up.

    Returns:
        `summary.json`.

    Raises:
        ChildProcessError: If a stage fails; its own message is above it.
        FileExistsError: If the directory has a demo with other settings.
        OSError: If the directory cannot be written to, or another process does.
    """
    with sole_writer(config.output_dir, "--output_dir"):
        _keep_settings(config)
        minutes = run_stages(lambda: stages(config), config.output_dir)
    info = json.loads((config.output_dir / "evaluation" / "eval_info.json").read_text())
    summary = config.output_dir / "summary.json"
    summary.write_text(json.dumps(summarise(info, minutes), indent=2) + "\n")
    return summary


def _keep_settings(config: DemoConfig) -> None:
    """Write them down, or reject those of another demo, of which stages are done."""
    now = {name: value for name, value in settings_of(config).items() if name not in _MAY_DIFFER}
    file = config.output_dir / SETTINGS
    before = json.loads(file.read_text()) if file.is_file() else now
    require_same(before, now, f"{config.output_dir} has a demo", "--output_dir")
    file.write_text(json.dumps(now, indent=2) + "\n")


def summarise(info: dict[str, Any], minutes: dict[str, float]) -> dict[str, Any]:
    """The demo's outcome: `sft`, `grpo`, their paired `difference`, and minutes per stage.

    Args:
        info: `eval_info.json` of the comparison.
        minutes: Per stage.
    """

    def of(name: str, stage: str) -> dict[str, Any]:
        overall = info[name]["overall"]
        means = {term: mean and mean["estimate"] for term, mean in overall["terms"].items()}
        return {
            "success_rate": overall["success_rate"]["estimate"],
            "success_rate_interval": [overall["success_rate"]["low"], overall["success_rate"]["high"]],
            "jerk_rms": means["jerk_rms"],
            "ldlj": means["ldlj"],
            "n_episodes": overall["n_episodes"],
            "minutes": minutes.get(stage),
        }

    return {
        "sft": of("compare", "sft"),
        "grpo": of("policy", "grpo"),
        "difference": info["difference"],
        "minutes": minutes,
    }
