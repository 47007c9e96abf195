"""Checkpoints; and the Hub, played by a local server that speaks what a push and a load need of it."""

import base64
import json
import os
import pickle
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from builders import TINY_SMOOTHVLA, save_checkpoint
from hostile import Code
from lerobot.configs.default import PeftConfig
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig

from lerobot_smoothvla.checkpoint_loading import load_actor, load_actor_config
from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig
from lerobot_smoothvla.grpo import checkpoint
from lerobot_smoothvla.grpo.algorithm import GRPOAlgorithm
from lerobot_smoothvla.grpo.configuration import GRPOConfig, GRPOPipelineConfig

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(scope="module")
def warm_start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A policy with random weights, trained on `me/demonstrations` as its training config says."""
    path = tmp_path_factory.mktemp("warm_start")
    save_checkpoint(path, SmoothVLAConfig(**TINY_SMOOTHVLA))
    (path / "train_config.json").write_text(json.dumps({"dataset": {"repo_id": "me/demonstrations"}}))
    return path


@pytest.fixture
def run(warm_start: Path, tmp_path: Path) -> tuple[GRPOPipelineConfig, GRPOAlgorithm]:
    """Config and algorithm of a run in `tmp_path / "run"`."""
    policy = load_actor_config(warm_start)
    config = GRPOPipelineConfig(env=LiberoEnvConfig(), policy=policy, output_dir=tmp_path / "run")
    return config, GRPOAlgorithm(load_actor(policy), config.algorithm)


def test_a_checkpoint_is_whole_or_not_there(run, monkeypatch):
    config, algorithm = run
    first = checkpoint.save(config, algorithm, 1)
    assert checkpoint.last(config.output_dir).parent.resolve() == first.resolve()

    def killed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(algorithm.actor.postprocessor, "save_pretrained", killed)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.save(config, algorithm, 2)
    assert checkpoint.last(config.output_dir).parent.resolve() == first.resolve()
    monkeypatch.undo()
    second = checkpoint.save(config, algorithm, 2)
    assert checkpoint.last(config.output_dir).parent.resolve() == second.resolve()
    assert not list(second.parent.glob(".*"))


def test_a_restored_run_has_the_optimizer_the_random_state_and_the_count(run):
    config, algorithm = run
    for parameter in algorithm._parameters:
        parameter.grad = torch.full_like(parameter, 0.5)
    algorithm.get_optimizers()["policy"].step()
    saved = checkpoint.save(config, algorithm, 7)
    expected = torch.rand(3)
    path = checkpoint.last(config.output_dir)
    resumed = GRPOAlgorithm(load_actor(load_actor_config(path)), config.algorithm)
    assert checkpoint.restore(saved, resumed) == 7 == resumed.optimization_step
    assert torch.rand(3).equal(expected)
    states = [a.get_optimizers()["policy"].state_dict()["state"] for a in (algorithm, resumed)]
    assert all(states[0][i]["exp_avg"].equal(states[1][i]["exp_avg"]) for i in states[0]) and states[0]
    weights = [a.get_weights() for a in (algorithm, resumed)]
    assert all(weights[0][key].equal(weights[1][key]) for key in weights[0])


@pytest.mark.parametrize(
    "name", ["optimizer_state.safetensors", "rng_state.safetensors", "training_step.json"]
)
def test_a_strangers_training_state_runs_nothing_and_is_one_paragraph(run, tmp_path: Path, name: str):
    config, algorithm = run
    saved, mark = checkpoint.save(config, algorithm, 1), tmp_path / "it_ran"
    torch.save(Code(mark), saved / "training_state/optimizer.pt")
    checkpoint.restore(saved, algorithm)
    contents = [pickle.dumps(Code(mark)), b"", b"{}", b"[3]", struct.pack("<Q", 1 << 40) + b"{}"]
    for content in contents:
        next((saved / "training_state").rglob(name)).write_bytes(content)
        with pytest.raises(ValueError, match=f"(training|optimizer's) state in {saved}"):
            checkpoint.restore(saved, algorithm)
    assert not mark.exists()


@pytest.mark.parametrize("step", [-1, "3", 1.5, None, True])
def test_a_step_that_is_no_count_is_refused(run, step):
    config, algorithm = run
    saved = checkpoint.save(config, algorithm, 1)
    (saved / "training_state/training_step.json").write_text(json.dumps({"step": step}))
    with pytest.raises(ValueError, match="`step` should be a count, got"):
        checkpoint.restore(saved, algorithm)


def test_frozen_parts_and_bf16_survive_a_resumption(run):
    config, _ = run
    config.algorithm = GRPOConfig(freeze=("vision", "vlm"), bf16=True)
    algorithm = GRPOAlgorithm(load_actor(config.policy), config.algorithm)
    saved = checkpoint.save(config, algorithm, 1)
    path = checkpoint.last(config.output_dir)
    again = GRPOPipelineConfig.from_pretrained(path, cli_args=[]).algorithm
    resumed = GRPOAlgorithm(load_actor(load_actor_config(path)), again)
    assert checkpoint.restore(saved, resumed) == 1
    weights = [a.get_weights() for a in (algorithm, resumed)]
    assert all(weights[0][key].dtype == weights[1][key].dtype for key in weights[0])
    assert all(weights[0][key].equal(weights[1][key]) for key in weights[0])
    trained, trained_again = (
        {name for name, p in a.actor.policy.named_parameters() if p.requires_grad}
        for a in (algorithm, resumed)
    )
    assert trained == trained_again and resumed.actor.execution == algorithm.actor.execution


def test_a_resumption_that_trains_other_parameters_is_refused(run):
    config, algorithm = run
    saved = checkpoint.save(config, algorithm, 1)
    other = GRPOAlgorithm(load_actor(config.policy), GRPOConfig(freeze=("vision",)))
    with pytest.raises(ValueError, match="not that of the parameters that are trained now.*algorithm.freeze"):
        checkpoint.restore(saved, other)


def test_without_a_checkpoint_there_is_nothing_to_resume(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint to resume from.*start the run without"):
        checkpoint.last(tmp_path)
    with pytest.raises(ValueError, match="--output_dir"):
        checkpoint.last(None)


# --- the Hub


class Hub(BaseHTTPRequestHandler):
    """One repository, `me/smooth`, that takes every file as a regular one."""

    files: dict[str, bytes] = {}
    protocol_version = "HTTP/1.1"

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, content: bytes | dict, status: int = 200) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hash(body):x}"')
        self.send_header("X-Repo-Commit", REVISION)
        if status == 404:
            self.send_header("X-Error-Code", "EntryNotFound")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self) -> None:  # noqa: N802
        body, path = self._body(), self.path.partition("?")[0]
        if path == "/api/repos/create":
            self._answer({"url": f"http://{self.headers['Host']}/me/smooth"})
        elif path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif path == "/api/models/me/smooth/preupload/main":
            paths = [file["path"] for file in json.loads(body)["files"]]
            regular = {"uploadMode": "regular", "shouldIgnore": False}
            self._answer({"files": [{"path": path, **regular} for path in paths]})
        elif path == "/api/models/me/smooth/commit/main":
            for operation in map(json.loads, body.splitlines()):
                if operation["key"] == "file":
                    file = operation["value"]
                    self.files[file["path"]] = base64.b64decode(file["content"])
            self._answer(
                {
                    "commitUrl": f"http://{self.headers['Host']}/me/smooth/commit/{REVISION}",
                    "commitOid": REVISION,
                }
            )
        else:
            self._answer({"error": f"unknown {path}"}, 400)

    def do_GET(self) -> None:  # noqa: N802
        path = self.path.partition("?")[0]
        for prefix in ("/me/smooth/resolve/main/", f"/me/smooth/resolve/{REVISION}/"):
            if path.startswith(prefix) and path.removeprefix(prefix) in self.files:
                return self._answer(self.files[path.removeprefix(prefix)])
        return self._answer({"error": f"unknown {path}"}, 404)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.files = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


PUSH_AND_LOAD = """
import os, sys
import httpx, huggingface_hub

def divert(request):  # a model card is validated at this address whatever HF_ENDPOINT says
    if request.url.host == "huggingface.co":
        request.url = httpx.URL(os.environ["HF_ENDPOINT"] + request.url.path)

huggingface_hub.set_client_factory(lambda: httpx.Client(event_hooks={"request": [divert]}))
from lerobot.envs.configs import LiberoEnv
from lerobot_smoothvla.checkpoint_loading import load_actor, load_actor_config
from lerobot_smoothvla.grpo import checkpoint
from lerobot_smoothvla.grpo.algorithm import GRPOAlgorithm
from lerobot_smoothvla.grpo.configuration import GRPOPipelineConfig

policy = load_actor_config(sys.argv[1], ["--repo_id=me/smooth", *sys.argv[2:]])
config = GRPOPipelineConfig(env=LiberoEnv(), policy=policy)
algorithm = GRPOAlgorithm(load_actor(policy), config.algorithm)
checkpoint.push_to_hub(config, algorithm)
if policy.push_to_hub:
    loaded = load_actor(load_actor_config("me/smooth")).policy.state_dict()
    pushed = algorithm.get_weights()
    assert loaded.keys() == pushed.keys() and all(loaded[key].equal(pushed[key]) for key in pushed)
    print("the same")
"""


def push_and_load(hub: str, home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "HF_HOME")}
    return subprocess.run(
        [sys.executable, "-c", PUSH_AND_LOAD, *arguments],
        env=environment | {"HF_ENDPOINT": hub, "HF_HOME": str(home), "HF_TOKEN": "hf_test"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=500,
    )


def test_a_pushed_policy_loads_from_the_hub_with_its_processors(hub, warm_start, tmp_path):
    result = push_and_load(hub, tmp_path, str(warm_start))
    assert result.returncode == 0, result.stderr
    assert "the same" in result.stdout
    names = {"config.json", "model.safetensors", "train_config.json", "README.md"}
    assert names | {"policy_preprocessor.json", "policy_postprocessor.json"} <= set(Hub.files)
    assert "me/demonstrations" in Hub.files["README.md"].decode()
    assert json.loads(Hub.files["train_config.json"])["algorithm"]["group_size"] == GRPOConfig().group_size


def test_a_pushed_adapter_loads_from_the_hub_onto_its_base(hub, warm_start, tmp_path):
    actor = load_actor(load_actor_config(warm_start), PeftConfig(r=4))
    for part in (actor.policy, actor.policy.config, actor.preprocessor, actor.postprocessor):
        part.save_pretrained(tmp_path / "adapter")
    result = push_and_load(hub, tmp_path, str(tmp_path / "adapter"))
    assert result.returncode == 0, result.stderr
    assert "the same" in result.stdout
    assert {"config.json", "adapter_config.json", "adapter_model.safetensors"} <= set(Hub.files)
    assert "model.safetensors" not in Hub.files
    assert json.loads(Hub.files["adapter_config.json"])["base_model_name_or_path"] == str(warm_start)


def test_nothing_is_pushed_where_it_is_switched_off(hub, warm_start, tmp_path):
    result = push_and_load(hub, tmp_path, str(warm_start), "--push_to_hub=false")
    assert result.returncode == 0, result.stderr
    assert Hub.files == {}


def test_a_push_that_fails_says_where_the_policy_is(run, warm_start):
    config, algorithm = run
    saved = checkpoint.save(config, algorithm, 1)
    algorithm.actor.policy.config.repo_id = "me/smooth"  # and the Hub is offline in these tests
    with pytest.raises(OSError, match="could not be pushed to me/smooth .*hf upload me/smooth") as error:
        checkpoint.push_to_hub(config, algorithm)
    assert str(saved.parent / "last" / "pretrained_model") in str(error.value)
