import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig
from lerobot.envs.configs import MetaworldEnv, PushtEnv

from lerobot_smoothvla.demos.record import (
    SUMMARY,
    Attempt,
    DemosConfig,
    DemosDatasetConfig,
    attempts,
    record,
    record_episode,
)
from lerobot_smoothvla.envs.chunked import ChunkedEnv
from lerobot_smoothvla.envs.tasks import chunked_env
from lerobot_smoothvla.episode import Start
from lerobot_smoothvla.locking import sole_writer
from lerobot_smoothvla.writing import WritingError, size_of

TASK = Start("libero_object", 5, 0, 0)
FLAGS = [
    "--env.type=libero",
    "--env.task=libero_object",
    "--env.task_ids=[5]",
    "--env.observation_height=64",
    "--env.observation_width=64",
    "--dataset.repo_id=local/demos",
    "--episodes_per_task=2",
    "--noise_share=0.5",
]


def a_config(root: Path, **changes) -> DemosConfig:
    env = LiberoEnvConfig(task="libero_object", task_ids=[5], observation_height=64, observation_width=64)
    dataset = DemosDatasetConfig(repo_id="local/demos", root=root)
    return replace(
        DemosConfig(env=env, dataset=dataset, episodes_per_task=2, noise_share=0.5, n_workers=1), **changes
    )


def start_command(root: Path, n_workers: int) -> subprocess.Popen:
    command = [sys.executable, "-m", "lerobot_smoothvla.cli.main", "demos", *FLAGS]
    return subprocess.Popen(
        [*command, f"--dataset.root={root}", f"--n_workers={n_workers}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def children(pid: int) -> set[int]:
    return {int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()}


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[:1]
    except FileNotFoundError:
        return False


def wait_for(condition, seconds: float) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return record(a_config(tmp_path_factory.mktemp("demos") / "serial"))


def test_the_keys_shapes_and_conventions_are_those_of_the_hub(uninterrupted):
    dataset = LeRobotDataset("local/demos", root=uninterrupted)
    info = dataset.meta.info
    assert (dataset.fps, info.robot_type, info.codebase_version) == (10, "panda", "v3.0")
    for camera in ("observation.images.image", "observation.images.image2"):
        feature = dataset.features[camera]
        assert (feature["dtype"], tuple(feature["shape"])) == ("video", (64, 64, 3))
        assert feature["names"] == ["height", "width", "channel"]
    assert [tuple(dataset.features[key]["shape"]) for key in ("observation.state", "action")] == [(8,), (7,)]
    assert dataset[0]["task"] == "pick up the tomato sauce and place it in the basket"
    assert dataset.num_episodes == 2
    assert all(80 <= length <= 160 for length in dataset.meta.episodes["length"])


@pytest.fixture(scope="module")
def env() -> Iterator[ChunkedEnv]:
    with closing(chunked_env(a_config(Path()).env, TASK.suite, TASK.task_id)) as env:
        yield env


def test_frames_are_what_a_policy_sees_in_the_environment(uninterrupted, env):
    seen = env.reset_to(TASK)
    dataset = LeRobotDataset("local/demos", root=uninterrupted)
    for index in range(2):
        frame = dataset[index]
        torch.testing.assert_close(frame["observation.state"], seen["observation.state"], rtol=0, atol=0)
        for camera in ("observation.images.image", "observation.images.image2"):
            # Videos lose a little; an image that was not turned by 180 degrees is off by far more.
            assert (frame[camera] - seen[camera] / 255).abs().mean() < 0.02
        seen = env.step_chunk(frame["action"].numpy()[None]).observation


def test_actions_are_in_range_and_grasp_and_release(uninterrupted):
    actions = np.array(LeRobotDataset("local/demos", root=uninterrupted).hf_dataset["action"])
    assert np.abs(actions).max() <= 1.0
    assert set(actions[:, 6]) == {-1.0, 1.0}


def test_an_unsteady_hand_is_recorded_as_it_moved_and_takes_its_own_time(uninterrupted, env, tmp_path):
    config = a_config(tmp_path, tremor_std=0.1, speed_spread=0.5)
    assert record_episode(env, config, Attempt(TASK, False, False, tmp_path), tmp_path / "unsteady")
    steady, unsteady = (
        LeRobotDataset("local/demos", root=path, episodes=[0])
        for path in (uninterrupted, tmp_path / "unsteady")
    )
    assert abs(len(steady) - len(unsteady)) > 5
    moves = [torch.stack(list(dataset.hf_dataset["action"]))[:, :3] for dataset in (steady, unsteady)]
    trembling = [move.diff(n=2, dim=0).std() for move in moves]
    # The second difference of white noise has a variance of 1 + 4 + 1 times its own.
    assert trembling[1] == pytest.approx(0.1 * 6**0.5, rel=0.3) and trembling[0] < 0.5 * trembling[1]
    env.reset_to(TASK)
    actions = torch.stack(list(unsteady.hf_dataset["action"]))
    seen = env.step_chunk(actions[:20].numpy()).observation
    torch.testing.assert_close(  # What was executed has more digits than what was recorded.
        seen["observation.state"], unsteady[20]["observation.state"], rtol=0, atol=1e-5
    )


def test_the_summary_counts_what_was_kept_by_task(uninterrupted):
    summary = json.loads((uninterrupted / SUMMARY).read_text())
    assert summary["tasks"] == {"libero_object/5": {"attempts": 2, "kept": 2, "failed_init_states": []}}


def test_the_same_command_again_leaves_a_finished_dataset_as_it_is(uninterrupted):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")}
    assert record(a_config(uninterrupted)) == uninterrupted
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")} == before


def test_a_finished_dataset_of_other_settings_is_not_overwritten(uninterrupted):
    before = {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")}
    with pytest.raises(FileExistsError, match=r"--episodes_per_task=2 there, 3 here"):
        record(a_config(uninterrupted, episodes_per_task=3))
    assert {path: path.stat().st_mtime_ns for path in uninterrupted.rglob("*")} == before


@pytest.mark.timeout(1200)
@pytest.mark.slow
def test_killed_and_started_again_with_more_processes_it_is_the_dataset_of_an_uninterrupted_run(
    uninterrupted, tmp_path
):
    root = tmp_path / "killed"
    episodes = tmp_path / "killed.partial" / "episodes"
    first = start_command(root, n_workers=1)
    wait_for(lambda: any(not path.suffix for path in episodes.glob("*")), seconds=600)
    workers = children(first.pid)
    os.kill(first.pid, signal.SIGKILL)
    first.wait()
    wait_for(lambda: not any(is_running(worker) for worker in workers), seconds=10)
    assert not root.exists()

    second = start_command(root, n_workers=2)
    output, _ = second.communicate()
    assert second.returncode == 0, output
    assert re.search(r"50%.*1/2 ", output), "the finished episode was recorded again"
    assert "kept 2 of 2 episodes" in output
    assert not episodes.exists()

    resumed, whole = (LeRobotDataset("local/demos", root=path) for path in (root, uninterrupted))
    assert len(resumed) == len(whole)
    for column in ("observation.state", "action", "episode_index", "timestamp"):
        np.testing.assert_array_equal(resumed.hf_dataset[column], whole.hf_dataset[column])
    for index in (0, len(whole) // 2, len(whole) - 1):
        for camera in ("observation.images.image", "observation.images.image2"):
            assert torch.equal(resumed[index][camera], whole[index][camera])


@pytest.mark.slow
def test_a_full_disk_ends_a_recording_with_what_did_not_fit_and_keeps_what_was_recorded(small_disk):
    root, episodes = small_disk / "demos", small_disk / "demos.partial" / "episodes"
    first, second = (episodes / f"libero_object-05-0000{index}" for index in (0, 1))

    def leave(n_bytes: int) -> None:
        filler = small_disk / "filler"
        filler.unlink(missing_ok=True)
        filler.write_bytes(b"\0" * (shutil.disk_usage(small_disk).free - n_bytes))

    command = start_command(root, n_workers=1)
    wait_for(first.exists, seconds=300)
    leave(40_000)
    said, _ = command.communicate()
    assert command.returncode == 2 and "Traceback" not in said
    assert re.search(rf"error: The episode {second} could not be written \(.*No space left", said), said
    assert re.search(r"It takes about 0\.\d MB, and \d+ bytes are free. Make space and run the same", said)
    assert sorted(path.name for path in episodes.iterdir()) == [first.name]

    leave(int(1.7 * size_of(first)))
    with pytest.raises(WritingError, match=rf"The dataset {root} could not be written \(.*No space left"):
        record(a_config(root))
    assert not root.exists() and not (small_disk / "demos.partial" / "dataset").exists()
    assert sorted(path.name for path in episodes.iterdir()) == [first.name, second.name]

    leave(10_000_000)
    assert LeRobotDataset("local/demos", root=record(a_config(root))).num_episodes == 2


def test_attempts_take_the_init_states_in_turn_then_the_next_seed_and_spread_the_noise():
    env = LiberoEnvConfig(task="libero_object,libero_spatial", task_ids=[0, 2])
    config = DemosConfig(env=env, episodes_per_task=5, init_states=(10, 13), seed=7, noise_share=0.4)
    planned = attempts(config, Path("episodes"))
    assert [(a.start.suite, a.start.task_id) for a in planned[::5]] == [
        ("libero_object", 0),
        ("libero_object", 2),
        ("libero_spatial", 0),
        ("libero_spatial", 2),
    ]
    assert [(a.start.init_state, a.start.seed) for a in planned[:5]] == [
        (10, 7),
        (11, 7),
        (12, 7),
        (10, 8),
        (11, 8),
    ]
    assert [a.noisy for a in planned[:5]] == [False, False, True, False, True]
    assert [a.directory.name for a in planned] == sorted(a.directory.name for a in planned)


def test_metaworlds_attempts_differ_in_their_seeds_which_no_evaluation_takes():
    config = DemosConfig(env=MetaworldEnv(task="reach-v3,push-v3"), episodes_per_task=2, seed=7)
    starts = [attempt.start for attempt in attempts(config, Path("episodes"))]
    seeds = [2**31 + 7, 2**31 + 8]
    assert starts == [Start(task, 0, 0, seed) for task in ("push-v3", "reach-v3") for seed in seeds]


def test_a_speed_that_metaworlds_experts_do_not_have_is_refused(tmp_path):
    with pytest.raises(ValueError, match="settings of LIBERO's expert, got 0.5, 0.0 and 0.0"):
        record(a_config(tmp_path / "dataset", env=MetaworldEnv(task="reach-v3"), speed=0.5))
    assert not any(tmp_path.iterdir())


def test_of_a_whole_suite_the_tasks_are_recorded_that_the_expert_can_do():
    config = DemosConfig(env=LiberoEnvConfig(task="libero_spatial"), episodes_per_task=1)
    recorded = [attempt.start.task_id for attempt in attempts(config, Path("episodes"))]
    assert recorded == [0, 1, 2, 3, 5, 6, 7, 8, 9]


@pytest.mark.parametrize(
    ("env", "message"),
    [
        (LiberoEnvConfig(task="libero_soup"), "no LIBERO suite 'libero_soup'.*libero_object"),
        (LiberoEnvConfig(task="libero_object", task_ids=[10]), r"tasks 0 to 9.*\[10\]"),
        (LiberoEnvConfig(task="libero_spatial", task_ids=[4]), "cannot do libero_spatial task 4.*can do"),
        (LiberoEnvConfig(task="libero_10", task_ids=[0]), "cannot do libero_10 task 0.*can do"),
        (PushtEnv(), "scripted experts for .* libero and metaworld, none for 'pusht'"),
    ],
)
def test_tasks_that_cannot_be_recorded_are_refused_and_nothing_is_written(env, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        record(a_config(tmp_path / "dataset", env=env))
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"episodes_per_task": 0}, "at least 1, got 0"),
        ({"noise_share": 1.5}, "in \\[0, 1\\].*got 1.5"),
        ({"jerky_share": -0.5}, "`jerky_share` should be in \\[0, 1\\].*got -0.5"),
        ({"noise_std": -0.1}, "`noise_std` should not be negative.*-0.1"),
        ({"tremor_std": -0.1}, "`tremor_std` should not be negative.*-0.1"),
        ({"speed_spread": float("inf")}, "`speed_spread` should not be negative.*inf"),
        ({"speed": 0.0}, "positive factor, got 0"),
        ({"n_workers": 0}, "at least 1 process, got 0"),
    ],
)
def test_settings_out_of_range_are_refused_at_once(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        a_config(tmp_path / "dataset", **changes)


def test_init_states_that_a_task_does_not_have_are_refused(tmp_path):
    with pytest.raises(ValueError, match="0 <= first < end <= 50"):
        record(a_config(tmp_path / "dataset", init_states=(40, 51)))


def test_a_directory_of_somebody_else_is_not_touched(tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(FileExistsError, match="exists and is not a dataset of `smoothvla demos`"):
        record(a_config(tmp_path / "mine"))
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "thesis.txt"]


def test_a_stopped_run_of_other_settings_is_not_gone_on_with(tmp_path):
    from lerobot_smoothvla.demos.record import _require_same_command

    (tmp_path / "dataset.partial").mkdir()
    _require_same_command(a_config(tmp_path / "dataset"), tmp_path / "dataset.partial")
    with pytest.raises(FileExistsError, match=r"--noise_std=0.15 there, 0.2 here"):
        record(a_config(tmp_path / "dataset", noise_std=0.2))


def test_a_place_that_cannot_be_written_is_refused_before_a_simulator_starts(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot be written to.*choose another --dataset.root"):
        record(a_config(tmp_path / "file" / "dataset"))


def test_a_dataset_that_another_process_records_is_left_to_it(tmp_path):
    partial = tmp_path / "dataset.partial"
    with sole_writer(partial, "--dataset.root"):
        message = "Another process writes to .*choose another --dataset.root"
        with pytest.raises(BlockingIOError, match=message):
            record(a_config(tmp_path / "dataset"))
        assert [path.name for path in partial.iterdir()] == [".lock"]
