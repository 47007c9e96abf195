from dataclasses import dataclass, field
from pathlib import Path

import draccus
import pytest
import torch
from builders import POLICIES
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.envs.configs import AlohaEnv, LiberoEnv, MetaworldEnv, PushtEnv

from lerobot_smoothvla.checkpoint_loading import load_actor, load_actor_config
from lerobot_smoothvla.envs.adapters import commands_of
from lerobot_smoothvla.filters.configuration import (
    ActionFilterConfig,
    ChunkBlendConfig,
    ExponentialFilterConfig,
    JerkLimitConfig,
    NoFilterConfig,
    RealTimeChunkingConfig,
)
from lerobot_smoothvla.filters.steps import ChunkBlendStep, ExponentialFilterStep, JerkLimitStep, MotionLimits
from lerobot_smoothvla.flow.adapters.base import PolicyAdapter
from lerobot_smoothvla.flow.sampling import DeployedSampler


@dataclass
class Command:
    filter: ActionFilterConfig = field(default_factory=NoFilterConfig)


def parsed(*arguments: str) -> ActionFilterConfig:
    return draccus.parse(Command, args=[f"--filter.{argument}" for argument in arguments]).filter


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> PolicyAdapter:
    """Of a policy that executes all 8 steps of a chunk."""
    path = tmp_path_factory.mktemp("policy")
    POLICIES["smoothvla"](path)
    made = load_actor(load_actor_config(path)).adapter
    made.config.n_action_steps = made.chunk_size
    return made


def test_each_type_has_its_own_flags():
    assert parsed() == NoFilterConfig()
    assert parsed("type=exponential", "alpha=0.3") == ExponentialFilterConfig(alpha=0.3)
    assert parsed("type=jerk_limited", "max_acceleration=[4]", "max_jerk=[80]") == JerkLimitConfig(
        [4.0], [80.0]
    )
    assert parsed("type=blend", "n_blend=2") == ChunkBlendConfig(n_blend=2)
    assert parsed("type=rtc", "max_guidance_weight=5").to_json() == {
        "type": "rtc",
        "max_guidance_weight": 5.0,
    }
    assert parsed("type=jerk_limited", "demonstrations=a/b").to_json()["demonstrations"] == "a/b"


def test_without_a_filter_the_policy_acts_as_deployed(adapter: PolicyAdapter):
    assert NoFilterConfig().step(adapter, LiberoEnv()) is None
    assert NoFilterConfig().sampler(adapter) == DeployedSampler()


def test_a_step_knows_the_policy_and_the_environment(adapter: PolicyAdapter):
    step = ExponentialFilterConfig(alpha=0.3).step(adapter, LiberoEnv())
    assert step == ExponentialFilterStep(grippers=[-1], n_action_steps=8, alpha=0.3)
    step = ExponentialFilterConfig().step(adapter, AlohaEnv())
    assert step == ExponentialFilterStep(grippers=[6, 13], n_action_steps=8, commands="position")
    step = JerkLimitConfig([4.0], [80.0]).step(adapter, MetaworldEnv(task="reach-v3"))
    assert step == JerkLimitStep([-1], 8, 1 / 80, [4.0], [80.0])
    step = JerkLimitConfig([4.0], [80.0], [9.0]).step(adapter, PushtEnv())
    assert step == JerkLimitStep([], 8, 0.1, [4.0], [80.0], [9.0], "position")
    assert commands_of(LiberoEnv(fps=10))[1] == 0.1


def test_chunks_are_blended_only_where_some_of_one_is_left_over(adapter: PolicyAdapter):
    with pytest.raises(ValueError, match="all 8 steps of each are executed"):
        ChunkBlendConfig().step(adapter, LiberoEnv())
    adapter.config.n_action_steps = 5
    step = ChunkBlendConfig(n_blend=2).step(adapter, LiberoEnv())
    assert step == ChunkBlendStep(n_action_steps=5, n_blend=2)
    adapter.config.n_action_steps = 8


def test_limits_are_taken_of_demonstrations(adapter: PolicyAdapter, tiny_dataset: Path):
    config = JerkLimitConfig(demonstrations=tiny_dataset, quantile=0.9)
    step = config.step(adapter, LiberoEnv())
    dataset = LeRobotDataset("smoothvla/tiny", root=tiny_dataset)
    actions = torch.stack([dataset[index]["action"][:6] for index in range(len(dataset))])
    limits = MotionLimits.of_demonstrations(actions.split(20), 0.05, "displacement", 0.9)
    assert isinstance(step, JerkLimitStep)
    assert step.max_acceleration == pytest.approx(limits.acceleration)
    assert step.max_jerk == pytest.approx(limits.jerk)
    assert len(step.max_jerk) == 6
    with pytest.raises(FileNotFoundError, match="There is no LeRobot dataset"):
        JerkLimitConfig(demonstrations=tiny_dataset / "nowhere").step(adapter, LiberoEnv())
    with pytest.raises(ValueError, match="10 frames a second give no limits for 50 control steps"):
        JerkLimitConfig(demonstrations=tiny_dataset).step(adapter, AlohaEnv())


def test_limits_are_one_for_all_axes_or_one_for_each(adapter: PolicyAdapter):
    JerkLimitConfig([4.0] * 6, [80.0]).step(adapter, LiberoEnv())
    with pytest.raises(ValueError, match="`max_acceleration` should .* action 5, got .4.0, 4.0"):
        JerkLimitConfig([4.0, 4.0], [80.0]).step(adapter, LiberoEnv())


def test_absolute_poses_are_not_filtered(adapter: PolicyAdapter):
    for config in (ExponentialFilterConfig(), JerkLimitConfig([4.0], [80.0])):
        with pytest.raises(ValueError, match="use --env.control_mode=relative"):
            config.step(adapter, LiberoEnv(control_mode="absolute"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"type": RealTimeChunkingConfig, "max_guidance_weight": 0.0}, "should be positive, got 0.0"),
        ({"type": ExponentialFilterConfig, "alpha": 2.0}, r"`alpha` should be in \(0, 1\], got 2.0"),
        ({"type": JerkLimitConfig}, "one of the two"),
        ({"type": JerkLimitConfig, "max_jerk": [1.0], "demonstrations": Path("a")}, "one of the two"),
        ({"type": JerkLimitConfig, "max_jerk": [1.0]}, "acceleration should be positive"),
        ({"type": JerkLimitConfig, "demonstrations": Path("a"), "quantile": 0.0}, "`quantile` should be in"),
    ],
)
def test_bad_settings_are_refused_as_they_are_parsed(settings: dict, message: str):
    with pytest.raises(ValueError, match=message):
        settings.pop("type")(**settings)
