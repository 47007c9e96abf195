"""The guard as a step of LeRobot's processors: what it is told, what it lets through, what it says."""

import gc
import json
import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import TINY_SMOOTHVLA, save_checkpoint
from hypothesis import given, settings
from hypothesis import strategies as st
from lerobot.configs import FeatureType, PolicyFeature
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.lerobot_types import TransitionKey
from lerobot.policies import make_pre_post_processors
from lerobot.policies.act.configuration_act import ACTConfig
from lerobot.processor import PolicyProcessorPipeline, RelativeActionsProcessorStep

from lerobot_smoothvla.cli.main import main
from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig
from lerobot_smoothvla.filters.guard import GuardObservationStep, MotionGuardStep, install

FPS = 30
NAMES = ["pan.pos", "lift.pos", "gripper.pos"]
V, A, J = 90.0, 900.0, 18000.0
INPUTS = {
    "observation.images.front": PolicyFeature(FeatureType.VISUAL, (3, 64, 64)),
    "observation.state": PolicyFeature(FeatureType.STATE, (3,)),
}
OUTPUTS = {"action": PolicyFeature(FeatureType.ACTION, (3,))}
STATS = {
    key: {"mean": torch.tensor([5.0, -5.0, 20.0]), "std": torch.tensor([20.0, 30.0, 9.0])}
    for key in ("observation.state", "action")
}


def guard(**settings: Any) -> MotionGuardStep:
    step = MotionGuardStep(
        **{
            "dt": 1 / FPS,
            "max_velocity": [V],
            "max_acceleration": [A],
            "max_jerk": [J],
            "action_names": NAMES,
            "state_dims": [0, 1, 2],
            "grippers": [2],
            **settings,
        }
    )
    step.relative_step = GuardObservationStep()
    return step


def execute(step: MotionGuardStep, state: Any, action: Any, image: float = 0.0) -> torch.Tensor:
    """The action that is executed, of one observation and one command."""
    assert step.relative_step is not None
    seen = {
        "observation.state": torch.as_tensor(state)[None],
        "observation.images.front": torch.tensor(image),
    }
    step.relative_step({TransitionKey.OBSERVATION: seen})
    return step({TransitionKey.ACTION: torch.as_tensor(action)[None]})[TransitionKey.ACTION][0]


ANY = st.one_of(st.floats(-200, 200), st.sampled_from([float("nan"), float("inf"), -1e30]))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(ANY, ANY, ANY), min_size=4, max_size=50))
def test_whatever_a_policy_commands_the_arm_keeps_to_the_limits(commands):
    """From the measured position on, also with NaN; float32 rounds positions to 1 in 2²⁴."""
    start = [3.0, -40.0, 10.0]
    step = guard()
    path = [execute(step, start, torch.tensor(command)).double() for command in commands]
    assert all(torch.isfinite(action).all() for action in path)
    path = np.concatenate([np.tile(start[:2], (3, 1)), torch.stack(path)[:, :2].numpy()])
    for order, limit in enumerate((V, A, J), start=1):
        rounding = 2 ** (order - 1) * np.spacing(np.float32(200)) * FPS**order
        assert np.abs(np.diff(path, n=order, axis=0)).max() * FPS**order <= limit * (1 + 2e-6) + rounding


def test_commands_within_the_limits_are_let_through_to_the_last_bit():
    times = torch.arange(90) / FPS
    step = guard()
    for position in 10 * (1 - torch.cos(times)):
        command = torch.stack([position, -position, position * 9])
        assert torch.equal(execute(step, [0.0, 0.0, 50.0], command), command)
    assert (step.counts.n_steps, step.counts.n_limited) == (90, 0)


def test_it_begins_where_the_arm_is_whatever_comes_first():
    step = guard(state_dims=[2, 0, 1])
    first = execute(step, [7.0, 1.0, -30.0], [80.0, 80.0, 80.0])
    assert first[2] == 80, "the gripper"
    moved = (first[:2] - torch.tensor([-30.0, 7.0])).tolist()
    assert moved == pytest.approx([J / FPS**3 / 6] * 2, rel=1e-4), "an allowed jerk for one control period"


def test_an_action_that_is_not_finite_lets_the_arm_hold():
    """At the start where it is measured, later where it was sent last; the gripper too."""
    step, state = guard(), [1.0, 2.0, 3.0]
    assert execute(step, state, [float("nan"), 50.0, 0.0]).tolist() == state
    for _ in range(80):
        execute(step, state, [10.0, 20.0, 30.0])
    for _ in range(5):
        assert execute(step, state, [11.0, 20.0, float("inf")]).tolist() == [10.0, 20.0, 30.0]
    assert step.counts.n_not_finite == 6


def test_an_arm_that_holds_does_not_go_on_to_a_command_far_away():
    """It overshoots where it was by its braking distance and comes back."""
    step = guard()
    path = [execute(step, [0.0, 0.0, 0.0], [300.0, 0.0, 0.0]) for _ in range(30)]
    path += [execute(step, [0.0, 0.0, 0.0], [float("nan")] * 3) for _ in range(60)]
    pan = torch.stack(path)[:, 0]
    assert pan[29] > V / FPS * 20, "at full speed"
    braking = V**2 / (2 * A) + V * A / (2 * J)  # Biagiotti and Melchiorri, Trajectory Planning, 2008, 3.4.
    assert pan.max() < pan[29] + braking + V / FPS
    assert torch.equal(path[-1], path[29])


def test_while_a_camera_is_frozen_the_arm_holds_where_it_was_sent_last_before(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    clock = 0.0
    monkeypatch.setattr("time.perf_counter", lambda: clock)
    step, path = guard(), []
    for frame in range(80):
        clock = frame / 32  # 0.5 s are 16 frames.
        noise = min(frame, 20)  # New images until then, and one more later.
        path.append(execute(step, [0.0, 0.0, 0.0], [frame / 8, 0.0, 0.0], noise + (frame == 79)))
    said = [record.message for record in caplog.records]
    assert said[0].startswith("Motion guard: observation.images.front gave the same image for 0.5 s")
    last = torch.tensor([36 / 8, 0.0, 0.0])
    assert torch.equal(path[36], last) and torch.equal(path[78], last)
    assert path[79][0] > path[78][0], "it goes on"
    assert step.counts.n_blind == 42


def test_it_says_how_often_it_had_to_act_at_a_reset_and_at_the_end(caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO)
    step = guard()
    execute(step, [0.0, 0.0, 0.0], [0.0, 0.0, 0.0])
    execute(step, [0.0, 0.0, 0.0], [0.0, 40.0, 0.0])
    execute(step, [0.0, 0.0, 0.0], [float("nan")] * 3)
    step.reset()
    execute(step, [0.0, 0.0, 0.0], [0.0, 0.0, 0.0])
    del step
    gc.collect()
    said = [record.message for record in caplog.records if "Motion guard" in record.message]
    correction = 40 - J / FPS**3 / 6
    assert said == [
        f"Motion guard: 2 of 3 control steps limited, by at most {correction:.3g} (lift.pos); "
        "1 actions were not finite; 0 came while a camera was frozen.",
        "Motion guard: 0 of 1 control steps limited; 0 actions were not finite; 0 came while a camera was "
        "frozen.",
    ]


def test_robots_side_by_side_do_not_mix():
    together, alone = guard(), guard()
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        commands = torch.randn(2, 3, generator=generator) * 50
        states = torch.tensor([[0.0, 0.0, 0.0], [9.0, 9.0, 9.0]])
        together.relative_step({TransitionKey.OBSERVATION: {"observation.state": states}})
        both = together({TransitionKey.ACTION: commands})[TransitionKey.ACTION]
        assert torch.equal(both[1], execute(alone, states[1], commands[1]))


def test_what_is_not_executed_step_by_step_is_refused():
    """A chunk, as of real-time chunking; several actions of one observation, as of the policy server."""
    step = guard()
    with pytest.raises(ValueError, match=r"one action for each observation.*after none.*inference.type=sync"):
        step({TransitionKey.ACTION: torch.zeros(1, 3)})
    execute(step, [0.0, 0.0, 0.0], [0.0, 0.0, 0.0])
    with pytest.raises(ValueError, match="one action for each observation"):
        step({TransitionKey.ACTION: torch.zeros(1, 3)})
    with pytest.raises(ValueError, match=r"got \(1, 8, 3\) after one"):
        execute(step, [0.0, 0.0, 0.0], torch.zeros(8, 3))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_jerk": [1.0, 2.0, 3.0]}, "`max_jerk` should hold one limit .* each of pan.pos, lift.pos, got"),
        ({"max_velocity": [0.0]}, "velocity should be positive"),
        ({"dt": -1.0}, "`dt` should be a positive control period"),
        ({"dt": float("nan")}, "`dt` should be a positive control period in s, got nan"),
        ({"max_jerk": [float("inf")]}, "jerk should be positive, up to"),
        ({"state_dims": [0]}, r"`state_dims` should name one dimension .* 3 actions, got \[0\]"),
    ],
)
def test_settings_that_cannot_be_used_are_refused(settings: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        guard(**settings)


def test_an_arm_whose_position_is_not_known_is_not_moved():
    with pytest.raises(ValueError, match="begin where the arm is, but its state is .*nan"):
        execute(guard(), [float("nan"), 0.0, 0.0], [0.0, 0.0, 0.0])


# --- exported


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("policy")
    features = {"input_features": INPUTS, "output_features": OUTPUTS, "max_action_dim": 3, "max_state_dim": 3}
    save_checkpoint(path, SmoothVLAConfig(**{**TINY_SMOOTHVLA, **features}), STATS)
    return path


@pytest.fixture(scope="module")
def demonstrations(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two episodes at 20 Hz whose state holds the joints in another order."""
    root = tmp_path_factory.mktemp("datasets") / "arm"
    vectors = {"action": NAMES, "observation.state": ["lift.pos", "gripper.pos", "pan.pos"]}
    features = {key: {"dtype": "float32", "shape": (3,), "names": names} for key, names in vectors.items()}
    dataset = LeRobotDataset.create("arm/demonstrations", fps=20, root=root, features=features)
    for speed in (1.0, 2.0):
        for time in np.arange(60) / 20:
            wave = np.float32([30 * np.sin(speed * time), 20 * np.cos(speed * time), 50 * (time > 1)])
            dataset.add_frame({"action": wave, "observation.state": wave, "task": "wave"})
        dataset.save_episode()
    dataset.finalize()
    return root


def export(monkeypatch: pytest.MonkeyPatch, path: Path, output: Path, *flags: str) -> int:
    arguments = [f"--policy.path={path}", f"--output_dir={output}", *flags]
    monkeypatch.setattr(sys, "argv", ["smoothvla", "export", *arguments])
    return main()


GIVEN = (f"--guard.max_velocity=[{V}]", f"--guard.max_acceleration=[{A}]", f"--guard.max_jerk=[{J}]")


def saved_guard(path: Path) -> dict[str, Any]:
    step = json.loads((path / "policy_postprocessor.json").read_text())["steps"][-1]
    assert step["registry_name"] == "smoothvla_motion_guard"
    return step["config"]


STOCK = """
import sys, torch
from lerobot.configs import PreTrainedConfig
from lerobot.policies import get_policy_class, make_pre_post_processors
from lerobot.utils.import_utils import register_third_party_plugins
register_third_party_plugins()
config = PreTrainedConfig.from_pretrained(sys.argv[1])
get_policy_class(config.type)
before, after = make_pre_post_processors(config, pretrained_path=sys.argv[1])
observations, actions = torch.load(sys.argv[2])
executed = []
for state, action in zip(observations, actions):
    before({"observation.state": state, "observation.images.front": torch.zeros(3, 64, 64), "task": "wave"})
    executed.append(after(action[None]))
torch.save(torch.cat(executed), sys.argv[3])
"""


def test_stock_lerobot_acts_through_an_exported_guard(checkpoint: Path, tmp_path: Path, monkeypatch, capsys):
    """In another process, as `lerobot-rollout` loads it; the policy itself cannot be plainer."""
    assert export(monkeypatch, checkpoint, tmp_path / "guarded", *GIVEN, "--guard.fps=30") == 0
    assert "  0: 90/s, 900/s², 1.8e+04/s³" in capsys.readouterr().out
    generator = torch.Generator().manual_seed(0)
    observations, actions = (torch.randn(40, 3, generator=generator) for _ in range(2))
    torch.save((observations, actions), tmp_path / "given.pt")
    files = [str(tmp_path / name) for name in ("guarded", "given.pt", "executed.pt")]
    subprocess.run([sys.executable, "-c", STOCK, *files], check=True)
    step = guard(action_names=["0", "1", "2"])
    commands = actions * STATS["action"]["std"] + STATS["action"]["mean"]
    expected = torch.stack([execute(step, *pair) for pair in zip(observations, commands, strict=True)])
    executed = torch.load(tmp_path / "executed.pt")
    torch.testing.assert_close(executed, expected, rtol=0, atol=1e-5)
    assert (executed[:, :2] - commands[:, :2]).abs().max() > 10, "it had to act"


def test_limits_of_demonstrations_are_their_largest_rates(
    checkpoint: Path, demonstrations: Path, tmp_path: Path, monkeypatch
):
    assert export(monkeypatch, checkpoint, tmp_path / "all", f"--guard.demonstrations={demonstrations}") == 0
    saved = saved_guard(tmp_path / "all")
    assert (saved["dt"], saved["grippers"], saved["state_dims"]) == (1 / 20, [2], [2, 0, 1])
    waves = [np.float32(30 * np.sin(speed * np.arange(60) / 20)).astype(float) for speed in (1.0, 2.0)]
    for order, name in enumerate(("max_velocity", "max_acceleration", "max_jerk"), start=1):
        largest = max(np.abs(np.diff(wave, n=order)).max() for wave in waves) * 20**order
        assert saved[name][0] == pytest.approx(largest)
    flags = (f"--guard.demonstrations={demonstrations}", "--guard.quantile=0.5", "--guard.fps=50")
    assert export(monkeypatch, tmp_path / "all", tmp_path / "half", *flags) == 0
    half = saved_guard(tmp_path / "half")
    assert half["dt"] == 1 / 50 and half["max_velocity"][0] < saved["max_velocity"][0]
    steps = json.loads((tmp_path / "half/policy_postprocessor.json").read_text())["steps"]
    assert sum(step.get("registry_name") == "smoothvla_motion_guard" for step in steps) == 1, "the new one"


def test_a_policy_of_another_type_gets_a_guard_too(tmp_path: Path, monkeypatch):
    small = {
        "dim_model": 16,
        "n_heads": 2,
        "dim_feedforward": 16,
        "n_encoder_layers": 1,
        "n_vae_encoder_layers": 1,
    }
    config = ACTConfig(
        input_features=INPUTS,
        output_features=OUTPUTS,
        pretrained_backbone_weights=None,
        device="cpu",
        **small,
    )
    save_checkpoint(tmp_path / "act", config, {**STATS, "observation.images.front": STATS_OF_IMAGES})
    assert export(monkeypatch, tmp_path / "act", tmp_path / "guarded", *GIVEN) == 0
    before, after = make_pre_post_processors(config, pretrained_path=str(tmp_path / "guarded"))
    assert isinstance(after.steps[-1], MotionGuardStep) and after.steps[-1].relative_step in before.steps


@pytest.mark.parametrize("relative", [False, True])
def test_a_policy_that_can_act_relative_to_the_state_gets_a_guard_where_it_does_not(relative: bool):
    before, after = (
        PolicyProcessorPipeline([RelativeActionsProcessorStep(relative)]),
        PolicyProcessorPipeline(),
    )
    step = guard()
    if relative:
        with pytest.raises(ValueError, match=r"these are relative to the state.*--robot.type=guarded"):
            install(step, 0.5, before, after)
        return
    install(step, 0.5, before, after)
    (observes,) = (one for one in before.steps if isinstance(one, RelativeActionsProcessorStep))
    assert step.relative_step is observes and after.steps[-1] is step


STATS_OF_IMAGES = {"mean": torch.zeros(3, 1, 1), "std": torch.ones(3, 1, 1)}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--guard.max_jerk=[3]"],
            "given, all three (--guard.max_velocity=[..] --guard.max_accel",
        ),
        ([*GIVEN, "--guard.demonstrations=some/where"], "one of the two"),
        (
            ["--guard.fps=50", "--guard.quantile=0.99"],
            "A guard's limits should be taken of demonstrations",
        ),
        ([*GIVEN[:2], "--guard.max_jerk=[.inf]"], "jerk should be positive, up to 1e+09"),
        ([*GIVEN, "--guard.fps=.nan"], "`guard.fps` should be a positive control rate in Hz, got nan"),
        (["--guard.demonstrations=no/where"], "There is no LeRobot dataset 'no/where'"),
        ([*GIVEN, "--guard.fps=0"], "`guard.fps` should be a positive control rate in Hz, got 0.0"),
        ([*GIVEN, "--guard.frozen_after=-1"], "`guard.frozen_after` should be a time in s, or 0 for none"),
        ([*GIVEN, "--guard.quantile=2"], "`guard.quantile` should be in (0, 1], got 2.0"),
        (
            [*GIVEN[:2], "--guard.max_jerk=[1,2,3]"],
            "`max_jerk` should hold one limit for all axes or one",
        ),
    ],
)
def test_a_guard_that_cannot_be_is_refused_in_one_paragraph(
    flags: list[str], message: str, checkpoint: Path, tmp_path: Path, monkeypatch, capsys
):
    assert export(monkeypatch, checkpoint, tmp_path / "guarded", *flags) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "guarded").exists()


def test_demonstrations_of_another_arm_are_refused(
    checkpoint: Path, tiny_dataset: Path, tmp_path, monkeypatch, capsys
):
    flag = f"--guard.demonstrations={tiny_dataset}"
    assert export(monkeypatch, checkpoint, tmp_path / "guarded", flag) == 2
    assert "should have the 3 actions and the state of 3 of the policy" in capsys.readouterr().err
