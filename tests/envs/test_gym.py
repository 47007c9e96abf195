"""The oracle is the environment that LeRobot's config makes, freshly built, which renders in every step."""

import gc
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from environments import SlideEnvConfig
from lerobot.envs.configs import AlohaEnv, EnvConfig, MetaworldEnv, PushtEnv
from lerobot.envs.utils import preprocess_observation
from numpy.typing import NDArray

from lerobot_smoothvla.demos.experts import MetaworldExpert
from lerobot_smoothvla.envs.chunked import ChunkedEnv, Observation
from lerobot_smoothvla.envs.tasks import chunked_env
from lerobot_smoothvla.episode import Start

CHUNK = 8


@dataclass(frozen=True)
class Case:
    config: EnvConfig
    start: Start
    axes: list[int]
    dt: float
    instruction: str
    horizon: int


CASES = {
    "metaworld": Case(
        MetaworldEnv(task="handle-press-v3,push-v3", episode_length=50),
        Start("handle-press-v3", 0, 0, 1),
        axes=[0, 1, 2],
        dt=1 / 80,
        instruction="Press a handle down",
        horizon=50,
    ),
    "pusht": Case(
        PushtEnv(episode_length=19), Start("pusht", 0, 0, 5), axes=[0, 1], dt=0.1, instruction="", horizon=19
    ),
    "aloha": Case(
        AlohaEnv(task="AlohaTransferCube-v0", episode_length=11),
        Start("aloha", 0, 0, 5),
        axes=[0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11, 12],
        dt=0.02,
        instruction="transfer_cube",
        horizon=11,
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture(scope="module")
def env(case: Case) -> Iterator[ChunkedEnv]:
    made = chunked_env(case.config, case.start.suite, case.start.task_id)
    yield made
    made.close()


@pytest.fixture(scope="module")
def given(case: Case, env: Any) -> NDArray[np.float32]:
    """Actions: at random to the horizon, or in Meta-World the expert's to its success."""
    if case.config.type == "metaworld":
        env.reset_to(case.start)
        expert, actions, solved = MetaworldExpert(env), [], False
        while not solved:
            actions.append(expert.act().astype(np.float32))
            _, solved, _ = env._advance(actions[-1], render=False)
        return np.stack(actions)
    space = env._env.action_space
    space.seed(0)
    return np.stack([space.sample() for _ in range(case.horizon)])


def stock_episode(case: Case, actions: NDArray[np.float32]) -> tuple[list[dict[str, Any]], list[bool]]:
    """The batched observations of LeRobot's vector environment, K + 1, and whether each step was the last."""
    config = MetaworldEnv(task=case.start.suite) if case.config.type == "metaworld" else case.config
    ((stock,),) = ([*tasks.values()] for tasks in config.create_envs(n_envs=1).values())
    observation, _ = stock.reset(seed=[case.start.seed])
    observations, ended = [deepcopy(observation)], []
    for action in actions:
        observation, _, terminated, truncated, _ = stock.step(action[None])
        observations.append(deepcopy(observation))
        ended.append(bool(terminated[0] or truncated[0]))
    if case.config.type == "metaworld":
        # Its OpenGL objects are freed here, where its context is the current one.
        stock.envs[0]._env.mujoco_renderer.viewer.con.free()
    stock.close()
    return observations, ended


def _first(batch: dict[str, Any]) -> Observation:
    return {key: value[0] for key, value in batch.items()}


def assert_same(observation: Observation, raw: dict[str, Any]) -> None:
    """The same as LeRobot's evaluation gives to a policy, but for images as uint8."""
    expected = _first(preprocess_observation(raw))
    assert observation.keys() == expected.keys()
    for key, value in expected.items():
        image = key.startswith("observation.image")
        assert observation[key].dtype == (torch.uint8 if image else torch.float32)
        ours = observation[key].float() / 255 if image else observation[key]
        torch.testing.assert_close(ours, value, rtol=0, atol=0)


def test_an_episode_equals_rendering_every_step_bit_by_bit(case: Case, env: ChunkedEnv, given) -> None:
    raw, ended = stock_episode(case, given)
    # At the end LeRobot's vector environment has the next episode's observation already.
    assert ended == [False] * (len(given) - 1) + [True]
    assert_same(env.reset_to(case.start), raw[0])
    np.testing.assert_array_equal(env.position, raw[0]["agent_pos"][0][case.axes])
    positions, steps, done = [], 0, False
    while not done:
        outcome = env.step_chunk(given[steps : steps + CHUNK])
        steps, done = steps + outcome.n_steps, outcome.done
        positions.append(outcome.positions)
        if outcome.observation is not None:
            assert_same(outcome.observation, raw[steps])
    assert steps == len(given) and steps % CHUNK != 0, "the end should fall inside a chunk"
    assert outcome.success == (case.config.type == "metaworld")
    before_the_end = [observation["agent_pos"][0][case.axes] for observation in raw[1:-1]]
    np.testing.assert_array_equal(np.concatenate(positions)[:-1], before_the_end)
    moved = np.linalg.norm(np.diff(np.concatenate(positions), axis=0), axis=1)
    assert moved[-1] < 2 * moved[:-1].max(), "the last position should be the episode's own"


def test_a_start_is_the_same_bit_by_bit_after_any_history(case: Case, env: ChunkedEnv, given) -> None:
    began = env.reset_to(case.start)
    assert all(image.any() for image in began.values())
    came = env.step_chunk(given[:CHUNK])
    env.reset_to(Start(case.start.suite, 0, 0, 77))
    env.step_chunk(given[::-1][:CHUNK])
    again = env.reset_to(case.start)
    for key, value in began.items():
        assert torch.equal(again[key], value), key
    outcome = env.step_chunk(given[:CHUNK])
    np.testing.assert_array_equal(outcome.positions, came.positions)
    for key, value in came.observation.items():
        assert torch.equal(outcome.observation[key], value), key


def test_what_lerobot_names_reaches_the_policy(case: Case, env: ChunkedEnv) -> None:
    assert env.task_description == case.instruction
    assert (env.dt, env.max_steps) == (case.dt, case.horizon)


def test_rendering_rests_but_for_the_last_step_of_a_chunk(case: Case, env: Any, given, monkeypatch) -> None:
    env.reset_to(case.start)
    asked: list[bool] = []
    switch = env._render
    monkeypatch.setattr(env, "_render", lambda on: (asked.append(on), switch(on)))
    blank = env._advance(given[0], render=False)[0]["pixels"]
    blank = blank["top"] if isinstance(blank, dict) else blank
    assert not blank.any()
    asked.clear()
    outcome = env.step_chunk(given[1:4], n_frames=2)
    assert asked == [False, True, True] and len(outcome.frames) == 2
    pictures: list[Any] = []
    env.step_chunk(given[4:6], on_frame=pictures.append)
    assert all(picture.any() and picture.dtype == np.uint8 for picture in pictures) and len(pictures) == 2


def test_the_horizon_ends_an_episode_that_stays_over() -> None:
    env = chunked_env(SlideEnvConfig(), "slide", 0)
    with pytest.raises(RuntimeError, match="call `reset_to`"):
        env.step_chunk(np.zeros((1, 1), np.float32))
    env.reset_to(Start("slide", 0, 0, 1))
    first, second = (
        env.step_chunk(np.zeros((15, 1), np.float32)),
        env.step_chunk(np.zeros((15, 1), np.float32)),
    )
    assert (first.done, first.n_steps) == (False, 15)
    assert (second.done, second.n_steps, second.success, second.observation) == (True, 5, False, None)
    with pytest.raises(RuntimeError, match="call `reset_to`"):
        env.step_chunk(np.zeros((1, 1), np.float32))


def test_metaworlds_expert_reads_what_its_environment_returned(monkeypatch) -> None:
    env = chunked_env(MetaworldEnv(), "push-v3", 0)
    simulator, returned = env.simulator._env, []
    for name in ("reset", "step"):
        method = getattr(simulator, name)

        def recording(*args: Any, method: Any = method, **kwargs: Any) -> Any:
            answer = method(*args, **kwargs)
            returned.append(answer[0])
            return answer

        monkeypatch.setattr(simulator, name, recording)
    for seed in (1, 2):  # The second after an episode whose last state is still there.
        env.reset_to(Start("push-v3", 0, 0, seed))
        expert = MetaworldExpert(env)
        for _ in range(3):
            expected = np.clip(env.simulator.expert_policy.get_action(returned[-1]), -1, 1)
            action = expert.act()
            np.testing.assert_array_equal(action, expected)
            assert 0 < expert.pace <= 1
            env._advance(action.astype(np.float32), render=False)
    env.close()


def test_environments_of_one_process_see_their_own_scenes() -> None:
    """Gymnasium's own renderer draws in, and frees, the context of the environment that was built last."""
    config, first, second = MetaworldEnv(), Start("reach-v3", 0, 0, 1), Start("push-v3", 0, 0, 1)
    env = chunked_env(config, "reach-v3", 0)
    alone = env.reset_to(first)["observation.image"]
    assert alone.any()
    other = chunked_env(config, "push-v3", 0)
    other.reset_to(second)
    assert torch.equal(env.reset_to(first)["observation.image"], alone)
    other.close()
    del other
    gc.collect()
    assert torch.equal(env.reset_to(first)["observation.image"], alone)
    env.close()


@pytest.mark.parametrize(
    ("start", "message"),
    [
        (Start("slide", 1, 0, 0), "should belong to slide task 0, got slide task 1"),
        (Start("slide", 0, 3, 0), "no fixed initial states.*should have initial state 0.*got 3"),
    ],
)
def test_a_start_that_does_not_exist_is_refused(start: Start, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chunked_env(SlideEnvConfig(), "slide", 0).reset_to(start)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("seed", "do not reset reproducibly: two resets with seed .* different `agent_pos`, `pixels`.*GRPO"),
        ("history", "do not reset reproducibly: two resets with seed .* gave different `agent_pos`\\. GRPO"),
        (
            "success",
            r"Success of .*'slide' is read from `is_success` of `step`'s info.*only \[\].*`success_key`",
        ),
        ("position", r"position of .*'slide' is read from `agent_pos`.*it gives \['pixels'\].*obs_type"),
        ("horizon", "should have a horizon: an `episode_length` .*got neither"),
    ],
)
def test_an_environment_that_nobody_can_learn_in_is_refused_as_it_is_built(fault: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        chunked_env(SlideEnvConfig(fault=fault), "slide", 0)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (PushtEnv(obs_type="pixels"), "read from `agent_pos`.*it gives a bare array.*pixels_agent_pos"),
        (AlohaEnv(obs_type="pixels"), r"read from `agent_pos`.*it gives \['top'\].*pixels_agent_pos"),
        (PushtEnv(episode_length=0), "`episode_length` should be at least 1 control step, got 0"),
    ],
)
def test_lerobots_environments_without_a_position_or_a_horizon_are_refused(config, message) -> None:
    with pytest.raises(ValueError, match=message):
        chunked_env(config, config.type, 0)
