"""Commands in processes of their own that know no Hub but the test's one."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

# One process imports what takes long, with the environment that the client reads on import, and starts
# nothing, not even the threads of a library; each command is a fork of it.
_MOTHER = """
import json, os, sys
import torch
import lerobot_smoothvla.cli.grpo, lerobot_smoothvla.cli.push, lerobot.scripts.lerobot_eval
torch.set_num_threads(1)
print("ready", flush=True)
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if not child:
        log = os.open(order["log"], os.O_WRONLY | os.O_CREAT, 0o600)
        for stream in (1, 2):
            os.dup2(log, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(order["environment"])
        os.chdir(order["cwd"])
        sys.argv = order["command"]
        code = 1
        try:
            exec(order["source"], {"__name__": "__main__"})
            code = 0
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException:
            import traceback
            traceback.print_exc()
        finally:
            sys.stdout.flush(); sys.stderr.flush()
            os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""
_SMOOTHVLA = "import sys\nfrom lerobot_smoothvla.cli.main import main\nsys.exit(main())"


@dataclass(frozen=True)
class Result:
    """Of a command: its exit code and what it wrote."""

    code: int
    said: str


class Commands:
    """Runs commands one after another."""

    def __init__(self, environment: Mapping[str, str], cwd: Path) -> None:
        self._directory = TemporaryDirectory()
        self.cwd = cwd
        own = {"HF_HOME": self._directory.name, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self._mother = subprocess.Popen(
            [sys.executable, "-c", _MOTHER],
            env={**os.environ, **environment, **own},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._mother.stdout is not None and self._mother.stdout.readline() == "ready\n"

    def smoothvla(self, *arguments: str | Path, **environment: str) -> Result:
        """`smoothvla` with these arguments."""
        return self.python(_SMOOTHVLA, "smoothvla", *arguments, **environment)

    def python(self, source: str, *command: str | Path, **environment: str) -> Result:
        """A program, with its `sys.argv` and what its environment has besides."""
        log = Path(self._directory.name) / "log"
        log.unlink(missing_ok=True)
        order = {
            "source": source,
            "command": [str(argument) for argument in command],
            "environment": environment,
            "log": str(log),
            "cwd": str(self.cwd),
        }
        assert self._mother.stdin is not None and self._mother.stdout is not None
        self._mother.stdin.write(json.dumps(order) + "\n")
        self._mother.stdin.flush()
        code = int(self._mother.stdout.readline())
        return Result(code, log.read_text())

    def close(self) -> None:
        assert self._mother.stdin is not None
        self._mother.stdin.close()
        self._mother.wait(timeout=60)
        self._directory.cleanup()
