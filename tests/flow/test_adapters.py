"""Every adapter holds the same rules, on small random policies; LeRobot's own code is the reference."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import POLICIES, TOLERANCE, WITHOUT_GRADIENT, act, random_observation
from episodes import own_chunk, ratio_settings, sampled_group
from stock import act_in_stock_lerobot
from torch import Tensor

from lerobot_smoothvla.checkpoint_loading import load_actor, load_actor_config
from lerobot_smoothvla.flow.adapters import adapt, adapter_types
from lerobot_smoothvla.flow.adapters.base import FlowAdapter
from lerobot_smoothvla.flow.ratio import PosteriorRatio
from lerobot_smoothvla.grpo.algorithm import GRPOAlgorithm, Replay
from lerobot_smoothvla.grpo.configuration import GRPOConfig
from lerobot_smoothvla.rollout.engine import Actor

TASKS = ["pick up the milk", "open it"]
"""Of different lengths: together the second one is padded."""


@pytest.fixture(scope="module", params=sorted(POLICIES))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def actor(checkpoint: Path) -> Actor:
    return load_actor(load_actor_config(checkpoint))


@pytest.fixture(scope="module")
def settings(actor: Actor) -> list[dict[str, Any]]:
    return ratio_settings(actor.policy.config)


def test_every_adapter_is_tested():
    assert set(adapter_types()) <= {policy.split("-")[0] for policy in POLICIES}


def test_without_noise_it_is_the_policys_own_sampling(name: str, actor: Actor):
    policy, adapter = actor.policy, actor.adapter
    if not isinstance(adapter, FlowAdapter):
        pytest.skip("A diffusion policy has no ODE; tests/flow/test_diffusion.py compares its chain.")
    batch = actor.model_input(random_observation(policy.config, 2), TASKS)
    noise = torch.randn(2, adapter.chunk_size, adapter.padded_action_dim, generator=torch.manual_seed(0))
    with torch.no_grad():
        chunk = adapter.to_actions(adapter.denoise(adapter.encode(batch), noise, torch.Generator()))
        own = own_chunk(policy, batch, noise)
    assert chunk.dtype == torch.float32
    assert (chunk[:, : own.shape[1]] - own).abs().max() <= TOLERANCE.get(name, 0.0)


@pytest.mark.parametrize("microbatch_size", [1, 64])
@pytest.mark.parametrize("training", [False, True])
def test_every_ratio_is_one_before_the_first_step(
    actor: Actor, settings: list[dict[str, Any]], training: bool, microbatch_size: int
):
    """Sampled one by one as in a rollout; replayed one by one and batched, whatever mode it is left in."""
    n = actor.policy.config.n_action_steps
    before = {key: value.clone() for key, value in actor.policy.state_dict().items()}
    for setting in settings:
        config = GRPOConfig(**setting, minibatch_size=64, microbatch_size=microbatch_size)
        algorithm = GRPOAlgorithm(actor, config)
        groups = [
            sampled_group(actor, algorithm.estimator, (1, 0, 0), n, seed, instruction=task)
            for seed, task in enumerate(TASKS)
        ]
        actor.policy.train(training)
        stats = algorithm.update(iter([groups]))
        actor.policy.load_state_dict(before)
        assert stats.extra["n_minibatches"] == 1
        assert stats.extra["ratio_deviation"] <= 1e-5, setting
        assert stats.grad_norms["policy"] > 0


def test_every_trainable_tensor_learns_but_those_that_are_named(
    name: str, actor: Actor, settings: list[dict[str, Any]]
):
    algorithm = GRPOAlgorithm(actor, GRPOConfig(**settings[0], minibatch_size=64))
    group = sampled_group(actor, algorithm.estimator, n_steps=actor.policy.config.n_action_steps)
    before = {key: value.clone() for key, value in actor.policy.state_dict().items()}
    algorithm.update(iter([[group]]))
    actor.policy.load_state_dict(before)
    idle = [
        key
        for key, parameter in actor.policy.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.any())
    ]
    named = WITHOUT_GRADIENT.get(name, ())
    assert all(key.endswith(named) for key in idle), idle
    assert all(any(key.endswith(end) for key in idle) for end in named), idle


def with_other_padding(network: Callable[..., Tensor], action_dim: int) -> Callable[..., Tensor]:
    """The network with one added to what it says of padded dimensions."""

    def changed(*arguments: Any) -> Tensor:
        said = network(*arguments).clone()
        said[..., action_dim:] += 1
        return said

    return changed


def test_padding_and_what_is_not_executed_do_not_count(
    actor: Actor, settings: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
):
    adapter = actor.adapter
    for setting in settings:
        estimator = GRPOConfig(**setting).estimator(actor.policy.config)
        group = sampled_group(actor, estimator, n_steps=2)
        replay = Replay.from_groups([group], GRPOConfig(**setting), adapter.first_step)
        assert replay is not None
        assert replay.executed.any(0).nonzero().flatten().tolist() == [
            adapter.first_step,
            adapter.first_step + 1,
        ]
        context = adapter.encode(
            actor.model_input(
                {key: torch.stack(rows) for key, rows in replay.observations.items()}, replay.instructions
            )
        )
        baseline = estimator.baseline(adapter, context, replay.record)
        noise = torch.randn(baseline.shape) * ~replay.executed[:, None]
        name = "predict" if isinstance(estimator, PosteriorRatio) else "velocity"
        with torch.no_grad(), monkeypatch.context() as changed:
            changed.setattr(adapter, name, with_other_padding(getattr(adapter, name), adapter.action_dim))
            log_ratio = estimator.log_ratio(
                adapter, context, replay.record, baseline + noise, replay.executed
            )
        assert log_ratio.abs().max() <= 1e-4, setting


def test_an_updated_policy_is_saved_as_what_it_was_and_acts_the_same_in_stock_lerobot(
    name: str, actor: Actor, settings: list[dict[str, Any]], tmp_path: Path
):
    """In a process that does not load this package."""
    if name == "smoothvla":
        pytest.skip("The type is this package's own.")
    if "-" in name:
        pytest.skip("It is saved and loaded as the other variant of its type, which is tested.")
    before = {key: value.clone() for key, value in actor.policy.state_dict().items()}
    algorithm = GRPOAlgorithm(actor, GRPOConfig(**settings[0], lr=1e-3))
    algorithm.update(iter([[sampled_group(actor, algorithm.estimator, n_steps=2)]]))
    for part in (actor.policy, actor.preprocessor, actor.postprocessor):
        part.save_pretrained(tmp_path)
    expected = act(actor.policy, actor.preprocessor, actor.postprocessor)
    actor.policy.load_state_dict(before)
    assert not torch.equal(act(actor.policy, actor.preprocessor, actor.postprocessor), expected)
    assert torch.equal(act_in_stock_lerobot(tmp_path, tmp_path), expected)


def test_a_lerobot_whose_code_has_moved_is_named(actor: Actor, monkeypatch: pytest.MonkeyPatch):
    path = next(iter(type(actor.adapter).uses))
    monkeypatch.setattr(type(actor.adapter), "uses", {path: ("no_such_parameter",)})
    with pytest.raises(ImportError, match=rf"`{path}`, which in LeRobot 0\.6\.\d+ does not take no_such"):
        adapt(actor.policy)
    monkeypatch.setattr(type(actor.adapter), "uses", {"model.no_such_method": ()})
    with pytest.raises(ImportError, match=r"is not there\. It is known to work with LeRobot 0\.6\.1"):
        adapt(actor.policy)


def test_every_parameter_belongs_to_a_part(actor: Actor):
    adapter = type(actor.adapter)
    counts = Counter(adapter.part_of(name) for name, _ in actor.policy.named_parameters())
    assert set(counts) == {*adapter.parts, "expert"}
