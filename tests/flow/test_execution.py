"""Precision and recomputation change what an update costs, not what it learns; for every adapter."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import POLICIES, random_observation
from episodes import sampled_group
from torch import Tensor

from lerobot_smoothvla.checkpoint_loading import load_actor, load_actor_config
from lerobot_smoothvla.flow.adapters import adapter_class
from lerobot_smoothvla.flow.adapters.base import FlowAdapter
from lerobot_smoothvla.flow.adapters.execution import Execution, store_frozen_in_bf16
from lerobot_smoothvla.grpo.algorithm import GRPOAlgorithm
from lerobot_smoothvla.grpo.configuration import GRPOConfig
from lerobot_smoothvla.rollout.engine import Actor

TASKS = ["pick up the milk", "open the drawer"]
BF16_TOLERANCE = 1e-3
"""Of a ratio before the first step; 0.0 is reached here. Sums in another order may round otherwise."""


# The networks of diffusion-ddim are diffusion's, whose ResNet takes a minute a test in bfloat16.
NAMES = [
    pytest.param(name, marks=[pytest.mark.slow] if name == "diffusion" else [])
    for name in sorted(POLICIES.keys() - {"diffusion-ddim"})
]


@pytest.fixture(scope="module", params=NAMES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def settings(actor: Actor) -> list[dict[str, Any]]:
    """Settings of every ratio that suits the policy."""
    ratios = adapter_class(actor.policy.config).ratios
    return [{"ratio": ratio} for ratio in ratios] + [{"ratio": ratios[-1], "stochastic_steps": "all"}]


def context_and_output(actor: Actor) -> tuple[Any, Tensor]:
    """What the networks make of the same inputs."""
    adapter = actor.adapter
    context = adapter.encode(actor.model_input(random_observation(actor.policy.config, 2), TASKS))
    x = torch.randn(2, adapter.chunk_size, adapter.padded_action_dim, generator=torch.manual_seed(0))
    if isinstance(adapter, FlowAdapter):
        return context, adapter.velocity(context, x, torch.tensor([0.3, 0.9]))
    return context, adapter.predict(context, x, torch.tensor([0, 1]))  # type: ignore[attr-defined]


def gradients(actor: Actor, **setting: Any) -> tuple[dict[str, Tensor], float]:
    """Of one step, by name; and the ratios' deviation from 1."""
    algorithm = GRPOAlgorithm(actor, GRPOConfig(minibatch_size=64, **setting))
    group = sampled_group(algorithm.actor, algorithm.estimator, n_steps=actor.policy.config.n_action_steps)
    stats = algorithm.update(iter([[group]]))
    found = {name: p.grad for name, p in actor.policy.named_parameters() if p.grad is not None}
    return found, stats.extra["ratio_deviation"]


def saved_bytes(actor: Actor) -> int:
    """What the networks keep for a backward pass, beside the parameters."""
    kept: dict[int, int] = {p.untyped_storage().data_ptr(): 0 for p in actor.policy.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept.setdefault(storage.data_ptr(), storage.nbytes())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        alive = context_and_output(actor)
    del alive
    return sum(kept.values())


# --- bf16


@pytest.mark.parametrize("microbatch_size", [1, 64])
def test_in_bf16_every_ratio_is_one_before_the_first_step(actor: Actor, microbatch_size: int):
    """Sampled one by one; replayed one by one and batched."""
    before = {key: value.clone() for key, value in actor.policy.state_dict().items()}
    for setting in settings(actor):
        _, deviation = gradients(actor, bf16=True, microbatch_size=microbatch_size, **setting)
        actor.policy.load_state_dict(before)
        assert deviation <= BF16_TOLERANCE, setting


def test_a_rollout_in_another_precision_than_the_update_would_be_seen(actor: Actor):
    config = GRPOConfig(bf16=True, minibatch_size=64, **settings(actor)[-1])
    estimator = config.estimator(actor.policy.config)
    group = sampled_group(actor, estimator, n_steps=actor.policy.config.n_action_steps)
    algorithm = GRPOAlgorithm(actor, config)
    assert algorithm.update(iter([[group]])).extra["ratio_deviation"] > 10 * BF16_TOLERANCE


def test_in_bf16_outputs_trained_parameters_and_their_gradients_stay_float32(actor: Actor):
    _, exact = context_and_output(actor)
    _, rounded = context_and_output(replace(actor, execution=Execution(bf16=True)))
    assert rounded.dtype == torch.float32
    assert 0 < (rounded - exact).abs().max() < 0.1 * exact.abs().max()
    found, _ = gradients(actor, bf16=True, **settings(actor)[0])
    assert {gradient.dtype for gradient in found.values()} == {torch.float32}
    assert {p.dtype for p in actor.policy.parameters() if p.requires_grad} == {torch.float32}


def test_frozen_weights_are_stored_in_bf16_without_a_difference_to_the_result(actor: Actor):
    if not actor.adapter.frozen_in_bf16:
        pytest.skip("This policy acts in another way where its weights are of that type.")
    in_bf16 = replace(actor, execution=Execution(bf16=True))
    actor.adapter.freeze([part for part in (*actor.adapter.parts, "expert") if part != "state"])
    _, before = context_and_output(in_bf16)
    store_frozen_in_bf16(actor.policy)
    _, after = context_and_output(in_bf16)
    assert after.equal(before)
    stored = sum(p.numel() for p in actor.policy.parameters() if p.dtype == torch.bfloat16)
    assert stored > 0.5 * sum(p.numel() for p in actor.policy.parameters())


# --- gradient checkpointing


def test_with_gradient_checkpointing_gradients_are_the_same_bit_by_bit(checkpoint: Path):
    for bf16 in (False, True):
        kept, again = (
            gradients(load_actor(load_actor_config(checkpoint)), bf16=bf16, gradient_checkpointing=recompute)[
                0
            ]
            for recompute in (False, True)
        )
        assert kept.keys() == again.keys() and all(kept[name].equal(again[name]) for name in kept)


def test_with_gradient_checkpointing_only_the_inputs_are_kept(actor: Actor):
    recomputed = replace(actor, execution=Execution(gradient_checkpointing=True))
    assert saved_bytes(recomputed) < 0.5 * saved_bytes(actor)


# --- frozen parts


def test_a_frozen_prefix_leaves_nothing_for_the_backward_pass(actor: Actor):
    everything = saved_bytes(actor)
    actor.adapter.freeze(actor.adapter.parts)
    context, output = context_and_output(actor)
    assert not any(tensor.requires_grad for tensor in tensors(context)) and output.requires_grad
    assert saved_bytes(actor) < 0.9 * everything


def tensors(value: Any) -> list[Tensor]:
    """Of a context, however deep."""
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, tuple | list):
        return [tensor for entry in value for tensor in tensors(entry)]
    return (
        [tensor for entry in vars(value).values() for tensor in tensors(entry)] if value is not None else []
    )
