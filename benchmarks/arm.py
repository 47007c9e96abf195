"""Where the 33 ms of a control step go on the simulated arm: policy, guard, cameras; and the loop's jitter.

    python benchmarks/arm.py --seconds 30

The parts are CPU times on one thread, which other work on the machine hardly changes; the policy's on a GPU
(`--device cuda`) is the time until its actions are there. The periods are wall
times of `lerobot-rollout` at 30 Hz with a tiny policy, which it does change: the load average stands beside
them. The last line is one JSON object.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ |= {"OMP_NUM_THREADS": "1"}  # Before torch is loaded: as in a rollout.
sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "simulated_arm"))

import numpy as np
import torch
from arm_rollouts import FPS, HOME, A, J, V, arm_checkpoint, roll_out
from builders import act
from lerobot.policies import make_pre_post_processors
from policies import seconds as seconds_of

from lerobot_smoothvla.checkpoint_loading import load_policy, read_config
from lerobot_smoothvla.envs.assets import require_gl
from lerobot_smoothvla.export import export
from lerobot_smoothvla.filters.configuration import GuardConfig
from lerobot_smoothvla.filters.limiter import MotionLimiter, Rates


def parse_arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30, help="of each rollout")
    parser.add_argument("--device", default="cpu", help="of the policy")
    parser.add_argument("--samples", type=int, default=100, help="of each CPU time")
    return parser.parse_args()


def milliseconds(run: Callable[[], Any], samples: int, device: str = "cpu") -> dict[str, float]:
    """Median and 99th percentile of the time of a call, ms; the first one warms a GPU up."""
    seconds_of(run, device)
    times = [seconds_of(run, device) * 1e3 for _ in range(samples)]
    return {"median": round(statistics.median(times), 2), "p99": round(float(np.percentile(times, 99)), 2)}


def parts(checkpoint: Path, scratch: Path, samples: int, device: str) -> dict[str, dict[str, float]]:
    """Times of what a control step may hold."""
    from lerobot_robot_simulated_arm import SimulatedArm, SimulatedArmConfig  # MuJoCo, which needs its GL.

    config = read_config(checkpoint)
    config.pretrained_path, config.device = checkpoint, device
    policy = load_policy(config).eval()
    processors = make_pre_post_processors(
        config,
        pretrained_path=str(checkpoint),
        preprocessor_overrides={"device_processor": {"device": device}},
    )
    limits = Rates(*(np.full(5, limit) for limit in (V, A, J)))
    limiter, rng = MotionLimiter(limits, 1 / FPS, HOME[:5].double().numpy()), np.random.default_rng(0)
    arm = SimulatedArm(SimulatedArmConfig(log=scratch / "arm.npz", calibration_dir=scratch))
    arm.connect()
    measured = {
        "policy, processors and a new chunk": milliseconds(lambda: act(policy, *processors), samples, device),
        "guard, every joint limited": milliseconds(lambda: limiter.follow(rng.uniform(-90, 90, 5)), samples),
        "state and both cameras": milliseconds(arm.get_observation, samples),
    }
    arm.disconnect()
    return measured


def loop(checkpoint: Path, scratch: Path, seconds: float, *flags: str) -> dict[str, float]:
    """Periods between the goals of a rollout, ms."""
    scratch.mkdir()
    load = os.getloadavg()[0]
    run = roll_out(checkpoint, scratch, round(seconds * FPS), *flags)
    periods = np.diff(run.goal_times) * 1e3
    percentiles = np.percentile(periods, [50, 90, 99, 100]).round(1).tolist()
    said = [line for line in run.said.splitlines() if "Motion guard" in line]
    print(scratch.name, *said[-1:], sep=": ")
    return {
        **dict(zip(("p50", "p90", "p99", "max"), percentiles, strict=True)),
        "n_steps": len(run.goals),
        "late_share": round(float((periods > 1.1e3 / FPS).mean()), 3),
        "jerk_rms": round(run.measured_jerk()),
        "load_average": round(load, 1),
    }


def main() -> None:
    """Measure and print."""
    arguments = parse_arguments()
    require_gl()
    with TemporaryDirectory() as directory:
        scratch = Path(directory)
        plain, guarded = arm_checkpoint(scratch / "plain"), scratch / "guarded"
        export(plain, guarded, GuardConfig(max_velocity=[V], max_acceleration=[A], max_jerk=[J]))
        with torch.inference_mode():
            result: dict[str, Any] = {"ms": parts(plain, scratch, arguments.samples, arguments.device)}
        print(json.dumps(result["ms"], indent=1))
        device = f"--policy.device={arguments.device}"
        result["period_ms"] = {
            "plain": loop(plain, scratch / "run_plain", arguments.seconds, device),
            "guarded": loop(guarded, scratch / "run_guarded", arguments.seconds, device),
            "rtc": loop(
                plain,
                scratch / "run_rtc",
                arguments.seconds,
                device,
                "--inference.type=rtc",
                "--inference.rtc.execution_horizon=8",
            ),
        }
    print(json.dumps({**result, "cores": os.cpu_count()}))


if __name__ == "__main__":
    main()
