"""What the reward pays for, what it never pays for, and that LeRobot can save and load it."""

import itertools
import math
from dataclasses import replace

import draccus
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lerobot.lerobot_types import TransitionKey
from lerobot.processor import DataProcessorPipeline
from lerobot.processor.converters import create_transition, identity_transition
from torch import Tensor

from lerobot_smoothvla.episode import Embodiment, Episode, Start
from lerobot_smoothvla.jerk_reward import (
    JerkRewardConfig,
    JerkRewardProcessorStep,
    reference_medians,
    score,
    task_key,
)
from lerobot_smoothvla.smoothness import JOINT_MOVING_SPEED, chunk_jerk_rms, measure

DT = 0.05
HORIZON = 280
REFERENCE = {"jerk_rms": 10.0, "ldlj": -12.0}
FORMS = list(itertools.product(("jerk_rms", "ldlj"), ("sum", "gated")))


def episode(positions: Tensor, success: bool, task_id: int = 0, chunk: int = 8) -> Episode:
    n_steps = len(positions) - 1
    executed = torch.tensor([min(chunk, n_steps - i) for i in range(0, n_steps, chunk)], dtype=torch.int64)
    return Episode(
        start=Start("libero_object", task_id, 0, 0),
        instruction="pick up the soup",
        observations={},
        record={},
        chunks=torch.zeros(len(executed), chunk, 7),
        executed=executed,
        actions=torch.zeros(n_steps, 7),
        positions=positions,
        dt=DT,
        success=success,
        max_steps=HORIZON,
    )


def reach(n_steps: int = 60, length: float = 0.4) -> Tensor:
    """(n_steps + 1, 3) positions of a minimum-jerk reach, m."""
    u = torch.linspace(0, 1, n_steps + 1, dtype=torch.float64)[:, None]
    direction = torch.tensor([[0.6, 0.8, 0.0]], dtype=torch.float64)
    return length * (10 * u**3 - 15 * u**4 + 6 * u**5) * direction


def shaky_reach(amplitude: float = 0.004) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return reach() + amplitude * torch.randn(61, 3, generator=generator, dtype=torch.float64)


def stand_still(n_steps: int = HORIZON) -> Tensor:
    return torch.zeros(n_steps + 1, 3, dtype=torch.float64)


def crawl(velocity: float, n_steps: int = HORIZON) -> Tensor:
    """Straight on at a constant speed in m/s: as smooth as a motion can be."""
    return torch.linspace(0, velocity * DT * n_steps, n_steps + 1, dtype=torch.float64)[
        :, None
    ] * torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)


def step(signal: str = "jerk_rms", combination: str = "gated", **settings) -> JerkRewardProcessorStep:
    settings = {"reference": REFERENCE.get(signal)} | settings
    return JerkRewardProcessorStep(signal=signal, combination=combination, **settings)


def inputs(positions: Tensor, flags: Tensor) -> dict:
    return {
        "positions": positions,
        "dt": DT,
        "executed": torch.tensor([len(flags)]),
        "success": flags,
        "task_key": "libero_object/0",
    }


# What it pays


def test_the_thresholds_are_the_embodiments_unless_they_are_set():
    pixels = replace(episode(reach(length=40.0), True), embodiment=Embodiment("px", 10.0, min_extent=50.0))
    assert score(pixels, step()).smoothness == 0.0
    assert score(pixels, step(min_extent=30.0)).smoothness > 0.0
    assert score(replace(pixels, embodiment=Embodiment("px", 10.0, min_extent=30.0)), step()).smoothness > 0.0

    by_embodiment = score(pixels, step()).terms["moving_share"]
    assert by_embodiment == measure(pixels.positions, DT, pixels.executed, 10.0)["moving_share"]
    assert score(pixels, step(moving_speed=0.01)).terms["moving_share"] > by_embodiment


def test_the_reference_is_measured_by_the_embodiments_threshold():
    slow = replace(episode(shaky_reach(), True), embodiment=Embodiment(moving_speed=0.2))
    expected = measure(slow.positions, DT, slow.executed, 0.2)["jerk_rms"]
    assert reference_medians([slow], JerkRewardConfig())["libero_object/0"] == expected
    assert expected != measure(slow.positions, DT, slow.executed)["jerk_rms"]


def test_smoothness_is_one_half_at_the_reference():
    positions = shaky_reach()
    terms = measure(positions, DT, torch.tensor([60]))
    for signal in ("jerk_rms", "ldlj"):
        scored = score(episode(positions, True), step(signal, reference=terms[signal]))
        assert scored.smoothness == pytest.approx(0.5)


@pytest.mark.parametrize("signal", ["jerk_rms", "ldlj"])
def test_smoothness_is_the_documented_function_of_the_ratio_of_jerks(signal):
    scored = score(episode(shaky_reach(), True), step(signal))
    values = {"jerk_rms": scored.terms["jerk_rms"], "ldlj": math.exp(-scored.terms["ldlj"] / 2)}
    references = {"jerk_rms": 10.0, "ldlj": math.exp(12.0 / 2)}
    assert scored.smoothness == pytest.approx(1 / (1 + values[signal] / references[signal]))


@pytest.mark.parametrize("success", [False, True])
def test_the_two_combinations_are_the_sum_and_the_gated_one(success):
    for combination in ("sum", "gated"):
        scored = score(episode(shaky_reach(), success), step(combination=combination, weight=0.4))
        bonus = 0.4 * scored.smoothness
        expected = success + bonus if combination == "sum" else success * (1 + bonus)
        assert scored.success == float(success)
        assert scored.total == pytest.approx(expected)


@pytest.mark.parametrize("signal", ["jerk_rms", "ldlj"])
def test_less_tremor_is_paid_more(signal):
    smoothness = [
        score(episode(shaky_reach(amplitude), True), step(signal)).smoothness
        for amplitude in (0.0, 0.001, 0.004, 0.016)
    ]
    assert smoothness == sorted(smoothness, reverse=True)
    assert smoothness[0] - smoothness[-1] > 0.3


def test_driving_the_same_path_slower_pays_under_raw_jerk_but_not_under_ldlj():
    fast, slow = episode(reach(40), True), episode(reach(240), True)
    assert score(slow, step("jerk_rms")).smoothness > score(fast, step("jerk_rms")).smoothness
    ldlj = step("ldlj", reference=-math.log(204.8))
    assert score(slow, ldlj).smoothness == pytest.approx(score(fast, ldlj).smoothness, abs=0.03)


def test_the_terms_are_those_of_the_evaluation_unweighted():
    terms = score(episode(shaky_reach(), True), step(weight=0.0)).terms
    expected = measure(shaky_reach(), DT, torch.tensor([8] * 7 + [4])) | {"time_to_success": 3.0}
    assert terms == pytest.approx(expected)
    assert math.isnan(score(episode(shaky_reach(), False), step()).terms["time_to_success"])


def test_each_chunk_has_the_smoothness_of_its_own_jerk():
    shaken = reach(60)
    shaken[20:24] += 0.001 * torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)[:, None]
    scored = score(episode(shaken, True), step(reference=8.5))
    jerks = chunk_jerk_rms(shaken, DT, torch.tensor([8] * 7 + [4]), 0.01)
    torch.testing.assert_close(scored.chunk_smoothness, 1 / (1 + jerks / 8.5))
    assert sorted(scored.chunk_smoothness.argsort()[:2].tolist()) == [2, 3]


@pytest.mark.parametrize("positions", [stand_still(), stand_still(0), reach(2)])
def test_chunks_in_which_nothing_moves_have_no_smoothness(positions):
    scored = score(episode(positions, False), step())
    assert scored.chunk_smoothness.shape == scored.episode.executed.shape
    assert scored.chunk_smoothness.isnan().all()


# Joints beside the end effector


def with_joints(hand: Tensor, joints: Tensor) -> Episode:
    return replace(episode(hand, True), joints=joints)


@pytest.mark.parametrize(("signal", "of_hand"), [("joint_jerk_rms", "jerk_rms"), ("joint_ldlj", "ldlj")])
def test_a_signal_of_joints_is_the_same_measure_of_the_joints(signal, of_hand):
    both = with_joints(reach(), shaky_reach())
    joints = replace(episode(shaky_reach(), True), embodiment=Embodiment("rad", JOINT_MOVING_SPEED))
    expected = score(joints, step(of_hand))
    scored = score(both, step(signal, reference=REFERENCE[of_hand]))
    assert scored.smoothness == pytest.approx(expected.smoothness)
    assert scored.terms[signal] == pytest.approx(expected.terms[of_hand])
    torch.testing.assert_close(scored.chunk_smoothness, expected.chunk_smoothness, equal_nan=True)
    reference = {"libero_object/0": pytest.approx(scored.terms[signal])}
    assert reference_medians([both], JerkRewardConfig(signal)) == reference


@pytest.mark.parametrize("signal", ["jerk_rms", "ldlj"])
def test_joints_change_nothing_where_the_hand_is_rewarded(signal):
    scored = score(with_joints(reach(), shaky_reach()), step(signal))
    alone = score(episode(reach(), True), step(signal))
    assert scored.total == alone.total
    assert scored.terms.keys() - alone.terms.keys() == {"joint_jerk_rms", "joint_ldlj"}


def test_a_signal_of_joints_that_nobody_measures_is_refused():
    message = "'joint_jerk_rms' needs positions of joints .* use --algorithm.reward.signal=jerk_rms"
    with pytest.raises(ValueError, match=message):
        score(episode(reach(), True), step("joint_jerk_rms", reference=1.0))
    with pytest.raises(ValueError, match=message):
        reference_medians([episode(reach(), True)], JerkRewardConfig("joint_jerk_rms"))


# What it never pays

STILL = {
    "stand still": stand_still(),
    "stand still with sensor noise": stand_still()
    + 1e-4 * torch.randn(HORIZON + 1, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
    "tremble on the spot": stand_still()
    + 0.005 * torch.sin(torch.arange(HORIZON + 1, dtype=torch.float64) * 0.5)[:, None],
    "crawl below the moving speed": crawl(0.009),
    "twitch once": torch.cat([stand_still(20), reach(4, 0.01) + stand_still(4)]),
    "end at once": stand_still(0),
    "end after two steps": reach(2),
}


@pytest.mark.parametrize(("signal", "combination"), FORMS)
@pytest.mark.parametrize("name", STILL)
@pytest.mark.parametrize("success", [False, True])
def test_without_motion_there_is_no_smoothness(signal, combination, name, success):
    success = success and len(STILL[name]) > 1
    scored = score(episode(STILL[name], success), step(signal, combination))
    assert scored.smoothness == 0
    assert scored.total == float(success)


@settings(deadline=None, max_examples=60)
@given(
    form=st.sampled_from(FORMS),
    weight=st.floats(0.01, 1.0),
    velocity=st.floats(0.0, 0.5),
    tremor=st.floats(0.0, 0.02),
)
def test_no_failure_however_slow_and_smooth_earns_what_a_moving_success_earns(form, weight, velocity, tremor):
    reward = step(*form, weight=weight)
    failure = score(episode(crawl(velocity), False), reward)
    success = score(episode(shaky_reach(tremor), True), reward)

    assert failure.total < success.total
    if form[1] == "gated":
        assert failure.total == 0


@pytest.mark.parametrize(("signal", "combination"), FORMS)
@pytest.mark.parametrize("after", [stand_still(200), crawl(0.1, 200), shaky_reach()])
def test_nothing_after_the_success_counts(signal, combination, after):
    """The gamer solves the task roughly and then stands still, or glides on, until the horizon."""
    honest = shaky_reach()
    flags = torch.zeros(60 + len(after) - 1, dtype=torch.bool)
    flags[59:] = True
    flags[70:] = False  # it may even come undone again
    longer = torch.cat([honest, honest[-1] + after[1:] - after[0]])
    reward = step(signal, combination)
    expected = score(episode(honest, True), reward)

    for executed in (torch.tensor([len(flags)]), torch.tensor([8] * 7 + [4, len(flags) - 60])):
        transition = create_transition(complementary_data=inputs(longer, flags) | {"executed": executed})
        info = reward(transition)[TransitionKey.INFO]
        assert (info["total"], info["smoothness"]) == (expected.total, expected.smoothness)
        assert info["terms"]["duration"] == info["terms"]["time_to_success"] == pytest.approx(3.0)


@pytest.mark.parametrize("signal", ["jerk_rms", "ldlj"])
@pytest.mark.parametrize("pause", [10, 100, 200])
def test_waiting_before_the_success_does_not_pay(signal, pause):
    prompt = shaky_reach()
    waiting = torch.cat([prompt[:1].expand(3 + pause, 3), prompt])
    shortest_wait = torch.cat([prompt[:1].expand(3, 3), prompt])
    paid, honest = (score(episode(p, True), step(signal)).total for p in (waiting, shortest_wait))
    assert paid <= honest + 1e-12


@settings(deadline=None, max_examples=60)
@given(seed=st.integers(0, 1000), n_steps=st.integers(0, 12), scale=st.sampled_from([0.0, 1e-9, 0.01, 1e6]))
def test_every_episode_has_a_finite_reward_in_its_bounds(seed, n_steps, scale):
    generator = torch.Generator().manual_seed(seed)
    positions = scale * torch.randn(n_steps + 1, 3, generator=generator)
    for (signal, combination), success in itertools.product(FORMS, (False, n_steps > 0)):
        scored = score(episode(positions, success), step(signal, combination, weight=0.5))
        assert 0 <= scored.smoothness <= 1
        assert scored.success <= scored.total <= scored.success + 0.5


def test_positions_of_a_simulation_that_blew_up_earn_no_smoothness():
    positions = reach()
    positions[30:] = math.nan
    for form in FORMS:
        assert score(episode(positions, False), step(*form)).total == 0


# The reference


@pytest.mark.parametrize("signal", ["jerk_rms", "ldlj"])
def test_the_reference_is_each_tasks_median_over_episodes_that_moved(signal):
    by_task = {0: (0.001, 0.002, 0.008), 3: (0.004, 0.006)}
    episodes = [episode(shaky_reach(a), a < 0.005, task) for task, of in by_task.items() for a in of]
    medians = reference_medians([*episodes, episode(stand_still(), False, 3)], JerkRewardConfig(signal))

    values = [measure(e.positions, DT, e.executed)[signal] for e in episodes]
    assert medians == pytest.approx(
        {"libero_object/0": values[1], "libero_object/3": (values[3] + values[4]) / 2}
    )


def test_a_per_task_reference_scores_each_task_by_its_own():
    reward = step(reference={"libero_object/0": 5.0, "libero_object/1": 50.0})
    strict, lenient = (score(episode(shaky_reach(), True, task), reward).smoothness for task in (0, 1))
    assert strict < lenient


def test_a_task_without_a_reference_is_rejected_with_those_that_have_one():
    with pytest.raises(
        ValueError, match=r"no value for task 'libero_object/7', only for \['libero_object/0'\]"
    ):
        score(episode(reach(), True, 7), step(reference={"libero_object/0": 5.0}))


def test_a_task_in_which_nothing_ever_moved_has_no_reference():
    with pytest.raises(ValueError, match=r"nothing moved in those of \['libero_object/2'\]"):
        reference_medians([episode(stand_still(), False, 2), episode(reach(), True)], JerkRewardConfig())


def test_an_unmeasured_reference_is_rejected_before_any_episode_is_run():
    with pytest.raises(ValueError, match="`reference` should be measured"):
        JerkRewardProcessorStep(JerkRewardConfig())


# The config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight": -0.1}, r"`weight` \(λ\) should be ≥ 0, got -0.1"),
        ({"weight": math.nan}, r"`weight` \(λ\) should be ≥ 0, got nan"),
        ({"weight": 1.5, "combination": "sum"}, "≤ 1 with combination 'sum', got 1.5.*combination='gated'"),
        ({"signal": "jerk"}, "`signal` should be one of .*jerk_rms.*got 'jerk'"),
        ({"combination": "product"}, "`combination` should be one of .*gated.*got 'product'"),
        ({"moving_speed": -1.0}, "`moving_speed` should be ≥ 0, got -1.0"),
        ({"min_extent": math.inf}, "`min_extent` should be ≥ 0, got inf"),
        ({"reference": 0.0}, "positive jerk in m/s³ .* got 0.0"),
        ({"reference": {"libero_object/0": -3.0}}, "positive jerk in m/s³ .* got -3.0"),
        ({"reference": 0.0, "signal": "joint_jerk_rms"}, "positive jerk in rad/s³ .* got 0.0"),
        ({"reference": math.nan, "signal": "ldlj"}, "finite LDLJ .* got nan"),
    ],
)
def test_a_bad_setting_is_rejected_with_its_value_and_the_way_out(settings, message):
    with pytest.raises(ValueError, match=message):
        JerkRewardConfig(**settings)


@pytest.mark.parametrize("reference", [None, 8.5, {"libero_object/0": 8.5, "libero_10/3": 4.0}])
def test_the_config_survives_lerobots_config_files(reference):
    config = JerkRewardConfig(weight=0.3, reference=reference)
    assert draccus.decode(JerkRewardConfig, draccus.encode(config)) == config


# LeRobot's pipeline


@pytest.mark.parametrize("reference", [8.5, {"libero_object/0": 8.5, "libero_10/3": 4.0}])
def test_the_step_survives_a_pipelines_save_and_load(tmp_path, reference):
    config = JerkRewardConfig("ldlj", 0.25, "sum", reference, moving_speed=0.02, min_extent=0.1)
    pipeline = DataProcessorPipeline([JerkRewardProcessorStep(config)], name="reward")
    pipeline.save_pretrained(tmp_path)

    def load(**overrides):
        loaded = DataProcessorPipeline.from_pretrained(
            tmp_path,
            config_filename="reward.json",
            overrides=overrides,
            to_transition=identity_transition,
            to_output=identity_transition,
        )
        return loaded, loaded.steps[0].config

    loaded, loaded_config = load()
    assert loaded_config == config
    assert load(smoothvla_jerk_reward={"weight": 0.5})[1] == replace(config, weight=0.5)

    flags = torch.zeros(60, dtype=torch.bool)
    flags[-1] = True
    transition = create_transition(complementary_data=inputs(shaky_reach(), flags))
    transition[TransitionKey.COMPLEMENTARY_DATA]["executed"] = torch.tensor([32, 28])  # else a term is NaN
    infos = [scorer(transition)[TransitionKey.INFO] for scorer in (loaded, JerkRewardProcessorStep(config))]
    by_chunk = [info.pop("chunk_smoothness") for info in infos]
    assert infos[0] == infos[1] and by_chunk[0].isnan().all() and by_chunk[1].isnan().all()


def test_the_step_leaves_its_input_as_it_was_and_keeps_what_it_does_not_know():
    flags = torch.ones(60, dtype=torch.bool)
    transition = create_transition(complementary_data=inputs(reach(), flags), info={"videos": 2})
    scored = step()(transition)

    assert transition[TransitionKey.INFO] == {"videos": 2}
    assert scored[TransitionKey.INFO]["videos"] == 2
    assert scored[TransitionKey.REWARD] == scored[TransitionKey.INFO]["total"]
    assert scored[TransitionKey.COMPLEMENTARY_DATA] is transition[TransitionKey.COMPLEMENTARY_DATA]


def test_a_transition_without_an_episode_is_rejected_with_what_is_missing():
    data = inputs(reach(), torch.zeros(60, dtype=torch.bool))
    del data["dt"], data["executed"]
    with pytest.raises(ValueError, match=r"\['dt', 'executed'\] are missing"):
        step()(create_transition(complementary_data=data))


@pytest.mark.parametrize("changed", [{"executed": torch.tensor([59])}, {"positions": reach(59)}])
def test_inputs_that_disagree_on_the_number_of_steps_are_rejected(changed):
    data = inputs(reach(), torch.zeros(60, dtype=torch.bool)) | changed
    with pytest.raises(ValueError, match="An episode of T steps should have"):
        step()(create_transition(complementary_data=data))


def test_a_task_is_named_by_suite_and_id():
    assert task_key(Start("libero_10", 4, 1, 9)) == "libero_10/4"
