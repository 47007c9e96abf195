"""What holds on CPUs holds on a GPU, on small random policies; `-rP` shows how closely.

Everything else is tested on CPUs alone. Products of matrices are float32 as LeRobot leaves them (no TF32);
convolutions are TF32 by PyTorch's default, but where two devices are compared.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import environments  # noqa: F401  (registers `slide`)
import pytest
import torch
from builders import LORA, POLICIES, random_observation, tiny_smoothvla, tiny_smoothvla_in
from easy_runs import log_of
from episodes import own_chunk, ratio_settings, sampled_group
from safetensors.torch import load_file
from torch import Tensor

from lerobot_smoothvla.checkpoint_loading import load_actor, load_actor_config
from lerobot_smoothvla.cli.main import main
from lerobot_smoothvla.doctor.checks import ROUNDED
from lerobot_smoothvla.flow.adapters.base import FlowAdapter
from lerobot_smoothvla.grpo.algorithm import GRPOAlgorithm
from lerobot_smoothvla.grpo.configuration import DOCTOR, GRPOConfig
from lerobot_smoothvla.rollout.engine import Actor

DEVICE = "cuda"
TASKS = ["pick up the milk", "open it"]
CHUNK_TOLERANCE = 1e-5
"""Of a chunk of order 1, of the same networks on the same device."""
DEVICES_TOLERANCE = 1e-3
"""Of what two devices make of the same inputs, relative to its norm."""
BF16_RATIO = 0.1
"""Of a ratio before the first step: another batch may be summed in another order, and rounded to bfloat16."""
TF32_RATIO = 0.01
"""The same in float32 where convolutions do the work, which are TF32: 4e-3 was reached on an H100."""
NETWORK_TOLERANCE = 1e-4
"""Of a network's output of order 1 on two devices."""

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU: no CUDA device is here")


@pytest.fixture(scope="module", params=sorted(POLICIES))
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def actor_on(device: str, checkpoint: Path) -> Actor:
    return load_actor(load_actor_config(checkpoint, [f"--device={device}"]))


@pytest.fixture
def actor(checkpoint: Path) -> Actor:
    return actor_on(DEVICE, checkpoint)


@pytest.fixture
def no_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def groups_of(actor: Actor, estimator: Any) -> list[Any]:
    n = actor.policy.config.n_action_steps
    return [
        sampled_group(actor, estimator, (1, 0, 0), n, seed, instruction=task)
        for seed, task in enumerate(TASKS)
    ]


def relative(first: list[Tensor], second: list[Tensor]) -> float:
    """‖first − second‖ / ‖second‖ over all tensors."""
    norms = [
        torch.stack([t.double().cpu().norm() for t in tensors]).norm()
        for tensors in ([a.cpu() - b.cpu() for a, b in zip(first, second, strict=True)], second)
    ]
    return (norms[0] / norms[1]).item()


def test_it_is_where_it_should_be(actor: Actor):
    batch = actor.model_input(random_observation(actor.policy.config, 2), TASKS)
    devices = {t.device.type for t in [*actor.policy.parameters(), *actor.policy.buffers()]}
    devices |= {value.device.type for value in batch.values() if isinstance(value, Tensor)}
    assert devices == {DEVICE}


def test_without_noise_it_is_the_policys_own_sampling(actor: Actor):
    policy, adapter = actor.policy, actor.adapter
    if not isinstance(adapter, FlowAdapter):
        pytest.skip("A diffusion policy has no ODE; its networks are compared with the CPU's below.")
    batch = actor.model_input(random_observation(policy.config, 2), TASKS)
    generator = torch.Generator(DEVICE).manual_seed(0)
    shape = (2, adapter.chunk_size, adapter.padded_action_dim)
    noise = torch.randn(shape, generator=generator, device=DEVICE)
    with torch.no_grad():
        chunk = adapter.to_actions(adapter.denoise(adapter.encode(batch), noise, generator))
        own = own_chunk(policy, batch, noise)
    reached = (chunk[:, : own.shape[1]] - own).abs().max().item()
    print(f"difference {reached:.1e}")
    assert reached <= CHUNK_TOLERANCE


@pytest.mark.parametrize("microbatch_size", [1, 64])
@pytest.mark.parametrize(("bf16", "tolerance"), [(False, ROUNDED), (True, BF16_RATIO)])
def test_every_ratio_is_one_before_the_first_step(
    actor: Actor, bf16: bool, tolerance: float, microbatch_size: int
):
    """Sampled one by one as in a rollout; replayed one by one and batched."""
    reached = {}
    for setting in ratio_settings(actor.policy.config):
        config = GRPOConfig(**setting, minibatch_size=64, microbatch_size=microbatch_size, bf16=bf16, lr=1e-9)
        algorithm = GRPOAlgorithm(actor, config)
        stats = algorithm.update(iter([groups_of(algorithm.actor, algorithm.estimator)]))
        assert stats.extra["n_minibatches"] == 1 and stats.grad_norms["policy"] > 0
        reached[" ".join(setting.values())] = stats.extra["ratio_deviation"]
    print(f"ratio deviation {reached}")
    assert max(reached.values()) <= (
        max(tolerance, TF32_RATIO) if actor.policy.config.type == "diffusion" else tolerance
    )


@pytest.mark.parametrize("recompute", [False, True])
def test_an_update_is_that_of_the_cpu(name: str, checkpoint: Path, no_tf32: None, recompute: bool):
    """On chunks that the CPU sampled. Adam divides by the gradient's size: noise moves a weight as well."""
    there, here = actor_on(DEVICE, checkpoint), actor_on("cpu", checkpoint)
    config = GRPOConfig(
        **ratio_settings(here.policy.config)[-1], minibatch_size=64, lr=1e-3, gradient_checkpointing=recompute
    )
    algorithms = [GRPOAlgorithm(actor, config) for actor in (there, here)]
    groups = groups_of(algorithms[1].actor, algorithms[1].estimator)
    gradients, changes = [], []
    for algorithm in algorithms:
        before = algorithm.trained_weights()
        algorithm.update(iter([groups]))
        trained = [p for p in algorithm.actor.policy.parameters() if p.requires_grad]
        gradients.append([torch.zeros_like(p) if p.grad is None else p.grad for p in trained])
        changes.append([p.detach() - old for p, old in zip(trained, before, strict=True)])
    print(f"gradient {relative(*gradients):.1e}, change of the weights {relative(*changes):.1e}")
    assert relative(*gradients) <= DEVICES_TOLERANCE
    assert relative(*changes) <= 0.1


def test_a_checkpoint_that_it_saved_acts_the_same_on_the_cpu(actor: Actor, no_tf32: None, tmp_path: Path):
    algorithm = GRPOAlgorithm(actor, GRPOConfig(**ratio_settings(actor.policy.config)[0], lr=1e-3))
    algorithm.update(iter([groups_of(actor, algorithm.estimator)]))
    for part in (actor.policy, actor.preprocessor, actor.postprocessor):
        part.save_pretrained(tmp_path)
    outputs = [_output(one) for one in (actor, actor_on("cpu", tmp_path))]
    reached = [(one.cpu() - other).abs().max().item() for one, other in zip(*outputs, strict=True)]
    print(f"differences {reached}")
    assert max(reached) <= NETWORK_TOLERANCE


@torch.no_grad()
def _output(actor: Actor) -> list[Tensor]:
    """What the network says of the same inputs, and of a flow the actions of the environment."""
    adapter, device = actor.adapter, actor.policy.config.device
    context = adapter.encode(actor.model_input(random_observation(actor.policy.config, 2), TASKS))
    x = torch.randn(2, adapter.chunk_size, adapter.padded_action_dim, generator=torch.manual_seed(0))
    x = x.to(device)
    if isinstance(adapter, FlowAdapter):
        chunk = adapter.denoise(context, x, torch.Generator(device))
        return [adapter.velocity(context, x, torch.tensor([0.3, 0.9]).to(device)), actor.env_actions(chunk)]
    return [adapter.predict(context, x, torch.tensor([0, 1]).to(device))]  # type: ignore[attr-defined]


def test_an_adapter_around_frozen_weights_in_bf16_learns(name: str, checkpoint: Path):
    if name not in ("smolvla", "pi05"):
        pytest.skip("two policies tell")
    config = load_actor_config(checkpoint, [f"--device={DEVICE}"])
    algorithm = GRPOAlgorithm(load_actor(config, LORA[name]), GRPOConfig(bf16=True, lr=1e-3))
    before = algorithm.trained_weights()
    stats = algorithm.update(iter([groups_of(algorithm.actor, algorithm.estimator)]))
    print(f"ratio deviation {stats.extra['ratio_deviation']:.1e}")
    assert stats.extra["ratio_deviation"] <= BF16_RATIO
    assert relative(algorithm.trained_weights(), before) > 0


# --- the commands, in an environment that a random policy solves now and then


@pytest.fixture(scope="module")
def slide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_smoothvla_in("slide", tmp_path_factory.mktemp("slide"))


Command = Callable[..., None]


@pytest.fixture
def smoothvla(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """A command in this process."""

    def run(*arguments: Any) -> None:
        monkeypatch.setattr(sys, "argv", ["smoothvla", *map(str, arguments)])
        assert main() == 0, capsys.readouterr().err

    return run


ENV = ("--env.type=slide", f"--policy.device={DEVICE}")
RUN = (*ENV, "--seed=1", "--save_freq=1", "--algorithm.n_groups=8", "--algorithm.group_size=4")
RUN += ("--algorithm.lr=1e-3", "--algorithm.minibatch_size=16")


def test_rollouts_are_the_same_wherever_the_policy_acts(slide: Path, smoothvla: Command, tmp_path: Path):
    """In this process, in a copy on the GPU for each of two workers, and in the learner for both of them."""
    ways = {
        "here": ("--n_workers=0",),
        "workers": ("--n_workers=2",),
        "central": ("--n_workers=2", "--rollout.inference=central"),
    }
    logs = {}
    for way, flags in ways.items():
        output = f"--output_dir={tmp_path / way}"
        smoothvla("grpo", *RUN, f"--policy.path={slide}", "--steps=1", output, *flags)
        (logs[way],) = log_of(tmp_path / way)
    assert logs["here"]["n_minibatches"] >= 1
    for way in ("workers", "central"):
        for figure in ("success_rate", "jerk_rms", "episode_steps"):
            assert logs[way][figure] == pytest.approx(logs["here"][figure], rel=1e-3), (way, figure)


def test_a_run_is_resumed_as_if_it_had_not_been_stopped(slide: Path, smoothvla: Command, tmp_path: Path):
    begin = (f"--policy.path={slide}", "--n_workers=0")
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    smoothvla("grpo", *RUN, *begin, "--steps=2", f"--output_dir={whole}")
    smoothvla("grpo", *RUN, *begin, "--steps=1", f"--output_dir={stopped}")
    smoothvla("grpo", "--resume=true", "--steps=2", f"--output_dir={stopped}")
    assert [line["n_minibatches"] >= 1 for line in log_of(stopped)] == [True, True]
    last = Path("checkpoints") / "last" / "pretrained_model" / "model.safetensors"
    weights = [load_file(run / last) for run in (whole, stopped)]
    start = load_file(slide / "model.safetensors")
    moved = [[weight[key] - start[key] for key in sorted(start)] for weight in weights]
    reached = relative(*moved)
    print(f"difference {reached:.1e} of how far the weights moved")
    assert reached <= 0.05


def test_evaluation_and_the_doctor_run(slide: Path, smoothvla: Command, tmp_path: Path):
    where = (*ENV, f"--policy.path={slide}")
    smoothvla("eval", *where, "--eval.n_episodes=2", "--eval.n_workers=0", f"--output_dir={tmp_path / 'e'}")
    small = ("--doctor.n_starts=1", "--doctor.group_size=2", "--n_workers=1")
    smoothvla("doctor", *where, *small, "--algorithm.ratio=flow_sde", f"--output_dir={tmp_path / 'd'}")
    checks = {check["name"]: check for check in json.loads((tmp_path / "d" / DOCTOR).read_text())["checks"]}
    assert checks["gpu memory"]["verdict"] == "ok"
    assert {checks[name]["verdict"] for name in ("first ratio", "update", "time")} <= {"ok", "warn"}
    print(*(checks[name]["finding"] for name in ("machine", "first ratio", "update", "gpu memory")), sep="\n")


def test_a_run_in_libero(smoothvla: Command, tmp_path: Path):
    tiny_smoothvla(tmp_path / "policy")
    libero = (
        "--env.type=libero",
        "--env.task=libero_object",
        "--env.task_ids=[0]",
        "--env.episode_length=16",
    )
    libero += ("--env.observation_height=64", "--env.observation_width=64", f"--policy.device={DEVICE}")
    run = ("--steps=1", "--n_workers=1", "--algorithm.n_groups=1", "--algorithm.group_size=2")
    output = f"--output_dir={tmp_path / 'run'}"
    smoothvla("grpo", *libero, *run, f"--policy.path={tmp_path / 'policy'}", output)
    (line,) = log_of(tmp_path / "run")
    assert line["episode_steps"] == 16 and line["jerk_rms"] > 0
