"""The model card: what a run and its evaluations say, nothing of the machine, and valid metadata."""

from dataclasses import replace

import pytest
from card_facts import FACTS
from huggingface_hub import ModelCard
from run_directories import evaluation

from lerobot_smoothvla.hub.card import CardFacts, Measured, Source, model_card, redact


def text(facts: CardFacts) -> str:
    return str(model_card(facts))


def test_metadata_survives_hugging_faces_own_reader():
    measured = Measured(evaluation([True, True, False, True]))
    base, dataset = Source("lerobot/base", "gemma"), Source("me/demos", "mit")
    facts = replace(FACTS, evaluations=[measured], base=base, dataset=dataset, dataset_name="me/demos")
    data = ModelCard(text(facts)).data
    assert (data.library_name, data.pipeline_tag, data.license) == ("lerobot", "robotics", "gemma")
    assert (data.base_model, data.datasets, data.model_name) == ("lerobot/base", ["me/demos"], "smooth")
    assert data.to_dict()["base_model_relation"] == "finetune"
    assert {"robotics", "lerobot", "smoothvla", "libero", "mine"} <= set(data.tags)
    results = {result.metric_type: result for result in data.eval_results}
    assert set(results) == {"success_rate", "jerk_rms", "ldlj", "sparc"}
    assert results["success_rate"].metric_value == 0.75
    jerk = measured.result.summary().terms["jerk_rms"].estimate
    assert results["jerk_rms"].metric_value == pytest.approx(jerk, abs=1e-4)
    assert results["jerk_rms"].dataset_type == "libero"
    assert "m/s³" in results["jerk_rms"].metric_name


def test_every_condition_is_a_result_of_its_own():
    results = [
        Measured(evaluation([True])),
        Measured(evaluation([False]), condition="camera shifted by 0.05 m"),
        Measured(evaluation([True, True], suite="libero_goal")),
    ]
    entries = ModelCard(text(replace(FACTS, evaluations=results))).data.eval_results
    rates = [(e.dataset_name, e.metric_value) for e in entries if e.metric_type == "success_rate"]
    assert rates == [
        ("libero_object: 1 task, 1 start", 1.0),
        ("libero_object: 1 task, 1 start, camera shifted by 0.05 m", 0.0),
        ("libero_goal: 1 task, 2 starts", 1.0),
    ]


def test_without_an_evaluation_it_claims_nothing():
    card = model_card(FACTS)
    assert "whether it got better is not known" in str(card)
    assert card.data.eval_results is None and "model-index" not in card.data.to_dict()


def test_without_ancestors_on_the_hub_it_names_none_and_gives_no_licence():
    card = model_card(replace(FACTS, dataset_name="local/demos"))
    assert not {"license", "base_model", "datasets"} & set(card.data.to_dict())
    assert "a checkpoint that is not on the Hub" in str(card) and "`local/demos`" in str(card)


def test_a_comparison_shows_the_paired_difference():
    solved, failed = evaluation([True] * 4), evaluation([True, False, False, True], roughness=0.002)
    shown = text(replace(FACTS, evaluations=[Measured(solved, failed, "the warm start")]))
    assert "The baseline is the warm start, from the same starts" in shown
    assert "| 4 starts | baseline | policy | difference [95 %] |" in shown
    assert "| success rate | 0.500 | 1.00 | +0.500" in shown


def test_the_commands_load_it_from_where_it_is():
    shown = text(replace(FACTS, revision="v2"))
    env = "--env.type=libero --env.task=libero_object --env.task_ids=[0,3]\n"
    assert f"lerobot-eval --policy.path=me/smooth {env}" in text(FACTS)
    assert "lerobot-rollout --strategy.type=base --policy.path=me/smooth \\\n" in text(FACTS)
    assert f"--revision v2 --local-dir smooth\nlerobot-eval --policy.path=smooth {env}" in shown
    assert "--policy.path=me/smooth --policy.pretrained_revision=v2 \\\n" in shown
    assert "lerobot_policy_smoothvla" in shown
    assert "lerobot_policy_smoothvla" not in text(replace(FACTS, policy={"type": "smolvla"}))
    assert "pip install lerobot peft" in text(replace(FACTS, policy={"type": "pi0", "use_peft": True}))


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("smoothvla grpo --policy.path=me/sft --steps=5", "smoothvla grpo --policy.path=me/sft --steps=5"),
        ("x --output_dir=outputs/grpo/a", "x --output_dir=outputs/grpo/a"),
        ("x --policy.path=/home/al/sft/last/pretrained_model", "x --policy.path=…/pretrained_model"),
        ("x --output_dir /work/me/run", "x --output_dir …/run"),
        ("x --runs=[/home/al/a,/data/b/c]", "x --runs=[…/a,…/c]"),
        ("x '--output_dir=/home/al/my runs/a b'", "x '--output_dir=…/a b'"),
        ("x --output_dir=/home/al", "x --output_dir=…/"),
        ("x --output_dir=/root", "x --output_dir=…/"),
        ("x --url=https://hub.example/a/b", "x --url=https://hub.example/a/b"),
        ("x --wandb.api_key=abc --hub_token=s3 y", "x --wandb.api_key=*** --hub_token=*** y"),
        ("x --note=hf_" + 30 * "a", "x --note=***"),
    ],
)
def test_a_command_is_shown_without_tokens_and_directories(command, shown):
    assert redact(command) == shown
