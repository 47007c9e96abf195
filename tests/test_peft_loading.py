"""Adapters of PEFT around every policy: what trains, what is saved, where the base is, what is refused."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from builders import LIBERO_FEATURES, LORA, POLICIES, TINY_SMOOTHVLA, act, save_checkpoint
from episodes import sampled_group
from lerobot.configs import PreTrainedConfig
from lerobot.configs.default import PeftConfig
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig
from lerobot.policies import PreTrainedPolicy, get_policy_class, make_policy
from lerobot.policies.diffusion.configuration_diffusion import DiffusionConfig
from safetensors.torch import load_file
from stock import act_in_stock_lerobot

from lerobot_smoothvla.checkpoint_loading import load_actor, load_actor_config
from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig
from lerobot_smoothvla.grpo import checkpoint
from lerobot_smoothvla.grpo.algorithm import GRPOAlgorithm
from lerobot_smoothvla.grpo.configuration import GRPOConfig, GRPOPipelineConfig
from lerobot_smoothvla.peft_loading import adapter_of, add_adapter
from lerobot_smoothvla.rollout.engine import Actor

ADAPTER_FILES = {"config.json", "adapter_config.json", "adapter_model.safetensors", "train_config.json"}


@pytest.fixture(scope="module", params=sorted(POLICIES))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="module")
def base(name: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp(name) / "base"
    POLICIES[name](path)
    return path


def adapted(name: str, base: Path, seed: int = 0) -> Actor:
    return load_actor(load_actor_config(base), LORA[name], seed)


def train(actor: Actor) -> GRPOAlgorithm:
    """One update on episodes that the policy sampled."""
    algorithm = GRPOAlgorithm(actor, GRPOConfig(lr=1e-3, minibatch_size=64))
    group = sampled_group(actor, algorithm.estimator, n_steps=2)
    assert algorithm.update(iter([[group]])).extra["ratio_deviation"] <= 1e-5
    return algorithm


def save(algorithm: GRPOAlgorithm, output_dir: Path, peft: PeftConfig | None = None) -> Path:
    """The `pretrained_model` of a checkpoint that a run leaves."""
    policy = algorithm.actor.policy.config
    config = GRPOPipelineConfig(env=LiberoEnvConfig(), policy=policy, output_dir=output_dir, peft=peft)
    return checkpoint.save(config, algorithm, 1) / "pretrained_model"


@pytest.fixture(scope="module")
def trained(name: str, base: Path) -> GRPOAlgorithm:
    return train(adapted(name, base))


@pytest.fixture(scope="module")
def saved(name: str, trained: GRPOAlgorithm, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(trained, tmp_path_factory.mktemp("run"), LORA[name])


def same(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    one, other = first.state_dict(), second.state_dict()
    return one.keys() == other.keys() and all(one[key].equal(other[key]) for key in one)


def acts(actor: Actor) -> torch.Tensor:
    return act(actor.policy, actor.preprocessor, actor.postprocessor)


# --- training


def test_a_new_adapter_changes_nothing_and_comes_from_the_seed_alone(name: str, base: Path):
    torch.manual_seed(1)
    actor = adapted(name, base, seed=3)
    assert torch.equal(acts(actor), acts(load_actor(load_actor_config(base))))
    torch.manual_seed(2)
    assert same(actor.policy, adapted(name, base, seed=3).policy)
    assert not same(actor.policy, adapted(name, base, seed=4).policy)


def test_only_the_adapter_trains(name: str, base: Path, trained: GRPOAlgorithm):
    before = dict(adapted(name, base).policy.named_parameters())
    changed = {key for key, value in trained.actor.policy.named_parameters() if not value.equal(before[key])}
    assert changed and all("lora_" in key for key in changed)
    assert {key for key, value in before.items() if value.requires_grad} == {
        k for k in before if "lora_" in k
    }


def test_a_checkpoint_is_the_adapter_alone_and_acts_the_same_here(saved: Path, trained: GRPOAlgorithm):
    names = {path.name for path in saved.iterdir()}
    assert names >= ADAPTER_FILES and "model.safetensors" not in names
    assert all("lora_" in key for key in load_file(saved / "adapter_model.safetensors"))
    loaded = load_actor(load_actor_config(saved))
    assert same(loaded.policy, trained.actor.policy)
    assert torch.equal(acts(loaded), acts(trained.actor))


def test_a_checkpoint_acts_the_same_in_stock_lerobot(
    name: str, saved: Path, trained: GRPOAlgorithm, tmp_path: Path
):
    """In a process that does not load this package, but for its own type."""
    if name not in ("smoothvla", "smolvla", "pi0", "diffusion"):
        pytest.skip("LeRobot loads every type's adapter the same way; `test_adapters` has the types.")
    if name == "smoothvla":
        config = PreTrainedConfig.from_pretrained(saved)
        config.pretrained_path = saved
        theirs = make_policy(config, env_cfg=LiberoEnvConfig()).eval()
        action = act(theirs, trained.actor.preprocessor, trained.actor.postprocessor)
    else:
        action = act_in_stock_lerobot(saved, tmp_path)
    assert torch.equal(action, acts(trained.actor))


@pytest.mark.parametrize("flags", [None, PeftConfig(r=16)])
def test_an_adapter_goes_on_training_with_and_without_flags(
    base: Path, saved: Path, trained: GRPOAlgorithm, tmp_path: Path, flags: PeftConfig | None
):
    actor = load_actor(load_actor_config(saved), flags)
    assert same(actor.policy, trained.actor.policy)
    trainable = [key for key, value in actor.policy.named_parameters() if value.requires_grad]
    assert trainable == [k for k, v in trained.actor.policy.named_parameters() if v.requires_grad]
    again = save(train(actor), tmp_path, flags)
    assert {path.name for path in again.iterdir()} >= ADAPTER_FILES
    assert json.loads((again / "adapter_config.json").read_text())["base_model_name_or_path"] == str(base)
    assert not same(load_actor(load_actor_config(again)).policy, trained.actor.policy)


# --- where the base is


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run's directory, with a `smoothvla` checkpoint in `base` that `last` points to."""
    save_checkpoint(tmp_path / "base", SmoothVLAConfig(**TINY_SMOOTHVLA))
    (tmp_path / "last").symlink_to("base")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def adapter(tiny: Path) -> Path:
    """An adapter's checkpoint, of a run on `last` by its relative path."""
    return save(train(adapted("smoothvla", Path("last"))), tiny / "run")


def edit(file: Path, **settings: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **settings}))


def test_the_base_of_a_relative_path_is_found_from_any_directory_when_the_adapter_has_moved(
    tiny: Path, adapter: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    expected = load_actor(load_actor_config(adapter)).policy
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    monkeypatch.chdir(elsewhere)
    shutil.move(adapter, elsewhere / "moved")
    (tiny / "last").unlink()  # as when the run that it points into goes on
    loaded = load_actor(load_actor_config("moved")).policy
    assert same(loaded, expected)
    assert adapter_of(loaded).base_model_name_or_path == str(tiny / "base")


def test_a_relative_base_becomes_absolute_with_the_next_checkpoint(tiny: Path, adapter: Path):
    edit(adapter / "adapter_config.json", base_model_name_or_path="base")  # as lerobot-train leaves it
    again = save(train(load_actor(load_actor_config(adapter))), tiny / "again")
    base = json.loads((again / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == str(tiny / "base")


# --- what is refused


def test_an_adapter_whose_base_is_gone_names_it(tiny: Path, adapter: Path):
    shutil.rmtree(tiny / "base")
    with pytest.raises(FileNotFoundError, match=f"was trained on '{tiny}/base'.*Bring it back there, or wr"):
        load_actor(load_actor_config(adapter))


@pytest.mark.parametrize("base", ["nobody/nothing", "runs/that/are/gone"])
def test_an_adapter_whose_base_is_out_of_reach_names_it(adapter: Path, base: str):
    edit(adapter / "adapter_config.json", base_model_name_or_path=base)
    with pytest.raises(FileNotFoundError, match=f"was trained on '{base}'.*no such model on the Hub"):
        load_actor(load_actor_config(adapter))


def test_an_adapter_whose_base_has_no_weights_names_it(tiny: Path, adapter: Path):
    (tiny / "base/model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=f"was trained on.*expected {tiny}/base/model.safetensors"):
        load_actor(load_actor_config(adapter))


def test_an_adapter_without_a_base_is_refused(adapter: Path):
    edit(adapter / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(ValueError, match="does not name its base: `base_model_name_or_path`.*write it there"):
        load_actor(load_actor_config(adapter))


def test_an_adapter_on_another_base_than_its_own_is_refused(tiny: Path, adapter: Path):
    edit(adapter / "config.json", max_state_dim=9)
    with pytest.raises(ValueError, match=f"weights of '{tiny}/base' are not those of its config.json"):
        load_actor(load_actor_config(adapter))
    edit(adapter / "config.json", max_state_dim=8)
    edit(adapter / "adapter_config.json", r=5)
    with pytest.raises(ValueError, match=f"does not fit its base '{tiny}/base'(?s:.*)size mismatch"):
        load_actor(load_actor_config(adapter))


@pytest.mark.parametrize("file", ["adapter_config.json", "adapter_model.safetensors"])
def test_half_an_adapter_is_refused(adapter: Path, file: str):
    (adapter / file).unlink()
    with pytest.raises(FileNotFoundError, match=f"is not whole: expected .*{file}"):
        load_actor(load_actor_config(adapter))


@pytest.fixture(scope="module")
def fresh(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], PreTrainedPolicy]:
    """Loads a policy that can be wrapped, always the same."""
    path = tmp_path_factory.mktemp("fresh")
    save_checkpoint(path, SmoothVLAConfig(**TINY_SMOOTHVLA))
    return lambda: load_actor(load_actor_config(path)).policy


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"target_modules": ["no_such_layer"]},
            "--peft.target_modules=.*no_such_layer.*not found.*all-linear",
        ),
        ({"target_modules": "q_proj"}, "q_proj not found.*list of ends of module names"),
        ({"target_modules": "("}, "unterminated subpattern"),
        ({"method_type": "NONSENSE"}, "--peft.method_type=NONSENSE.*`method_type` should be LORA"),
        ({"method_type": "IA3"}, "unexpected keyword argument 'r'.*another that takes `r`"),
        (
            {"full_training_modules": ["state_proj", "state_head"]},
            "none ends in state_head; there are model, vlm_with_expert, state_proj, action_in_proj",
        ),
        ({"r": 0}, "should be a positive integer value but the value passed is 0"),
    ],
)
def test_an_adapter_that_does_not_suit_the_policy_is_refused(fresh, settings: dict, message: str):
    with pytest.raises(ValueError, match=f"policy of type 'smoothvla' with .*{message}"):
        add_adapter(fresh(), PeftConfig(**settings), seed=0)


def test_a_policy_without_default_targets_asks_for_them():
    config = DiffusionConfig(
        device="cpu",
        pretrained_backbone_weights=None,
        down_dims=(8, 16),
        n_groups=4,
        pretrained_path=Path("base"),
        **LIBERO_FEATURES,
    )
    policy = get_policy_class("diffusion")(config)
    with pytest.raises(ValueError, match="type 'diffusion'.*pass --peft.target_modules explicitly"):
        add_adapter(policy, PeftConfig(), seed=0)


def test_without_peft_the_extra_is_named(fresh, adapter: Path, monkeypatch: pytest.MonkeyPatch):
    policy = fresh()
    monkeypatch.setitem(sys.modules, "peft", None)  # as if it were not installed
    extra = r"pip install 'lerobot_policy_smoothvla\[peft\]'"
    with pytest.raises(ImportError, match=extra):
        add_adapter(policy, PeftConfig(), seed=0)
    with pytest.raises(ImportError, match=extra):
        load_actor(load_actor_config(adapter))
