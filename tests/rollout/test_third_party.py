"""A policy of somebody else's package, whose adapter a plugin brings, is rolled out in worker processes."""

import sys
from importlib import import_module, invalidate_caches
from pathlib import Path

import pytest
import torch
from builders import TINY_SMOOTHVLA, save_checkpoint
from environments import SlideEnvConfig
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.utils.import_utils import register_third_party_plugins

from lerobot_smoothvla.checkpoint_loading import load_actor, load_actor_config
from lerobot_smoothvla.episode import Start
from lerobot_smoothvla.flow import adapters
from lerobot_smoothvla.flow.sampling import DeployedSampler
from lerobot_smoothvla.rollout.engine import RolloutRequest
from lerobot_smoothvla.rollout.local import make_engine

# The policy's package knows nothing of this one's adapters, and a config that is unpickled imports it alone.
PACKAGES = {
    "their_policy/__init__.py": "",
    "their_policy/configuration_theirs.py": """
from dataclasses import dataclass
from lerobot.configs import PreTrainedConfig
from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig

@PreTrainedConfig.register_subclass("theirs")
@dataclass
class TheirsConfig(SmoothVLAConfig):
    pass
""",
    "their_policy/modeling_theirs.py": """
from lerobot_smoothvla.modeling_smoothvla import SmoothVLAPolicy
from their_policy.configuration_theirs import TheirsConfig

class TheirsPolicy(SmoothVLAPolicy):
    name, config_class = "theirs", TheirsConfig
""",
    "their_policy/processor_theirs.py": """
from lerobot_smoothvla.processor_smoothvla import (
    make_smoothvla_pre_post_processors as make_theirs_pre_post_processors,
)
""",
    "lerobot_policy_theirs/__init__.py": """
from lerobot_smoothvla.flow.adapters import register_adapter
from their_policy import configuration_theirs

register_adapter("theirs", "lerobot_policy_theirs.adapter:TheirsAdapter")
""",
    "lerobot_policy_theirs/adapter.py": """
from lerobot_smoothvla.flow.adapters.smolvla import SmolVLAAdapter

class TheirsAdapter(SmolVLAAdapter):
    pass
""",
    "lerobot_policy_theirs-1.0.dist-info/METADATA": """\
Metadata-Version: 2.1
Name: lerobot_policy_theirs
Version: 1.0
""",
}
SETTINGS = {
    **TINY_SMOOTHVLA,
    "max_state_dim": 1,
    "max_action_dim": 1,
    "input_features": {
        "observation.image": PolicyFeature(FeatureType.VISUAL, (3, 16, 16)),
        "observation.state": PolicyFeature(FeatureType.STATE, (1,)),
    },
    "output_features": {"action": PolicyFeature(FeatureType.ACTION, (1,))},
}
STATS = {key: {"mean": torch.zeros(1), "std": torch.ones(1)} for key in ("observation.state", "action")}


@pytest.fixture
def _installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The packages as distributions of this process and of those that it starts."""
    site = tmp_path / "site-packages"
    for name, text in PACKAGES.items():
        (site / name).parent.mkdir(parents=True, exist_ok=True)
        (site / name).write_text(text)
    monkeypatch.syspath_prepend(site)
    monkeypatch.setattr(adapters, "_ADAPTERS", dict(adapters._ADAPTERS))
    invalidate_caches()
    register_third_party_plugins()
    yield
    for name in [name for name in sys.modules if name.startswith(("their_policy", "lerobot_policy_theirs"))]:
        del sys.modules[name]


@pytest.mark.usefixtures("_installed")
def test_a_worker_process_knows_the_adapter_of_a_plugin(tmp_path: Path):
    config_class = import_module("their_policy.configuration_theirs").TheirsConfig
    save_checkpoint(tmp_path / "policy", config_class(**SETTINGS), STATS)
    env = SlideEnvConfig()
    actor = load_actor(load_actor_config(tmp_path / "policy", env_config=env))
    assert type(actor.adapter).__name__ == "TheirsAdapter"
    request = RolloutRequest(Start("slide", 0, 0, 5), 1, DeployedSampler())
    actions = []
    for n_workers in (0, 1):
        engine = make_engine(env, actor, n_workers)
        actions += [episode.actions for episode in engine.run([request])]
        engine.close()
    assert torch.equal(*actions)
