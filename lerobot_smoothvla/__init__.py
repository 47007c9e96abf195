"""SmoothVLA for LeRobot: GRPO fine-tuning of vision-language-action policies with a jerk reward.

Calls go one way: config → env → rollout → Episode → reward terms → Group → objective → update → checkpoint →
evaluation. The layers, each importing only from those above it:

1. pure maths: `episode`, `smoothness`, `flow`, `grpo.objective`, `evaluation.statistics`
2. facing LeRobot: the `smoothvla` policy, `jerk_reward`, `envs`, `filters`, `grpo.configuration`, presets
3. `rollout`: starts in, episodes out
4. `grpo.trainer`, `demos`, `evaluation.evaluate`, `report`, `hub`
5. `cli`

Importing this package registers the policy, and the filters that a post-processor may hold, where LeRobot's
registry of policies is loaded, as it is under its commands. Elsewhere, in a process that only steps an
environment, it stays light: no torch, no transformers.
"""

import sys

if "lerobot.configs.policies" in sys.modules:
    from lerobot_smoothvla import configuration_smoothvla  # noqa: F401
    from lerobot_smoothvla.filters import guard, steps  # noqa: F401
