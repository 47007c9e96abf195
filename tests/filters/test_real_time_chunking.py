"""LeRobot's own guided sampling is the reference, on small random policies."""

from copy import copy
from pathlib import Path

import pytest
import torch
from builders import POLICIES, random_observation
from lerobot.policies.rtc.configuration_rtc import RTCConfig

from lerobot_smoothvla.checkpoint_loading import load_actor, load_actor_config
from lerobot_smoothvla.filters.configuration import RealTimeChunkingConfig
from lerobot_smoothvla.filters.real_time_chunking import RealTimeChunkingSampler
from lerobot_smoothvla.flow.sampling import DeployedSampler
from lerobot_smoothvla.rollout.engine import Actor

TASK = ["pick up the milk"]
EXECUTED = 3


@pytest.fixture(scope="module", params=["smoothvla", "smolvla", "pi0", "pi05", "multi_task_dit-flow"])
def actor(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Actor:
    path = tmp_path_factory.mktemp(request.param)
    POLICIES[request.param](path)
    return load_actor(load_actor_config(path))


def two_chunks(actor: Actor, sampler: DeployedSampler | RealTimeChunkingSampler) -> list[torch.Tensor]:
    """What it draws for two observations in a row, always with the same noise."""
    generator = torch.Generator().manual_seed(1)
    chunks = []
    for seed in range(2):
        with torch.no_grad():
            batch = actor.model_input(random_observation(actor.policy.config, 1, seed), TASK)
            context = actor.adapter.encode(batch)
            chunks.append(sampler.sample(actor.adapter, context, generator).actions)
    return chunks


def test_the_first_chunk_is_as_deployed_and_the_next_begins_as_it_went_on(actor: Actor):
    plain = two_chunks(actor, DeployedSampler())
    guided = two_chunks(actor, RealTimeChunkingSampler(EXECUTED))
    assert torch.equal(guided[0], plain[0])
    assert not guided[1].requires_grad
    first, planned = actor.adapter.first_step, plain[0][:, EXECUTED:]
    jumps = [(chunks[1][:, first] - planned[:, first]).norm() for chunks in (plain, guided)]
    assert jumps[1] < 0.5 * jumps[0]


def test_it_is_lerobots_own_guidance(actor: Actor):
    policy, adapter = actor.policy, actor.adapter
    if policy.config.type == "multi_task_dit":
        pytest.skip("LeRobot has no real-time chunking for it.")
    generator = torch.Generator().manual_seed(1)
    shape = (1, adapter.chunk_size, adapter.padded_action_dim)
    noise = [torch.randn(shape, generator=generator) for _ in range(2)]
    guided = two_chunks(actor, RealTimeChunkingSampler(EXECUTED))
    batch = actor.model_input(random_observation(policy.config, 1, 1), TASK)
    policy.config.rtc_config = RTCConfig(max_guidance_weight=adapter.num_steps)
    policy.init_rtc_processor()
    try:
        own = policy.predict_action_chunk(
            batch,
            noise=noise[1],
            inference_delay=0,
            prev_chunk_left_over=guided[0][:, EXECUTED:],
            execution_horizon=EXECUTED,
        )
    finally:
        policy.config.rtc_config = None
        policy.init_rtc_processor()
        policy.model.rtc_processor = None
    torch.testing.assert_close(adapter.to_actions(guided[1]), own, rtol=0, atol=1e-5)


def test_a_copy_that_has_not_sampled_begins_anew(actor: Actor):
    sampler = RealTimeChunkingSampler(EXECUTED)
    first = two_chunks(actor, copy(sampler))
    assert all(torch.equal(a, b) for a, b in zip(two_chunks(actor, copy(sampler)), first, strict=True))
    used = copy(sampler)
    two_chunks(actor, used)
    assert not torch.equal(two_chunks(actor, used)[0], first[0])


def test_the_weakest_guidance_is_nearly_none(actor: Actor):
    plain = two_chunks(actor, DeployedSampler())[1]
    weak = two_chunks(actor, RealTimeChunkingSampler(EXECUTED, max_guidance_weight=1e-6))[1]
    torch.testing.assert_close(weak, plain, rtol=0, atol=1e-4)


def test_what_cannot_be_guided_is_refused(actor: Actor, tmp_path: Path):
    config = actor.policy.config
    before = config.n_action_steps
    config.n_action_steps = actor.adapter.chunk_size - actor.adapter.first_step
    try:
        with pytest.raises(ValueError, match="joined only where they overlap"):
            RealTimeChunkingConfig().sampler(actor.adapter)
    finally:
        config.n_action_steps = before
    if config.type == "pi0":
        config.use_relative_actions = True
        with pytest.raises(ValueError, match="relative actions"):
            RealTimeChunkingConfig().sampler(actor.adapter)
        config.use_relative_actions = False


def test_a_diffusion_policy_has_no_velocity_to_guide(tmp_path: Path):
    POLICIES["diffusion-ddim"](tmp_path)
    adapter = load_actor(load_actor_config(tmp_path)).adapter
    with pytest.raises(ValueError, match="of type 'diffusion' do not have"):
        RealTimeChunkingConfig().sampler(adapter)
