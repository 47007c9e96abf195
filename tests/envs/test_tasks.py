import importlib.util
import subprocess
import sys

import pytest
from environments import SlideEnvConfig
from lerobot.envs.configs import AlohaEnv, EnvConfig, LiberoEnv, MetaworldEnv, PushtEnv, RoboCasaEnv
from lerobot.envs.libero import _get_suite, get_task_init_states

from lerobot_smoothvla.envs.adapters import env_adapter, register_env_adapter
from lerobot_smoothvla.envs.tasks import (
    TRAINING_SEEDS,
    has_init_states,
    n_init_states,
    require_init_states,
    require_usable,
    selected_tasks,
    task_names,
)


@pytest.mark.parametrize(
    "suite", ["libero_spatial", "libero_object", "libero_goal", "libero_10", "libero_90"]
)
def test_tasks_are_numbered_as_lerobot_numbers_them(suite):
    assert task_names()[suite] == [task.name for task in _get_suite(suite).tasks]


def test_initial_states_are_counted_as_lerobot_loads_them():
    assert n_init_states(("libero_goal", 3)) == len(get_task_init_states(_get_suite("libero_goal"), 3))


def test_tasks_are_known_without_mujoco():
    code = (
        "import sys; from lerobot.envs.configs import LiberoEnv; from lerobot_smoothvla.envs import tasks;"
        "selected = tasks.selected_tasks(LiberoEnv(task='libero_goal'));"
        "tasks.require_init_states(LiberoEnv(), selected, (0, 50)); print('mujoco' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"


def test_metaworlds_tasks_are_numbered_as_lerobot_numbers_them():
    from lerobot.envs.metaworld import DIFFICULTY_TO_TASKS

    assert selected_tasks(MetaworldEnv(task="reach-v3, push-v3")) == [("push-v3", 0), ("reach-v3", 0)]
    hard = [("hard", index) for index in range(len(DIFFICULTY_TO_TASKS["hard"]))]
    assert selected_tasks(MetaworldEnv(task="hard")) == hard
    made = MetaworldEnv(task="hard").create_envs(n_envs=1)
    assert [(group, index) for group, tasks in made.items() for index in tasks] == hard


@pytest.mark.parametrize("config", [PushtEnv(), AlohaEnv(), SlideEnvConfig()])
def test_any_other_environment_is_one_task_without_initial_states(config: EnvConfig):
    tasks = selected_tasks(config)
    assert tasks == [(config.type, 0)] and not has_init_states(config)
    require_init_states(config, tasks, (5, 9000))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (MetaworldEnv(task="push-v2"), "no Meta-World task 'push-v2'.*groups easy.*Did you mean 'push-v3'"),
        (MetaworldEnv(task=""), "no Meta-World task ''"),
        (LiberoEnv(task=""), "no LIBERO suite ''"),
        (
            RoboCasaEnv(),
            "'robocasa' have no adapter.*these have: aloha, libero, metaworld, pusht.*register_env_adapter",
        ),
    ],
)
def test_tasks_that_do_not_exist_are_refused_with_those_that_do(config: EnvConfig, message: str):
    with pytest.raises(ValueError, match=message):
        selected_tasks(config)


def test_training_never_meets_an_evaluations_seed():
    from lerobot_smoothvla.evaluation.evaluate import EvaluationConfig, evaluation_starts
    from lerobot_smoothvla.grpo.configuration import GRPOConfig
    from lerobot_smoothvla.grpo.trainer import sample_starts

    config = PushtEnv()
    tasks = selected_tasks(config)
    starts = sample_starts(tasks, GRPOConfig(n_groups=50), 1, 2, init_states=False)
    assert len({start.seed for start in starts}) == 50
    assert all(TRAINING_SEEDS <= start.seed < 2 * TRAINING_SEEDS for start in starts)
    assert all((start.suite, start.task_id, start.init_state) == ("pusht", 0, 0) for start in starts)
    held_out = evaluation_starts(config, tasks, EvaluationConfig())
    assert all(start.seed < TRAINING_SEEDS for start in held_out)


@pytest.mark.parametrize(
    ("fault", "message"), [("seed", "do not reset reproducibly"), ("success", "Success of")]
)
def test_an_environment_that_is_not_usable_is_refused_before_anything_else_runs(fault: str, message: str):
    with pytest.raises(ValueError, match=message):
        require_usable(SlideEnvConfig(fault=fault), [("slide", 0)])
    require_usable(SlideEnvConfig(), [("slide", 0)])


@pytest.mark.parametrize(
    ("config", "package"),
    [(MetaworldEnv(), "metaworld"), (PushtEnv(), "gym_pusht"), (AlohaEnv(), "gym_aloha")],
)
def test_a_missing_package_is_named_with_the_extra_that_installs_it(config, package, monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == package else find_spec(name)
    )
    extra = rf"package '{package}'.*pip install 'lerobot_policy_smoothvla\[{config.type}\]'"
    with pytest.raises(ImportError, match=extra):
        require_usable(config, selected_tasks(config) if config.type != "metaworld" else [("reach-v3", 0)])


def test_an_adapter_is_registered_once_for_a_type():
    for env_type in ("pusht", "libero"):
        with pytest.raises(ValueError, match=f"'{env_type}' have an adapter already"):
            register_env_adapter(env_type, env_adapter(SlideEnvConfig()))


def test_pusht_runs_without_libero_and_mujoco():
    code = (
        "import sys; from lerobot.envs.configs import PushtEnv; from lerobot_smoothvla.envs import tasks;"
        "from lerobot_smoothvla.rollout import local;"
        "tasks.require_usable(PushtEnv(), [('pusht', 0)]);"
        "print({'mujoco', 'libero', 'robosuite', 'metaworld'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
