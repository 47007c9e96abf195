import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from builders import IMAGE, LIBERO_FEATURES, LIBERO_INPUTS, LIBERO_OUTPUTS, LIBERO_STATS, save_checkpoint
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.envs.configs import AlohaEnv, EnvConfig, MetaworldEnv, PushtEnv
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from lerobot.policies.smolvla.configuration_smolvla import SmolVLAConfig
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors

from lerobot_smoothvla.checkpoint_loading import load_actor, load_actor_config
from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig
from lerobot_smoothvla.flow.sampling import DeployedSampler

STATE, STATE_OF_6 = (PolicyFeature(FeatureType.STATE, (n,)) for n in (8, 6))


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., Path]:
    """Writes the config.json of a checkpoint that fits LIBERO but for what is given."""

    def save(config_class: type = SmoothVLAConfig, **settings) -> Path:
        settings = {"device": "cpu", **LIBERO_FEATURES, **settings}
        config_class(**settings).save_pretrained(tmp_path)
        return tmp_path

    return save


def test_a_checkpoints_config_comes_with_its_path(saved):
    path = saved(chunk_size=16, n_action_steps=8, noise_level=0.3)
    config = load_actor_config(path)
    assert (config.chunk_size, config.n_action_steps, config.noise_level) == (16, 8, 0.3)
    assert config.pretrained_path == path


def test_options_override_the_checkpoints(saved):
    config = load_actor_config(saved(), ["--n_action_steps=4", "--noise_level", "0.5"])
    assert (config.n_action_steps, config.noise_level) == (4, 0.5)
    assert config.input_features == LIBERO_INPUTS and config.output_features == LIBERO_OUTPUTS


def test_other_denoising_steps_than_the_checkpoints_are_rejected(saved):
    path = saved(num_steps=10)
    assert load_actor_config(path, ["--num_steps=10"]).num_steps == 10
    with pytest.raises(ValueError, match=r"`num_steps` should stay that of the checkpoint .*, 10, got 3"):
        load_actor_config(path, ["--num_steps=3"])


def test_a_stock_smolvla_stays_one(saved):
    path = saved(SmolVLAConfig, num_steps=4)
    config = load_actor_config(path, ["--n_action_steps=2"])
    assert type(config) is SmolVLAConfig
    assert (config.num_steps, config.n_action_steps, config.device) == (4, 2, "cpu")
    assert config.input_features == LIBERO_INPUTS and config.pretrained_path == path


def test_a_stock_smolvla_acts_as_it_does_in_lerobot(tmp_path, tiny_smolvlm):
    torch.manual_seed(0)
    config = SmolVLAConfig(
        vlm_model_name=str(tiny_smolvlm),
        load_vlm_weights=False,
        chunk_size=4,
        n_action_steps=4,
        num_steps=2,
        num_vlm_layers=2,
        resize_imgs_with_padding=(64, 64),
        device="cpu",
        **LIBERO_FEATURES,
    )
    stock = SmolVLAPolicy(config).eval()
    processors = make_smolvla_pre_post_processors(config, LIBERO_STATS)
    for part in (stock, *processors):
        part.save_pretrained(tmp_path)
    actor = load_actor(load_actor_config(tmp_path))

    observation = {
        "observation.images.image": torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8),
        "observation.images.image2": torch.randint(0, 256, (1, 3, 64, 64), dtype=torch.uint8),
        "observation.state": torch.randn(1, 8),
    }
    batch = actor.model_input(observation, ["pick up the milk"])
    with torch.no_grad():
        context = actor.adapter.encode(batch)
        chunk = DeployedSampler().sample(actor.adapter, context, torch.manual_seed(1)).actions
        noise = torch.randn(1, 4, config.max_action_dim, generator=torch.manual_seed(1))
        expected = processors[1](stock.predict_action_chunk(batch, noise=noise))
    torch.testing.assert_close(actor.env_actions(chunk), expected)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"input_features": {"observation.images.image": IMAGE}},
            r"`observation.state` of shape \(8,\).*None",
        ),
        (
            {
                "input_features": {
                    **LIBERO_INPUTS,
                    "observation.state": STATE_OF_6,
                }
            },
            r"`observation.state` of shape \(8,\).*\(6,\)",
        ),
        (
            {"output_features": {"action": PolicyFeature(FeatureType.ACTION, (6,))}},
            r"actions are of shape \(7,\).* of \(6,\)",
        ),
        ({"output_features": {}}, r"actions are of shape \(7,\).* of None"),
        (
            {
                "input_features": {
                    "observation.images.top": IMAGE,
                    "observation.state": STATE,
                }
            },
            "looks through .*top.*camera_name_mapping",
        ),
        ({"n_action_steps": 0}, r"`n_action_steps` should be at least 1, got 0"),
    ],
)
def test_a_policy_that_does_not_fit_the_environment_is_rejected(saved, settings, message):
    with pytest.raises(ValueError, match=message):
        load_actor_config(saved(**settings))


def test_an_environment_without_a_state_is_rejected(saved):
    with pytest.raises(ValueError, match="pixels_agent_pos.*got 'pixels'"):
        load_actor_config(saved(), env_config=LiberoEnvConfig(obs_type="pixels"))


def test_cameras_may_be_named_by_the_environment(saved):
    top, wrist = "observation.images.top", "observation.images.wrist"
    path = saved(input_features={top: IMAGE, wrist: IMAGE, "observation.state": STATE})
    names = {"agentview_image": "top", "robot0_eye_in_hand_image": "wrist"}
    config = load_actor_config(path, env_config=LiberoEnvConfig(camera_name_mapping=names))
    assert set(config.image_features) == {top, wrist}


def test_a_policy_that_cannot_act_without_one_of_its_cameras_is_rejected(saved):
    third = {**LIBERO_INPUTS, "observation.images.top": IMAGE}
    assert load_actor_config(saved(SmolVLAConfig, input_features=third)).type == "smolvla"
    with pytest.raises(ValueError, match="looks through .*top.*the environment has"):
        load_actor_config(saved(DiffusionConfig, input_features=third))


STATE_OF_4, STATE_OF_2, STATE_OF_14 = (PolicyFeature(FeatureType.STATE, (n,)) for n in (4, 2, 14))
ACTION_OF = {n: {"action": PolicyFeature(FeatureType.ACTION, (n,))} for n in (2, 4, 14)}
FITTING: dict[str, tuple[EnvConfig, dict]] = {
    "metaworld": (
        MetaworldEnv(),
        {
            "input_features": {"observation.image": IMAGE, "observation.state": STATE_OF_4},
            "output_features": ACTION_OF[4],
        },
    ),
    "pusht": (
        PushtEnv(),
        {
            "input_features": {"observation.image": IMAGE, "observation.state": STATE_OF_2},
            "output_features": ACTION_OF[2],
        },
    ),
    "aloha": (
        AlohaEnv(),
        {
            "input_features": {"observation.images.top": IMAGE, "observation.state": STATE_OF_14},
            "output_features": ACTION_OF[14],
        },
    ),
}


@pytest.mark.parametrize("env", FITTING)
def test_a_policy_fits_the_environment_whose_features_it_has_and_no_other(saved, env):
    config, features = FITTING[env]
    path = saved(**features)
    assert load_actor_config(path, env_config=config).input_features == features["input_features"]
    for other in FITTING.keys() - {env}:
        with pytest.raises(
            ValueError, match=f"`observation.state` of shape .*dataset of this environment .{other}"
        ):
            load_actor_config(path, env_config=FITTING[other][0])


@pytest.mark.parametrize(
    ("env", "changes", "message"),
    [
        ("pusht", {"output_features": ACTION_OF[4]}, r"actions are of shape \(2,\).* of \(4,\)"),
        (
            "pusht",
            {"input_features": {"observation.images.top": IMAGE, "observation.state": STATE_OF_2}},
            r"looks through \['observation.images.top'\], the environment has \['observation.image'\]; train",
        ),
        (
            "pusht",
            {
                "input_features": {
                    "observation.image": IMAGE,
                    "observation.state": STATE_OF_2,
                    "observation.environment_state": PolicyFeature(FeatureType.ENV, (16,)),
                }
            },
            r"should have `observation.environment_state` of shape None among its input .*got \(16,\)",
        ),
    ],
)
def test_a_policy_that_differs_from_any_environment_is_rejected(saved, env, changes, message):
    config, features = FITTING[env]
    with pytest.raises(ValueError, match=message):
        load_actor_config(saved(**{**features, **changes}), env_config=config)


def test_an_environment_that_gives_no_state_is_refused(saved):
    with pytest.raises(ValueError, match="should give the state.*obs_type=pixels_agent_pos.*got 'pixels'"):
        load_actor_config(saved(**FITTING["metaworld"][1]), env_config=MetaworldEnv(obs_type="pixels"))


def test_another_type_of_policy_is_rejected_with_those_that_work(saved):
    with pytest.raises(ValueError, match="type 'act' has no adapter; these have: .*smolvla.*an-adapter.md"):
        load_actor_config(saved(ACTConfig))


@pytest.mark.parametrize("path", ["nobody/nothing", "no/such/directory"])
def test_a_checkpoint_that_does_not_exist_is_one_error(path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(FileNotFoundError, match=f"no checkpoint '{path}'.*pretrained_model"):
        load_actor_config(path)


def test_the_directory_above_a_checkpoint_hints_at_it(tmp_path):
    (tmp_path / "pretrained_model").mkdir()
    with pytest.raises(FileNotFoundError, match=f"Try '{tmp_path}/pretrained_model'"):
        load_actor_config(tmp_path)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("--n_action_steps=60", "60 for `n_action_steps`"),
        ("--n_action_steps=x", "`n_action_steps`: Couldn't parse 'x'"),
    ],
)
def test_options_that_do_not_fit_are_rejected(saved, option, message):
    with pytest.raises(ValueError, match=f"do not fit the checkpoint .*{message}"):
        load_actor_config(saved(), [option])


def test_a_config_with_unknown_fields_is_rejected(saved):
    file = saved() / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "nonsense": 1}))
    with pytest.raises(ValueError, match="cannot be read.*nonsense"):
        load_actor_config(file.parent)


@pytest.mark.parametrize("missing", ["observation.state", "action"])
def test_a_checkpoint_without_statistics_is_rejected(saved, missing):
    path = saved(vlm_model_name="smoothvla_tiny", load_vlm_weights=False)
    config = load_actor_config(path)
    stats = {key: value for key, value in LIBERO_STATS.items() if key != missing}
    save_checkpoint(path, config, stats)
    with pytest.raises(ValueError, match=f"normalises `{missing}` by mean and std, which its processors do"):
        load_actor(load_actor_config(path))
