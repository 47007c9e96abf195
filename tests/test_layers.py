"""Each module imports from its own layer and those above it; see the docstring of the package."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import lerobot_smoothvla

PACKAGE = Path(lerobot_smoothvla.__file__).parent
LAYERS = {
    # pure maths
    "episode": 1,
    "smoothness": 1,
    "redaction": 1,
    "flow": 1,
    "grpo.objective": 1,
    "evaluation.statistics": 1,
    "report.markup": 1,
    "report.figures": 1,
    "report.page": 1,
    # LeRobot-facing
    "flow.adapters": 2,
    "configuration_smoothvla": 2,
    "modeling_smoothvla": 2,
    "processor_smoothvla": 2,
    "backbones": 2,
    "jerk_reward": 2,
    "envs": 2,
    "filters": 2,
    "grpo.configuration": 2,
    "presets": 2,
    "selectors": 2,
    "peft_loading": 2,
    "checkpoint_safety": 2,
    "dataset_loading": 2,
    "machine": 2,
    "processes": 2,
    "provenance": 2,
    "locking": 2,
    "settings": 2,
    "interruption": 2,
    "writing": 2,
    "rollout.configuration": 2,
    # rollouts
    "rollout": 3,
    "checkpoint_loading": 3,
    # what uses them
    "grpo": 4,
    "demos": 4,
    "evaluation": 4,
    "demo": 4,
    "export": 4,
    "doctor": 4,
    "hub": 4,
    "report": 4,
    "stages": 4,
    "study": 4,
    # commands
    "cli": 5,
}
MODULES = sorted(".".join(path.relative_to(PACKAGE).with_suffix("").parts) for path in PACKAGE.rglob("*.py"))
CODE = [name for name in MODULES if not name.endswith("__init__")]


def layer(module: str) -> int:
    """The layer of a module by its longest known prefix, 0 if it has none."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if (prefix := ".".join(parts[:length])) in LAYERS:
            return LAYERS[prefix]
    return 0


def imported(module: str) -> Iterator[str]:
    """Absolute names that a module imports anywhere in its text, `from a import b` as `a.b`."""
    file = PACKAGE.joinpath(*module.split(".")).with_suffix(".py")
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports should be absolute, as in the rest of the package."
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("module", CODE)
def test_every_module_has_a_layer(module: str):
    assert layer(module), f"Say in LAYERS where `{module}` belongs."


@pytest.mark.parametrize("module", CODE)
def test_a_module_imports_only_from_its_layer_and_those_above(module: str):
    for name in imported(module):
        if name.startswith("lerobot_smoothvla."):
            inner = name.removeprefix("lerobot_smoothvla.")
            assert layer(inner) <= layer(module), f"{module} (layer {layer(module)}) imports {name}."


@pytest.mark.parametrize("module", [name for name in CODE if layer(name) == 1])
def test_pure_modules_import_torch_and_numpy_only(module: str):
    roots = {name.split(".")[0] for name in imported(module)}
    assert roots <= {"torch", "numpy", "lerobot_smoothvla", *sys.stdlib_module_names}


@pytest.mark.parametrize("module", [name for name in MODULES if name != "rollout.ray"])
def test_only_the_ray_backend_imports_ray(module: str):
    assert "ray" not in {name.split(".")[0] for name in imported(module)}


@pytest.mark.parametrize("module", [name for name in CODE if name.startswith("rollout")])
def test_rollouts_know_no_reward_and_no_grpo(module: str):
    known = {name.removeprefix("lerobot_smoothvla.").split(".")[0] for name in imported(module)}
    assert not known & {"grpo", "jerk_reward"}
