"""Real-time chunking as the sampler of a rollout.

Dims: B batch, H steps a chunk, P padded action dimensions, n executed steps of a chunk.
"""

from dataclasses import dataclass, field

import torch
from lerobot.policies.rtc.configuration_rtc import RTCConfig
from lerobot.policies.rtc.modeling_rtc import RTCProcessor
from torch import Tensor

from lerobot_smoothvla.flow.noise import Randomness
from lerobot_smoothvla.flow.policy import Context, FlowPolicy
from lerobot_smoothvla.flow.sampling import ChunkSample, initial_noise, integrate_ode


@dataclass
class RealTimeChunkingSampler:
    """The ODE, pulled in each Euler step towards what the chunk before had planned for the same steps.

    LeRobot's own guidance (`RTCProcessor`, arXiv 2506.07339), for any flow policy. The simulator waits for
    the policy, so that no step passes meanwhile: the inference delay is 0, but that the steps of a chunk
    before its `first_step` lie in the past and are held. The pull fades out linearly over the n executed
    steps.

    It remembers the last chunk, so a rollout begins with a copy that has not sampled yet.

    Attributes:
        n_action_steps: n, less than H.
        max_guidance_weight: Upper bound of the pull; None for the number of Euler steps, with which one step
            goes the whole way. More goes beyond it: with fewer than 10 steps LeRobot's default of 10 does.
    """

    n_action_steps: int
    max_guidance_weight: float | None = None
    _rest: Tensor | None = field(default=None, init=False, repr=False)

    @torch.no_grad()
    def sample(
        self, policy: FlowPolicy, context: Context, generator: Randomness, batch_size: int = 1
    ) -> ChunkSample:
        """Chunks from noise that `generator` draws, on its device, as `DeployedSampler` does."""
        noise = initial_noise(policy, generator, batch_size)
        weight = self.max_guidance_weight or float(policy.num_steps)
        guided = _GuidedFlow(policy, self._rest, self.n_action_steps, weight)
        actions = integrate_ode(guided, context, noise)  # type: ignore[arg-type]
        self._rest = actions[:, self.n_action_steps :]
        return ChunkSample(actions, {})


@dataclass(frozen=True)
class _GuidedFlow:
    """A flow policy whose velocity leads towards (B, H − n, P) planned before; to itself without."""

    policy: FlowPolicy
    rest: Tensor | None
    n_action_steps: int
    max_guidance_weight: float

    @property
    def num_steps(self) -> int:
        return self.policy.num_steps

    def velocity(self, context: Context, x_t: Tensor, t: Tensor) -> Tensor:
        guidance = RTCProcessor(RTCConfig(max_guidance_weight=self.max_guidance_weight))
        return guidance.denoise_step(
            x_t=x_t,
            prev_chunk_left_over=self.rest,
            inference_delay=self.policy.first_step,
            time=t[0],
            original_denoise_step_partial=lambda x: self.policy.velocity(context, x, t),
            execution_horizon=self.policy.first_step + self.n_action_steps,
        )
