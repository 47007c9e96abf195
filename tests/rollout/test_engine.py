"""The serial worker is the oracle of the processes; everything runs on the real simulator."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import closing
from copy import copy, deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
import yaml
from builders import POLICIES, random_observation
from diverging_task import DivergingLiberoConfig
from episodes import assert_same
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.configs.default import PeftConfig
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig
from lerobot.policies import make_pre_post_processors

from lerobot_smoothvla.checkpoint_loading import load_actor, load_actor_config
from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig
from lerobot_smoothvla.envs.shift import Shift
from lerobot_smoothvla.episode import Episode, Start
from lerobot_smoothvla.filters.guard import MotionGuardStep
from lerobot_smoothvla.filters.real_time_chunking import RealTimeChunkingSampler
from lerobot_smoothvla.filters.steps import (
    ActionFilterStep,
    ChunkBlendStep,
    ExponentialFilterStep,
    JerkLimitStep,
)
from lerobot_smoothvla.flow.adapters.execution import Execution, store_frozen_in_bf16
from lerobot_smoothvla.flow.ratio import FlowMatchingRatio, FlowSDERatio
from lerobot_smoothvla.flow.sampling import DeployedSampler
from lerobot_smoothvla.modeling_smoothvla import SmoothVLAPolicy
from lerobot_smoothvla.peft_loading import add_adapter
from lerobot_smoothvla.rollout.configuration import RolloutConfig
from lerobot_smoothvla.rollout.engine import Actor, RolloutEngine, RolloutError, RolloutRequest, run_episode
from lerobot_smoothvla.rollout.local import ActorRecipe, ProcessEngine, SerialWorker, make_actor, make_engine

PRESET = Path(__file__).parents[2] / "configs" / "policy" / "smoothvla_tiny.yaml"
CHUNK, HORIZON = 4, 10
A = Start("libero_object", task_id=0, init_state=3, seed=7)
B = Start("libero_object", task_id=0, init_state=5, seed=1)
ODE, SDE = DeployedSampler(), FlowSDERatio(level=0.3)
REQUESTS = [
    RolloutRequest(A, 0, ODE),
    RolloutRequest(A, 1, ODE),
    RolloutRequest(B, 0, SDE),
    RolloutRequest(B, 2, FlowMatchingRatio(n_pairs=2)),
]


@pytest.fixture(scope="module")
def env_config() -> LiberoEnvConfig:
    return LiberoEnvConfig(
        task="libero_object",
        task_ids=[0],
        observation_height=64,
        observation_width=64,
        episode_length=HORIZON,
    )


@pytest.fixture(scope="module")
def actor(tmp_path_factory: pytest.TempPathFactory) -> Actor:
    """The tiny policy with random weights; its checkpoint holds the processors, which workers load."""
    torch.manual_seed(0)
    checkpoint = tmp_path_factory.mktemp("policy")
    image = PolicyFeature(FeatureType.VISUAL, (3, 64, 64))
    settings = yaml.safe_load(PRESET.read_text()) | {"n_action_steps": CHUNK, "device": "cpu"}
    settings.pop("type")
    config = SmoothVLAConfig(
        **settings,
        input_features={
            "observation.images.image": image,
            "observation.images.image2": image,
            "observation.state": PolicyFeature(FeatureType.STATE, (8,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (7,))},
    )
    stats = {"action": {"mean": torch.zeros(7), "std": torch.full((7,), 0.3)}}
    for processor in make_pre_post_processors(config, dataset_stats=stats):
        processor.save_pretrained(checkpoint)
    config.pretrained_path = checkpoint
    return make_actor(config, SmoothVLAPolicy(config))


@pytest.fixture(scope="module")
def serial(env_config: LiberoEnvConfig, actor: Actor) -> Iterator[RolloutEngine[Any]]:
    engine = make_engine(env_config, actor, n_workers=0)
    yield engine
    engine.close()


def test_a_checkpoint_with_a_guard_is_refused_before_there_is_a_worker(env_config, actor):
    limits = {f"max_{rate}": [1.0] for rate in ("velocity", "acceleration", "jerk")}
    guard = MotionGuardStep(dt=0.05, action_names=list("0123456"), state_dims=list(range(7)), **limits)
    guarded = copy(actor.postprocessor)
    guarded.steps = [*guarded.steps, guard]
    with pytest.raises(ValueError, match=f"'{actor.policy.config.pretrained_path}' has a motion guard"):
        make_engine(env_config, replace(actor, postprocessor=guarded), n_workers=2)


@pytest.fixture(scope="module")
def processes(env_config: LiberoEnvConfig, actor: Actor) -> Iterator[RolloutEngine[Any]]:
    engine = make_engine(env_config, actor, n_workers=2)
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def episodes(serial: RolloutEngine[Any]) -> list[Episode]:
    return serial.run(REQUESTS)


def test_processes_give_the_episodes_of_the_serial_worker_bit_by_bit(
    processes: RolloutEngine[Any], episodes: list[Episode], tmp_path: Path
) -> None:
    """Whichever worker ran them and whatever it ran before, and also while a video is recorded."""
    video = tmp_path / "videos" / "first.mp4"
    completed = []
    answers = processes.run(
        [replace(REQUESTS[0], video=video), *REQUESTS[1:]], lambda index, _: completed.append(index)
    )
    assert sorted(completed) == [0, 1, 2, 3]
    for answer, expected in zip(answers, episodes, strict=True):
        assert_same(answer, expected)
    assert video.stat().st_size > 0


def test_episodes_come_in_the_order_of_the_requests_not_of_completion(
    env_config: LiberoEnvConfig, actor: Actor, episodes: list[Episode]
) -> None:
    workers = [SerialWorker(env_config, actor), SerialWorker(env_config, actor)]
    workers[1]._simulators = workers[0]._simulators
    last_first = RolloutEngine(workers, lambda busy, _: list(busy)[-1:])
    completed: list[int] = []
    answers = last_first.run(REQUESTS[1:], lambda index, _: completed.append(index))
    last_first.close()
    assert completed == [1, 2, 0]
    for answer, expected in zip(answers, episodes[1:], strict=True):
        assert_same(answer, expected)


def test_a_worker_stays_with_the_tasks_that_it_has_simulators_of(
    env_config: LiberoEnvConfig, actor: Actor
) -> None:
    other = replace(A, task_id=1)
    requests = [RolloutRequest(start, seed, ODE) for seed in range(3) for start in (A, other)]
    workers = [SerialWorker(env_config, actor), SerialWorker(env_config, actor)]
    with closing(RolloutEngine(workers)) as engine:
        for _ in range(2):
            engine.run(requests)
            assert [list(worker._simulators._envs) for worker in workers] == [[A.task], [other.task]]


def test_rollouts_of_one_start_share_the_first_observation_and_differ_in_noise(
    episodes: list[Episode],
) -> None:
    first, second = episodes[:2]
    for key, value in first.observations.items():
        assert torch.equal(value[0], second.observations[key][0])
    assert torch.equal(first.positions[0], second.positions[0])
    assert not torch.equal(first.chunks[0], second.chunks[0])
    assert not torch.equal(first.positions[-1], second.positions[-1])


def test_an_episode_holds_one_row_a_policy_call_and_one_action_a_control_step(
    actor: Actor, episodes: list[Episode]
) -> None:
    for episode in episodes:
        assert episode.executed.tolist() == [4, 4, 2]
        assert (episode.n_steps, episode.max_steps, episode.success) == (HORIZON, HORIZON, False)
        assert episode.positions.shape == (HORIZON + 1, 3)
        assert episode.dt == 0.05
        assert episode.instruction == "pick up the alphabet soup and place it in the basket"
        rows = [*episode.observations.values(), *episode.record.values(), episode.chunks]
        assert all(len(row) == 3 for row in rows)
        sent = torch.cat([actor.env_actions(episode.chunks)[i, :n] for i, n in enumerate([4, 4, 2])])
        assert torch.equal(episode.actions, sent)
    assert set(episodes[2].record) == {"x", "x_next", "step", "log_prob"}


def test_a_policy_with_a_history_sees_what_lerobots_queues_hold(
    serial: RolloutEngine[Any], tmp_path: Path
) -> None:
    """Its own loop reads every control step's observation and acts the same, from the first call on."""
    POLICIES["diffusion-ddim"](tmp_path)
    actor = load_actor(load_actor_config(tmp_path))
    policy, adapter = actor.policy, actor.adapter
    assert policy.config.n_obs_steps == 2
    env = serial._workers[0]._simulators.get(A.suite, A.task_id)
    episode = run_episode(env, actor, RolloutRequest(A, 0, ODE))
    generator = torch.Generator().manual_seed(0)
    observation = env.reset_to(A)
    policy.reset()
    for step in range(HORIZON):
        if step % policy.config.n_action_steps == 0:
            noise = torch.randn(1, adapter.chunk_size, adapter.action_dim, generator=generator)
            for _ in range(adapter.num_steps):  # Drawn by the rollout, and multiplied by the std of 0.
                torch.randn(noise.shape, generator=generator)
        batch = actor.model_input({key: value[None] for key, value in observation.items()}, ["any"])
        action = actor.postprocessor(policy.select_action(batch, noise=noise))
        assert torch.equal(action[0], episode.actions[step]), step
        observation = env.step_chunk(action.numpy()).observation
    assert observation is None


def test_workers_act_with_the_weights_they_were_given_last(
    processes: RolloutEngine[Any], serial: RolloutEngine[Any], actor: Actor, episodes: list[Episode]
) -> None:
    before = {name: value.clone() for name, value in actor.policy.state_dict().items()}
    with torch.no_grad():
        actor.policy.model.action_out_proj.weight.mul_(-1)
    processes.load_weights(actor.policy)
    serial.load_weights(actor.policy)
    answer, expected = processes.run(REQUESTS[:1])[0], serial.run(REQUESTS[:1])[0]
    assert_same(answer, expected)
    assert not torch.equal(answer.chunks, episodes[0].chunks)
    actor.policy.load_state_dict(before)
    processes.load_weights(actor.policy)
    assert_same(processes.run(REQUESTS[:2])[1], episodes[1])


def test_a_process_acts_with_an_adapter_as_the_serial_worker_does(
    env_config: LiberoEnvConfig, actor: Actor, serial: RolloutEngine[Any], episodes: list[Episode]
) -> None:
    """With the one that it was started with, and with the one that it was given last."""
    policy = deepcopy(actor.policy)
    adapted = make_actor(policy.config, add_adapter(policy, PeftConfig(r=4), seed=0))
    worker = SerialWorker(env_config, adapted)
    worker._simulators = serial._workers[0]._simulators
    with closing(make_engine(env_config, adapted, n_workers=1)) as processes:
        # A new adapter changes nothing.
        assert_same(processes.run(REQUESTS[:1])[0], episodes[0])
        with torch.no_grad():
            for name, value in adapted.policy.named_parameters():
                if "lora_B" in name:
                    value.normal_(std=0.1, generator=torch.manual_seed(0))
        processes.load_weights(adapted.policy)
        answer, expected = processes.run(REQUESTS[:1])[0], RolloutEngine([worker]).run(REQUESTS[:1])[0]
    assert_same(answer, expected)
    assert not torch.equal(answer.chunks, episodes[0].chunks)


def test_a_process_gets_the_gpu_of_its_actor_by_number(actor: Actor) -> None:
    """And the actor's config, which is saved, stays as it is."""
    assert ActorRecipe.of(actor, "cuda:1").config.device == "cuda:1"
    assert ActorRecipe.of(actor).config.device == actor.policy.config.device == "cpu"


def test_images_become_numbers_on_the_policys_device(actor: Actor) -> None:
    """Elsewhere a rollout and its replay would round x / 255 in two ways; `meta` stands in for a GPU."""
    policy = deepcopy(actor.policy)
    policy.config.device = "meta"
    seen: dict[str, Any] = {}
    there = Actor(policy, lambda batch: seen.update(batch) or batch, actor.postprocessor)  # type: ignore[arg-type]
    there.model_input(random_observation(policy.config, 1), ["pick up the milk"])
    assert {value.device.type for value in seen.values() if isinstance(value, torch.Tensor)} == {"meta"}


def test_a_process_acts_in_the_precision_of_its_actor(
    env_config: LiberoEnvConfig, serial: RolloutEngine[Any], actor: Actor, episodes: list[Episode]
) -> None:
    """Frozen weights that are stored in bfloat16 arrive as they are."""
    policy = deepcopy(actor.policy)
    in_bf16 = replace(actor, policy=policy, execution=Execution(bf16=True))
    in_bf16.adapter.freeze(["vlm"])
    store_frozen_in_bf16(policy)
    worker = SerialWorker(env_config, in_bf16)
    worker._simulators = serial._workers[0]._simulators
    worker.submit(REQUESTS[2])
    expected = worker.collect()
    engine = make_engine(env_config, in_bf16, n_workers=1)
    (answer,) = engine.run(REQUESTS[2:3])
    engine.close()
    assert_same(answer, expected)
    assert 0 < (answer.chunks[0] - episodes[2].chunks[0]).abs().max() < 0.1


FILTERS = {
    "exponential": ExponentialFilterStep(n_action_steps=CHUNK, alpha=0.4),
    "jerk_limit": JerkLimitStep(n_action_steps=CHUNK, max_acceleration=[4.0], max_jerk=[80.0]),
    "blend": ChunkBlendStep(n_action_steps=CHUNK),
}


def commanded_jerk(actions: torch.Tensor) -> float:
    """Root mean square of the second differences of displacements over dt², from rest."""
    arm = torch.cat([torch.zeros(2, 6), actions[:, :6]])
    return float(arm.diff(n=2, dim=0).square().mean().sqrt() / 0.05**2)


@pytest.mark.parametrize("step", FILTERS.values(), ids=FILTERS)
def test_a_filter_smooths_what_is_executed_and_nothing_else(
    env_config: LiberoEnvConfig,
    actor: Actor,
    serial: RolloutEngine[Any],
    episodes: list[Episode],
    step: ActionFilterStep,
) -> None:
    filtered = replace(actor, action_filter=step)
    worker = SerialWorker(env_config, filtered)
    worker._simulators = serial._workers[0]._simulators
    engine, plain = RolloutEngine([worker]), episodes[0]
    (episode,) = engine.run(REQUESTS[:1])
    assert torch.equal(episode.chunks[0], plain.chunks[0])
    assert not torch.equal(episode.actions, plain.actions)
    assert not torch.equal(episode.positions, plain.positions)
    asked = torch.cat([actor.env_actions(episode.chunks)[i, :n] for i, n in enumerate(episode.executed)])
    assert torch.equal(episode.actions[:, 6], asked[:, 6]), "the gripper"
    assert commanded_jerk(episode.actions) < 0.95 * commanded_jerk(asked)
    filtered.reset()
    rows = [filtered.env_actions(chunk[None])[0] for chunk in episode.chunks]
    assert torch.equal(torch.cat(rows)[: episode.n_steps], episode.actions)
    assert_same(engine.run(REQUESTS[:1])[0], episode)


def test_real_time_chunking_goes_on_as_the_chunk_before_had_planned(
    serial: RolloutEngine[Any], actor: Actor, episodes: list[Episode]
) -> None:
    request = replace(REQUESTS[0], sampler=RealTimeChunkingSampler(CHUNK))
    guided, again = serial.run([request, request])
    assert_same(again, guided)
    assert torch.equal(guided.chunks[0], episodes[0].chunks[0])

    def jump(episode: Episode) -> float:
        """Between what a chunk planned next and what the next one begins with."""
        return float((episode.chunks[:-1, CHUNK] - episode.chunks[1:, 0]).norm(dim=-1).mean())

    assert jump(guided) < 0.5 * jump(episodes[0])


def test_filters_samplers_and_shifts_reach_worker_processes(
    env_config: LiberoEnvConfig, actor: Actor, serial: RolloutEngine[Any], episodes: list[Episode]
) -> None:
    filtered = replace(actor, action_filter=FILTERS["jerk_limit"])
    worker = SerialWorker(env_config, filtered)
    worker._simulators = serial._workers[0]._simulators
    sampler = RealTimeChunkingSampler(CHUNK)
    requests = [
        replace(REQUESTS[0], shift=Shift.of(kind), sampler=sampler) for kind in ("placement", "light")
    ]
    expected = RolloutEngine([worker]).run(requests)
    with closing(make_engine(env_config, filtered, n_workers=1)) as processes:
        for answer, reference in zip(processes.run(requests), expected, strict=True):
            assert_same(answer, reference)
    first = [episode.observations["observation.images.image"][0] for episode in (episodes[0], *expected)]
    assert not any(torch.equal(one, other) for one, other in zip(first, first[1:], strict=False))


def test_a_failed_rollout_is_reported_with_its_reason_and_leaves_the_worker_usable(
    processes: RolloutEngine[Any], episodes: list[Episode]
) -> None:
    with pytest.raises(RolloutError, match=r"Initial state should be in \[0, 49\].*got 99"):
        processes.run([RolloutRequest(replace(A, init_state=99), 0, ODE)])
    assert_same(processes.run(REQUESTS[:1])[0], episodes[0])


def test_what_a_killed_worker_had_is_rolled_out_by_another_with_the_weights_loaded_last(
    env_config: LiberoEnvConfig, actor: Actor, episodes: list[Episode], caplog: pytest.LogCaptureFixture
) -> None:
    moved = deepcopy(actor.policy)
    with torch.no_grad():
        moved.model.action_out_proj.bias += 0.5
    with closing(ProcessEngine(env_config, actor, n_workers=1)) as engine:
        (first,) = engine._workers
        engine.load_weights(moved)
        first._process.kill()
        engine.load_weights(actor.policy)
        assert_same(engine.run(REQUESTS[:1])[0], episodes[0])
        assert engine.n_failures == 1 and engine._workers != [first]
    assert "attempt 1 of 3: Its worker died (exit code -9)" in caplog.text
    assert not first._process.is_alive()


def test_an_episode_that_a_kill_breaks_off_is_rolled_out_again_the_same(
    env_config: LiberoEnvConfig, actor: Actor, caplog: pytest.LogCaptureFixture
) -> None:
    long = replace(env_config, episode_length=200)
    with closing(make_engine(long, actor, n_workers=0)) as serial:
        expected = serial.run(REQUESTS[:2])
    with closing(ProcessEngine(long, actor, n_workers=1)) as engine:
        (first,) = engine._workers

        def kill_in_the_next(index: int, _: Episode) -> None:
            if index == 0:  # The other one takes more than a second.
                threading.Timer(0.3, first.kill).start()

        for answer, reference in zip(engine.run(REQUESTS[:2], kill_in_the_next), expected, strict=True):
            assert_same(answer, reference)
        assert engine.n_failures == 1 and engine._workers != [first]
    assert "seed 7 failed, attempt 1 of 3: Its worker died (exit code -9)" in caplog.text


@pytest.mark.parametrize(("limit", "more", "task_id"), [("AS", 20_000_000, 1), ("NOFILE", 3, 2)])
def test_what_a_worker_cannot_roll_out_for_want_of_memory_or_files_another_does(
    processes: RolloutEngine[Any], serial: RolloutEngine[Any], limit: str, more: int, task_id: int
) -> None:
    """It has a simulator of one task, and would need another one's."""
    processes.run(REQUESTS)
    sick, other = processes._workers
    process = psutil.Process(sick._process.pid)
    has = process.memory_info().vms if limit == "AS" else 0
    process.rlimit(getattr(psutil, f"RLIMIT_{limit}"), (has + more, has + more))
    request = RolloutRequest(replace(A, task_id=task_id), 0, ODE)
    before = processes.n_failures
    assert_same(processes.run([request])[0], serial.run([request])[0])
    assert 1 <= processes.n_failures - before <= 2
    assert sick not in processes._workers and other in processes._workers


def test_what_a_hung_worker_had_is_rolled_out_by_another(
    processes: RolloutEngine[Any],
    episodes: list[Episode],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    processes.run(REQUESTS)  # Both have a simulator from now on: what follows takes no time.
    monkeypatch.setattr(processes, "_timeout_s", 8.0)
    hung, _ = processes._workers
    before = processes.n_failures
    os.kill(hung._process.pid, signal.SIGSTOP)
    for answer, expected in zip(processes.run(REQUESTS[:2]), episodes[:2], strict=True):
        assert_same(answer, expected)
    assert processes.n_failures == before + 1
    assert hung not in processes._workers and not hung._process.is_alive()
    assert "has not answered for 8 s and is killed" in caplog.text


def test_a_request_that_always_fails_leaves_the_others_their_episodes(
    processes: RolloutEngine[Any], episodes: list[Episode]
) -> None:
    before = processes.n_failures
    bad = RolloutRequest(replace(A, init_state=99), 0, ODE)
    failed, other = processes.run_those_that_can([bad, REQUESTS[0]])
    assert isinstance(failed, RolloutError) and "Initial state should be in" in str(failed)
    assert isinstance(other, Episode)
    assert_same(other, episodes[0])
    assert processes.n_failures == before + 3


def test_a_policy_that_gives_no_finite_action_is_not_executed(
    env_config: LiberoEnvConfig, actor: Actor
) -> None:
    broken = replace(actor, policy=deepcopy(actor.policy))
    with torch.no_grad():
        broken.policy.model.action_out_proj.bias.fill_(torch.nan)
    with pytest.raises(RolloutError, match="actions should be finite"):
        RolloutEngine([SerialWorker(env_config, broken)]).run(REQUESTS[:1])


def test_a_simulation_that_diverges_gives_no_episode_and_does_not_spoil_the_next(
    env_config: LiberoEnvConfig, actor: Actor, episodes: list[Episode]
) -> None:
    worker = SerialWorker(env_config, actor)
    env = worker._simulators.get("libero_object", 0)
    step, n_steps = env._advance, 0

    def shaken(*arguments: Any, **settings: Any) -> Any:
        nonlocal n_steps
        n_steps += 1
        if n_steps == 3:  # As a bad contact would, in the first attempt.
            env._env.sim.data._data.qvel[:] = 1e12
        return step(*arguments, **settings)

    env._advance = shaken
    engine = RolloutEngine([worker])
    assert_same(engine.run(REQUESTS[:1])[0], episodes[0])
    assert engine.n_failures == 1
    engine.close()


@pytest.mark.parametrize("backend", ["local", "ray"])
def test_a_simulation_that_always_diverges_leaves_its_actions(
    actor: Actor, episodes: list[Episode], backend: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[1]))  # Where Ray's actors find the task.
    env_config = DivergingLiberoConfig(
        "libero_object", task_ids=[0], observation_height=64, observation_width=64
    )
    with closing(make_engine(env_config, actor, n_workers=1, config=RolloutConfig(backend))) as engine:
        (failure,) = engine.run_those_that_can(REQUESTS[:1])
    assert isinstance(failure, RolloutError) and "diverged after 4 steps" in str(failure)
    assert failure.actions is not None and torch.equal(failure.actions, episodes[0].actions[: 2 * CHUNK])
