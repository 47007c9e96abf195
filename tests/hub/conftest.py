"""A Hub on loopback, commands that know no other, and a run whose checkpoint is pushed."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from builders import tiny_smoothvla_in
from hub_commands import Commands
from hub_server import FakeHub
from lerobot.configs.default import PeftConfig
from lerobot.envs.configs import PushtEnv

from lerobot_smoothvla.checkpoint_loading import load_actor, load_actor_config
from lerobot_smoothvla.grpo import checkpoint
from lerobot_smoothvla.grpo.algorithm import GRPOAlgorithm
from lerobot_smoothvla.grpo.configuration import GRPOPipelineConfig
from lerobot_smoothvla.provenance import record

COMMAND = ["smoothvla grpo", "--policy.path=/home/alice/sft/pretrained_model", "--output_dir=outputs/grpo"]


@pytest.fixture(scope="session")
def listening() -> Iterator[FakeHub]:
    hub = FakeHub()
    yield hub
    hub.close()


@pytest.fixture(scope="session")
def commands(listening: FakeHub, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Commands]:
    """Real processes."""
    started = Commands(listening.environment, tmp_path_factory.mktemp("cwd"))
    yield started
    started.close()


@pytest.fixture
def hub(listening: FakeHub) -> FakeHub:
    """Empty and without faults."""
    listening.repositories.clear()
    listening.datasets.clear()
    listening.objects.clear()
    listening.faults.clear()
    listening.requests.clear()
    return listening


@pytest.fixture(scope="session")
def warm_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy with random weights that fits PushT."""
    return tiny_smoothvla_in("pusht", tmp_path_factory.mktemp("sft") / "pretrained_model")


@pytest.fixture
def make_run(warm_start: Path, tmp_path: Path, monkeypatch) -> Callable[..., Path]:
    """Writes a run's directory: its checkpoint after three iterations, and where it comes from."""

    def make(base: Path | str = warm_start, peft: PeftConfig | None = None) -> Path:
        env = PushtEnv(episode_length=12)
        policy = load_actor_config(warm_start, env_config=env)
        config = GRPOPipelineConfig(env=env, policy=policy, peft=peft, output_dir=tmp_path / "run", steps=3)
        algorithm = GRPOAlgorithm(load_actor(policy, peft), config.algorithm)
        policy.pretrained_path = base
        if peft is not None:
            algorithm.actor.policy.peft_config["default"].base_model_name_or_path = str(base)
        checkpoint.save(config, algorithm, 3)
        monkeypatch.setattr(sys, "argv", [*COMMAND, "--wandb.key=hf_" + 34 * "s"])
        record(tmp_path / "run", steps=3)
        return tmp_path / "run"

    return make


@pytest.fixture
def run(make_run: Callable[..., Path]) -> Path:
    return make_run()
