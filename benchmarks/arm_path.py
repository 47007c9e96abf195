"""A user's whole path on the simulated arm, and what came of it as a table in Markdown.

    python benchmarks/arm_path.py --output_dir outputs/arm_path

`lerobot-record` (scripted teleoperation by an unsteady hand) → `lerobot-train` → `lerobot-rollout` and
`smoothvla score` of what it recorded → `smoothvla grpo` in its simulator → both again → `smoothvla eval`
of the two policies in the simulator. Each is a process of its own, and the same command goes on where it was
stopped.

The recorder and the rollouts run in real time, in which a busy machine is late; the simulator is not.
"""

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from lerobot_smoothvla.envs.assets import require_gl
from lerobot_smoothvla.evaluation.report import markdown, spelt
from lerobot_smoothvla.evaluation.statistics import Interval, wilson_interval
from lerobot_smoothvla.processes import ONE_THREAD
from lerobot_smoothvla.stages import LAST, Stage, grpo_stage, program, run_stages, sft_stage
from lerobot_smoothvla.study.plan import ARMS, GRPO

PLUGIN = Path(__file__).parents[1] / "tests" / "simulated_arm"
FPS = 30
RESET_S = 2
TASK = "touch the red cube"
POLICIES = ("sft", "grpo")


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/arm_path"))
    parser.add_argument("--demonstrations", type=int, default=20)
    parser.add_argument("--episode_s", type=float, default=4, help="of demonstrations, rollouts and episodes")
    parser.add_argument("--tremor_std", type=float, default=0.5, help="of the hand, degrees a joint")
    parser.add_argument("--sft_steps", type=int, default=1000)
    parser.add_argument("--sft_batch_size", type=int, default=32)
    parser.add_argument("--rollouts", type=int, default=10, help="on the arm, of each policy")
    parser.add_argument("--grpo_steps", type=int, default=5)
    parser.add_argument("--n_groups", type=int, default=8)
    parser.add_argument("--group_size", type=int, default=8)
    parser.add_argument("--arm", choices=ARMS, default="smooth", help="of the study: how GRPO learns")
    parser.add_argument(
        "--signal", default="ldlj", help="what the reward measures: of the fingertip, or joint_"
    )
    parser.add_argument("--lr", type=float, default=1e-4)
    parser.add_argument("--eval_episodes", type=int, default=50, help="in the simulator, of each policy")
    parser.add_argument("--n_workers", type=int, default=2)
    parser.add_argument("--seed", type=int, default=1)
    return parser.parse_args()


def stages(arguments: argparse.Namespace) -> list[Stage]:
    """The path, in its order."""
    out, seed = arguments.output_dir, arguments.seed
    env = ["--env.type=simulated_arm", f"--env.episode_length={round(arguments.episode_s * FPS)}"]
    grpo = [
        *env,
        f"--algorithm.n_groups={arguments.n_groups}",
        f"--algorithm.group_size={arguments.group_size}",
        *(*GRPO, *ARMS[arguments.arm]),  # As the study learns.
        # After the study's own, which they replace.
        f"--algorithm.reward.signal={arguments.signal}",
        f"--algorithm.lr={arguments.lr}",
        f"--seed={seed}",
        f"--n_workers={arguments.n_workers}",
    ]
    dataset = ["--dataset.repo_id=smoothvla/touch", f"--dataset.root={out / 'demonstrations' / 'dataset'}"]
    before, after = (deployment(arguments, policy) for policy in POLICIES)
    return [
        recording(arguments),
        scoring(out, "demonstrations"),
        sft_stage(out / "sft", dataset, arguments.sft_steps, arguments.sft_batch_size, seed),
        *before,
        grpo_stage("grpo", out, out / "sft", arguments.grpo_steps, grpo),
        *after,
        Stage(
            "evaluation",
            [
                program("smoothvla"),
                "eval",
                *env,
                f"--policy.path={out / 'grpo' / LAST}",
                f"--compare.path={out / 'sft' / LAST}",
                f"--output_dir={out / 'evaluation'}",
                f"--eval.n_episodes={arguments.eval_episodes}",
                f"--eval.n_workers={arguments.n_workers}",
            ],
            (out / "evaluation" / "eval_info.json").is_file,
            restarts=True,
        ),
    ]


def recording(arguments: argparse.Namespace) -> Stage:
    """Demonstrations by `lerobot-record`."""
    run = arguments.output_dir / "demonstrations"
    return Stage(
        run.name,
        [
            program("lerobot-record"),
            *on_the_arm(arguments, run, "touch", arguments.demonstrations, arguments.seed),
            "--teleop.type=scripted_hand",
            f"--teleop.calibration_dir={run}",
            f"--teleop.episode_time_s={arguments.episode_s}",
            f"--teleop.reset_time_s={RESET_S}",
            f"--teleop.tremor_std={arguments.tremor_std}",
            f"--teleop.seed={arguments.seed}",
        ],
        (run / "arm.npz").is_file,
        ONE_THREAD,
        restarts=True,
    )


def deployment(arguments: argparse.Namespace, policy: str) -> list[Stage]:
    """Rollouts by `lerobot-rollout`, and the score of what they recorded."""
    run = arguments.output_dir / f"rollouts_{policy}"
    return [
        Stage(
            run.name,
            [
                program("lerobot-rollout"),
                f"--policy.path={arguments.output_dir / policy / LAST}",
                "--strategy.type=episodic",
                f"--fps={FPS}",
                "--return_to_initial_position=false",
                # The same cubes for both policies, others than those of the demonstrations.
                *on_the_arm(arguments, run, f"rollout_{policy}", arguments.rollouts, 1000 + arguments.seed),
            ],
            (run / "arm.npz").is_file,
            ONE_THREAD,
            restarts=True,
        ),
        scoring(arguments.output_dir, run.name),
    ]


def on_the_arm(
    arguments: argparse.Namespace, run: Path, name: str, n_episodes: int, cube_seed: int
) -> list[str]:
    """Flags that recorder and rollouts share."""
    return [
        "--robot.type=simulated_arm",
        f"--robot.log={run / 'arm.npz'}",
        f"--robot.calibration_dir={run}",
        f"--robot.seed={cube_seed}",
        f"--dataset.repo_id=smoothvla/{name}",
        f"--dataset.root={run / 'dataset'}",
        f"--dataset.single_task={TASK}",
        f"--dataset.fps={FPS}",
        f"--dataset.num_episodes={n_episodes}",
        f"--dataset.episode_time_s={arguments.episode_s}",
        f"--dataset.reset_time_s={RESET_S}",
        "--dataset.video=false",
        "--dataset.no_stamp=true",
        "--dataset.push_to_hub=false",
        "--play_sounds=false",
    ]


def scoring(out: Path, recorded: str) -> Stage:
    """The smoothness of what was recorded."""
    return Stage(
        f"score_{recorded}",
        [
            program("smoothvla"),
            "score",
            f"--dataset.root={out / recorded / 'dataset'}",
            "--position.unit=deg",
            f"--output_dir={out / f'score_{recorded}'}",
        ],
        (out / f"score_{recorded}" / "score.json").is_file,
    )


def summary(out: Path) -> str:
    """Success and smoothness before and after, in Markdown."""
    info = json.loads((out / "evaluation" / "eval_info.json").read_text())
    return markdown(
        [
            [
                "",
                "n",
                "success",
                "joints' jerk, rad/s³",
                "fingertip's jerk, m/s³",
                "time to success, s",
                "period, ms",
            ],
            recorded(out, "demonstrations", "demonstrations, arm"),
            recorded(out, "rollouts_sft", "supervised, arm"),
            recorded(out, "rollouts_grpo", "GRPO, arm"),
            simulated(info["compare"]["overall"], "supervised, simulator"),
            simulated(info["policy"]["overall"], "GRPO, simulator"),
            simulated(info["difference"], "difference, paired", signed=True),
        ]
    )


def recorded(out: Path, run: str, label: str) -> list[str]:
    """A row of what the arm did in real time; the period between commands, median and 95 %."""
    score = json.loads((out / f"score_{run}" / "score.json").read_text())
    n, jerk = len(score["per_episode"]), score["overall"]["jerk_rms"]
    with np.load(out / run / "arm.npz") as arm:
        n_touched, periods = int(arm["touched"][:n].sum()), np.diff(arm["goal_times"]) * 1e3
    period = "{:.0f}, {:.0f}".format(*np.percentile(periods, [50, 95]))
    success = spelt(wilson_interval(n_touched, n))
    return [label, str(n), success, spelt(jerk and Interval(**jerk)), "-", "-", period]


def simulated(overall: dict[str, Any], label: str, signed: bool = False) -> list[str]:
    """A row of what a policy did in the simulator, or of the difference between two."""
    means = [overall["success_rate"]]
    means += [overall["terms"][term] for term in ("joint_jerk_rms", "jerk_rms", "time_to_success")]
    cells = [spelt(mean and Interval(**mean), signed) for mean in means]
    return [label, str(overall["n_episodes"]), *cells, "-"]


def main() -> None:
    """Run what is not done yet, and print the table."""
    arguments = parse_arguments()
    require_gl()
    path = filter(None, [str(PLUGIN), os.environ.get("PYTHONPATH")])
    os.environ |= {"PYTHONPATH": os.pathsep.join(path), "HF_HUB_OFFLINE": "1"}
    minutes = run_stages(lambda: stages(arguments), arguments.output_dir)
    table = summary(arguments.output_dir)
    (arguments.output_dir / "table.md").write_text(table, encoding="utf-8")
    print(f"\n{table}\nMinutes: {', '.join(f'{name} {took:.1f}' for name, took in minutes.items())}")


if __name__ == "__main__":
    main()
