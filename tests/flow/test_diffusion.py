"""Diffusion policies through the seam: their chain is LeRobot's own; `test_adapters` has the other rules."""

from pathlib import Path
from typing import Any

import pytest
import torch
from builders import TASK, random_observation
from builders_diffusion import tiny_diffusion, tiny_multi_task_dit
from lerobot.policies import PreTrainedPolicy
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.multi_task_dit.configuration_multi_task_dit import MultiTaskDiTConfig

from lerobot_smoothvla.checkpoint_loading import load_actor, load_actor_config
from lerobot_smoothvla.flow.adapters import adapt, adapter_class
from lerobot_smoothvla.flow.adapters.multi_task_dit import (
    MultiTaskDiTDiffusionAdapter,
    MultiTaskDiTFlowAdapter,
)
from lerobot_smoothvla.flow.ratio import PosteriorRatio
from lerobot_smoothvla.flow.sampling import DeployedSampler
from lerobot_smoothvla.grpo.configuration import GRPOConfig

DDIM = {"noise_scheduler_type": "DDIM"}


def own_actions(policy: PreTrainedPolicy, batch: dict[str, Any], seed: int) -> torch.Tensor:
    """An episode's first chunk by LeRobot's own interface; all its noise is from the global generator."""
    policy.reset()
    torch.manual_seed(seed)
    actions = [policy.select_action(dict(batch)) for _ in range(policy.config.n_action_steps)]
    return torch.stack(actions, dim=1)


@pytest.mark.parametrize(
    ("build", "settings"),
    [
        (tiny_diffusion, {}),
        (tiny_diffusion, {"num_inference_steps": None, "clip_sample": False, "n_obs_steps": 1}),
        (tiny_diffusion, {**DDIM, "use_separate_rgb_encoder_per_camera": True}),
        (tiny_diffusion, {**DDIM, "prediction_type": "sample", "n_obs_steps": 3}),
        (tiny_multi_task_dit, {}),
        (tiny_multi_task_dit, {**DDIM, "n_obs_steps": 1, "use_separate_rgb_encoder_per_camera": True}),
    ],
)
def test_a_deployed_chunk_is_the_policys_own_for_the_same_draws_bit_by_bit(
    build: Any, settings: dict[str, Any], tmp_path: Path
):
    """DDPM draws none in the last step, where our draw is multiplied by 0: those before it are aligned."""
    build(tmp_path, **settings)
    actor = load_actor(load_actor_config(tmp_path))
    policy, adapter = actor.policy, actor.adapter
    n_obs_steps = policy.config.n_obs_steps
    frame = {
        key: value[:, -1] if n_obs_steps > 1 else value
        for key, value in random_observation(policy.config, 2).items()
    }
    history = {key: torch.stack([value] * n_obs_steps, dim=1) for key, value in frame.items()}
    own = own_actions(policy, actor.model_input(frame, [TASK] * 2), seed=7)
    batch = actor.model_input(history if n_obs_steps > 1 else frame, [TASK] * 2)
    with torch.no_grad():
        sample = DeployedSampler().sample(
            adapter, adapter.encode(batch), torch.Generator().manual_seed(7), batch_size=2
        )
    assert sample.actions.dtype == torch.float32
    assert torch.equal(adapter.to_actions(sample.actions)[:, : own.shape[1]], own)


def test_without_a_number_of_steps_it_takes_all_of_training(tmp_path: Path):
    assert adapt(tiny_diffusion(tmp_path, num_inference_steps=None)).num_steps == 20


def test_a_multi_task_dit_is_adapted_by_its_objective():
    assert adapter_class(MultiTaskDiTConfig()) is MultiTaskDiTDiffusionAdapter
    assert adapter_class(MultiTaskDiTConfig(objective="flow_matching")) is MultiTaskDiTFlowAdapter


@pytest.mark.parametrize("config_class", [DiffusionConfig, MultiTaskDiTConfig])
def test_the_last_step_explores_by_default_where_the_network_predicts_the_action(config_class: Any):
    noise, clean = config_class(), config_class(prediction_type="sample")
    assert GRPOConfig().estimator(noise) == PosteriorRatio(level=0.1, skip_last=True)
    assert GRPOConfig().estimator(clean) == PosteriorRatio(level=0.1, skip_last=False)
    assert GRPOConfig(noise_last_step=False).estimator(clean) == PosteriorRatio(level=0.1, skip_last=True)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (DiffusionConfig(num_inference_steps=101), "between 1 and the 100 timesteps of training, got 101"),
        (MultiTaskDiTConfig(num_inference_steps=0), "between 1 and the 100 timesteps of training, got 0"),
        (DiffusionConfig(n_action_steps=0), "`n_action_steps` should be at least 1, got 0"),
        (
            MultiTaskDiTConfig(objective="flow_matching", integration_method="rk4"),
            "`integration_method` should be 'euler', got 'rk4'",
        ),
        (MultiTaskDiTConfig(objective="flow_matching", sigma_min=0.01), "`sigma_min` should be 0, got 0.01"),
    ],
)
def test_settings_that_cannot_be_fine_tuned_are_refused_with_the_way_out(config, message: str):
    with pytest.raises(ValueError, match=message):
        adapter_class(config).check_config(config)
