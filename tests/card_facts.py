"""What a card is made from, as little as there can be."""

from lerobot_smoothvla.hub.card import CardFacts

FACTS = CardFacts(
    repo_id="me/smooth",
    policy={
        "type": "smoothvla",
        "input_features": {"observation.state": {"type": "STATE", "shape": [8]}},
        "output_features": {"action": {"type": "ACTION", "shape": [7]}},
        "tags": ["mine"],
    },
    settings={
        "env.type": "libero",
        "env.task": "libero_object",
        "env.task_ids": [0, 3],
        "algorithm.reward.weight": 0.5,
        "seed": 7,
    },
    iterations=50,
)
