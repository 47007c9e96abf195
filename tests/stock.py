"""What stock LeRobot makes of a checkpoint, in a process that does not load this package."""

import os
import subprocess
import sys
from pathlib import Path

import torch

ACT = """
import sys
from pathlib import Path
import torch
from builders import act, prepare
from lerobot.configs import PreTrainedConfig
from lerobot.envs.configs import LiberoEnv
from lerobot.policies import get_policy_class, make_policy, make_pre_post_processors

path, action = sys.argv[1:]
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
"""


def act_in_stock_lerobot(checkpoint: Path, scratch: Path) -> torch.Tensor:
    """`builders.act` of the checkpoint's policy.

    Args:
        checkpoint: Its directory.
        scratch: A directory to work in.
    """
    action = scratch / "action.pt"
    path = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    subprocess.run(
        [sys.executable, "-c", ACT, str(checkpoint.resolve()), str(action.resolve())],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        cwd=scratch,
        check=True,
        timeout=300,
    )
    return torch.load(action)
