import re
import sys
from pathlib import Path

import pytest

from lerobot_smoothvla.presets import preset_flags, preset_path
from lerobot_smoothvla.selectors import (
    env_type,
    expand,
    flag_value,
    lerobot_command,
    pop_algorithm,
    split_selectors,
    starts_libero,
)

HUB_DATASET = "--dataset.repo_id=someone/somewhere"


@pytest.mark.parametrize(
    ("program", "command"),
    [
        ("/env/bin/lerobot-train", "lerobot-train"),
        ("/site-packages/lerobot/scripts/lerobot_eval.py", "lerobot-eval"),
        ("lerobot-rollout", "lerobot-rollout"),
        ("lerobot-record", "lerobot-record"),
        ("/env/bin/pytest", None),
        ("-c", None),
        ("", None),
    ],
)
def test_only_lerobots_commands_are_taken_over(program: str, command: str | None):
    assert lerobot_command(program) == command


@pytest.mark.parametrize("arguments", [["--policy.type=act", "--steps=3"], [], ["robot=so101", "policy="]])
def test_a_command_line_without_selectors_stays_as_it_is(arguments: list[str]):
    assert expand("lerobot-train", arguments) == arguments


def test_a_value_that_looks_like_a_selector_stays_a_value():
    assert split_selectors("lerobot-train", ["--job_name", "policy=smoothvla"]) == (
        {},
        ["--job_name", "policy=smoothvla"],
    )


def test_presets_stand_before_the_users_flags_wherever_the_selector_stood():
    arguments = expand("lerobot-eval", ["--env.task=libero_10", "env=libero_object", "policy=smoothvla_tiny"])
    presets = preset_flags("policy", "smoothvla_tiny") + preset_flags("env", "libero_object")
    assert arguments == [*presets, "--env.task=libero_10"]
    assert flag_value("env.task", arguments) == "libero_10"


def test_training_gets_defaults_for_what_was_left_out_and_prints_them(capsys: pytest.CaptureFixture[str]):
    arguments = expand("lerobot-train", ["policy=smoothvla", HUB_DATASET])
    assert "--policy.push_to_hub=false" in arguments
    assert flag_value("num_workers", arguments) is not None
    assert arguments[-1] == HUB_DATASET
    printed = capsys.readouterr().out
    assert "--policy.push_to_hub=false" in printed and "--policy.type=smoothvla" in printed


def test_what_the_user_says_gets_no_default():
    given = ["--policy.repo_id=me/model", "--num_workers=7", HUB_DATASET]
    assert expand("lerobot-train", ["policy=smoothvla", *given]) == [
        *preset_flags("policy", "smoothvla"),
        *given,
    ]


def test_a_resumed_run_gets_no_defaults():
    arguments = expand("lerobot-train", ["env=libero", "--config_path=there/train_config.json"])
    assert arguments == [*preset_flags("env", "libero"), "--config_path=there/train_config.json"]


def test_scripted_demonstrations_that_exist_are_taken(tmp_path: Path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/info.json").touch()
    arguments = expand("lerobot-train", ["env=libero", "dataset=scripted", f"--dataset.root={tmp_path}"])
    assert flag_value("dataset.repo_id", arguments) == "smoothvla/libero_object_scripted"
    assert flag_value("dataset.root", arguments) == str(tmp_path)


def test_scripted_demonstrations_stand_in_when_the_hub_is_out_of_reach(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/info.json").touch()
    arguments = expand("lerobot-train", ["env=libero", f"--dataset.root={tmp_path}"])
    assert flag_value("dataset.repo_id", arguments) == "smoothvla/libero_object_scripted"
    assert "out of reach" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("asked", "recorded", "name"),
    [
        ([], [], "libero_spatial_scripted"),
        (["--env.task_ids=[0,2]"], ["--env.task_ids=[0,2]"], "libero_spatial_0_2_scripted"),
    ],
)
def test_what_is_recorded_is_of_the_tasks_asked_for(
    tmp_path: Path, monkeypatch, capsys, asked, recorded, name
):
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(ChildProcessError, match="could not be recorded"):
        expand(
            "lerobot-train", ["env=libero_spatial", "dataset=scripted", f"--dataset.root={tmp_path}", *asked]
        )
    shown = capsys.readouterr().out
    assert re.findall(r"--env\.task_ids=\S+", shown) == recorded
    assert f"--dataset.repo_id=smoothvla/{name} " in shown


def test_the_hubs_dataset_is_taken_when_asked_for():
    arguments = expand("lerobot-train", ["env=libero", "dataset=hub"])
    assert flag_value("dataset.repo_id", arguments) == "HuggingFaceVLA/libero"


def test_metaworlds_scripted_demonstrations_are_of_its_tasks(tmp_path: Path):
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/info.json").touch()
    flags = ["env=metaworld", "--env.task=reach-v3,push-v3", "dataset=scripted", f"--dataset.root={tmp_path}"]
    arguments = expand("lerobot-train", flags)
    assert flag_value("dataset.repo_id", arguments) == "smoothvla/reach-v3_push-v3_scripted"
    assert flag_value("dataset.root", arguments) == str(tmp_path)


def test_another_environment_gets_no_libero_dataset():
    arguments = expand("lerobot-train", ["policy=smoothvla", "--env.type=aloha"])
    assert flag_value("dataset.repo_id", arguments) is None


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("lerobot-train", ["policy=smothvla"], "Did you mean `policy=smoothvla`"),
        ("lerobot-train", ["env=liberro"], "libero_object"),
        ("lerobot-train", ["policy=smoothvla", "dataset=mine"], "takes hub, scripted"),
        ("lerobot-train", ["env=libero_goal", "dataset=scripted"], "libero_object, libero_spatial only"),
        ("lerobot-train", ["env=metaworld", "dataset=hub"], "LIBERO's; name one of 'metaworld' with"),
        ("lerobot-train", ["env=pusht", "dataset=scripted"], "libero and metaworld only.*env.type=pusht"),
        ("lerobot-train", ["policy=smoothvla", "policy=smoothvla_tiny"], "given once"),
        ("lerobot-eval", ["policy=smoothvla", "--policy.path=x"], "give one"),
        ("lerobot-eval", ["dataset=scripted"], "takes policy=, env="),
        ("lerobot-record", ["policy=smoothvla"], "takes no group selector"),
        ("smoothvla grpo", ["algorithm=grpo"], "does not take"),
    ],
)
def test_a_wrong_selector_is_refused_with_the_way_out(command: str, arguments: list[str], message: str):
    with pytest.raises(ValueError, match=message):
        expand(command, arguments)


def test_the_algorithm_is_taken_out_of_the_command_line():
    arguments = ["policy=smoothvla", "algorithm=grpo", "--seed=1"]
    assert pop_algorithm("lerobot-train", arguments) == ("grpo", ["policy=smoothvla", "--seed=1"])
    assert pop_algorithm("lerobot-train", ["--seed=1"]) == (None, ["--seed=1"])
    with pytest.raises(ValueError, match="takes grpo"):
        pop_algorithm("lerobot-train", ["algorithm=ppo"])


def test_the_environments_type_is_found_in_a_flag_and_in_every_file_that_may_name_it(tmp_path: Path):
    assert env_type(["--env.type=pusht", "--config_path=no/such.json"]) == "pusht"
    assert env_type([f"--env=include {preset_path('env', 'aloha')}"]) == "aloha"
    last = tmp_path / "checkpoints" / "last" / "pretrained_model"
    last.mkdir(parents=True)
    (last / "train_config.json").write_text('{"env": {"type": "metaworld"}, "steps": 2}')
    assert env_type([f"--config_path={last / 'train_config.json'}"]) == "metaworld"
    assert env_type(["--resume=true", f"--output_dir={tmp_path}"]) == "metaworld"
    for nothing in (["--steps=2"], ["--config_path=no/such.json"], [f"--output_dir={tmp_path}"]):
        assert env_type(nothing) is None


def test_libero_is_recognised_in_each_form():
    assert starts_libero(["--env.type=libero"])
    assert starts_libero(["--env.type", "libero"])
    assert starts_libero([f"--env=include {preset_path('env', 'libero_10')}"])
    assert not starts_libero(["--env=include no/such/file.yaml"])
    assert not starts_libero(["--env.type=aloha", "--policy.type=smoothvla"])
    assert not starts_libero(["--env.type=libero", "--env_eval_freq=0"])
