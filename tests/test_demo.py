"""The demo's stages are commands that their programs take, run once, and are summed up."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from lerobot.configs.train import TrainPipelineConfig
from stage_commands import checkpoint, parsed

from lerobot_smoothvla.demo import DemoConfig, run, stages, summarise
from lerobot_smoothvla.demos.record import DemosConfig
from lerobot_smoothvla.episode import Start
from lerobot_smoothvla.evaluation import report
from lerobot_smoothvla.evaluation.command import EvalCommandConfig
from lerobot_smoothvla.evaluation.evaluate import Evaluation, Measurement
from lerobot_smoothvla.grpo.configuration import GRPOPipelineConfig
from lerobot_smoothvla.stages import LAST, Stage


@pytest.fixture
def config(tmp_path: Path) -> DemoConfig:
    return DemoConfig(output_dir=tmp_path / "demo", task_ids=[2, 5], grpo_steps=3, n_workers=1, seed=7)


def stage(config: DemoConfig, name: str) -> Stage:
    return {stage.name: stage for stage in stages(config)}[name]


def evaluation(successes: int, jerk: float) -> Evaluation:
    starts = [Start("libero_object", 2, state, 0) for state in range(10)]
    terms = {"jerk_rms": jerk, "ldlj": -jerk, "duration": 3.0}
    names = ("boundary_jerk_rms", "interior_jerk_rms", "sparc")
    terms |= dict.fromkeys(names, 1.0)
    return Evaluation(tuple(Measurement(s, i < successes, terms) for i, s in enumerate(starts)))


@pytest.fixture
def eval_info() -> dict:
    """What the evaluation stage writes."""
    results = {"compare": evaluation(6, 12.0), "policy": evaluation(8, 9.0)}
    return report.to_json({"compare": "sft", "policy": "grpo"}, results)


def test_the_stages_come_in_their_order(config):
    assert [stage.name for stage in stages(config)] == ["dataset", "sft", "grpo", "evaluation"]
    assert not any(stage.done() for stage in stages(config))
    assert all(Path(stage.command[0]).is_file() for stage in stages(config))


def test_the_dataset_is_where_the_training_reads_it(config, monkeypatch):
    demos = parsed(stage(config, "dataset"), DemosConfig, monkeypatch)
    train = parsed(stage(config, "sft"), TrainPipelineConfig, monkeypatch)
    assert Path(train.dataset.root) == demos.dataset.directory == config.output_dir / "dataset"
    assert train.dataset.repo_id == demos.dataset.repo_id
    assert demos.env.task_ids == [2, 5]
    assert (train.policy.type, train.policy.vlm_model_name) == ("smoothvla", "smoothvla_tiny")
    assert train.policy.push_to_hub is False and train.seed == 7


def test_grpo_starts_from_the_training_and_is_compared_with_it(config, monkeypatch):
    grpo = stage(config, "grpo")
    assert f"--policy.path={config.output_dir / 'sft' / LAST}" in grpo.command
    settings = parsed(grpo, GRPOPipelineConfig, monkeypatch)
    assert (settings.steps, settings.n_workers, settings.resume) == (3, 1, False)
    assert settings.env.task_ids == [2, 5] and settings.output_dir == config.output_dir / "grpo"

    evaluation = stage(config, "evaluation")
    assert f"--policy.path={config.output_dir / 'grpo' / LAST}" in evaluation.command
    assert f"--compare.path={config.output_dir / 'sft' / LAST}" in evaluation.command
    held_out = parsed(evaluation, EvalCommandConfig, monkeypatch).eval
    assert held_out.init_states[0] >= settings.algorithm.init_states[1]
    assert held_out.n_episodes == config.eval_episodes and held_out.n_videos == 1


def test_an_interrupted_grpo_resumes_and_a_finished_one_is_done(config):
    assert stage(config, "grpo").restarts
    checkpoint(config.output_dir / "grpo", "000001")
    resumed = stage(config, "grpo")
    assert "--resume=true" in resumed.command and not resumed.restarts and not resumed.done()
    assert not any(argument.startswith("--policy.path") for argument in resumed.command)
    last = config.output_dir / "grpo" / "checkpoints" / "last"
    (last.parent / "000003" / "pretrained_model").mkdir(parents=True)
    last.unlink()
    last.symlink_to("000003")
    assert stage(config, "grpo").done()


@pytest.fixture
def finished(config: DemoConfig, eval_info: dict) -> DemoConfig:
    """A demo of which every stage is done."""
    (config.output_dir / "dataset").mkdir(parents=True)
    checkpoint(config.output_dir / "sft")
    checkpoint(config.output_dir / "grpo")
    (config.output_dir / "evaluation").mkdir()
    (config.output_dir / "evaluation" / "eval_info.json").write_text(json.dumps(eval_info))
    (config.output_dir / "minutes.json").write_text('{"sft": 9.5, "grpo": 8.0}')
    return config


def test_what_is_done_is_not_run_again(finished, eval_info, capsys):
    summary = run(finished)
    assert summary == finished.output_dir / "summary.json"
    assert json.loads(summary.read_text()) == summarise(eval_info, {"sft": 9.5, "grpo": 8.0})
    assert capsys.readouterr().out.count("Done before.") == 4


def test_a_demo_with_other_settings_stands(finished):
    summary = run(finished).read_text()
    with pytest.raises(FileExistsError, match="--grpo_steps=3 there, 5 here.*choose another --output_dir"):
        run(replace(finished, grpo_steps=5))
    assert run(replace(finished, n_workers=2)).read_text() == summary


def test_a_stage_that_fails_ends_the_demo_and_leftovers_do_not_stop_the_next_attempt(config):
    (config.output_dir / "dataset").mkdir(parents=True)  # empty, so that the training fails
    leftover = config.output_dir / "sft" / "leftover"
    leftover.mkdir(parents=True)
    with pytest.raises(ChildProcessError, match="stage 'sft' ended with exit code 1"):
        run(config)
    assert not leftover.exists()
    assert not (config.output_dir / "summary.json").exists()


def test_the_summary_has_what_both_policies_did_and_their_difference(eval_info):
    summary = summarise(eval_info, {"dataset": 3.0, "sft": 9.5, "grpo": 8.0, "evaluation": 2.0})
    sft, grpo = summary["sft"], summary["grpo"]
    assert (sft["success_rate"], grpo["success_rate"]) == (0.6, 0.8)
    assert (sft["jerk_rms"], sft["ldlj"], grpo["jerk_rms"]) == (12.0, -12.0, 9.0)
    low, high = sft["success_rate_interval"]
    assert 0.2 < low < 0.6 < high < 0.9
    assert (sft["n_episodes"], sft["minutes"], grpo["minutes"]) == (10, 9.5, 8.0)
    assert summary["difference"]["success_rate"]["estimate"] == pytest.approx(0.2)
    assert summary["minutes"]["dataset"] == 3.0


def test_what_was_not_measured_is_null_in_the_summary(eval_info):
    eval_info["policy"]["overall"]["terms"]["ldlj"] = None
    assert summarise(eval_info, {})["grpo"]["ldlj"] is None
    assert summarise(eval_info, {})["grpo"]["minutes"] is None


@pytest.mark.slow
def test_the_whole_demo_runs_small_in_real_processes(tmp_path):
    output = tmp_path / "demo"
    sizes = {
        "image_size": 64,
        "demonstrations": 1,
        "sft_steps": 2,
        "sft_batch_size": 4,
        "grpo_steps": 1,
        "n_groups": 1,
        "group_size": 2,
        "eval_episodes": 2,
        "horizon": 32,
        "n_workers": 1,
    }
    flags = [f"--{name}={value}" for name, value in {"output_dir": output, **sizes}.items()]
    program = Path(sys.executable).parent / "smoothvla"
    done = subprocess.run([program, "demo", *flags], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]

    summary = json.loads((output / "summary.json").read_text())
    for name in ("sft", "grpo"):
        low, high = summary[name]["success_rate_interval"]
        assert 0 <= low <= summary[name]["success_rate"] <= high <= 1
        assert summary[name]["n_episodes"] == 2 and summary[name]["minutes"] > 0
        assert {"jerk_rms", "ldlj"} <= summary[name].keys()
        assert (output / name / LAST / "model.safetensors").is_file()
    assert set(summary["minutes"]) == {"dataset", "sft", "grpo", "evaluation"}
    assert json.loads((output / "dataset" / "meta" / "info.json").read_text())["total_episodes"] == 1
    assert len((output / "grpo" / "metrics.jsonl").read_text().splitlines()) == 1
    for name in ("policy", "compare"):
        assert len(list((output / "evaluation" / "videos" / name).rglob("*.mp4"))) == 1
