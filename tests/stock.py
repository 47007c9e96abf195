"""What stock LeRobot makes of a checkpoint, in a process that does not load this package."""

import atexit
import os
import subprocess
import sys
from functools import cache
from pathlib import Path

import torch

# Imports for 20 s what takes that long, starts nothing, and forks a process for every checkpoint.
SERVER = """
import os
import sys
import traceback
import torch
from builders import act, prepare
from lerobot.configs import PreTrainedConfig
from lerobot.envs.configs import LiberoEnv
from lerobot.policies import get_policy_class, make_policy, make_pre_post_processors

for policy_type in ("smolvla", "pi0", "diffusion", "multi_task_dit"):
    get_policy_class(policy_type)
import peft


def answer(path, action):
    config = PreTrainedConfig.from_pretrained(path)
    config.pretrained_path = path
    prepare(config.type)
    if config.use_peft:
        policy = make_policy(config, env_cfg=LiberoEnv()).eval()
    else:
        policy = get_policy_class(config.type).from_pretrained(path)
    result = act(policy, *make_pre_post_processors(config, pretrained_path=path))
    if config.__module__.startswith("lerobot."):  # Another package's policy may load this one itself.
        assert not any(name.startswith("lerobot_smoothvla") for name in sys.modules)
    torch.save(result, action)


replies = os.fdopen(os.dup(1), "w")
for line in sys.stdin:
    scratch, path, action, log = line.rstrip("\\n").split("\\t")
    if (child := os.fork()) == 0:
        said = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(said, 1)
        os.dup2(said, 2)
        os.chdir(scratch)
        try:
            answer(path, action)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(os.waitpid(child, 0)[1], file=replies, flush=True)
"""


@cache
def _server() -> subprocess.Popen[str]:
    """Of this process."""
    path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    server = subprocess.Popen(
        [sys.executable, "-c", SERVER],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    atexit.register(server.kill)
    return server


def act_in_stock_lerobot(checkpoint: Path, scratch: Path) -> torch.Tensor:
    """`builders.act` of the checkpoint's policy.

    Args:
        checkpoint: Its directory.
        scratch: A directory to work in.
    """
    action, log = (scratch.resolve() / name for name in ("action.pt", "stock.log"))
    server = _server()
    assert server.stdin is not None and server.stdout is not None
    print(scratch.resolve(), checkpoint.resolve(), action, log, sep="\t", file=server.stdin, flush=True)
    status = server.stdout.readline().strip()
    assert status == "0", log.read_text() if log.exists() else f"stock LeRobot ended ({server.poll()})"
    return torch.load(action)
