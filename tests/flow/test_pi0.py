"""pi0 and pi05 beside the rules that every adapter holds."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import LIBERO_STATS, random_observation
from builders_pi import tiny_pi
from episodes import INSTRUCTION, sampled_episode, sampled_group
from safetensors.torch import load_file, save_file

from lerobot_smoothvla.checkpoint_loading import load_actor, load_actor_config
from lerobot_smoothvla.flow.ratio import FlowMatchingRatio, FlowSDERatio
from lerobot_smoothvla.grpo.algorithm import GRPOAlgorithm
from lerobot_smoothvla.grpo.configuration import GRPOConfig
from lerobot_smoothvla.rollout.engine import Actor

LM_HEAD = "model.paligemma_with_expert.paligemma.lm_head.weight"
EMBEDDING = "model.paligemma_with_expert.paligemma.model.language_model.embed_tokens.weight"
AXES = ["x", "y", "z", "roll", "pitch", "yaw", "gripper.pos"]


@pytest.fixture(params=["pi0", "pi05"])
def policy_type(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def saved(policy_type: str, tmp_path: Path) -> Callable[..., Path]:
    """Writes a small checkpoint, always with the same weights, into a new directory."""

    def save(stats: dict[str, Any] = LIBERO_STATS, **settings: Any) -> Path:
        path = tmp_path / str(len(list(tmp_path.iterdir())))
        tiny_pi(path, policy_type, stats, **settings)
        return path

    return save


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "gradient_checkpointing",
            "drops the prefix's keys.*--algorithm.gradient_checkpointing=true",
        ),
        ("compile_model", "methods of pi05? that are not called here"),
    ],
)
def test_what_lerobot_would_do_in_methods_of_its_own_is_refused(saved, setting: str, message: str):
    path = saved()
    with pytest.raises(ValueError, match=f"`{setting}=true`.*{message}.*"):
        load_actor_config(path, [f"--{setting}=true"])
    file = path / "config.json"
    file.write_text(file.read_text().replace(f'"{setting}": false', f'"{setting}": true'))
    with pytest.raises(ValueError, match=f"--policy.{setting}=false"):
        load_actor_config(path)
    assert not getattr(load_actor_config(path, [f"--{setting}=false"]), setting)


def _of_another_shape(weights: dict[str, torch.Tensor]) -> None:
    weights["model.action_in_proj.weight"] = torch.zeros(32, 9)


def _missing(weights: dict[str, torch.Tensor]) -> None:
    del weights["model.action_in_proj.weight"]


def _unknown(weights: dict[str, torch.Tensor]) -> None:
    weights["model.no_such_layer.weight"] = torch.zeros(1)


@pytest.mark.parametrize("spoil", [_of_another_shape, _missing, _unknown])
def test_weights_that_are_not_the_configs_are_refused_where_lerobot_goes_on_with_random_ones(saved, spoil):
    path = saved()
    weights = load_file(path / "model.safetensors")
    spoil(weights)
    save_file(weights, path / "model.safetensors")
    with pytest.raises(ValueError, match=r"not those of its config.json: .*(action_in_proj|no_such_layer)"):
        load_actor(load_actor_config(path))


def test_a_broken_file_of_weights_is_refused(saved):
    path = saved()
    file = path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match="not those of its config.json"):
        load_actor(load_actor_config(path))


def test_weights_that_openpi_names_are_the_policys(saved):
    """Without LeRobot's prefix and with one tensor for both ends of the vocabulary, as in `pi05_base`."""
    path = saved()
    weights = load_file(path / "model.safetensors")
    del weights[EMBEDDING]
    openpi = {key.removeprefix("model."): value for key, value in weights.items()}
    save_file(openpi, path / "model.safetensors")
    loaded = load_actor(load_actor_config(path)).policy.state_dict()
    for key, value in weights.items():
        assert torch.equal(loaded[key], value)
    assert torch.equal(loaded[EMBEDDING], weights[LM_HEAD])


def test_a_missing_camera_is_what_it_is_to_lerobot(saved):
    actor = load_actor(load_actor_config(saved()))
    observation = random_observation(actor.policy.config, 2)
    del observation["observation.images.image2"]
    batch = actor.model_input(observation, [INSTRUCTION] * 2)
    noise = torch.randn(2, 6, 10, generator=torch.manual_seed(0))
    with torch.no_grad():
        chunk = actor.adapter.to_actions(actor.adapter.denoise(actor.adapter.encode(batch), noise, None))
        assert torch.equal(chunk, actor.policy.predict_action_chunk(batch, noise=noise))


@pytest.fixture
def relative_and_plain(saved) -> tuple[Actor, Actor]:
    """The same policy twice; the first takes its actions for offsets from the state but for the gripper."""
    stats = {
        key: {name: value + 0.5 * value.abs() for name, value in of_key.items()}
        for key, of_key in LIBERO_STATS.items()
    }
    relative = {"use_relative_actions": True, "action_feature_names": AXES}
    first, second = (load_actor(load_actor_config(saved(stats, **extra))) for extra in (relative, {}))
    return first, second


def test_relative_actions_count_from_the_state_that_their_chunk_was_sampled_for(relative_and_plain):
    relative, plain = relative_and_plain
    executed = [4, 4, 2]
    episode = sampled_episode(relative, FlowMatchingRatio(), 0, executed)
    calls = zip(episode.chunks, executed, strict=True)
    offsets = torch.cat([plain.env_actions(chunk[None])[0, :n] for chunk, n in calls])
    state = episode.observations["observation.state"].repeat_interleave(episode.executed, 0)
    expected = torch.cat([offsets[:, :6] + state[:, :6], offsets[:, 6:]], dim=1)
    assert torch.equal(episode.actions, expected)


@pytest.mark.parametrize("estimator", [FlowMatchingRatio(), FlowSDERatio(0.2)])
def test_relative_actions_leave_log_ratios_alone(relative_and_plain, estimator):
    """Replayed in another order than sampled."""
    relative, plain = relative_and_plain
    episode = sampled_episode(relative, estimator, 0, [4, 4, 2])
    order = torch.tensor([2, 0, 1])
    record = {key: value[order] for key, value in episode.record.items()}
    observations = {key: value[order] for key, value in episode.observations.items()}
    executed = torch.ones(3, 6, dtype=torch.bool)
    terms = []
    with torch.no_grad():
        for actor in (relative, plain):
            context = actor.adapter.encode(actor.model_input(observations, [INSTRUCTION] * 3))
            zero = torch.zeros(1, 1, 6)
            terms.append(estimator.log_ratio(actor.adapter, context, record, zero, executed))
    assert torch.equal(*terms) and terms[0].abs().min() > 0


@pytest.mark.parametrize("ratio", ["flow_matching", "flow_sde"])
def test_ratios_of_a_bfloat16_policy_are_one_before_the_first_step(saved, ratio: str):
    """Sampled one by one, replayed one by one and batched, over all steps; the CPU reaches 0.0."""
    actor = load_actor(load_actor_config(saved(dtype="bfloat16")))
    assert {p.dtype for p in actor.policy.parameters()} == {torch.bfloat16, torch.float32}
    before = {key: value.clone() for key, value in actor.policy.state_dict().items()}
    for microbatch_size in (1, 3, 64):
        config = GRPOConfig(ratio=ratio, stochastic_steps="all", microbatch_size=microbatch_size)
        algorithm = GRPOAlgorithm(actor, config)
        group = sampled_group(actor, algorithm.estimator, n_steps=4)
        record = group.episodes[0].episode.record
        assert {v.dtype for v in record.values()} <= {torch.float32, torch.int64}
        stats = algorithm.update(iter([[group]]))
        actor.policy.load_state_dict(before)
        assert stats.extra["ratio_deviation"] <= 1e-6
        assert stats.grad_norms["policy"] > 0
