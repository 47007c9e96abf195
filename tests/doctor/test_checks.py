"""Numbers in, verdicts out: each with a healthy and a sick case, without a simulator."""

import math
import tomllib
from dataclasses import replace
from pathlib import Path

import pytest

from lerobot_smoothvla.doctor import checks
from lerobot_smoothvla.doctor.checks import Check, Cost, Outcome, Run

VERSIONS = {"python": "3.12.3", "lerobot": "0.6.1", "torch": "2.11.0", "mujoco": "3.8.1"}
COST = Cost(
    steps_per_s=100.0,
    startup_s=30.0,
    steps=200.0,
    chunks=25.0,
    chunk_s=0.01,
    update_chunks=100,
    update_bytes=10**9,
    worker_bytes=3 * 10**9,
    server_bytes=0,
    learner_bytes=2 * 10**9,
    episode_bytes=1e6,
)
RUN = Run(steps=20, episodes=32, epochs=1, microbatch_size=64, n_workers=2)


def test_the_lerobot_that_is_asked_for_is_that_of_the_package():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert project["dependencies"][0].endswith(f"]{checks.LEROBOT}")
    assert project["name"] == checks.DISTRIBUTION


@pytest.mark.parametrize(
    ("change", "verdict", "advice"),
    [
        ({}, "ok", ""),
        ({"lerobot": "0.6.9"}, "ok", ""),
        ({"lerobot": "0.6.0"}, "fail", "pip install 'lerobot>=0.6.1,<0.7'"),
        ({"lerobot": "0.7.0"}, "fail", "pip install 'lerobot>=0.6.1,<0.7'"),
        ({"mujoco": None}, "fail", "Install mujoco: pip install 'lerobot_policy_smoothvla[libero]'"),
    ],
)
def test_versions(change: dict[str, str | None], verdict: str, advice: str):
    check = checks.versions({**VERSIONS, **change})
    assert check.verdict == verdict and advice in check.advice
    assert "torch 2.11.0" in check.finding


def test_packages_that_every_process_compiles_anew_are_named():
    check = checks.versions(VERSIONS, ["transformers"])
    assert check.verdict == "warn" and "transformers without compiled modules" in check.finding
    assert "compileall" in check.advice


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({}, ""),
        ({"device": "cpu", "gpu": None}, ""),
        ({"device": "cpu"}, "--policy.device=cuda"),
        ({"n_workers": 9}, "--n_workers=8"),
        ({"load": 12.0}, "upper bounds"),
    ],
)
def test_the_machine_is_used_and_is_free(change: dict, advice: str):
    good = {"device": "cuda", "gpu": "H100", "n_cores": 8, "n_threads": 8, "n_workers": 8, "load": 0.1}
    check = checks.machine(**{**good, **change})
    assert check.verdict == ("warn" if advice else "ok")
    assert advice in check.advice


def test_a_plugin_that_is_not_installed_or_cannot_be_imported_fails():
    assert checks.plugin([checks.DISTRIBUTION], ["smolvla", "smoothvla"]).verdict == "ok"
    missing = checks.plugin(["lerobot_policy_other"], ["smoothvla"])
    assert missing.verdict == "fail" and "pip install -e ." in missing.advice
    broken = checks.plugin([checks.DISTRIBUTION], ["smolvla"])
    assert broken.verdict == "fail" and f"import {checks.DISTRIBUTION}" in broken.advice


def test_trainable_parameters():
    expert_only = checks.checkpoint(
        "smolvla", {"expert": (100_000_000, 100_000_000), "vlm": (0, 350_000_000)}
    )
    assert expert_only.verdict == "ok"
    assert "trainable 100 of 450 M parameters: expert 100 of 100, vlm 0 of 350" in expert_only.finding
    nothing = checks.checkpoint("smolvla", {"expert": (0, 10), "vlm": (0, 10)})
    assert nothing.verdict == "fail" and "Nothing can learn" in nothing.advice
    everything = checks.checkpoint("smolvla", {"expert": (450_000_000, 450_000_000)})
    assert everything.verdict == "warn" and "7.2 GB" in everything.advice
    assert checks.checkpoint("smoothvla", {"expert": (2_000_000, 2_000_000)}).verdict == "ok"


def test_steps_that_are_rounded_away():
    assert checks.precision({"float32": 1000}, 0.0, 5e-6).verdict == "ok"
    lost = checks.precision({"bfloat16": 1000}, 0.9, 5e-6)
    assert lost.verdict == "warn" and "90%" in lost.finding and "float32" in lost.advice


@pytest.mark.parametrize(
    ("alone", "verdict"),
    [(0.0, "ok"), (1e-5, "ok"), (2e-5, "warn"), (1e-3, "warn"), (2e-3, "fail"), (math.nan, "fail")],
)
def test_the_worst_first_ratio_decides(alone: float, verdict: str):
    check = checks.first_ratio("first ratio", {"batched": 0.0, "alone": alone}, 4)
    assert check.verdict == verdict
    assert "n = 4" in check.finding


DEPLOYED = Outcome(n=8, successes=4, jerk_rms=7.0)


@pytest.mark.parametrize(
    ("exploring", "advice"),
    [
        (Outcome(8, 2, 14.0), ""),
        (Outcome(8, 1, 7.0), "more than half of the successes"),
        (Outcome(8, 4, 14.1), "more than twice the jerk"),
        (Outcome(8, 4, math.nan), ""),
    ],
)
def test_exploring_may_not_cost_half_of_the_successes_nor_double_the_jerk(exploring: Outcome, advice: str):
    check = checks.exploration(DEPLOYED, exploring, "flow_sde", explores=True)
    assert check.verdict == ("warn" if advice else "ok")
    assert advice in check.advice
    assert f"as deployed {DEPLOYED}; exploring (flow_sde) {exploring}" in check.finding
    if advice:
        assert "--algorithm.noise_level" in check.advice


def test_a_run_that_rolls_out_what_is_deployed_has_no_gap_whatever_exploring_would_cost():
    check = checks.exploration(DEPLOYED, Outcome(8, 0, 90.0), "flow_sde", explores=False)
    assert check.verdict == "ok" and check.finding.startswith("no gap: flow_matching")


@pytest.mark.parametrize(
    ("groups", "weight", "advice"),
    [
        ([[True, False], [False, False]], 0.5, ""),
        ([[False, False], [False, False]], 0.5, "train the warm start longer"),
        ([[True, True], [True, True]], 0.5, "only smoothness"),
        ([[True, True], [True, True]], 0.0, "nothing to learn"),
        ([[True, True], [False, False]], 0.5, "raise --algorithm.group_size"),
    ],
)
def test_groups_without_a_difference_are_warned_of(groups: list[list[bool]], weight: float, advice: str):
    check = checks.mixed_groups(groups, weight)
    assert check.verdict == ("warn" if advice else "ok")
    assert advice in check.advice
    assert "of 2 starts" in check.finding


def test_time_is_rollouts_and_updates_of_all_iterations_after_one_start():
    check = checks.time(COST, replace(RUN, epochs=2))
    assert check.verdict == "ok"
    assert check.numbers["rollout_s"] == pytest.approx(32 * 200 / 100)
    assert check.numbers["update_s"] == pytest.approx(32 * 25 * 2 * 0.01)
    assert check.numbers["run_s"] == pytest.approx(30 + 20 * (64 + 16))
    assert "rollouts 100 steps/s with 2 workers" in check.finding and "27.2 min" in check.finding


def test_a_run_of_more_than_a_day_says_what_takes_it():
    slow_rollouts = checks.time(replace(COST, steps_per_s=1.0), RUN)
    slow_updates = checks.time(replace(COST, chunk_s=10.0), RUN)
    assert slow_rollouts.verdict == slow_updates.verdict == "warn"
    assert "--n_workers" in slow_rollouts.advice and "a GPU" in slow_updates.advice


GB = 10**9


@pytest.mark.parametrize(
    ("available", "total", "verdict", "advice"),
    [
        (9 * GB, 16 * GB, "ok", ""),
        (6 * GB, 16 * GB, "warn", "once others have ended: --n_workers=1."),
        (4 * GB, 8 * GB, "fail", "does not fit: smaller --algorithm.n_groups"),
    ],
)
def test_memory_is_that_of_all_workers_and_of_a_learner_with_its_episodes_twice(
    available: int, total: int, verdict: str, advice: str
):
    check = checks.memory(COST, RUN, available, total)
    assert check.numbers["learner_bytes"] == 2 * GB + 2 * 32 * 1_000_000
    assert check.verdict == verdict and advice in check.advice
    assert "need 8.1 of" in check.finding


def test_a_gpu_that_is_nearly_full_is_warned_of():
    assert checks.gpu_memory(70 * GB, 80 * GB, 100, 64).verdict == "ok"
    full = checks.gpu_memory(79 * GB, 80 * GB, 100, 64)
    assert full.verdict == "warn" and "--algorithm.microbatch_size" in full.advice


def test_a_row_fits_a_terminal_and_keeps_its_columns():
    lines = Check("first ratio", "warn", "word " * 60, "do " * 60).row().splitlines()
    assert lines[0].startswith("warn  first ratio    word")
    assert all(line.startswith(" " * 21) for line in lines[1:])
    assert all(len(line) <= 100 for line in lines)
    assert sum("→ do" in line for line in lines) == 1
