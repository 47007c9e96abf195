"""Whole GRPO runs on real LIBERO by the real command: kill, resume, what a run leaves behind."""

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from easy_runs import (
    RUN,
    evaluate_in_stock_lerobot,
    finish,
    kill_after,
    log_of,
    same,
    same_state,
    start_run,
    timeless_log_of,
)
from lerobot.configs import PreTrainedConfig
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig
from lerobot.policies import make_policy
from lerobot.rl.algorithms.configs import TrainingStats
from safetensors.torch import load_file

from lerobot_smoothvla.checkpoint_loading import load_actor, load_actor_config
from lerobot_smoothvla.cli.main import main
from lerobot_smoothvla.episode import Episode, Group, ScoredEpisode, Start
from lerobot_smoothvla.grpo.configuration import GRPOConfig
from lerobot_smoothvla.grpo.trainer import _keep_lines, iteration_metrics, sample_starts
from lerobot_smoothvla.report.build import ReportConfig, write_report
from lerobot_smoothvla.report.runs import read_runs

METRICS = {
    "iteration",
    "success_rate",
    "mixed_group_share",
    "reward",
    "smoothness",
    "jerk_rms",
    "ldlj",
    "sparc",
    "joint_jerk_rms",
    "joint_ldlj",
}
METRICS |= {"jerk_rms_success", "time_to_success", "episode_steps", "action_magnitude", "loss"}
METRICS |= {"policy_grad_norm", "ratio_deviation", "clip_fraction", "approx_kl", "n_chunks", "n_minibatches"}
METRICS |= {"minibatches_dropped", "rollout_failures", "starts_set_aside", "rollout_s", "update_s"}


def weights_of(output: Path, checkpoint: str) -> dict[str, torch.Tensor]:
    return load_file(output / "checkpoints" / checkpoint / "pretrained_model" / "model.safetensors")


@pytest.fixture(scope="module")
def settings() -> tuple[str, ...]:
    return RUN


# --- real runs


def test_a_run_can_be_reported_and_says_where_it_comes_from(uninterrupted, tmp_path):
    [run], _ = read_runs([uninterrupted])
    assert run.finished and run.unit == "m" and run.steps == 2
    assert run.provenance[0]["command"].startswith("smoothvla grpo") and run.provenance[0]["steps"] == 2
    page = write_report(ReportConfig([uninterrupted], tmp_path / "page.html")).read_text()
    assert "2 of 2 iterations of 4 rollouts (1 start, 4 of each) on libero_object, seed 3" in page


def test_every_iteration_learns_and_is_a_checkpoint(uninterrupted, warm_start):
    assert sorted(path.name for path in (uninterrupted / "checkpoints").iterdir()) == [
        *("000000", "000001", "000002", "last")
    ]
    assert same(weights_of(uninterrupted, "000000"), load_file(warm_start / "model.safetensors"))
    assert same(weights_of(uninterrupted, "last"), weights_of(uninterrupted, "000002"))
    for before, after in (("000000", "000001"), ("000001", "000002")):
        assert not same(weights_of(uninterrupted, before), weights_of(uninterrupted, after))


def test_every_iteration_is_one_line_of_metrics(uninterrupted):
    lines = log_of(uninterrupted)
    assert [line["iteration"] for line in lines] == [1, 2]
    for line in lines:
        assert set(line) == METRICS
        assert 0 < line["success_rate"] <= 1 and 2 <= line["episode_steps"] <= 16
        assert line["jerk_rms"] > 0 and line["action_magnitude"] > 0 and line["n_minibatches"] >= 1
    # The first minibatch's ratios are 1; a second one's are not.
    assert all(line["ratio_deviation"] > 0 for line in lines if line["n_minibatches"] > 1)


def test_the_checkpoint_keeps_the_reference_that_the_warm_start_was_measured_at(uninterrupted):
    train_config = uninterrupted / "checkpoints/last/pretrained_model/train_config.json"
    reference = json.loads(train_config.read_text())["algorithm"]["reward"]["reference"]
    assert reference == {"libero_object/0": pytest.approx(log_of(uninterrupted)[0]["jerk_rms"], rel=0.5)}


def test_killed_and_resumed_it_ends_with_the_same_weights(uninterrupted, warm_start, tmp_path):
    output = tmp_path / "killed"
    kill_after(start_run(output, f"--policy.path={warm_start}", *RUN), output, iterations=1)
    with (output / "metrics.jsonl").open("a") as log:  # as if killed between the log and the checkpoint
        log.write('{"iteration": 2, "success_rate": 0.123}\n{"iteration": 3, "succ')

    finish(start_run(output, "--resume=true"))
    assert same_state(uninterrupted, output)
    assert timeless_log_of(uninterrupted) == timeless_log_of(output)
    ids = {path.name.split("-")[-1] for path in (output / "wandb").glob("offline-run-*")}
    assert len(ids) == 1, "The resumed run should go on with the same run of W&B."


def test_it_is_logged_to_wandb(uninterrupted):
    (run,) = (uninterrupted / "wandb").glob("offline-run-*/*.wandb")
    logged = run.read_bytes()
    assert all(f"train/{name}".encode() in logged for name in ("success_rate", "jerk_rms", "ratio_deviation"))


def test_stock_lerobot_eval_runs_the_checkpoint(uninterrupted, tmp_path):
    assert "pc_success" in evaluate_in_stock_lerobot(uninterrupted, tmp_path / "eval")


def test_the_checkpoint_loads_in_lerobot_and_here(uninterrupted):
    path = uninterrupted / "checkpoints/last/pretrained_model"
    config = PreTrainedConfig.from_pretrained(path)
    config.pretrained_path = path
    theirs = make_policy(config, env_cfg=LiberoEnvConfig(observation_height=64, observation_width=64))
    ours = load_actor(load_actor_config(path)).policy
    assert same(theirs.state_dict(), ours.state_dict())


def test_the_run_does_not_push_to_where_its_warm_start_was(uninterrupted):
    config = json.loads((uninterrupted / "checkpoints/last/pretrained_model/config.json").read_text())
    assert config["repo_id"] is None


def smoothvla(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["smoothvla", "grpo", *arguments])
    return main()


def test_a_finished_run_says_so_and_goes_on_with_more_steps(uninterrupted, tmp_path, monkeypatch, capsys):
    output = tmp_path / "longer"
    shutil.copytree(uninterrupted, output, symlinks=True)
    resume = (f"--output_dir={output}", "--resume", "true", "--wandb.enable=false")
    assert smoothvla(monkeypatch, *resume) == 2
    assert "has already done 2 of 2 iterations; raise --steps" in capsys.readouterr().err
    # Here the task is LIBERO's own: nothing succeeds, so there is nothing to learn from.
    assert smoothvla(monkeypatch, *resume, "--steps=3") == 0
    line = log_of(output)[-1]
    assert line["iteration"] == 3 and set(line) == METRICS
    assert (line["success_rate"], line["ratio_deviation"], line["n_chunks"]) == (0, None, 0)
    assert same(weights_of(output, "000003"), weights_of(output, "000002"))


def test_the_log_of_a_run_that_came_from_the_hub_is_cut_by_iteration_not_by_line(tmp_path):
    log = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"iteration": iteration}) + "\n" for iteration in (4, 5, 6)]
    for done, kept in ((5, 2), (3, 0), (9, 3)):
        log.write_text("".join(lines))
        _keep_lines(log, done)
        assert log.read_text() == "".join(lines[:kept])


# --- starts and metrics


def test_starts_depend_on_seed_and_iteration_alone():
    tasks = [("libero_object", 0), ("libero_object", 1)]
    config = GRPOConfig(n_groups=4)
    starts = sample_starts(tasks, config, seed=1, iteration=5)
    assert starts == sample_starts(tasks, config, seed=1, iteration=5)
    assert starts != sample_starts(tasks, config, seed=1, iteration=6)
    assert starts != sample_starts(tasks, config, seed=2, iteration=5)


def test_starts_take_the_tasks_in_turn_and_only_the_given_initial_states():
    tasks = [("libero_object", index) for index in range(5)]
    config = GRPOConfig(n_groups=3, init_states=(7, 9))
    starts = [start for i in range(10) for start in sample_starts(tasks, config, seed=0, iteration=i)]
    assert {start.init_state for start in starts} == {7, 8}
    counts = [sum(start.task_id == task for start in starts) for task in range(5)]
    assert counts == [6] * 5


def scored(success: float, jerk: float, n_steps: int) -> ScoredEpisode:
    episode = Episode(
        start=Start("libero_object", 0, 0, 0),
        instruction="",
        observations={},
        record={},
        chunks=torch.zeros(1, n_steps, 7),
        executed=torch.tensor([n_steps]),
        actions=torch.tensor([[0.0, 3.0, 0.0, 4.0, 0.0, 0.0, -1.0]]).repeat(n_steps, 1),
        positions=torch.zeros(n_steps + 1, 3),
        dt=0.05,
        success=bool(success),
        max_steps=20,
    )
    seconds = n_steps * 0.05 if success else float("nan")
    terms = {"jerk_rms": jerk, "ldlj": -jerk, "sparc": -2.0, "time_to_success": seconds}
    return ScoredEpisode(episode, success, 0.5, 1.5 * success, torch.tensor([0.5]), terms)


def test_metrics_are_means_over_the_episodes_that_have_them():
    nan = float("nan")
    groups = [
        Group((scored(1.0, 10.0, 8), scored(0.0, 30.0, 20))),
        Group((scored(0.0, nan, 20), scored(0.0, 20.0, 20))),
    ]
    metrics = iteration_metrics(groups, TrainingStats(losses={"loss": 0.5}, extra={"approx_kl": 0.1}))
    assert metrics["success_rate"] == 0.25 and metrics["mixed_group_share"] == 0.5
    assert metrics["jerk_rms"] == 20.0 and metrics["jerk_rms_success"] == 10.0
    assert metrics["time_to_success"] == pytest.approx(0.4)
    assert metrics["episode_steps"] == 17 and metrics["action_magnitude"] == 5.0
    assert (metrics["loss"], metrics["approx_kl"]) == (0.5, 0.1)


def test_a_group_of_successes_alone_is_not_mixed():
    one = scored(1.0, 10.0, 8)
    groups = [Group((one, replace(one, smoothness=0.7)))]
    assert iteration_metrics(groups, TrainingStats())["mixed_group_share"] == 0
