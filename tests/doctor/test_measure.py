"""What is measured of small random policies, without a simulator."""

import py_compile

import pytest
import torch
from episodes import sampled_episode

from lerobot_smoothvla.doctor import checks, measure
from lerobot_smoothvla.grpo.configuration import GRPOConfig
from lerobot_smoothvla.rollout.engine import Actor


@pytest.fixture(scope="module", params=["smoothvla", "smolvla"])
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def test_a_package_without_bytecode_is_found(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "without").mkdir()
    (tmp_path / "without" / "__init__.py").touch()
    (tmp_path / "with_it").mkdir()
    (tmp_path / "with_it" / "__init__.py").touch()
    py_compile.compile(str(tmp_path / "with_it" / "__init__.py"))
    assert measure.uncompiled(["without", "with_it", "no_such_package"]) == ["without"]


def test_what_is_not_installed_has_no_version():
    assert measure.installed(["lerobot", "no-such-package"]) == {"lerobot": "0.6.1", "no-such-package": None}


def test_the_plugin_is_discovered():
    assert checks.DISTRIBUTION in measure.discovered_plugins()


def test_parameters_are_counted_by_part(actor: Actor):
    before = measure.parameters_by_part(actor.adapter)
    assert set(before) == {"expert", "state", "vision", "vlm"}
    assert sum(total for _, total in before.values()) == sum(p.numel() for p in actor.policy.parameters())
    for name, parameter in actor.policy.named_parameters():
        if type(actor.adapter).part_of(name) == "vision":
            parameter.requires_grad_(False)
    after = measure.parameters_by_part(actor.adapter)
    assert after["vision"] == (0, before["vision"][1])
    assert after["expert"] == before["expert"]


def test_small_steps_are_lost_in_bfloat16_and_large_ones_are_not(actor: Actor):
    dtypes, unchanged = measure.rounding(actor.adapter, 5e-6)
    assert set(dtypes) == {"float32"}
    assert checks.precision(dtypes, unchanged, 5e-6).verdict == "ok"
    actor.policy.bfloat16()
    dtypes, unchanged = measure.rounding(actor.adapter, 5e-6)
    assert set(dtypes) == {"bfloat16"}
    assert checks.precision(dtypes, unchanged, 5e-6).verdict == "warn"
    assert measure.rounding(actor.adapter, 0.1)[1] < unchanged


@pytest.mark.parametrize("ratio", ["flow_matching", "flow_sde"])
def test_the_first_ratio_is_one_and_of_other_weights_is_not(
    actor: Actor, ratio, monkeypatch: pytest.MonkeyPatch
):
    estimator = GRPOConfig(ratio=ratio).estimator(actor.policy.config)
    deviation = measure.ratio_deviation(actor, estimator, n=3, seed=0)
    assert set(deviation) == {"alone", "batched"}
    assert max(deviation.values()) <= checks.EXACT

    replayed = type(estimator).log_ratio

    def log_ratio(*arguments):
        with torch.no_grad():
            actor.policy.model.action_out_proj.bias.add_(0.1)
        return replayed(*arguments)

    monkeypatch.setattr(type(estimator), "log_ratio", log_ratio)
    assert max(measure.ratio_deviation(actor, estimator, n=3, seed=0).values()) > checks.ROUNDED


def test_an_update_moves_no_weight_and_fills_a_microbatch_of_whole_groups(actor: Actor):
    config = GRPOConfig(ratio="flow_sde", microbatch_size=5)
    estimator = config.estimator(actor.policy.config)
    groups = [[sampled_episode(actor, estimator, 10 * g + i, [2, 2]) for i in range(2)] for g in range(3)]
    before = {key: value.clone() for key, value in actor.policy.state_dict().items()}
    update = measure.update(actor, config, groups)
    assert update.n_chunks == 8
    assert update.chunk_s > 0 and update.n_bytes >= 0
    assert update.ratio_deviation <= checks.EXACT
    assert all(torch.equal(value, before[key]) for key, value in actor.policy.state_dict().items())


def test_an_update_on_more_at_once_takes_more_memory(actor: Actor):
    def n_bytes(microbatch_size: int) -> int:
        config = GRPOConfig(microbatch_size=microbatch_size)
        estimator = config.estimator(actor.policy.config)
        groups = [[sampled_episode(actor, estimator, i, [2] * 16) for i in range(2)]]
        return measure.update(actor, config, groups).n_bytes

    assert n_bytes(1) < n_bytes(32)
