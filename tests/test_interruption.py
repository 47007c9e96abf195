"""Signals to real processes."""

import signal
import subprocess
import sys

import pytest

COMMAND = """
import time
from lerobot_smoothvla.interruption import Interrupted, interruptible
try:
    with interruptible():
        print("ready", flush=True)
        time.sleep(60)
except Interrupted as interruption:
    raise SystemExit(128 + interruption.number)
"""


@pytest.mark.parametrize("ignored", [False, True])
def test_a_closed_terminal_ends_a_command_but_one_under_nohup(ignored: bool):
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND],
        stdout=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGHUP)
        if ignored:
            with pytest.raises(subprocess.TimeoutExpired):
                process.wait(0.5)
            process.terminate()
        assert process.wait(10) == 128 + (signal.SIGTERM if ignored else signal.SIGHUP)
