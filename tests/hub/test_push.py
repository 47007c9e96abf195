"""`smoothvla push` to a Hub on loopback, by the real client in real processes."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import Fault, Repository
from huggingface_hub import ModelCard
from lerobot.configs.default import PeftConfig
from run_directories import evaluation, write_evaluation

LOAD = """
import sys, torch
from lerobot.envs.configs import PushtEnv
from lerobot_smoothvla.checkpoint_loading import load_actor, load_actor_config
from lerobot_smoothvla.modeling_smoothvla import SmoothVLAPolicy

pushed, local, *overrides = sys.argv
expected = load_actor(load_actor_config(local, env_config=PushtEnv()))
actor = load_actor(load_actor_config(pushed, overrides, PushtEnv()))
policies = [actor.policy]
if not actor.policy.config.use_peft:  # an adapter is loaded by LeRobot's factory only
    policies.append(SmoothVLAPolicy.from_pretrained(pushed, revision=actor.policy.config.pretrained_revision))
for policy in policies:
    ours, theirs = policy.state_dict(), expected.policy.state_dict()
    assert ours.keys() == theirs.keys() and all(ours[key].equal(theirs[key]) for key in ours)
for name in ("preprocessor", "postprocessor"):
    ours, theirs = ([step.state_dict() for step in getattr(one, name).steps] for one in (actor, expected))
    assert any(theirs)
    assert all(a[key].equal(b[key]) for a, b in zip(ours, theirs, strict=True) for key in b)
print("the same")
"""

PULL = """
import sys
from huggingface_hub import snapshot_download

snapshot_download(sys.argv[0], cache_dir=sys.argv[1], token=False)
"""


def last(run: Path) -> Path:
    return run / "checkpoints/last/pretrained_model"


def said(result) -> str:
    """The paragraph that the command ends with."""
    (line,) = [line for line in result.said.splitlines() if line.startswith("smoothvla push: error: ")]
    return line


def test_a_pushed_policy_is_pulled_with_the_same_weights_and_processors(hub, commands, run, warm_start):
    result = commands.smoothvla("push", run, "--repo_id=me/smooth")
    assert result.code == 0, result.said
    assert f"Pushed to {hub.url}/me/smooth" in result.said
    repository = hub.repositories["me/smooth"]
    local = {file.name: file.read_bytes() for file in last(run).iterdir()}
    assert {**local, "README.md": repository.files()["README.md"]} == repository.files()
    assert len(repository.commits) == 2  # the empty one, and all of it at once
    loaded = commands.python(LOAD, "me/smooth", last(run))
    assert loaded.code == 0 and "the same" in loaded.said, loaded.said


def test_the_card_holds_what_the_evaluation_found_and_nothing_of_the_machine(
    hub, commands, run, warm_start, tmp_path
):
    success = {"policy": [True, True, False, True], "compare": [True] * 4}
    results = {name: evaluation(solved, suite="pusht") for name, solved in success.items()}
    directory = write_evaluation(tmp_path / "evaluation", **results)
    info = json.loads((directory / "eval_info.json").read_text())
    info["policy"] |= {"path": str(last(run)), "filter": {"type": "ruckig"}}
    info["compare"] |= {"path": str(warm_start), "filter": {"type": "blend"}}
    info["shift"] = {"kind": "camera", "magnitude": 0.05, "unit": "m"}
    (directory / "eval_info.json").write_text(json.dumps(info))
    result = commands.smoothvla("push", run, directory, "--repo_id=me/smooth")
    assert result.code == 0, result.said
    text = hub.repositories["me/smooth"].files()["README.md"].decode()
    (entry, *_), card = ModelCard(text).data.eval_results, ModelCard(text)
    assert (entry.metric_type, entry.metric_value) == ("success_rate", 0.75)
    assert card.data.library_name == "lerobot" and "robotics" in card.data.tags
    assert "0.75" in text and "[0.30, 0.95]" in text  # Wilson's interval of 3 of 4
    assert "4 starts, camera shifted by 0.05 m, actions through the filter `ruckig`" in text
    assert "The baseline is the warm start with its actions through the filter `blend`" in text
    pictures = [name for name in hub.repositories["me/smooth"].files() if name.endswith(".png")]
    assert pictures and all(f"]({name})" in text for name in pictures)
    assert "hf_s" not in text and "alice" not in text and str(tmp_path) not in text


@pytest.mark.parametrize("published", [True, False])
def test_the_card_names_the_nearest_ancestors_that_the_hub_knows(
    published, hub, commands, make_run, warm_start, tmp_path
):
    sft = shutil.copytree(warm_start, tmp_path / "sft")
    learnt = {"dataset": {"repo_id": "me/demos"}, "policy": {"pretrained_path": "me/base"}}
    (sft / "train_config.json").write_text(json.dumps(learnt))
    if published:
        hub.repositories["me/base"], hub.datasets["me/demos"] = Repository(), Repository()
        hub.repositories["me/base"].commit("main", {"README.md": b"---\nlicense: gemma\n---\n"})
    result = commands.smoothvla("push", make_run(base=sft), "--repo_id=me/smooth")
    assert result.code == 0, result.said
    text = hub.repositories["me/smooth"].files()["README.md"].decode()
    data = ModelCard(text).data
    names = ("me/base", ["me/demos"], "gemma") if published else (None, None, None)
    assert (data.base_model, data.datasets, data.license) == names
    assert "me/demos" in text and str(sft) not in text


def test_an_evaluation_of_another_policy_is_refused(hub, commands, run, tmp_path):
    other = write_evaluation(tmp_path / "evaluation", policy=evaluation([True], suite="pusht"))
    result = commands.smoothvla("push", run, other, "--repo_id=me/smooth")
    assert result.code == 2 and "not of the checkpoint that is pushed" in said(result)
    assert not hub.repositories


def test_a_private_repository_is_seen_by_its_owner_alone(hub, commands, run):
    assert commands.smoothvla("push", run, "--repo_id=me/smooth", "--private=true").code == 0
    assert hub.repositories["me/smooth"].private
    assert commands.python(LOAD, "me/smooth", last(run)).code == 0
    # Another cache, and no token.
    seen = commands.python(PULL, "me/smooth", run / "cache")
    assert seen.code != 0 and "RepositoryNotFoundError" in seen.said


def test_what_shall_be_private_is_not_pushed_where_everybody_sees_it(hub, commands, run):
    hub.repositories["me/smooth"] = Repository(private=False)
    result = commands.smoothvla("push", run, "--repo_id=me/smooth", "--private=true")
    assert result.code == 2 and "should be private and is public already" in said(result)
    assert len(hub.repositories["me/smooth"].commits) == 1


def test_a_revision_is_a_branch_beside_main(hub, commands, run):
    for _ in range(2):  # the branch is there already the second time
        assert commands.smoothvla("push", run, "--repo_id=me/smooth", "--revision=v2").code == 0
    assert hub.repositories["me/smooth"].files("main") == {}
    assert (
        "--policy.pretrained_revision=v2" in hub.repositories["me/smooth"].files("v2")["README.md"].decode()
    )
    loaded = commands.python(LOAD, "me/smooth", last(run), "--pretrained_revision=v2")
    assert loaded.code == 0 and "the same" in loaded.said, loaded.said
    missing = commands.python(LOAD, "me/smooth", last(run), "--pretrained_revision=v3")
    assert missing.code == 1 and "There is no checkpoint 'me/smooth'" in missing.said


# --- adapters


@pytest.fixture
def adapter(make_run: Callable[..., Path]) -> Path:
    return make_run(peft=PeftConfig(r=2))


def test_an_adapter_on_a_directory_is_refused_with_two_ways_out(hub, commands, adapter):
    result = commands.smoothvla("push", adapter, "--repo_id=me/smooth")
    assert result.code == 2 and not hub.repositories
    assert "on this machine alone" in said(result)
    assert "--merge=true" in said(result) and "--base_repo_id=USER/NAME" in said(result)


def test_a_merged_adapter_is_a_whole_policy(hub, commands, adapter):
    result = commands.smoothvla("push", adapter, "--repo_id=me/smooth", "--merge=true")
    assert result.code == 0, result.said
    files = hub.repositories["me/smooth"].files()
    assert "model.safetensors" in files and "adapter_config.json" not in files
    assert json.loads(files["config.json"])["use_peft"] is False
    assert "peft" not in files["README.md"].decode()
    plain = adapter / "plain"
    assert commands.smoothvla("export", f"--policy.path={last(adapter)}", f"--output_dir={plain}").code == 0
    loaded = commands.python(LOAD, "me/smooth", plain)
    assert loaded.code == 0 and "the same" in loaded.said, loaded.said


def test_an_adapter_names_its_base_on_the_hub(hub, commands, adapter, warm_start):
    push = ("push", adapter, "--repo_id=me/smooth", "--base_repo_id=me/base")
    result = commands.smoothvla(*push)
    assert result.code == 2 and "'me/base' should have a model.safetensors on the Hub" in said(result)
    hub.repositories["me/base"] = Repository()
    hub.repositories["me/base"].commit("main", {f.name: f.read_bytes() for f in warm_start.iterdir()})
    result = commands.smoothvla(*push)
    assert result.code == 0, result.said
    files = hub.repositories["me/smooth"].files()
    assert json.loads(files["adapter_config.json"])["base_model_name_or_path"] == "me/base"
    assert "model.safetensors" not in files
    card = ModelCard(files["README.md"].decode())
    assert (card.data.base_model, card.data.base_model_relation) == ("me/base", "adapter")
    loaded = commands.python(LOAD, "me/smooth", last(adapter))
    assert loaded.code == 0 and "the same" in loaded.said, loaded.said


# --- what goes wrong


FAULTS = {
    "an unknown token": (Fault("whoami", 401), "hf auth login"),
    "a token that may not write": (Fault("repos/create", 403), "That token may not write there"),
    "a conflicting commit": (Fault("/commit/", 409), "Something else is written there"),
    "a commit on another parent": (Fault("/commit/", 412), "Something else was written there"),
    "no patience": (Fault("repos/create", 429, headers={"Retry-After": "0"}), "asks for patience"),
    "a broken Hub": (Fault("repos/create", 500), "The Hub itself has trouble"),
    "a broken Hub at the very end": (Fault("/commit/", 500), "The Hub itself has trouble"),
    "a refused upload": (Fault("PUT /lfs", 403), "That token may not write there"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_failed_push_leaves_all_as_it_was_and_says_how_to_try_again(name, hub, commands, run):
    fault, hint = FAULTS[name]
    hub.faults.append(fault)
    before = {file: file.read_bytes() for file in last(run).iterdir()}
    result = commands.smoothvla("push", run, "--repo_id=me/smooth")
    assert result.code == 2
    assert hint in said(result)
    assert {file: file.read_bytes() for file in last(run).iterdir()} == before
    assert not any(repository.files() for repository in hub.repositories.values())
    hub.faults.clear()
    retry = shlex.split(re.search("`(smoothvla push .*?)`", said(result))[1])
    assert commands.smoothvla(*retry[1:]).code == 0
    assert (
        hub.repositories["me/smooth"].files()["model.safetensors"] == before[last(run) / "model.safetensors"]
    )


@pytest.mark.parametrize(
    "fault",
    [
        Fault("PUT /lfs", 0, times=1),
        Fault("PUT /lfs", 503, times=1),
        Fault("objects/batch", 429, times=1, headers={"Retry-After": "0"}),
    ],
    ids=["cut in the middle", "unavailable", "no patience"],
)
def test_what_passes_by_itself_is_waited_for(fault, hub, commands, run):
    hub.faults.append(fault)
    result = commands.smoothvla("push", run, "--repo_id=me/smooth")
    assert result.code == 0 and fault.times == 0, result.said
    pushed = hub.repositories["me/smooth"].files()["model.safetensors"]
    assert pushed == (last(run) / "model.safetensors").read_bytes()


OVER_XET = """
import sys
from huggingface_hub import constants
from lerobot_smoothvla.cli.main import main

constants.HF_HUB_DISABLE_XET = False
sys.exit(main())
"""


def test_a_hub_that_refuses_xet_is_a_failed_push_like_any_other(hub, commands, run):
    hub.faults.append(Fault("xet-write-token", 403))
    result = commands.python(OVER_XET, "smoothvla", "push", run, "--repo_id=me/smooth")
    assert result.code == 2 and f"`smoothvla push {run} --repo_id=me/smooth` pushes it" in said(result)
    assert any("xet-write-token" in request for request in hub.requests)


def test_offline_is_said_at_once(hub, commands, run):
    with hub.out_of_reach():
        result = commands.smoothvla("push", run, "--repo_id=me/smooth", "--private=true")
    assert result.code == 2 and "Look at the connection" in said(result)
    assert f"`smoothvla push {run} --repo_id=me/smooth --private=true`" in said(result)


def test_a_user_who_has_not_logged_in_is_told_so(hub, commands, run):
    result = commands.smoothvla("push", run, "--repo_id=me/smooth", HF_TOKEN="")
    assert result.code == 2 and "hf auth login" in said(result)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repo_id=me/smooth"], "There is nothing to push: `smoothvla push RUN"),
        (["RUN", "--repo_id=smooth"], "should be named `USER/NAME`, got 'smooth'"),
        (["RUN", "--repo_id=me/smo oth"], "'me/smo oth' can be no repository's name on the Hub"),
        (["RUN", "--repo_id=a/b/c"], "'a/b/c' can be no repository's name on the Hub"),
        (["nowhere", "--repo_id=me/smooth"], "There is no checkpoint to push in"),
        (["RUN", "--repo_id=me/smooth", "--merge=true"], "There is no plainer 'smoothvla' checkpoint"),
        (["RUN", "--repo_id=me/smooth", "--merge=true", "--base_repo_id=me/base"], "leave --base_repo_id or"),
        (["RUN"], "repo_id"),
    ],
)
def test_bad_input_is_one_paragraph_and_reaches_no_hub(arguments, message, hub, commands, run):
    result = commands.smoothvla("push", *[run if argument == "RUN" else argument for argument in arguments])
    assert result.code == 2 and message in said(result)
    assert not hub.repositories
