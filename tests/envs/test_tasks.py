import subprocess
import sys

import pytest
from lerobot.envs.libero import _get_suite, get_task_init_states

from lerobot_smoothvla.envs.tasks import n_init_states, task_names


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
