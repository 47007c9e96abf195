"""A Ray cluster of several nodes on this machine loses one. In `make test-long`: a loss takes its time."""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import torch
from lerobot.envs.configs import LiberoEnv as LiberoEnvConfig

from lerobot_smoothvla.checkpoint_loading import load_actor, load_actor_config
from lerobot_smoothvla.episode import Episode, Start
from lerobot_smoothvla.flow.ratio import FlowSDERatio
from lerobot_smoothvla.rollout.configuration import RolloutConfig
from lerobot_smoothvla.rollout.engine import RolloutRequest
from lerobot_smoothvla.rollout.local import make_engine

pytestmark = pytest.mark.long
REQUESTS = [
    RolloutRequest(Start("libero_object", 0, 3, 7), seed, FlowSDERatio(level=0.3)) for seed in range(6)
]


@pytest.fixture(scope="module")
def name() -> str:
    return "smoothvla"


@pytest.fixture
def cluster() -> Iterator[object]:
    """Of two nodes with a core each, the first of which cannot be lost."""
    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield cluster
    ray.shutdown()
    cluster.shutdown()


@pytest.mark.parametrize("another", [True, False])
def test_what_a_lost_node_was_rolling_out_is_rolled_out_elsewhere(
    cluster, another: bool, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("lerobot_smoothvla.rollout.ray._PLACED_WITHIN_S", 60.0 if another else 1.0)
    env = LiberoEnvConfig(
        task="libero_object", observation_height=64, observation_width=64, episode_length=40
    )
    actor = load_actor(load_actor_config(checkpoint))
    with closing(make_engine(env, actor, 0)) as serial:
        expected = serial.run(REQUESTS)
    lost = next(node for node in cluster.list_all_nodes() if node is not cluster.head_node)

    def lose(index: int, episode: Episode) -> None:
        if lost in cluster.list_all_nodes():
            cluster.remove_node(lost, allow_graceful=False)
            if another:
                cluster.add_node(num_cpus=1)

    with closing(make_engine(env, actor, 2, RolloutConfig("ray", cluster.address))) as engine:
        episodes = engine.run(REQUESTS, lose)
        assert engine.n_failures >= 1 and len(engine._workers) == (2 if another else 1)
    for one, other in zip(episodes, expected, strict=True):
        assert torch.equal(one.positions, other.positions) and torch.equal(one.chunks, other.chunks)
