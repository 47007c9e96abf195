"""The documentation promises nothing that is not there, and explains every figure that a user meets."""

import re
from dataclasses import fields
from functools import reduce
from pathlib import Path

import pytest
import torch
import yaml
from builders import TINY_SMOOTHVLA
from lerobot.policies import make_pre_post_processors

from lerobot_smoothvla.cli.main import COMMANDS
from lerobot_smoothvla.configuration_smoothvla import SmoothVLAConfig
from lerobot_smoothvla.episode import Episode, Group, ScoredEpisode, Start
from lerobot_smoothvla.evaluation.evaluate import Evaluation, measure_episode
from lerobot_smoothvla.grpo.algorithm import GRPOAlgorithm
from lerobot_smoothvla.grpo.configuration import GRPOConfig
from lerobot_smoothvla.grpo.trainer import iteration_metrics
from lerobot_smoothvla.modeling_smoothvla import SmoothVLAPolicy
from lerobot_smoothvla.presets import GROUPS, preset_names
from lerobot_smoothvla.rollout.engine import Actor
from lerobot_smoothvla.smoothness import measure

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
PAGES = sorted((REPOSITORY / "docs").glob("*.md"))
DOCUMENTS = sorted(REPOSITORY.glob("*.md")) + PAGES
TEXT = "\n".join([README, *(page.read_text(encoding="utf-8") for page in PAGES)])
LINKS = [
    (document, link)
    for document in DOCUMENTS
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8"))
    if not link.startswith("https://")
]
BLOCK = re.compile(r"^```\w+\n(.*?)^```", re.DOTALL | re.MULTILINE)
CODE = "\n".join(BLOCK.findall(TEXT) + re.findall(r"`([^`]+)`", BLOCK.sub("", TEXT)))
GLOSSARY_PAGE = (REPOSITORY / "docs/glossary.md").read_text(encoding="utf-8")
GLOSSARY = {
    name
    for row in re.findall(r"^\| (`.+?) \|", GLOSSARY_PAGE, re.MULTILINE)
    for name in re.findall(r"`(\w+)`", row)
}


def anchors(document: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.fixture(scope="module")
def failure() -> Episode:
    """An episode of four steps that solved nothing."""
    return Episode(
        start=Start("libero_object", 0, 0, 0),
        instruction="pick up the milk",
        observations={},
        record={},
        chunks=torch.zeros(1, 4, 7),
        executed=torch.tensor([4]),
        actions=torch.ones(4, 7),
        positions=torch.rand(5, 3, generator=torch.Generator().manual_seed(0)),
        dt=0.05,
        success=False,
        max_steps=4,
    )


@pytest.mark.parametrize(("document", "link"), LINKS, ids=lambda value: getattr(value, "name", value))
def test_every_link_leads_to_a_file_and_a_heading(document: Path, link: str):
    file, _, anchor = link.partition("#")
    target = document.parent / file if file else document
    assert target.exists(), f"{document.name} links to {link}, which is not there."
    assert not anchor or anchor in anchors(target)


def test_pages_link_to_pages_by_anchors_that_a_site_has_too():
    """A site is made of docs/ alone, and its anchors have no two hyphens in a row, as GitHub's may have."""
    links = [link for document, link in LINKS if document in PAGES]
    assert links
    assert not [link for link in links if link.startswith("../") or "--" in link]


def test_the_site_shows_every_page_once():
    navigation = (REPOSITORY / "mkdocs.yml").read_text(encoding="utf-8").partition("nav:")[2]
    assert sorted(re.findall(r"([\w-]+\.md)$", navigation, re.MULTILINE)) == [page.name for page in PAGES]


def test_every_command_exists():
    named = set(re.findall(r"(?<![\w=/.-])smoothvla ([a-z]+)\b(?!=)", CODE))
    assert named <= set(COMMANDS)
    assert {"demos", "grpo", "eval"} <= named


def test_the_presets_are_those_there_are():
    for group in GROUPS:
        assert set(re.findall(rf"(?<![\w.-]){group}=(\w+)", CODE)) == set(preset_names(group))


def test_every_included_file_exists():
    files = re.findall(r"include (\S+\.yaml)", CODE)
    assert files
    assert all((REPOSITORY / file).is_file() for file in files)


def test_continuous_integration_runs_the_readmes_test_command():
    assert re.search(r"^make test\b", README, re.MULTILINE)
    assert re.search(r"^make test\b", (REPOSITORY / ".ci/run").read_text(), re.MULTILINE)


def test_the_glossary_has_every_measure(failure: Episode):
    assert set(measure(failure.positions, failure.dt, failure.executed)) <= GLOSSARY


def test_the_glossary_has_every_name_of_an_evaluation(failure: Episode):
    evaluation = Evaluation((measure_episode(failure),)).to_json()
    overall = evaluation["overall"]
    assert {*evaluation, *overall, *overall["terms"]} <= GLOSSARY
    assert all(f"`{name}`" in GLOSSARY_PAGE for name in evaluation["per_episode"][0])


def test_the_glossary_has_every_metric_of_an_iteration(failure: Episode):
    terms = measure_episode(failure).terms
    group = Group((ScoredEpisode(failure, 0.0, 0.5, 0.0, torch.full((1,), 0.5), terms),) * 2)
    config = SmoothVLAConfig(**TINY_SMOOTHVLA)
    actor = Actor(SmoothVLAPolicy(config), *make_pre_post_processors(config))
    stats = GRPOAlgorithm(actor, GRPOConfig()).update(iter([[group]]))
    metrics = {"iteration", *iteration_metrics([group], stats)}
    metrics |= {"rollout_failures", "starts_set_aside", "rollout_s", "update_s"}
    assert "approx_kl" in metrics
    assert metrics <= GLOSSARY


def test_settings_are_listed_with_their_defaults():
    table = (REPOSITORY / "docs/grpo.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `algorithm\.([\w.]+)` \| `(.+?)` \|", table, re.MULTILINE)
    assert {"group_size", "lr", "reward.weight"} <= {name for name, _ in rows}
    for name, default in rows:
        value = reduce(getattr, name.split("."), GRPOConfig())
        assert type(value)(yaml.safe_load(default)) == value, name


def test_every_setting_that_is_named_exists():
    config = GRPOConfig()
    known = {field.name for field in fields(config)}
    known |= {f"reward.{field.name}" for field in fields(config.reward)}
    assert set(re.findall(r"\balgorithm\.(?!py\b)([a-z][a-z0-9_]*(?:\.[a-z_]+)?)", TEXT)) <= known
