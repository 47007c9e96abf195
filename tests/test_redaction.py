"""No token is written or shown: planted ones are looked for in all that real commands leave behind."""

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import hub_server
import pytest
import yaml
from builders import TINY_SMOOTHVLA, save_checkpoint, tiny_smoothvla_in
from hub_commands import Commands
from hub_server import FakeHub, Fault
from hypothesis import given
from hypothesis import strategies as st
from lerobot.configs.default import PeftConfig
from run_directories import write_training_run

from lerobot_smoothvla.checkpoint_loading import load_actor, load_actor_config
from lerobot_smoothvla.cli.main import main
from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig
from lerobot_smoothvla.provenance import record
from lerobot_smoothvla.redaction import redacted, require_no_token_in

HF, OTHER_HF = "hf_" + "AbCdEfGhIjKlMnOpQrStUvWxYz01234567", "hf_" + "q" * 34
WANDB, NEW_WANDB = "0123456789abcdef0123456789abcdef01234567", "wandb_v1_" + "Ab3" * 12 + "_" + "x" * 40
SECRETS = (HF, OTHER_HF, WANDB, NEW_WANDB, "hunter2hunter2")
LIBERO = ("--env.type=libero", "--env.task=libero_object", "--env.task_ids=[0]")


@pytest.fixture(autouse=True)
def planted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Tokens in the environment, and an empty directory to write to."""
    monkeypatch.setenv("HF_TOKEN", HF)
    monkeypatch.setenv("WANDB_API_KEY", WANDB)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def smoothvla(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Runs a command in this process."""

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["smoothvla", *arguments])
        return main()

    return run


def leaks(*said: str) -> set[str]:
    """The secrets in what was said, and in the name or content of any file in the working directory."""
    files = [path for path in Path.cwd().rglob("*") if path.is_file()]
    texts = [*said, *map(str, files), *(file.read_bytes().decode("latin-1") for file in files)]
    return {secret for secret in SECRETS if any(secret in text for text in texts)}


def test_a_leak_would_be_found(tmp_path: Path):
    (tmp_path / "log").write_text(f"token {HF}")
    assert leaks(f"key {WANDB}") == {HF, WANDB}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"--wandb.notes={OTHER_HF}", "--wandb.notes=***"),
        (f"Illegal header value b'Bearer {OTHER_HF}'", "Illegal header value b'Bearer ***'"),
        (f"the key {WANDB} of the environment", "the key *** of the environment"),
        (f"x {NEW_WANDB} y", "x *** y"),
        ("--wandb.api_key=hunter2hunter2 --steps=2", "--wandb.api_key=*** --steps=2"),
        ("--wandb.api-key hunter2hunter2 --steps=2", "--wandb.api-key *** --steps=2"),
        ("--hub.token=hunter2hunter2", "--hub.token=***"),
        ("--hub.token hunter2hunter2", "--hub.token ***"),
        ("WANDB_API_KEY=hunter2hunter2", "WANDB_API_KEY=***"),
        ("HUGGING_FACE_HUB_TOKEN=hunter2hunter2", "HUGGING_FACE_HUB_TOKEN=***"),
        ("password=hunter2hunter2", "password=***"),
        ("'--proxy.password=hunter2hunter2'", "'--proxy.password=***'"),
        ("http://me:hunter2hunter2@proxy:80/x", "http://***@proxy:80/x"),
    ],
)
def test_secrets_are_taken_out_and_nothing_else(text: str, expected: str):
    assert redacted(text) == expected == redacted(expected)
    with pytest.raises(ValueError, match="looks like a token or a password: .*Take it out"):
        require_no_token_in([text])


@pytest.mark.parametrize(
    "arguments",
    [
        ["--position.key=observation.state", "--position.dims=[0,1]"],
        ["--policy.tokenizer_max_length=48", "--policy.special_action_token=<a>"],
        ["--policy.path=hf_models/smolvla_base", "--policy.revision=" + "0a" * 20],
        [
            "--output_dir=outputs/hf_2",
            "--dataset.repo_id=you/secret_sauce",
            "--rollout.address=ray://node:6379",
        ],
        ["env=libero", "policy=smoothvla", "--algorithm.ratio", "auto"],
    ],
)
def test_what_is_no_secret_stays(arguments: list[str]):
    require_no_token_in(arguments)
    assert redacted(" ".join(arguments)) == " ".join(arguments)


@given(st.text(), st.text())
def test_a_token_is_found_in_any_text(before: str, after: str):
    os.environ["HF_TOKEN"] = HF
    assert HF not in redacted(before + HF + after)


@pytest.mark.parametrize("variable", ["", "a", "  ", "1234567"])
def test_a_variable_that_is_no_token_changes_nothing(variable: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("HF_TOKEN", variable)
    assert redacted("a 1234567 b") == "a 1234567 b"


def test_the_command_line_that_is_kept_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    arguments = [f"--wandb.notes={OTHER_HF}", "--wandb.api_key", "hunter2hunter2", f"--x={WANDB}", NEW_WANDB]
    monkeypatch.setattr(sys, "argv", ["smoothvla grpo", *arguments, "--seed=3"])
    record(tmp_path, steps=2)
    assert not leaks()
    [line] = (tmp_path / "provenance.jsonl").read_text().splitlines()
    command = "smoothvla grpo '--wandb.notes=***' --wandb.api_key *** '--x=***' '***' --seed=3"
    assert json.loads(line)["command"].replace("'", "") == command.replace("'", "")


@pytest.mark.parametrize("command", ["doctor", "export", "report", "grpo", "eval", "score"])
@pytest.mark.parametrize(
    "flags", [[f"--wandb.notes={OTHER_HF}"], ["--wandb.api_key", "hunter2hunter2"], [f"--job_name={WANDB}"]]
)
def test_a_token_on_the_command_line_is_refused_without_being_shown(
    command: str,
    flags: list[str],
    smoothvla: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path,
):
    assert smoothvla(command, *LIBERO, f"--output_dir={tmp_path}/out", *flags) == 2
    out, err = capsys.readouterr()
    assert "holds what looks like a token or a password" in err and "wandb login" in err
    assert not leaks(out, err) and not list(tmp_path.iterdir())


def test_a_token_in_a_config_file_is_refused_before_it_is_copied(
    smoothvla: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
):
    file = tmp_path_factory.mktemp("mine") / "config.yaml"
    file.write_text(yaml.safe_dump({"wandb": {"notes": f"mine: {OTHER_HF}"}, "env": {"type": "pusht"}}))
    assert smoothvla("grpo", f"--config_path={file}", "--policy.path=no/policy") == 2
    out, err = capsys.readouterr()
    assert "The config file holds what looks like a token" in err and not leaks(out, err)


def test_a_failing_run_says_nothing_of_the_environment(
    smoothvla: Callable[..., int], capsys: pytest.CaptureFixture[str]
):
    assert smoothvla("grpo", "--env.type=pusht", "--policy.path=no/policy", "--output_dir=run") == 2
    assert smoothvla("grpo", "--env.type=pusht", "--policy.path=no/policy", "--no_such_flag=1") == 2
    out, err = capsys.readouterr()
    assert "There is no checkpoint 'no/policy'" in err and not leaks(out, err)


def test_a_crash_with_everything_shown_says_nothing_of_the_environment(
    smoothvla: Callable[..., int], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SMOOTHVLA_DEBUG", "1")
    with pytest.raises(FileNotFoundError) as crash:
        smoothvla("grpo", "--env.type=pusht", "--policy.path=no/policy")
    assert not leaks(*capsys.readouterr(), *traceback.format_exception(crash.value))


def test_doctor_export_and_report_leave_none_behind(
    smoothvla: Callable[..., int], capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    save_checkpoint(tmp_path / "base", SmoothVLAConfig(**TINY_SMOOTHVLA))
    actor = load_actor(load_actor_config(tmp_path / "base"), PeftConfig(r=2))
    for part in (actor.policy, actor.policy.config, actor.preprocessor, actor.postprocessor):
        part.save_pretrained(tmp_path / "adapter")
    assert smoothvla("export", "--policy.path=adapter", "--output_dir=plain") == 0

    # One that an earlier version has written.
    run = write_training_run(tmp_path / "run", [0.5, 0.6])
    command = {"command": f"smoothvla grpo --wandb.notes={OTHER_HF}", "steps": 2}
    config = next(run.rglob("train_config.json"))
    settings = {**json.loads(config.read_text()), "wandb": {"notes": NEW_WANDB}}
    (run / "provenance.jsonl").write_text(json.dumps(command))
    config.write_text(json.dumps(settings))
    assert smoothvla("report", "run") == 0
    assert "--wandb.notes=***" in (run / "report.html").read_text()
    for file in (run / "provenance.jsonl", config):
        file.unlink()

    small = ("--doctor.n_starts=1", "--doctor.group_size=2", "--n_workers=0", "--env.episode_length=8")
    size = ("--env.observation_height=64", "--env.observation_width=64")
    assert smoothvla("doctor", *LIBERO, *small, *size, "--policy.path=base", "--output_dir=found") == 0
    assert (tmp_path / "found/doctor.json").is_file() and (tmp_path / "plain/config.json").is_file()
    assert not leaks(*capsys.readouterr())


@pytest.mark.slow
def test_a_run_with_a_worker_and_wandb_that_is_pushed_leaves_none_behind(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
):
    """Also where the Hub's refusal of its first checkpoint, a warning, shows the token."""
    policy = tiny_smoothvla_in("pusht", tmp_path_factory.mktemp("policy"))
    monkeypatch.setitem(hub_server.TOKENS, HF, "me")
    hub = FakeHub()
    hub.faults.append(Fault("/commit/", 403, times=1, headers={"X-Error-Message": f"{HF} may not write"}))
    commands = Commands({**hub.environment, "HF_TOKEN": HF, "WANDB_API_KEY": WANDB}, tmp_path)
    try:
        run = (
            "env=pusht",
            "--env.episode_length=12",
            f"--policy.path={policy}",
            "--steps=1",
            "--n_workers=1",
        )
        size = ("--algorithm.n_groups=1", "--algorithm.group_size=2", "--save_freq=1", "--output_dir=run")
        wandb = ("--wandb.enable=true", "--wandb.mode=offline", "--wandb.disable_artifact=true")
        pushed = ("--policy.repo_id=me/smooth", "--save_checkpoint_to_hub=true")
        result = commands.smoothvla("grpo", *run, *size, *wandb, *pushed)
    finally:
        commands.close()
        hub.close()
    assert result.code == 0 and f"Model pushed to {hub.url}/me/smooth" in result.said, result.said
    assert "*** may not write" in result.said and "The training goes on." in result.said
    assert list(tmp_path.rglob("offline-run-*/*.wandb")) and (tmp_path / "run/metrics.jsonl").is_file()
    on_the_hub = [*hub.objects.values(), *hub.repositories["me/smooth"].files().values()]
    assert len(on_the_hub) > 5
    assert not leaks(result.said, *(content.decode("latin-1") for content in on_the_hub))
