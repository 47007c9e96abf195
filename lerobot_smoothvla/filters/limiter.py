"""Positions kept within limits of velocity, acceleration and jerk, and left alone where they keep to them.

Dims: N axes, each for itself. Units: u is that of the positions (deg, rad); s. Rates are differences over the
control period dt: v_k = (p_k − p_{k−1}) / dt, a_k = (v_k − v_{k−1}) / dt, j_k = (a_k − a_{k−1}) / dt.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]
_ROUNDING = 1 + 1e-6
"""Limits are widened by so much, or rounding would touch commands that are exactly at them."""


@dataclass(frozen=True)
class Rates:
    """Limits V, A, J of each axis: (N,) in u/s, u/s², u/s³."""

    velocity: Array
    acceleration: Array
    jerk: Array

    def kept_by(self, positions: Array, dt: float, n_last: int) -> NDArray[np.bool_]:
        """(N,) whether the last `n_last` rates of each order of (T, N) positions keep to them."""
        limits = (self.velocity, self.acceleration, self.jerk)
        kept = [
            (np.abs(np.diff(positions, n=order, axis=0)[-n_last:]) <= limit * dt**order).all(axis=0)
            for order, limit in enumerate(limits, start=1)
        ]
        return np.logical_and.reduce(kept)


class MotionLimiter:
    """Follows commanded positions from rest, with every rate within its limit whatever is commanded.

    1. What can be reached: a_k in [a_{k−1} − J·dt, a_{k−1} + J·dt] and [−A, A], and so that the velocity,
       with the acceleration going down to 0 as fast as J allows, stays within V. This interval is never
       empty, and every output lies in it.
    2. A command stream that keeps to the limits is followed to the last bit.
    3. Else Ruckig (Berscheid and Kröger, arXiv 2105.04830) leads to the command in the shortest time, meeting
       it with its velocity if the last commands are a motion within the limits, at rest otherwise. So it is
       late by its braking distance behind commands that tremble beyond the limits, and overshoots by it where
       commands stop dead.
    4. It follows again from where its own motion goes over into the commanded one within the limits.
    """

    def __init__(self, limits: Rates, dt: float, start: Array) -> None:
        """Begin at rest.

        Args:
            limits: Of each axis.
            dt: Control period, s.
            start: (N,) position.
        """
        import ruckig

        self._limits = Rates(
            *(limit * _ROUNDING for limit in (limits.velocity, limits.acceleration, limits.jerk))
        )
        self._dt = dt
        self._path = np.tile(start, (3, 1))  # Oldest first, as the commands.
        self._commands = np.tile(start, (4, 1))
        self._planned = np.zeros((2, len(start)))  # Velocity and acceleration where Ruckig led last; or NaN.
        self._ruckig, self._given = ruckig.Ruckig(1, dt), ruckig.InputParameter(1)
        self._then = ruckig.OutputParameter(1)
        self._good = (ruckig.Result.Working, ruckig.Result.Finished)
        self._error = ruckig.RuckigError

    def follow(self, command: Array) -> Array:
        """(N,) where to be at the end of the next control step, given the (N,) finite command."""
        following = (self._path == self._commands[1:]).all(axis=0)
        self._commands = np.vstack([self._commands[1:], command])
        low, high = self._reachable()
        is_motion = self._limits.kept_by(self._commands, self._dt, n_last=4)
        exact = (low <= command) & (command <= high) & (following | (is_motion & self._joins()))
        after, planned = command.copy(), np.full_like(self._planned, np.nan)
        for axis in np.flatnonzero(~exact):
            led = self._led(axis, bool(is_motion[axis]))
            wanted = self._path[-1, axis] if led is None else led[0]
            after[axis] = np.clip(wanted, low[axis], high[axis])
            if led is not None and after[axis] == wanted:
                planned[:, axis] = led[1:]
        self._planned = planned
        self._path = np.vstack([self._path[1:], after])
        return after

    def _reachable(self) -> tuple[Array, Array]:
        """(N,) lowest and highest position of the next step; see 1."""
        dt, oldest, older, last = self._dt, *self._path
        velocity, acceleration = (last - older) / dt, (last - 2 * older + oldest) / dt**2
        change = self._limits.jerk * dt

        def highest(v: Array, a: Array) -> Array:
            # With a = n·δ + rest, the later steps add (a − δ) + (a − 2δ) + … to it: n terms.
            room = (self._limits.velocity - v) / dt
            n = np.floor((np.sqrt(1 + 8 * np.maximum(room, 0) / change) - 1) / 2)
            before_v = (room + change * n * (n + 1) / 2) / (n + 1)
            return np.minimum(np.minimum(self._limits.acceleration, a + change), before_v)

        high = highest(velocity, acceleration)
        low = np.minimum(-highest(-velocity, -acceleration), high)  # Equal but for rounding.
        return last + dt * (velocity + low * dt), last + dt * (velocity + high * dt)

    def _joins(self) -> NDArray[np.bool_]:
        """(N,) whether its path goes over, within the limits, into commands that go on as they do."""
        command, step = self._commands[-1], self._commands[-1] - self._commands[-2]
        bend = step - (self._commands[-2] - self._commands[-3])
        ahead = [
            np.vstack([self._path, command, command + step + more, command + 2 * step + 3 * more])
            for more in (np.zeros_like(bend), bend)
        ]
        return np.logical_or.reduce([self._limits.kept_by(path, self._dt, n_last=3) for path in ahead])

    def _led(self, axis: int, is_motion: bool) -> tuple[float, float, float] | None:
        """Position, velocity and acceleration of one axis after a step of Ruckig; None if it finds no way."""
        dt, (oldest, older, last) = self._dt, self._path[:, axis]
        velocity, acceleration = self._planned[:, axis]
        if np.isnan(velocity):
            acceleration = (last - 2 * older + oldest) / dt**2
            velocity = (last - older) / dt + acceleration * dt / 2
        before, target = self._commands[-2:, axis]
        given = self._given
        given.current_position, given.target_position = [last], [target]
        given.current_velocity, given.current_acceleration = [velocity], [acceleration]
        given.target_velocity = [(target - before) / dt if is_motion else 0.0]
        given.max_velocity = [self._limits.velocity[axis]]
        given.max_acceleration = [self._limits.acceleration[axis]]
        given.max_jerk = [self._limits.jerk[axis]]
        self._ruckig.reset()
        try:
            result = self._ruckig.update(given, self._then)
        except self._error:  # For a few inputs, near its numerical limits.
            return None
        if result not in self._good:
            return None
        then = self._then
        return then.new_position[0], then.new_velocity[0], then.new_acceleration[0]
