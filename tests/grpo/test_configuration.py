"""What a GRPO run can be told, and that nothing wrong gets past its config."""

from pathlib import Path

import draccus
import pytest
from lerobot.configs.default import DatasetConfig
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig
from lerobot.envs.configs import PushtEnv, RoboCasaEnv
from lerobot.rl.algorithms.configs import RLAlgorithmConfig
from lerobot.rl.algorithms.factory import make_algorithm_config

from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig
from lerobot_smoothvla.flow.adapters.execution import Execution
from lerobot_smoothvla.flow.ratio import FlowMatchingRatio, FlowSDERatio
from lerobot_smoothvla.grpo.configuration import GRPOConfig, GRPOPipelineConfig
from lerobot_smoothvla.grpo.objective import DRAWING
from lerobot_smoothvla.jerk_reward import JerkRewardConfig


def pipeline(**settings) -> GRPOPipelineConfig:
    return GRPOPipelineConfig(**{"env": LiberoEnvConfig(), "policy": SmoothVLAConfig(), **settings})


def test_lerobot_knows_the_algorithm_by_name():
    assert isinstance(make_algorithm_config("grpo"), GRPOConfig)
    assert GRPOConfig().type == "grpo"
    assert GRPOConfig.from_policy_config(SmoothVLAConfig()) == GRPOConfig()


def test_the_algorithms_config_is_saved_and_loaded_as_lerobots_are(tmp_path):
    config = GRPOConfig(ratio="flow_sde", group_size=4, reward=JerkRewardConfig(weight=0.2))
    config.save_pretrained(tmp_path)
    assert RLAlgorithmConfig.from_pretrained(tmp_path) == config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"ratio": "exact"}, "`ratio` should be one of .*flow_matching.*got 'exact'"),
        ({"group_size": 1}, "`group_size` should be at least 2, got 1: .*8 is usual"),
        ({"init_states": (5, 5)}, "`init_states` should be .*first < end, got 5, 5"),
        ({"init_states": (-1, 5)}, "`init_states` should be .*0 <= first.*got -1, 5"),
        ({"n_pairs": 0}, "`n_pairs` should be at least 1, got 0"),
        ({"n_groups": 0}, "`n_groups` should be at least 1, got 0"),
        ({"epochs": 0}, "`epochs` should be at least 1, got 0"),
        ({"minibatch_size": 0}, "`minibatch_size` should be at least 1, got 0"),
        ({"microbatch_size": 0}, "`microbatch_size` should be at least 1, got 0"),
        ({"lr": 0.0}, "`lr` should be positive, got 0.0"),
        ({"lr_schedule": "cosine"}, "`lr_schedule` should be one of constant, linear, got 'cosine'"),
        ({"target_kl": 0.0}, "`target_kl` should be positive, got 0.0"),
        ({"ratio_scale": -5.0}, "`ratio_scale` should be positive, got -5.0"),
        ({"grad_clip_norm": -1.0}, "`grad_clip_norm` should be positive, got -1.0"),
        ({"std_floor": 0.0}, "`std_floor` should be positive, got 0.0"),
        ({"clip_low": 0.0}, r"`clip_low` should be in \(0, 1\), got 0.0"),
        ({"clip_low": 1.0}, r"`clip_low` should be in \(0, 1\), got 1.0"),
        ({"clip_high": -0.1}, "`clip_high` should be positive, got -0.1"),
        ({"negative": "ignore"}, "`negative` should be one of .*got 'ignore'"),
        ({"negative_weight": 1.5}, r"`negative_weight` should be in \[0, 1\], got 1.5"),
        ({"kl_weight": -0.1}, "`kl_weight` should be at least 0, got -0.1"),
        ({"advantage": "both"}, "`advantage` should be one of .*got 'both'"),
        ({"lr": float("nan")}, "`lr` should be positive, got nan"),
        ({"kl_weight": float("nan")}, "`kl_weight` should be at least 0, got nan"),
    ],
)
def test_a_setting_out_of_its_range_is_rejected(settings, message):
    with pytest.raises(ValueError, match=message):
        GRPOConfig(**settings)


@pytest.mark.parametrize("advantage", DRAWING)
def test_absolute_poses_command_no_jerk_that_could_be_compared(advantage):
    absolute = LiberoEnvConfig(control_mode="absolute")
    with pytest.raises(ValueError, match="absolute actions.*--env.control_mode=relative"):
        pipeline(env=absolute, algorithm=GRPOConfig(advantage=advantage))
    pipeline(env=absolute, algorithm=GRPOConfig(advantage=advantage, reward=JerkRewardConfig(weight=0)))
    pipeline(env=absolute)


def test_a_negative_weight_of_smoothness_is_rejected():
    with pytest.raises(ValueError, match=r"`weight` \(λ\) should be ≥ 0, got -1"):
        GRPOConfig(reward=JerkRewardConfig(weight=-1))


@pytest.mark.parametrize(("ratio", "clip"), [("flow_matching", (0.05, 0.05)), ("flow_sde", (0.2, 0.28))])
def test_each_estimator_has_its_own_clip_that_a_setting_overrides(ratio, clip):
    config = GRPOConfig(ratio=ratio)
    policy = SmoothVLAConfig()
    assert config.clip_for(policy) == clip
    assert GRPOConfig(ratio=ratio, clip_low=0.3, clip_high=0.4).clip_for(policy) == (0.3, 0.4)
    assert GRPOConfig(ratio=ratio, clip_low=0.3).clip_for(policy) == (0.3, clip[1])


def test_the_estimator_takes_its_exploration_from_the_policy():
    config = GRPOConfig(n_pairs=3, ratio_scale=2.0)
    assert config.estimator(SmoothVLAConfig()) == FlowMatchingRatio(n_pairs=3, scale=2.0)
    policy = SmoothVLAConfig(noise_level=0.3, stochastic_steps="all", noise_length=2.0, noise_last_step=True)
    expected = FlowSDERatio(level=0.3, stochastic_steps="all", noise_length=2.0, skip_last=False)
    assert GRPOConfig(ratio="flow_sde").estimator(policy) == expected


def test_flow_sde_needs_noise():
    with pytest.raises(ValueError, match="`level` should be positive"):
        GRPOConfig(ratio="flow_sde").estimator(SmoothVLAConfig(noise_level=0.0))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"env": None}, "GRPO needs an environment; pass e.g. --env.type=libero"),
        (
            {"env": PushtEnv(), "algorithm": GRPOConfig(reward=JerkRewardConfig("joint_ldlj"))},
            "'joint_ldlj' needs positions of joints .*--algorithm.reward.signal=ldlj",
        ),
        ({"env": RoboCasaEnv()}, "type 'robocasa' have no adapter.*aloha, libero, metaworld, pusht"),
        ({"n_workers": -1}, "`n_workers` should be at least 0, got -1"),
        ({"steps": 0}, "`steps` should be at least 1 iteration, got 0"),
        ({"seed": -1}, "`seed` should be at least 0, got -1"),
    ],
)
def test_a_run_that_cannot_be_is_rejected(settings, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**settings)


def test_a_run_needs_a_warm_start():
    with pytest.raises(ValueError, match="--policy.path=CHECKPOINT"):
        pipeline(policy=None).validate()


@pytest.mark.parametrize("kind", ["directory", "file"])
def test_what_exists_is_not_written_into_unless_resumed(tmp_path, kind):
    output = tmp_path / "run"
    output.mkdir() if kind == "directory" else output.touch()
    with pytest.raises(FileExistsError, match="exists and would be overwritten.*--resume=true"):
        pipeline(output_dir=output).validate()
    pipeline(output_dir=output, resume=True).validate()


def test_a_run_without_a_name_is_named_after_task_and_policy():
    config = pipeline(env=LiberoEnvConfig(task="libero_goal"))
    config.validate()
    assert config.output_dir == Path("outputs/grpo/libero_goal_smoothvla")
    assert config.job_name == "libero_smoothvla_grpo"


@pytest.mark.parametrize("reference", [None, 12.5, {"libero_object/0": 31.0, "libero_object/3": 12.5}])
def test_a_saved_training_config_parses_back_to_itself(tmp_path, reference):
    config = pipeline(
        algorithm=GRPOConfig(
            ratio="flow_sde",
            init_states=(3, 7),
            freeze=("vision", "vlm"),
            gradient_checkpointing=True,
            reward=JerkRewardConfig(reference=reference, weight=0.3),
        ),
        env=LiberoEnvConfig(task="libero_object", task_ids=[0, 3]),
        output_dir=tmp_path / "run",
        n_workers=0,
    )
    config.validate()
    config.save_pretrained(tmp_path)
    assert GRPOPipelineConfig.from_pretrained(tmp_path, cli_args=[]) == config


def test_a_dataset_may_stand_in_the_config_that_is_pushed_to_the_hub(tmp_path):
    config = pipeline(dataset=DatasetConfig(repo_id="me/demonstrations"))
    config.save_pretrained(tmp_path)
    assert GRPOPipelineConfig.from_pretrained(tmp_path, cli_args=[]).dataset.repo_id == "me/demonstrations"


def test_flags_reach_every_level():
    config = draccus.parse(
        GRPOPipelineConfig,
        args=[
            "--env.type=libero",
            "--algorithm.init_states=[2,5]",
            "--algorithm.reward.weight=0.1",
            "--algorithm.reward.reference={libero_object/0: 3.5}",
            "--algorithm.clip_high=0.5",
            "--algorithm.freeze=[vision,vlm]",
            "--algorithm.bf16=true",
        ],
    )
    assert config.algorithm.freeze == ("vision", "vlm")
    assert config.algorithm.execution == Execution(bf16=True)
    assert config.algorithm.init_states == (2, 5)
    assert config.algorithm.reward == JerkRewardConfig(weight=0.1, reference={"libero_object/0": 3.5})
    assert (config.algorithm.clip_low, config.algorithm.clip_high) == (None, 0.5)
