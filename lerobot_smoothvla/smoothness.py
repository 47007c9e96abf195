"""How smooth a motion is: raw jerk, two dimensionless measures, and where in the chunks the jerk sits.

Dims: T + 1 positions of T control steps (`samples` where both make sense), D axes, C chunks; leading
dimensions are a batch. Units: SI; positions may be in another unit (px, rad), which then stands for every m.
What cannot be measured on a row (nothing moved, no chunk boundary) is NaN, never 0: a 0 would read as perfect
smoothness.
"""

import math

import torch
from torch import Tensor

MOVING_SPEED = 0.01
"""Below this speed the arm counts as standing still, m/s."""
JOINT_MOVING_SPEED = 0.02
"""The same of joints, rad/s: half a metre from one, 0.02 rad are a centimetre."""


def velocity(positions: Tensor, dt: float) -> Tensor:
    """First difference, v_k = (p_{k+1} - p_k) / dt.

    Args:
        positions: (..., T + 1, D) end-effector positions, m.
        dt: Control period, s.

    Returns:
        (..., T, D) velocity, m/s.

    Raises:
        ValueError: If `dt` is not positive or there are fewer than 2 samples.
    """
    _require(positions.shape[-2], 2, dt, "A velocity")
    return positions.diff(dim=-2) / dt


def speed(positions: Tensor, dt: float) -> Tensor:
    """Norm of the velocity: (..., T + 1, D) in m to (..., T) in m/s. Raises as `velocity` does."""
    return velocity(positions, dt).norm(dim=-1)


def acceleration(positions: Tensor, dt: float) -> Tensor:
    """Second difference, a_k = (p_{k+2} - 2 p_{k+1} + p_k) / dt².

    Args:
        positions: (..., T + 1, D) end-effector positions, m.
        dt: Control period, s.

    Returns:
        (..., T - 1, D) acceleration, m/s².

    Raises:
        ValueError: If `dt` is not positive or there are fewer than 3 samples.
    """
    _require(positions.shape[-2], 3, dt, "An acceleration")
    return positions.diff(n=2, dim=-2) / dt**2


def jerk(positions: Tensor, dt: float) -> Tensor:
    """Rate of change of acceleration, by third finite difference.

    j_k = (p_{k+3} - 3 p_{k+2} + 3 p_{k+1} - p_k) / dt³. Low jerk as the measure of smooth motion:
    Flash & Hogan, J. Neurosci. 5(7), 1985.

    Args:
        positions: (..., T + 1, D) end-effector positions, m.
        dt: Control period, s (0.05 at LIBERO's 20 Hz).

    Returns:
        (..., T - 2, D) jerk, m/s³.

    Raises:
        ValueError: If `dt` is not positive or there are fewer than 4 samples.
    """
    _require(positions.shape[-2], 4, dt, "Jerk")
    return positions.diff(n=3, dim=-2) / dt**3


def jerk_rms(positions: Tensor, dt: float, moving_speed: float | None = None) -> Tensor:
    """Root mean square of the jerk's norm, √(mean_k ‖j_k‖²).

    Args:
        positions: (..., T + 1, D) end-effector positions, m.
        dt: Control period, s.
        moving_speed: If given (m/s), only jerk samples count in whose four positions the arm is faster than
            this somewhere. So stillness does not dilute the mean, and abrupt starts and stops count in full.

    Returns:
        (...) jerk RMS, m/s³; NaN where no sample counts.

    Raises:
        ValueError: If `dt` is not positive or there are fewer than 4 samples.
    """
    return _rms(jerk(positions, dt), _counted(positions, dt, moving_speed))


def commanded_jerk_rms(actions: Tensor, executed: Tensor, order: int) -> Tensor:
    """Root mean square of the jerk that chunks of actions ask for, up to the unit and the control period.

    Args:
        actions: (..., order + n, A), of each chunk the `order` actions before it and n of its own.
        executed: (...) how many of its own count, at least one.
        order: How often an action is differenced for a jerk: 3 where it is a position, 2 a displacement.

    Returns:
        (...) √(mean over the executed steps of ‖Δ^order a‖²), in the unit of actions.
    """
    squares = actions.diff(n=order, dim=-2).square().sum(-1)
    counted = torch.arange(squares.shape[-1]) < executed[..., None]
    return ((squares * counted).sum(-1) / executed).sqrt()


def commanded_path_length(actions: Tensor, executed: Tensor, order: int) -> Tensor:
    """Length of the path that chunks of actions ask for.

    Args:
        actions: (..., order + n, A), as of `commanded_jerk_rms`.
        executed: (...) how many of a chunk's own count.
        order: As of `commanded_jerk_rms`.

    Returns:
        (...) Σ ‖Δ^(order − 2) a‖ over the executed steps, in the unit of actions.
    """
    n = actions.shape[-2] - order
    steps = actions.diff(n=order - 2, dim=-2)[..., -n:, :].norm(dim=-1)
    return (steps * (torch.arange(n) < executed[..., None])).sum(-1)


def boundary_and_interior_jerk_rms(
    positions: Tensor, dt: float, executed: Tensor, moving_speed: float | None = None
) -> tuple[Tensor, Tensor]:
    """Jerk RMS where two chunks meet against jerk RMS within a chunk.

    Jerk sample j_k spans the control steps k, k + 1, k + 2; it is a boundary sample if they do not all belong
    to one chunk.

    Args:
        positions: (..., T + 1, D) end-effector positions, m.
        dt: Control period, s.
        executed: (C,) how many steps of each chunk were run; their sum is T.
        moving_speed: As in `jerk_rms`.

    Returns:
        Boundary and interior jerk RMS, each (...), m/s³; NaN where there is no such sample.

    Raises:
        ValueError: If `dt` is not positive, there are fewer than 4 samples, or `executed` does not sum to T.
    """
    jerks, counted = jerk(positions, dt), _counted(positions, dt, moving_speed)
    chunk_of_step = _chunk_of_step(positions, executed)
    crosses = chunk_of_step[2:] != chunk_of_step[:-2]
    return _rms(jerks, counted & crosses), _rms(jerks, counted & ~crosses)


def chunk_jerk_rms(
    positions: Tensor, dt: float, executed: Tensor, moving_speed: float | None = None
) -> Tensor:
    """Jerk RMS of each chunk.

    Jerk sample j_k belongs to the chunk of its last control step, k + 2: so the jerk where two chunks meet is
    the later one's, which was chosen with the earlier one already under way.

    Args:
        positions: (T + 1, D) end-effector positions of one episode, m.
        dt: Control period, s.
        executed: (C,) how many steps of each chunk were run; their sum is T.
        moving_speed: As in `jerk_rms`.

    Returns:
        (C,) jerk RMS, m/s³; NaN where a chunk has no sample that counts.

    Raises:
        ValueError: If `dt` is not positive, there are fewer than 4 samples, or `executed` does not sum to T.
    """
    jerks, counted = jerk(positions, dt), _counted(positions, dt, moving_speed)
    chunks = torch.arange(len(executed), device=positions.device)[:, None]
    of_chunk = _chunk_of_step(positions, executed)[2:] == chunks
    return _rms(jerks.expand(len(executed), -1, -1), counted & of_chunk)


def log_dimensionless_jerk(velocities: Tensor, dt: float) -> Tensor:
    """LDLJ: negative, larger is smoother; the same path driven slower or drawn larger has the same value.

    LDLJ = -ln( (T·dt)³ / v_peak² · Σ_k ‖v''_k‖² dt ), v'' by second difference: Balasubramanian et al.,
    J. NeuroEng. Rehabil. 12:112, 2015. There v is the speed, which is the case D = 1 here; with D = 3 a
    change of direction at constant speed costs too. A minimum-jerk segment has -ln(204.8).

    Args:
        velocities: (..., T, D) velocity, m/s.
        dt: Control period, s.

    Returns:
        (...) LDLJ, no unit; NaN where nothing moves.

    Raises:
        ValueError: If `dt` is not positive or there are fewer than 3 samples.
    """
    _require(velocities.shape[-2], 3, dt, "LDLJ")
    duration = velocities.shape[-2] * dt
    peak = velocities.norm(dim=-1).amax(dim=-1)
    squared_jerk = (velocities.diff(n=2, dim=-2) / dt**2).square().sum(dim=(-2, -1)) * dt
    return -(duration**3 / peak**2 * squared_jerk).log()


def spectral_arc_length(
    speeds: Tensor, dt: float, max_frequency: float = 10.0, threshold: float = 0.05, padding: int = 4
) -> Tensor:
    """SPARC: negative, larger is smoother, from how wiggly the speed's spectrum is.

    SPARC = -Σ_k √( (Δf / f_c)² + (V_{k+1} - V_k)² ), where V is the magnitude spectrum divided by its value
    at 0 Hz (a speed is never negative, so that is its peak), up to the last frequency f_c ≤ `max_frequency`
    with V ≥ `threshold`: Balasubramanian et al., J. NeuroEng. Rehabil. 12:112, 2015.

    Args:
        speeds: (..., T) speed, m/s, none negative.
        dt: Control period, s.
        max_frequency: Where the spectrum is cut at the latest, Hz.
        threshold: Share of the peak under which the spectrum's tail is left out.
        padding: The spectrum has at least 2^padding times as many points as there are samples.

    Returns:
        (...) SPARC, no unit; NaN where nothing moves.

    Raises:
        ValueError: If `dt` is not positive or there are fewer than 2 samples.
    """
    n_samples = speeds.shape[-1]
    _require(n_samples, 2, dt, "SPARC")
    n_points = 2 ** (math.ceil(math.log2(n_samples)) + padding)
    spectrum = torch.fft.rfft(speeds, n=n_points).abs()
    n_below = min(math.floor(max_frequency * n_points * dt) + 1, spectrum.shape[-1])
    # One segment at least, also for a movement so short that its first frequency is above the limit.
    spectrum = (spectrum / spectrum[..., :1])[..., : max(n_below, 2)]
    bins = torch.arange(spectrum.shape[-1], device=speeds.device)
    last = torch.where(spectrum >= threshold, bins, 1).amax(dim=-1, keepdim=True)
    segments = torch.hypot(1 / last.to(spectrum), spectrum.diff(dim=-1))
    return -torch.where(bins[1:] <= last, segments, 0.0).sum(dim=-1)


def path_length(positions: Tensor) -> Tensor:
    """Length of the way travelled: (..., T + 1, D) in m to (...) in m. A single position has length 0."""
    return positions.diff(dim=-2).norm(dim=-1).sum(dim=-1)


def extent(positions: Tensor) -> Tensor:
    """Greatest distance from the first position: (..., T + 1, D) in m to (...) in m.

    Unlike the path length it does not add up while an arm trembles on the spot.
    """
    return (positions - positions[..., :1, :]).norm(dim=-1).amax(dim=-1)


def time_to_success(success: Tensor, dt: float) -> Tensor:
    """Time until the task is first solved.

    Args:
        success: (..., T) bool, whether the task is solved after each control step.
        dt: Control period, s.

    Returns:
        (...) time, s; NaN where the task was never solved.

    Raises:
        ValueError: If `dt` is not positive.
    """
    _require(success.shape[-1], 0, dt, "A time")
    unsolved = (success.cumsum(dim=-1) == 0).sum(dim=-1)
    return torch.where(success.any(dim=-1), (unsolved + 1) * dt, torch.nan)


def measure(
    positions: Tensor,
    dt: float,
    executed: Tensor,
    moving_speed: float = MOVING_SPEED,
    joints: Tensor | None = None,
) -> dict[str, float]:
    """All terms of one episode, named and unweighted, for the reward and for the evaluation alike.

    Args:
        positions: (T + 1, D) end-effector positions, m.
        dt: Control period, s.
        executed: (C,) how many steps of each chunk were run; their sum is T.
        moving_speed: Speed above which the arm counts as moving, m/s.
        joints: (T + 1, J) positions of the joints beside those of the end effector, rad.

    Returns:
        `jerk_rms`, `boundary_jerk_rms`, `interior_jerk_rms` (m/s³, while moving), `ldlj`, `sparc` (no unit),
        `path_length`, `extent` (m), `duration` (s), `moving_share` (of the control steps); with `joints` also
        `joint_jerk_rms` (rad/s³, while they move) and `joint_ldlj` (no unit). What cannot be measured, as in
        an episode without motion or with fewer than 4 positions, is NaN.

    Raises:
        ValueError: If `dt` is not positive or `executed` does not sum to T.
    """
    _require(positions.shape[-2], 1, dt, "An episode")
    # The third difference of float32 metres is off by about 1e-3 m/s³ at 20 Hz.
    positions = positions.double()
    terms = dict.fromkeys(("jerk_rms", "boundary_jerk_rms", "interior_jerk_rms", "ldlj", "sparc"), math.nan)
    terms |= {
        "path_length": path_length(positions).item(),
        "extent": extent(positions).item(),
        "duration": (len(positions) - 1) * dt,
        "moving_share": 0.0,
    }
    if len(positions) >= 2:
        terms["moving_share"] = (speed(positions, dt) > moving_speed).double().mean().item()
    if len(positions) >= 4:
        boundary, interior = boundary_and_interior_jerk_rms(positions, dt, executed, moving_speed)
        terms |= {
            "jerk_rms": jerk_rms(positions, dt, moving_speed).item(),
            "boundary_jerk_rms": boundary.item(),
            "interior_jerk_rms": interior.item(),
            "ldlj": log_dimensionless_jerk(velocity(positions, dt), dt).item(),
            "sparc": spectral_arc_length(speed(positions, dt), dt).item(),
        }
    if joints is not None:
        of_joints = measure(joints, dt, executed, JOINT_MOVING_SPEED)
        terms |= {f"joint_{name}": of_joints[name] for name in ("jerk_rms", "ldlj")}
    return terms


def _chunk_of_step(positions: Tensor, executed: Tensor) -> Tensor:
    """(T,) index of the chunk that each control step is of, from (..., T + 1, D) positions and (C,) steps."""
    n_steps = positions.shape[-2] - 1
    if int(executed.sum()) != n_steps:
        raise ValueError(
            f"`executed` should sum to the {n_steps} control steps between {n_steps + 1} positions, "
            f"got {int(executed.sum())}; pass the steps that were run of each chunk, not the chunk size."
        )
    return torch.arange(len(executed)).repeat_interleave(executed.cpu()).to(positions.device)


def _counted(positions: Tensor, dt: float, moving_speed: float | None) -> Tensor:
    """(..., T - 2) bool: the jerk samples that count, from (..., T + 1, D) positions in m."""
    speeds = speed(positions, dt)
    moving = torch.ones_like(speeds, dtype=torch.bool) if moving_speed is None else speeds > moving_speed
    return moving.unfold(-1, 3, 1).any(dim=-1)


def _rms(jerks: Tensor, counted: Tensor) -> Tensor:
    """(...) from (..., N, D) jerk and (..., N) bool; NaN where none counts."""
    squares = torch.where(counted, jerks.square().sum(dim=-1), 0.0)
    return (squares.sum(dim=-1) / counted.sum(dim=-1)).sqrt()


def _require(n_samples: int, minimum: int, dt: float, what: str) -> None:
    """Reject a control period or a number of samples from which nothing can be derived."""
    if not dt > 0:
        raise ValueError(f"`dt` should be a positive control period in s (0.05 at 20 Hz), got {dt}.")
    if n_samples < minimum:
        raise ValueError(
            f"{what} needs at least {minimum} samples, got {n_samples}; leave such an episode out, "
            "or use `measure`, which gives NaN for it."
        )
