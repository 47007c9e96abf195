"""`lerobot-rollout` on the simulated arm, each in a process of its own, and what the arm did."""

import atexit
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from builders import TINY_SMOOTHVLA, save_checkpoint
from lerobot.configs import FeatureType, PolicyFeature
from numpy.typing import NDArray

from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig
from lerobot_smoothvla.smoothness import jerk_rms

TESTS = Path(__file__).parent
HOME = torch.tensor([0.0, -45.0, 60.0, 30.0, 0.0, 20.0])
IMAGE = PolicyFeature(FeatureType.VISUAL, (3, 64, 64))
FPS = 30
V, A, J = 60.0, 400.0, 6000.0
"""The guard's limits: deg/s, deg/s², deg/s³."""
ARM = "arm.npz"
GUARD = (f"--guard.max_velocity=[{V}]", f"--guard.max_acceleration=[{A}]", f"--guard.max_jerk=[{J}]")
GUARDED = tuple(flag.replace("--guard", "--robot.guard") for flag in (*GUARD, f"--guard.fps={FPS}"))
"""Of a command that drives the arm through a guard: see `behind_guard`."""

# Imports for long what takes long, and forks a process for every rollout: LeRobot's command as it is.
SERVER = """
import os
import sys
import traceback
import mujoco
import ruckig
from lerobot.scripts.lerobot_rollout import main
import lerobot_smoothvla.modeling_smoothvla

replies = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    log, *arguments = line.rstrip("\\n").split("\\t")
    if (child := os.fork()) == 0:
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        sys.argv = ["lerobot-rollout", *arguments]
        code = 1
        try:
            main()
            code = 0
        except BaseException:
            traceback.print_exc()
        import gc
        gc.collect()
        import atexit
        atexit._run_exitfuncs()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=replies, flush=True)
"""


@dataclass(frozen=True)
class ArmRun:
    """A rollout.

    Attributes:
        code: Exit code of the command.
        said: What it printed.
        goals: (T, 6) that the motors were given, deg; the gripper in percent.
        goal_times: (T,) when, s.
        positions: (N, 6) of the joints at every step of the physics, likewise.
        period: Of the physics, s.
    """

    code: int
    said: str
    goals: NDArray[np.float64]
    goal_times: NDArray[np.float64]
    positions: NDArray[np.float64]
    period: float

    @classmethod
    def read(cls, code: int, said: str, scratch: Path) -> "ArmRun":
        """Of a command with `arm_flags` that has ended."""
        assert (scratch / ARM).exists(), f"{code}: {said}"
        with np.load(scratch / ARM) as data:
            return cls(
                code, said, data["goals"], data["goal_times"], data["positions"], float(data["period"])
            )

    def rates(self, after: int = 0) -> list[float]:
        """Largest velocity, acceleration and jerk of the five joints' goals, each 1/30 s after the last."""
        goals = self.goals[after:, :5]
        return [float(np.abs(np.diff(goals, n=order, axis=0)).max()) * FPS**order for order in (1, 2, 3)]

    def within_limits(self) -> bool:
        """Whether the goals keep to V, A and J, from one control step to the next."""
        rounding = 4 * np.spacing(np.float32(100))  # Of a difference of float32 commands, deg.
        limits = enumerate(zip(self.rates(), (V, A, J), strict=True), start=1)
        return all(rate <= limit * (1 + 2e-6) + rounding * FPS**order for order, (rate, limit) in limits)

    def holds_still_at_the_end(self) -> bool:
        """After the last goal the arm goes there and nowhere else, and comes to rest."""
        last = round(self.goal_times[-1] / self.period)
        joints = self.positions[last:, :5]
        speed = np.abs(np.diff(joints, axis=0)) / self.period  # deg/s
        distance = np.abs(joints - self.goals[-1, :5])
        # A servo that runs past its goal turns back at once.
        return bool(speed[-20:].max() < 0.5 and (distance <= distance[0] + V / FPS).all())

    def guard_counts(self) -> tuple[int, int, int, int]:
        """Limited, all, not finite and blind control steps, by what the guard says at the end."""
        line = r"(\d+) of (\d+) control steps limited.*; (\d+) actions were not finite; (\d+) came while"
        limited, steps, not_finite, blind = map(int, re.findall(line, self.said)[-1])
        return limited, steps, not_finite, blind

    def late_share(self) -> float:
        """Of the periods between goals, those in which the next one was missed."""
        return float((np.diff(self.goal_times) > 2 / FPS).mean())

    def measured_jerk(self) -> float:
        """Root mean square of what the joints did, at 30 Hz, rad/s³."""
        positions = torch.from_numpy(np.radians(self.positions[:: round(1 / FPS / self.period), :5]))
        return jerk_rms(positions, 1 / FPS).item()


def arm_checkpoint(path: Path) -> Path:
    """A tiny `smoothvla` with random weights, whose commands jump by 10° and more around its home."""
    inputs = {
        "observation.images.front": IMAGE,
        "observation.images.wrist": IMAGE,
        "observation.state": PolicyFeature(FeatureType.STATE, (6,)),
    }
    settings: dict[str, Any] = {
        **TINY_SMOOTHVLA,
        "input_features": inputs,
        "output_features": {"action": PolicyFeature(FeatureType.ACTION, (6,))},
        "chunk_size": 16,
        "n_action_steps": 8,
    }
    scale = {"mean": HOME, "std": torch.tensor([10.0] * 5 + [5.0])}
    save_checkpoint(path, SmoothVLAConfig(**settings), {"observation.state": scale, "action": scale})
    return path


def arm_environment() -> dict[str, str]:
    """In which LeRobot finds the simulated arm."""
    path = [str(TESTS / "simulated_arm"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}


def arm_flags(scratch: Path) -> list[str]:
    """Of a command that drives it and leaves in `scratch` what it did."""
    return [
        "--robot.type=simulated_arm",
        f"--robot.log={scratch / ARM}",
        f"--robot.calibration_dir={scratch}",
        "--task=put the cube into the box",
        f"--fps={FPS}",
    ]


def behind_guard(flags: list[str]) -> list[str]:
    """The flags of a command, with the arm behind a guard: what its robot was is that robot's arm."""
    robot = [flag.removeprefix("--robot.").replace("=", ": ", 1) for flag in flags if "--robot." in flag]
    others = [flag for flag in flags if "--robot." not in flag]
    return [*others, "--robot.type=guarded", f"--robot.arm={{{', '.join(robot)}}}", *GUARDED]


@cache
def _server() -> subprocess.Popen[str]:
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        env=arm_environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    atexit.register(server.kill)
    return server


def roll_out(checkpoint: Path, scratch: Path, n_steps: int, *flags: str, guarded_arm: bool = False) -> ArmRun:
    """Run the command, which an idle machine does at 30 Hz.

    Args:
        checkpoint: Its directory.
        scratch: A directory to write to.
        n_steps: Control steps.
        flags: Further ones.
        guarded_arm: Whether the arm is behind a guard, beside what the checkpoint has.
    """
    log = scratch / "rollout.log"
    arguments = [
        f"--policy.path={checkpoint}",
        *arm_flags(scratch),
        f"--robot.n_observations={n_steps + 2}",  # The first is before the loop, the last stops it.
        "--return_to_initial_position=false",
        "--play_sounds=false",
        *flags,
    ]
    if guarded_arm:
        arguments = behind_guard(arguments)
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    print(log, *arguments, sep="\t", file=server.stdin, flush=True)
    code = int(server.stdout.readline())
    return ArmRun.read(code, log.read_text() if log.exists() else "", scratch)
