"""The doctor's whole visit on real LIBERO, small; and what it does where something is missing."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import tiny_smolvla, tiny_smoothvla

from lerobot_smoothvla.cli.main import main
from lerobot_smoothvla.grpo.configuration import DOCTOR, GRPOPipelineConfig

ENV = ("--env.type=libero", "--env.task=libero_object", "--env.task_ids=[0]", "--env.episode_length=16")
ENV += ("--env.observation_height=64", "--env.observation_width=64")
SMALL = ("--doctor.n_starts=1", "--doctor.group_size=2")
ON_THE_MACHINE = ["versions", "machine", "plugin", "assets", "rendering"]
ON_THE_POLICY = ["checkpoint", "precision", "first ratio"]
ON_ROLLOUTS = ["rollouts", "mixed groups", "exploration", "update", "time", "memory"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Random policies of two types."""
    directory = tmp_path_factory.mktemp("checkpoints")
    for name, build in (("smoothvla", tiny_smoothvla), ("smolvla", tiny_smolvla)):
        build(directory / name)
    return {name: directory / name for name in ("smoothvla", "smolvla")}


@pytest.fixture
def doctor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Runs the command in this process and in an empty directory."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["smoothvla", "doctor", *arguments])
        return main()

    return run


def rows(directory: Path) -> dict[str, dict[str, Any]]:
    return {check["name"]: check for check in json.loads((directory / DOCTOR).read_text())["checks"]}


@pytest.mark.parametrize(
    ("name", "ratio", "n_workers"), [("smoothvla", "flow_sde", 1), ("smolvla", "flow_matching", 0)]
)
def test_a_run_is_examined_and_nothing_but_the_finding_is_written(
    checkpoints: dict[str, Path],
    doctor: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    ratio: str,
    n_workers: int,
):
    before = {path: path.read_bytes() for path in checkpoints[name].rglob("*") if path.is_file()}
    flags = (f"--policy.path={checkpoints[name]}", f"--algorithm.ratio={ratio}", f"--n_workers={n_workers}")
    assert doctor(*ENV, *SMALL, *flags, "--output_dir=run") == 0
    checks = rows(tmp_path / "run")
    assert list(checks) == ON_THE_MACHINE + ON_THE_POLICY + ON_ROLLOUTS
    shown = capsys.readouterr().out
    assert all(f"{check['verdict']:<6}{name:<15}" in shown for name, check in checks.items())

    healthy = [*ON_THE_MACHINE, *ON_THE_POLICY, "rollouts", "update", "time", "memory"]
    assert {n for n in healthy if checks[n]["verdict"] != "ok"} <= {
        "machine",
        "memory",
    }  # Others may be at work.
    assert checks["checkpoint"]["numbers"]["type"] == name
    assert checks["rollouts"]["numbers"]["n"] == 2
    assert checks["rollouts"]["numbers"]["steps"] == 16
    assert checks["mixed groups"]["verdict"] == "warn" and checks["mixed groups"]["numbers"]["mixed"] == 0
    assert "train the warm start longer" in checks["mixed groups"]["advice"]
    gap = checks["exploration"]
    assert gap["finding"].startswith("no gap" if ratio == "flow_matching" else "as deployed 0/2 solved")
    assert gap["numbers"]["exploring"]["jerk_rms"] != gap["numbers"]["deployed"]["jerk_rms"]
    time = checks["time"]["numbers"]
    assert time["rollout_s"] == pytest.approx(4 * 8 * 16 / time["steps_per_s"])
    memory = checks["memory"]["numbers"]
    assert (memory["worker_bytes"] + memory["server_bytes"] > 10**9) == (n_workers > 0)

    assert {path: path.read_bytes() for path in checkpoints[name].rglob("*") if path.is_file()} == before
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["run", f"run/{DOCTOR}"]


def test_the_run_itself_may_follow_in_the_same_directory(tmp_path: Path, checkpoints: dict[str, Path]):
    from lerobot.envs.configs import LiberoEnv

    from lerobot_smoothvla.checkpoint_loading import load_actor_config

    policy = load_actor_config(checkpoints["smoothvla"])
    config = GRPOPipelineConfig(env=LiberoEnv(), policy=policy, output_dir=tmp_path / "run")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / DOCTOR).write_text("{}")
    config.validate()
    (tmp_path / "run" / "metrics.jsonl").write_text("mine")
    with pytest.raises(FileExistsError, match="exists and would be overwritten"):
        config.validate()


def test_a_checkpoint_without_weights_fails_and_the_rest_is_still_examined(
    checkpoints: dict[str, Path], doctor: Callable[..., int], tmp_path: Path
):
    half = tmp_path / "half"
    shutil.copytree(checkpoints["smoothvla"], half, ignore=shutil.ignore_patterns("model.safetensors"))
    assert doctor(*ENV, f"--policy.path={half}", "--output_dir=run") == 1
    checks = rows(tmp_path / "run")
    assert {checks[name]["verdict"] for name in ON_THE_MACHINE} <= {"ok", "warn"}
    assert checks["checkpoint"]["verdict"] == "fail"
    assert "is not whole: expected" in checks["checkpoint"]["finding"]
    assert {checks[name]["verdict"] for name in ON_THE_POLICY[1:] + ON_ROLLOUTS} == {"skip"}


def test_missing_gl_fails_and_the_policy_is_still_examined(checkpoints: dict[str, Path], tmp_path: Path):
    result = subprocess.run(
        [sys.executable, "-m", "lerobot_smoothvla.cli.main", "doctor", *ENV]
        + [f"--policy.path={checkpoints['smoothvla']}", f"--output_dir={tmp_path / 'run'}"],
        env={**os.environ, "MUJOCO_GL": "egl", "__EGL_VENDOR_LIBRARY_FILENAMES": "/nowhere.json"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert result.returncode == 1, result.stderr
    checks = rows(tmp_path / "run")
    assert checks["rendering"]["verdict"] == "fail" and "apt-get install" in checks["rendering"]["finding"]
    assert {checks[name]["verdict"] for name in ["assets", *ON_THE_POLICY]} == {"ok"}
    assert {checks[name]["verdict"] for name in ON_ROLLOUTS} == {"skip"}
    assert "Traceback" not in result.stderr


def test_a_rollout_that_fails_is_a_finding(
    checkpoints: dict[str, Path], doctor: Callable[..., int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def dies(*_):
        raise RuntimeError("A rollout worker died (exit code -9).")

    monkeypatch.setattr("lerobot_smoothvla.rollout.local.rollout", dies)
    flags = (f"--policy.path={checkpoints['smoothvla']}", "--n_workers=0", "--output_dir=run")
    assert doctor(*ENV, *SMALL, *flags) == 1
    checks = rows(tmp_path / "run")
    assert checks["rollouts"]["verdict"] == "fail"
    said = checks["rollouts"]["finding"]
    assert said.endswith("failed 3 times. RuntimeError: A rollout worker died (exit code -9).")
    assert {checks[name]["verdict"] for name in ON_ROLLOUTS[1:]} == {"skip"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--env.task=libero_objects"], "There is no LIBERO suite 'libero_objects'"),
        (["--algorithm.init_states=[0,60]"], "0 <= first < end <= 50"),
        (["--policy.path=no/such/policy"], "There is no checkpoint 'no/such/policy'"),
        (["--policy.n_action_steps=0"], "`n_action_steps` should be at least 1"),
        (["--algorithm.ratio=posterior"], "should be one of flow_matching, flow_sde, got 'posterior'"),
        (["--doctor.n_starts=0"], "`doctor.n_starts` should be at least 1, got 0"),
        (["--doctor.group_size=1"], "`doctor.group_size` should be at least 2, got 1"),
        (["--doctor.starts=2"], "--doctor.starts=2"),
        (["--output_dir=/dev/null/run"], "cannot be written to"),
    ],
)
def test_bad_input_is_one_paragraph_before_anything_is_examined(
    checkpoints: dict[str, Path],
    doctor: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
):
    given = [argument.split("=")[0] for argument in arguments]
    good = [*ENV, f"--policy.path={checkpoints['smoothvla']}", "--output_dir=run"]
    kept = [argument for argument in good if argument.split("=")[0] not in given]
    assert doctor(*kept, *arguments) == 2
    captured = capsys.readouterr()
    (line,) = [line for line in captured.err.splitlines() if "error" in line]
    assert line.startswith("smoothvla doctor: error: ") and message in line
    assert "Traceback" not in captured.err
    assert not captured.out and not list(tmp_path.iterdir())


def test_a_policy_is_needed(doctor: Callable[..., int], capsys: pytest.CaptureFixture[str]):
    assert doctor(*ENV) == 2
    assert "nothing to examine: pass --policy.path=CHECKPOINT" in capsys.readouterr().err


def test_earlier_findings_stand(
    checkpoints: dict[str, Path],
    doctor: Callable[..., int],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
):
    (tmp_path / DOCTOR).write_text("mine")
    assert doctor(*ENV, f"--policy.path={checkpoints['smoothvla']}", f"--output_dir={tmp_path}") == 2
    assert f"already holds {DOCTOR}, which would be overwritten" in capsys.readouterr().err
    assert (tmp_path / DOCTOR).read_text() == "mine"
