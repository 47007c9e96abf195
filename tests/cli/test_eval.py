import json
import sys
from pathlib import Path

import pytest
from builders import TINY_SMOOTHVLA, save_checkpoint

from lerobot_smoothvla.cli.main import main
from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig
from lerobot_smoothvla.evaluation.report import read_evaluation
from lerobot_smoothvla.locking import LOCK, sole_writer
from lerobot_smoothvla.smoothness import path_length

ENV = ("--env.type=libero", "--env.task=libero_object", "--env.task_ids=[0]", "--env.episode_length=16")
ENV += ("--env.observation_height=64", "--env.observation_width=64")


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two policies with random weights."""
    directory = tmp_path_factory.mktemp("checkpoints")
    paths = [directory / f"policy_{seed}" for seed in (0, 1)]
    for seed, path in enumerate(paths):
        save_checkpoint(path, SmoothVLAConfig(**TINY_SMOOTHVLA), seed=seed)
    return paths


def test_two_checkpoints_are_compared_on_the_same_starts(checkpoints, tmp_path, monkeypatch, capsys):
    output = tmp_path / "output"
    paths = [f"--policy.path={checkpoints[1]}", f"--compare.path={checkpoints[0]}", f"--output_dir={output}"]
    settings = ["--eval.init_states=[40,42]", "--eval.n_videos=1", "--eval.n_workers=0"]
    monkeypatch.setattr(sys, "argv", ["smoothvla", "eval", *ENV, *paths, *settings])
    assert main() == 0
    shown = capsys.readouterr().out
    assert "libero_object/0" in shown and "difference [95 %]" in shown
    assert str(output / "eval_info.json") in shown

    info = json.loads((output / "eval_info.json").read_text())
    starts = [
        [(row["init_state"], row["seed"]) for row in info[name]["per_episode"]]
        for name in ("policy", "compare")
    ]
    assert starts == [[(40, 1040), (41, 1041)]] * 2
    first, second = (info[name]["overall"]["terms"]["jerk_rms"]["estimate"] for name in ("compare", "policy"))
    assert first != second
    assert info["difference"]["terms"]["jerk_rms"]["estimate"] == pytest.approx(second - first)
    assert info["policy"]["path"] == str(checkpoints[1])
    assert info["policy"]["overall"]["success_rate"]["estimate"] == 0.0
    videos = sorted(str(path.relative_to(output)) for path in output.rglob("*.mp4"))
    assert videos == [
        f"videos/{name}/libero_object_0/init_40_seed_1040.mp4" for name in ("compare", "policy")
    ]

    _, results = read_evaluation(output)
    for name, result in results.items():
        for kept in result.measurements:
            assert kept.positions is not None and len(kept.positions) == 17
            assert path_length(kept.positions).item() == pytest.approx(kept.terms["path_length"], abs=1e-4), (
                name
            )
    [origin] = [json.loads(line) for line in (output / "provenance.jsonl").read_text().splitlines()]
    assert origin["command"].startswith("smoothvla eval --env.type=libero")

    monkeypatch.setattr(sys, "argv", ["smoothvla", "report", str(output)])
    assert main() == 0
    page = (output / "report.html").read_text()
    assert "Jerk, m/s³" in page and page.count("<video") == 2


def test_each_policy_acts_through_its_own_filter_in_a_shifted_scene(
    checkpoints, tmp_path, monkeypatch, capsys
):
    """The same policy twice, so that all differences are the filter's."""
    output = tmp_path / "output"
    arguments = [
        f"--policy.path={checkpoints[0]}",
        f"--compare.path={checkpoints[0]}",
        f"--output_dir={output}",
    ]
    arguments += ["--filter.type=exponential", "--filter.alpha=0.3", "--eval.shift=placement"]
    arguments += ["--eval.shift_magnitude=0.02", "--eval.init_states=[40,41]", "--eval.n_workers=0"]
    monkeypatch.setattr(sys, "argv", ["smoothvla", "eval", *ENV, *arguments])
    assert main() == 0
    info = json.loads((output / "eval_info.json").read_text())
    assert info["policy"]["filter"] == {"type": "exponential", "alpha": 0.3}
    assert info["compare"]["filter"] == {"type": "none"}
    assert info["shift"] == {"kind": "placement", "magnitude": 0.02, "unit": "m"}
    difference = info["difference"]["terms"]["action_magnitude"]["estimate"]
    assert difference < 0, "a mean of random actions is smaller than they are"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--filter.type=exponential", "--filter.alpha=2"], "`alpha` should be in (0, 1], got 2"),
        (["--filter.type=jerk_limited"], "Limits should be given"),
        (["--filter.type=lowpass"], "lowpass"),
        (["--eval.shift=cameras"], "cameras"),
        (["--eval.shift=light", "--eval.shift_magnitude=2"], "at most 1.0 share, got 2"),
        (["--eval.shift_magnitude=0.1"], "without --eval.shift"),
        (["--env.task=libero_objects"], "There is no LIBERO suite 'libero_objects'"),
        (["--env.task_ids=[12]"], "libero_object has the tasks 0 to 9"),
        (["--eval.init_states=[40,60]"], "0 <= first < end <= 50"),
        (["--policy.path=no/such/policy"], "There is no checkpoint 'no/such/policy'"),
        (["--compare.path=no/such/policy"], "There is no checkpoint 'no/such/policy'"),
        (["--eval.n_workers=-1"], "`n_workers` should be at least 0, got -1"),
        (["--eval.n_episode=3"], "--eval.n_episode=3"),
        (["--policy.n_action_steps=0"], "`n_action_steps` should be at least 1"),
    ],
)
def test_bad_input_is_one_paragraph_before_anything_is_written(
    checkpoints, tmp_path, monkeypatch, capsys, arguments, message
):
    output = tmp_path / "output"
    given = [argument.split("=")[0] for argument in arguments]
    defaults = [*ENV, f"--policy.path={checkpoints[0]}", f"--output_dir={output}"]
    others = [argument for argument in defaults if argument.split("=")[0] not in given]
    monkeypatch.setattr(sys, "argv", ["smoothvla", "eval", *others, *arguments])
    assert main() == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("smoothvla eval: error: ") and message in error
    assert not output.exists()


def test_a_policy_is_needed(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["smoothvla", "eval", *ENV, f"--output_dir={tmp_path / 'output'}"])
    assert main() == 2
    assert "--policy.path=CHECKPOINT" in capsys.readouterr().err


def test_an_evaluation_that_runs_has_its_directory_to_itself(checkpoints, tmp_path, monkeypatch, capsys):
    output = tmp_path / "output"
    monkeypatch.setattr(
        sys, "argv", ["smoothvla", "eval", *ENV, f"--policy.path={checkpoints[0]}", f"--output_dir={output}"]
    )
    with sole_writer(output, "--output_dir"):
        assert main() == 2
        assert [path.name for path in output.iterdir()] == [LOCK]
    assert f"Another process writes to '{output}'" in capsys.readouterr().err


def test_an_earlier_evaluation_stands(checkpoints, tmp_path, monkeypatch, capsys):
    (tmp_path / "eval_info.json").write_text("{}")
    arguments = [*ENV, f"--policy.path={checkpoints[0]}", f"--output_dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["smoothvla", "eval", *arguments])
    assert main() == 2
    assert "already holds eval_info.json" in capsys.readouterr().err
    assert {path.name for path in tmp_path.iterdir()} == {"eval_info.json", LOCK}
    assert (tmp_path / "eval_info.json").read_text() == "{}"


def test_a_checkpoint_without_weights_is_found_before_a_simulator_starts(
    checkpoints, tmp_path, monkeypatch, capsys
):
    empty = tmp_path / "policy"
    empty.mkdir()
    (empty / "config.json").write_bytes((checkpoints[0] / "config.json").read_bytes())
    arguments = [*ENV, f"--policy.path={empty}", f"--output_dir={tmp_path / 'output'}"]
    monkeypatch.setattr(sys, "argv", ["smoothvla", "eval", *arguments])
    assert main() == 2
    assert "model.safetensors" in capsys.readouterr().err
