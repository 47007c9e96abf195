"""Runs with the Hub: `lerobot-train` pushes; `smoothvla grpo` in PushT is pushed, resumed, out of reach."""

import json
import re
import shlex

import pytest
from hub_server import Fault, Repository
from huggingface_hub import ModelCard

from lerobot_smoothvla.presets import preset_flags

pytestmark = pytest.mark.slow

ENV = ("env=pusht", "--env.episode_length=12")
RUN = (*ENV, "--save_freq=1", "--n_workers=0", "--seed=3", "--algorithm.n_groups=2")
RUN += ("--algorithm.group_size=4", "--algorithm.lr=1e-4")
PUSHED = ("--policy.repo_id=me/smooth", "--save_checkpoint_to_hub=true", "--policy.private=true")
# Nothing is solved in 12 steps, so nothing would be learnt and a resumption could not be told from a new run.
EASY = """
import sys
from lerobot_smoothvla.envs.gym import GymChunkedEnv

advance = GymChunkedEnv._advance

def easy(env, action, render):
    observation, _, over = advance(env, action, render)
    return observation, bool(action[0] > 320), over

GymChunkedEnv._advance = easy
from lerobot_smoothvla.cli.main import main
sys.exit(main())
"""
# The check of a card's metadata asks huggingface.co, whatever HF_ENDPOINT says.
TRAIN = """
from huggingface_hub import ModelCard
ModelCard.validate = lambda *_, **__: None
from lerobot.scripts.lerobot_train import main

main()
"""
EVALUATE = """
import sys
from lerobot.scripts.lerobot_eval import main

main()
"""


@pytest.fixture
def base(hub, warm_start) -> str:
    """The warm start on the Hub, at the tag `v1`; its main is broken."""
    repository = hub.repositories["me/base"] = Repository()
    card = b"---\nlicense: gemma\ndatasets: [me/demos]\n---\n"
    commit = repository.commit(
        "main", {f.name: f.read_bytes() for f in warm_start.iterdir()} | {"README.md": card}
    )
    repository.refs["v1"] = commit
    repository.commit("main", {"model.safetensors": b"broken", "config.json": b"{}"})
    hub.datasets["me/demos"] = Repository()
    hub.datasets["me/demos"].commit("main", {"README.md": b"---\nlicense: mit\n---\n"})
    return "me/base"


def paragraph(result) -> str:
    (line,) = [line for line in result.said.splitlines() if line.startswith("smoothvla grpo: error: ")]
    return line


def test_stock_lerobot_train_pushes_a_smoothvla_that_stock_lerobot_eval_loads(
    hub, commands, tiny_dataset, tmp_path
):
    train = (
        *preset_flags("policy", "smoothvla_tiny"),
        "--policy.repo_id=me/sft",
        "--policy.push_to_hub=true",
    )
    train += ("--dataset.repo_id=smoothvla/tiny", f"--dataset.root={tiny_dataset}", "--batch_size=2")
    train += ("--steps=2", "--num_workers=0", "--env_eval_freq=0", f"--output_dir={tmp_path / 'sft'}")
    trained = commands.python(TRAIN, "lerobot-train", *train)
    assert trained.code == 0 and f"Model pushed to {hub.url}/me/sft" in trained.said, trained.said
    files = hub.repositories["me/sft"].files()
    saved = {
        file.name: file.read_bytes()
        for file in (tmp_path / "sft/checkpoints/last/pretrained_model").iterdir()
    }
    assert len(saved) > 5 and {**files, **saved} == files
    evaluate = ("--policy.path=me/sft", "--env.type=libero", "--env.task=libero_object", "--env.task_ids=[0]")
    evaluate += ("--env.observation_height=64", "--env.observation_width=64", "--env.episode_length=4")
    evaluate += ("--eval.n_episodes=1", "--eval.batch_size=1", f"--output_dir={tmp_path / 'eval'}")
    evaluated = commands.python(EVALUATE, "lerobot-eval", *evaluate)
    assert evaluated.code == 0 and (tmp_path / "eval" / "eval_info.json").is_file(), evaluated.said


def test_a_run_from_a_revision_is_pushed_evaluated_by_stock_lerobot_and_resumed_elsewhere(
    hub, commands, base, tmp_path
):
    start = (f"--policy.path={base}", "--policy.pretrained_revision=v1")
    here, there = tmp_path / "here", tmp_path / "there"
    flags = (*RUN, *start, *PUSHED, "--steps=1", f"--output_dir={here}")
    run = commands.python(EASY, "smoothvla", "grpo", *flags)
    assert run.code == 0, run.said
    assert f"Model pushed to {hub.url}/me/smooth" in run.said
    pushed = hub.repositories["me/smooth"]
    assert pushed.private and {"000000", "000001"} <= set(pushed.refs)
    files = pushed.files()
    assert {"checkpoints/000001/training_state/training_step.json", "model.safetensors"} <= set(files)
    before, after = (
        files[f"checkpoints/{n}/pretrained_model/model.safetensors"] for n in ("000000", "000001")
    )
    assert before != after == files["model.safetensors"]
    # Who loads it from the Hub must not ask for the warm start's revision there.
    assert json.loads(files["config.json"])["pretrained_revision"] is None
    card = ModelCard(files["README.md"].decode()).data
    assert (card.base_model, card.datasets, card.license) == ("me/base", ["me/demos"], "gemma")
    assert "me/demos (demonstrations): mit" in files["README.md"].decode()

    evaluate = (
        "--policy.path=me/smooth",
        "--env.type=pusht",
        "--env.episode_length=12",
        "--eval.n_episodes=1",
    )
    evaluate += ("--eval.batch_size=1", f"--output_dir={tmp_path / 'eval'}")
    evaluated = commands.python(EVALUATE, "lerobot-eval", *evaluate)
    assert evaluated.code == 0 and (tmp_path / "eval" / "eval_info.json").is_file(), evaluated.said

    resume = ("smoothvla", "grpo", "--resume=true", "--steps=2", "--policy.push_to_hub=false")
    resume += ("--save_checkpoint_to_hub=false",)
    hub_run = ("--config_path=me/smooth", f"--output_dir={there}", "--env.type=pusht")
    elsewhere = commands.python(EASY, *resume, *hub_run)
    assert elsewhere.code == 0, elsewhere.said
    uninterrupted = commands.python(EASY, *resume, f"--output_dir={here}")
    assert uninterrupted.code == 0, uninterrupted.said
    last = "checkpoints/000002/pretrained_model/model.safetensors"
    assert (there / last).read_bytes() == (here / last).read_bytes() != after
    assert [json.loads(line)["iteration"] for line in (there / "metrics.jsonl").read_text().splitlines()] == [
        2
    ]
    again = commands.smoothvla("grpo", *resume[2:], "--config_path=me/smooth", f"--output_dir={there}")
    assert again.code == 2 and "has a checkpoint already; leave --config_path out" in paragraph(again)


def test_an_adapter_on_a_revision_of_the_hub_is_loaded_by_stock_lerobot(hub, commands, base, tmp_path):
    start = (f"--policy.path={base}", "--policy.pretrained_revision=v1", "--peft.r=2")
    flags = (*RUN, *start, "--policy.repo_id=me/lora", "--steps=1", f"--output_dir={tmp_path / 'run'}")
    run = commands.python(EASY, "smoothvla", "grpo", *flags)
    assert run.code == 0, run.said
    files = hub.repositories["me/lora"].files()
    adapter = json.loads(files["adapter_config.json"])
    assert (adapter["base_model_name_or_path"], adapter["revision"]) == ("me/base", "v1")
    assert "model.safetensors" not in files
    card = ModelCard(files["README.md"].decode()).data
    assert (card.base_model, card.to_dict()["base_model_relation"]) == ("me/base", "adapter")
    evaluate = ("--policy.path=me/lora", "--env.type=pusht", "--env.episode_length=12")
    evaluate += ("--eval.n_episodes=1", "--eval.batch_size=1", f"--output_dir={tmp_path / 'eval'}")
    evaluated = commands.python(EVALUATE, "lerobot-eval", *evaluate)
    assert evaluated.code == 0 and (tmp_path / "eval" / "eval_info.json").is_file(), evaluated.said


def test_a_training_whose_push_fails_is_done_and_says_how_to_push_it(hub, commands, warm_start, tmp_path):
    hub.faults.append(Fault("(tag/|/commit/)", 403))
    run = (
        "grpo",
        *RUN,
        f"--policy.path={warm_start}",
        *PUSHED,
        "--steps=1",
        f"--output_dir={tmp_path / 'run'}",
    )
    result = commands.smoothvla(*run)
    assert result.code == 3, result.said
    assert "The training is done, but not pushed" in paragraph(result)
    assert result.said.count("The training goes on.") == 2  # a warning for each checkpoint
    assert (tmp_path / "run/checkpoints/000001/pretrained_model/model.safetensors").is_file()
    retry = shlex.split(re.search("`(smoothvla push .*?)`", paragraph(result))[1])
    assert "--private=true" in retry
    hub.faults.clear()
    assert commands.smoothvla(*retry[1:]).code == 0
    local = (tmp_path / "run/checkpoints/last/pretrained_model/model.safetensors").read_bytes()
    assert hub.repositories["me/smooth"].files()["model.safetensors"] == local


@pytest.mark.parametrize(
    ("arguments", "fault", "message"),
    [
        (["--policy.repo_id=smooth"], None, "should be named `USER/NAME`, got 'smooth'"),
        (["--policy.repo_id=me/a b"], None, "'me/a b' can be no repository's name on the Hub"),
        (["--policy.repo_id=me/smooth"], Fault("whoami", 401), "hf auth login"),
        (["--policy.repo_id=me/smooth"], Fault("whoami", 503), "pass --policy.push_to_hub=false"),
        (["--policy.repo_id=me/base", "--policy.private=true"], None, "should be private and is public"),
        (["--save_checkpoint_to_hub=true"], None, "needs a repository on the Hub; pass --policy.repo_id"),
        (
            ["--policy.repo_id=me/smooth", "--peft.r=2", "--peft.method_type=LORA"],
            None,
            "on this machine alone",
        ),
        (["--policy.pretrained_revision=v9", "--policy.path=me/base"], None, "no such model or revision"),
        (
            ["--resume=true", "--config_path=me/nothing"],
            None,
            "no run to resume at --config_path=me/no",
        ),
        (["--resume=true", "--config_path=me/base"], None, "the Hub has no checkpoint there"),
    ],
)
def test_what_cannot_be_pushed_or_pulled_is_refused_before_anything_starts(
    arguments, fault, message, hub, commands, base, warm_start, tmp_path
):
    hub.faults += [fault] if fault else []
    output = tmp_path / "run"
    named = any("path=" in argument for argument in arguments)
    policy = [] if named else [f"--policy.path={warm_start}"]
    result = commands.smoothvla("grpo", *RUN, *policy, f"--output_dir={output}", *arguments)
    assert result.code == 2 and message in paragraph(result)
    assert not output.exists()


def test_nothing_is_pushed_where_nobody_says_so(hub, commands, warm_start, tmp_path):
    run = ("grpo", *RUN, f"--policy.path={warm_start}", "--steps=1")
    for index, flags in enumerate(((), ("--policy.repo_id=me/smooth", "--policy.push_to_hub=false"))):
        result = commands.smoothvla(*run, f"--output_dir={tmp_path / str(index)}", *flags)
        assert result.code == 0, result.said
    assert not hub.requests


def test_nothing_starts_without_the_hub(hub, commands, warm_start, tmp_path):
    run = (
        *RUN,
        f"--policy.path={warm_start}",
        "--policy.repo_id=me/smooth",
        f"--output_dir={tmp_path / 'run'}",
    )
    with hub.out_of_reach():
        result = commands.smoothvla("grpo", *run)
    assert result.code == 2 and "Look at the connection" in paragraph(result)
    assert not (tmp_path / "run").exists()
