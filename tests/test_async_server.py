"""LeRobot's policy server and robot client on the simulated arm: a process each, and gRPC on loopback.

The client observes when half of a chunk is left, however late.
"""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
from arm_rollouts import FPS, A, ArmRun, J, V, arm_checkpoint, arm_environment, arm_flags, behind_guard

from lerobot_smoothvla.cli.main import main
from lerobot_smoothvla.export import export
from lerobot_smoothvla.filters.configuration import GuardConfig
from lerobot_smoothvla.stages import program

pytestmark = pytest.mark.slow
CHUNK = 16


@dataclass(frozen=True)
class Running:
    """A command, and the file to which it writes."""

    process: subprocess.Popen[bytes]
    log: Path

    @classmethod
    def start(cls, directory: Path, *command: str) -> "Running":
        """In a directory, where LeRobot writes its `logs/`, and a process group of its own."""
        log = directory / "said.log"
        with log.open("wb") as said:
            process = subprocess.Popen(
                command,
                cwd=directory,
                env=arm_environment(),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
                process_group=0,
            )
        return cls(process, log)

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, condition: Callable[[], bool]) -> None:
        while not condition():
            assert self.process.poll() is None, self.said()[-4000:]
            time.sleep(0.1)

    def interrupt(self) -> int:
        """As Ctrl-C does; the exit code. Nothing of its group is left."""
        self.process.send_signal(signal.SIGINT)
        code = self.process.wait()
        with pytest.raises(ProcessLookupError):
            os.killpg(self.process.pid, 0)
        return code


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return arm_checkpoint(tmp_path_factory.mktemp("arm") / "policy")


@pytest.fixture(scope="module")
def port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


@contextmanager
def serving(port: int, directory: Path) -> Iterator[Running]:
    """`smoothvla serve`."""
    running = Running.start(directory, program("smoothvla"), "serve", f"--port={port}")
    try:
        running.wait_for(lambda: "PolicyServer started" in running.said())
        yield running
    finally:
        running.process.kill()
        running.process.wait()


@pytest.fixture(scope="module")
def server(port: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """For one client after the other."""
    with serving(port, tmp_path_factory.mktemp("server")) as running:
        yield running


@contextmanager
def driving(port: int, checkpoint: Path, scratch: Path, arm: list[str]) -> Iterator[Running]:
    """LeRobot's client, and the arm of these flags."""
    client = Running.start(
        scratch,
        sys.executable,
        "-m",
        "lerobot.async_inference.robot_client",
        *arm,
        f"--server_address=127.0.0.1:{port}",
        "--policy_type=smoothvla",
        f"--pretrained_name_or_path={checkpoint}",
        f"--actions_per_chunk={CHUNK}",
    )
    try:
        yield client
    finally:
        client.process.kill()


def last_step(said: str) -> int:
    """The first of the last chunk that the server gave, which is numbered by the action that was last."""
    return max(map(int, re.findall(r"Action chunk #(\d+) generated", said)), default=-1)


def test_it_listens_on_loopback_alone(server: Running):
    listening = [c for c in psutil.Process(server.process.pid).net_connections("tcp") if c.status == "LISTEN"]
    assert listening
    assert {c.laddr.ip.removeprefix("::ffff:") for c in listening} <= {"127.0.0.1", "::1"}


def test_lerobots_client_drives_a_guarded_arm_for_thirty_seconds_within_the_limits(
    server: Running, port: int, plain: Path, tmp_path: Path
):
    before = len(server.said())
    with driving(port, plain, tmp_path, behind_guard(arm_flags(tmp_path))) as client:
        client.wait_for(lambda: last_step(server.said()[before:]) >= 0)
        time.sleep(30)
        run = ArmRun.read(client.interrupt(), client.said(), tmp_path)
    said = server.said()[before:]
    assert run.code == -signal.SIGINT, run.said
    assert "Policy type: smoothvla" in said and "Error in StreamActions" not in said
    assert run.goal_times[-1] - run.goal_times[0] > 29
    assert np.median(np.diff(run.goal_times)) > 0.98 / FPS, "no faster than the control period"
    assert run.within_limits()
    limited, steps, not_finite, blind = run.guard_counts()
    assert 0 <= steps - len(run.goals) <= 1, "Ctrl-C may come between the guard and the arm"
    assert limited > 0 and not_finite == blind == 0
    assert run.late_share() < 0.1, "on an idle machine"


def test_when_the_server_dies_the_arm_holds_at_the_last_command(plain: Path, tmp_path: Path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    places = [tmp_path / name for name in ("server", "client")]
    for place in places:
        place.mkdir()
    with (
        serving(port, places[0]) as server,
        driving(port, plain, places[1], behind_guard(arm_flags(places[1]))) as client,
    ):
        client.wait_for(lambda: last_step(server.said()) >= 3 * CHUNK)
        server.process.kill()
        client.wait_for(lambda: "Error receiving actions" in client.said())
        time.sleep(2)
        run = ArmRun.read(client.interrupt(), client.said(), places[1])
        given = last_step(server.said()) + CHUNK
    assert run.code == -signal.SIGINT, run.said
    assert 3 * CHUNK < len(run.goals) <= given
    assert run.within_limits()
    assert run.holds_still_at_the_end()


def test_a_guarded_checkpoint_refuses_there_and_the_arm_stays_where_it_is(
    server: Running, port: int, plain: Path, tmp_path: Path
):
    limits = GuardConfig(max_velocity=[V], max_acceleration=[A], max_jerk=[J], fps=FPS)
    export(plain, tmp_path / "guarded", limits)
    before = len(server.said())
    refusal = "The motion guard should get one action for each observation"
    with driving(port, tmp_path / "guarded", tmp_path, arm_flags(tmp_path)) as client:
        client.wait_for(lambda: refusal in server.said()[before:])
        run = ArmRun.read(client.interrupt(), client.said(), tmp_path)
    assert run.code == -signal.SIGINT, run.said
    assert len(run.goals) == 0
    assert np.ptp(run.positions, axis=0).max() < 1, "deg"


def test_ctrl_c_ends_the_server(server: Running):
    before = len(server.said())
    assert server.interrupt() == 128 + signal.SIGINT
    assert "Traceback" not in server.said()[before:]


def test_a_host_of_another_machine_is_one_paragraph_and_a_warning(tmp_path: Path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["smoothvla", "serve", "--host=203.0.113.1"])
    assert main() == 2
    said = capfd.readouterr().err
    assert "Who reaches port 8080 of 203.0.113.1 can run any code as you." in said
    assert "smoothvla serve: error: Failed to bind" in said and "Traceback" not in said
