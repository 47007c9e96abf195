import re
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lerobot.configs import FeatureType, PolicyFeature, PreTrainedConfig
from lerobot.policies import get_policy_class, make_pre_post_processors
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from torch import Tensor

import lerobot_smoothvla
from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig
from lerobot_smoothvla.flow.adapters import adapt
from lerobot_smoothvla.flow.sampling import integrate_ode
from lerobot_smoothvla.modeling_smoothvla import SmoothVLAPolicy
from lerobot_smoothvla.processor_smoothvla import make_smoothvla_pre_post_processors

PRESET = Path(__file__).parents[1] / "configs" / "policy" / "smoothvla_tiny.yaml"
MILK = "pick up the milk and place it in the basket"
SOUP = "pick up the alphabet soup and place it in the basket"
IMAGE = PolicyFeature(FeatureType.VISUAL, (3, 64, 64))
FEATURES: dict[str, Any] = {
    "device": "cpu",
    "input_features": {
        "observation.images.image": IMAGE,
        "observation.images.image2": IMAGE,
        "observation.state": PolicyFeature(FeatureType.STATE, (8,)),
    },
    "output_features": {"action": PolicyFeature(FeatureType.ACTION, (7,))},
}


def tiny_policy(**changes: Any) -> SmoothVLAPolicy:
    torch.manual_seed(0)
    settings = {**yaml.safe_load(PRESET.read_text()), **FEATURES, **changes}
    settings.pop("type")
    return SmoothVLAPolicy(SmoothVLAConfig(**settings)).eval()


def smolvla_config(backbone: Path, config_class: type[SmolVLAConfig] = SmolVLAConfig) -> Any:
    return config_class(
        vlm_model_name=str(backbone),
        load_vlm_weights=True,
        num_vlm_layers=2,
        chunk_size=6,
        n_action_steps=4,
        num_steps=3,
        resize_imgs_with_padding=(64, 64),
        tokenizer_max_length=64,
        **FEATURES,
    )


def random_batch(config: SmoothVLAConfig, instructions: list[str], seed: int = 0) -> dict[str, Any]:
    """Preprocessed: another image, state and action chunk for every instruction."""
    generator = torch.Generator().manual_seed(seed)
    n = len(instructions)
    preprocessor, _ = make_smoothvla_pre_post_processors(config)
    batch = {
        "observation.images.image": torch.rand(n, 3, 64, 64, generator=generator),
        "observation.images.image2": torch.rand(n, 3, 64, 64, generator=generator),
        "observation.state": torch.randn(n, 8, generator=generator),
        "action": torch.randn(n, config.chunk_size, 7, generator=generator),
    }
    return preprocessor({**batch, "task": instructions})


def random_noise(policy: SmoothVLAPolicy, n: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, policy.config.chunk_size, policy.config.max_action_dim, generator=generator)


@pytest.fixture(scope="module")
def policy() -> SmoothVLAPolicy:
    return tiny_policy()


@pytest.fixture(scope="module")
def smolvla_policy(tiny_smolvlm: Path) -> SmoothVLAPolicy:
    """On a transformer vision tower, as SmolVLA's own."""
    torch.manual_seed(0)
    return SmoothVLAPolicy(smolvla_config(tiny_smolvlm, SmoothVLAConfig)).eval()


@pytest.mark.parametrize("name", ["policy", "smolvla_policy"])
def test_velocity_integrated_is_predict_action_chunk_bit_by_bit(
    name: str, request: pytest.FixtureRequest
) -> None:
    policy = request.getfixturevalue(name)
    batch, noise = random_batch(policy.config, [MILK, SOUP]), random_noise(policy, 2)
    with torch.no_grad():
        chunk = integrate_ode(adapt(policy), policy.encode(batch), noise)
    expected = policy.predict_action_chunk(batch, noise=noise)
    assert chunk.dtype == torch.float32
    torch.testing.assert_close(chunk[..., :7], expected, rtol=0, atol=0)


def test_velocity_leaves_the_context_as_it_was(policy: SmoothVLAPolicy) -> None:
    with torch.no_grad():
        context = policy.encode(random_batch(policy.config, [MILK, SOUP]))
        before = [tensor.clone() for layer in context.keys_values for tensor in layer]
        first = policy.velocity(context, random_noise(policy, 2), torch.full((2,), 0.7))
        again = policy.velocity(context, random_noise(policy, 2), torch.full((2,), 0.7))
    assert torch.equal(first, again)
    after = [tensor for layer in context.keys_values for tensor in layer]
    assert all(torch.equal(x, y) for x, y in zip(before, after, strict=True))


def test_repeated_contexts_stand_for_their_rows(policy: SmoothVLAPolicy) -> None:
    noise, t = random_noise(policy, 4), torch.tensor([0.2, 0.5, 0.8, 1.0])
    with torch.no_grad():
        context = policy.encode(random_batch(policy.config, [MILK, SOUP]))
        repeated = policy.velocity(context.repeat_interleave(2), noise, t)
        first = policy.velocity(context, noise[[0, 2]], t[[0, 2]])
        second = policy.velocity(context, noise[[1, 3]], t[[1, 3]])
    torch.testing.assert_close(repeated[[0, 2]], first)
    torch.testing.assert_close(repeated[[1, 3]], second)


def test_weights_of_a_smolvla_load_and_act_the_same(tiny_smolvlm: Path, tmp_path: Path) -> None:
    torch.manual_seed(3)
    stock = SmolVLAPolicy(smolvla_config(tiny_smolvlm)).eval()
    stock.save_pretrained(tmp_path)
    config = smolvla_config(tiny_smolvlm, SmoothVLAConfig)
    ours = SmoothVLAPolicy.from_pretrained(tmp_path, config=config, strict=True)
    assert ours.state_dict().keys() == stock.state_dict().keys()
    batch, noise = random_batch(config, [MILK, SOUP]), random_noise(ours, 2)
    expected = stock.predict_action_chunk(batch, noise=noise)
    torch.testing.assert_close(ours.predict_action_chunk(batch, noise=noise), expected, rtol=0, atol=0)


def test_a_checkpoint_comes_back_the_same_and_holds_no_path(tmp_path: Path) -> None:
    policy = tiny_policy(noise_length=2.0)
    stats = {"action": {"mean": torch.full((7,), 0.5), "std": torch.full((7,), 2.0)}}
    preprocessor, postprocessor = make_pre_post_processors(policy.config, dataset_stats=stats)
    policy.save_pretrained(tmp_path)
    preprocessor.save_pretrained(tmp_path)
    postprocessor.save_pretrained(tmp_path)

    package = str(Path(lerobot_smoothvla.__file__).parent)
    assert not [file.name for file in tmp_path.glob("*.json") if package in file.read_text()]

    config = PreTrainedConfig.from_pretrained(tmp_path)
    assert isinstance(config, SmoothVLAConfig)
    assert (config.vlm_model_name, config.noise_length) == ("smoothvla_tiny", 2.0)
    loaded = get_policy_class("smoothvla").from_pretrained(tmp_path, config=config)
    loaded_pre, loaded_post = make_pre_post_processors(config, pretrained_path=str(tmp_path))
    raw = {
        "observation.images.image": torch.rand(1, 3, 64, 64),
        "observation.images.image2": torch.rand(1, 3, 64, 64),
        "observation.state": torch.randn(1, 8),
        "task": [MILK],
    }
    noise = random_noise(policy, 1)
    action = postprocessor(policy.predict_action_chunk(preprocessor(dict(raw)), noise=noise))
    again = loaded_post(loaded.predict_action_chunk(loaded_pre(dict(raw)), noise=noise))
    assert torch.equal(action, again)


def test_the_tiny_policy_has_one_to_three_million_parameters(policy: SmoothVLAPolicy) -> None:
    assert 1e6 < sum(p.numel() for p in policy.parameters()) < 3e6


def test_every_trainable_tensor_of_the_tiny_policy_learns() -> None:
    policy = tiny_policy().train()
    loss, _ = policy.forward(random_batch(policy.config, [MILK, SOUP]))
    loss.backward()
    idle = {
        name
        for name, parameter in policy.named_parameters()
        if parameter.requires_grad and (parameter.grad is None or not parameter.grad.abs().sum() > 0)
    }
    assert idle == set()


@pytest.mark.parametrize("padded", [False, True])
def test_the_loss_of_several_flow_samples_is_the_mean_of_smolvlas_loss(padded: bool) -> None:
    n = 3
    policy = tiny_policy(flow_samples=n)
    batch = random_batch(policy.config, [MILK, SOUP])
    if padded:
        batch["action_is_pad"] = torch.arange(policy.config.chunk_size) >= torch.tensor([[5], [9]])
    noise, t = random_noise(policy, 2 * n), torch.rand(2 * n)
    with torch.no_grad():
        loss, _ = policy.forward(batch, noise=noise, time=t)
        per_sample, _ = policy.forward(batch, noise=noise, time=t, reduction="none")
        policy.config.flow_samples = 1
        singles = [
            policy.forward(batch, noise=noise[k::n], time=t[k::n], reduction=reduction)[0]
            for reduction in ("mean", "none")
            for k in range(n)
        ]
    torch.testing.assert_close(loss, torch.stack(singles[:n]).mean())
    torch.testing.assert_close(per_sample, torch.stack(singles[n:]).mean(0))


@pytest.fixture(scope="module")
def overfitted() -> tuple[SmoothVLAPolicy, dict[str, Any], float, float]:
    """A policy trained on one image with two instructions, the batch, and its flow loss before and after."""
    policy = tiny_policy(flow_samples=8)
    batch = random_batch(policy.config, [MILK, SOUP])
    for key in ("observation.images.image", "observation.images.image2", "observation.state"):
        batch[key] = batch[key][:1].expand_as(batch[key])
    noise, t = random_noise(policy, 2 * 8, seed=5), torch.linspace(0.05, 1, 16)

    def loss() -> float:
        with torch.no_grad():
            return policy.forward(batch, noise=noise, time=t)[0].item()

    before = loss()
    policy.train()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1.5e-3)
    for _ in range(120):
        optimizer.zero_grad()
        policy.forward(batch)[0].backward()
        optimizer.step()
    policy.eval()
    return policy, batch, before, loss()


def test_the_tiny_policy_overfits_one_batch(
    overfitted: tuple[SmoothVLAPolicy, dict[str, Any], float, float],
) -> None:
    *_, before, after = overfitted
    assert after < before / 8


def test_another_instruction_on_the_same_image_gives_its_own_action(
    overfitted: tuple[SmoothVLAPolicy, dict[str, Any], float, float],
) -> None:
    policy, batch, _, _ = overfitted
    noise = random_noise(policy, 1).expand(2, -1, -1)
    milk, soup = policy.predict_action_chunk(batch, noise=noise)
    expected_milk, expected_soup = batch["action"]
    between = (expected_milk - expected_soup).square().mean()
    assert (milk - expected_milk).square().mean() < 0.1 * between
    assert (soup - expected_soup).square().mean() < 0.1 * between


def test_real_time_chunking_comes_along() -> None:
    policy = tiny_policy(rtc_config=RTCConfig(enabled=True, execution_horizon=8))
    assert policy.supports_rtc()
    batch, noise = random_batch(policy.config, [MILK]), random_noise(policy, 1)
    free = policy.predict_action_chunk(batch, noise=noise)
    left_over = torch.ones(1, policy.config.chunk_size, 7)
    guided = policy.predict_action_chunk(
        batch, noise=noise, inference_delay=2, prev_chunk_left_over=left_over, execution_horizon=8
    )
    assert (guided - left_over)[:, :2].abs().mean() < (free - left_over)[:, :2].abs().mean()


def test_the_default_peft_targets_name_modules_of_the_expert(policy: SmoothVLAPolicy) -> None:
    pattern = policy._get_default_peft_targets()["target_modules"]
    targets = [name for name, _ in policy.named_modules() if re.fullmatch(pattern, name)]
    n_layers = len(policy.model.vlm_with_expert.lm_expert.layers)
    assert sum(name.endswith(("q_proj", "v_proj")) for name in targets) == 2 * n_layers > 0
    assert {"model.state_proj", "model.action_in_proj", "model.action_out_proj"} < set(targets)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"noise_level": -0.1}, "`noise_level` and `noise_length` should be at least 0, got -0.1 and 0.0"),
        ({"noise_length": -1.0}, "got 0.2 and -1.0"),
        ({"stochastic_steps": "some"}, "should be 'one' or 'all', got 'some'"),
        ({"flow_samples": 0}, "`flow_samples` should be at least 1, got 0"),
    ],
)
def test_exploration_that_cannot_be_sampled_is_refused(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SmoothVLAConfig(**setting)
