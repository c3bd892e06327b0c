"""Schedules over steps: pure functions step -> value, of optax form, and bands step -> (low, high)."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import optax

LEARNING_RATE_SCHEDULES = ("constant", "linear", "cosine")


def learning_rate_schedule(
    kind: str, *, peak: float, num_steps: int, warmup_steps: int = 0, end_fraction: float = 0.0
) -> optax.Schedule:
    """Linear warm-up from 0 to ``peak``, then constant, linear or cosine decay to ``end_fraction * peak``.

    Args:
        kind: one of ``LEARNING_RATE_SCHEDULES``.
        peak: the largest learning rate.
        num_steps: optimizer steps of the whole run, warm-up included; the schedule is constant past its end.
        warmup_steps: optimizer steps of warm-up; step 0 then has rate ``peak / warmup_steps``, not 0.
        end_fraction: last rate as a fraction of ``peak``; unused by ``constant``.

    Raises:
        ValueError: for an unknown kind or a warm-up as long as the run.
    """
    if kind not in LEARNING_RATE_SCHEDULES:
        raise ValueError(f"learning-rate schedule {kind!r} is not one of {', '.join(LEARNING_RATE_SCHEDULES)}")
    if peak < 0 or warmup_steps < 0:
        raise ValueError(f"learning rate {peak} and warm-up of {warmup_steps} steps must not be negative")
    if warmup_steps >= max(num_steps, 1):
        raise ValueError(f"warmup_steps={warmup_steps} optimizer steps do not end within the run's {num_steps}")
    decay_steps = max(num_steps - warmup_steps, 1)
    if kind == "constant":
        decay = optax.constant_schedule(peak)
    elif kind == "linear":
        decay = optax.linear_schedule(peak, end_fraction * peak, decay_steps)
    else:
        decay = optax.cosine_decay_schedule(peak, decay_steps, alpha=end_fraction)
    if not warmup_steps:
        return decay
    warmup = optax.linear_schedule(peak / warmup_steps, peak, warmup_steps)
    return optax.join_schedules([warmup, decay], [warmup_steps])


ENTROPY_BANDS = ("constant", "linear", "cosine", "step", "piecewise", "sine", "hold_decay")
Band = Callable[[Any], tuple[Any, Any]]


def _progress(kind: str, step: Any, *, num_steps: int, period: float | int | None, hold_steps: int) -> Any:
    """How far from the first value (0) to the second (1) a band of two values is at ``step``."""
    fraction = jnp.clip(step / num_steps, 0.0, 1.0)
    if kind == "linear":
        return fraction
    if kind == "cosine":
        return 0.5 * (1 - jnp.cos(jnp.pi * fraction))
    if kind == "sine":
        return 0.5 * (1 - jnp.cos(2 * jnp.pi * jnp.clip(step, 0.0, num_steps) / (period or 1.0)))
    if kind == "hold_decay":
        return jnp.clip((step - hold_steps) / (num_steps - hold_steps), 0.0, 1.0)
    return jnp.zeros_like(fraction)  # constant


def _check_band(kind, low, high, num_steps, points, period, hold_steps) -> None:
    if kind not in ENTROPY_BANDS:
        raise ValueError(
            f"entropy band {kind!r} is not one of {', '.join(ENTROPY_BANDS)}, nor a function's module:name"
        )
    if num_steps < 1:
        raise ValueError(f"an entropy band needs num_steps of at least 1, got {num_steps}")
    if kind in ("step", "piecewise"):
        if not points:
            raise ValueError(f"a {kind} band needs points: (step, low, high) with ascending steps")
        if any(len(point) != 3 for point in points) or any(a[0] >= b[0] for a, b in zip(points, points[1:])):  # noqa: B905, RUF007
            raise ValueError(f"points {list(points)} are not (step, low, high) with ascending steps")
        edges = [(point[1], point[2]) for point in points]
    else:
        if points:
            raise ValueError(f"points belong to step and piecewise bands, not to {kind!r}")
        if len(low) != 2 or len(high) != 2:
            raise ValueError(f"low={low} and high={high} must each be a pair (start, end)")
        edges = list(zip(low, high, strict=True))
    for lower, upper in edges:
        if not (math.isfinite(lower) and math.isfinite(upper) and lower <= upper):
            raise ValueError(f"an entropy band needs low <= high, got {lower} and {upper}")
    if kind == "sine" and (period is None or period <= 0):
        raise ValueError("a sine band needs a positive period, in steps")
    if kind != "sine" and period is not None:
        raise ValueError(f"period belongs to a sine band, not to {kind!r}")
    if kind == "hold_decay" and not 0 <= hold_steps < num_steps:
        raise ValueError(f"hold_steps={hold_steps} must lie in [0, {num_steps})")
    if kind != "hold_decay" and hold_steps:
        raise ValueError(f"hold_steps belongs to a hold_decay band, not to {kind!r}")


def entropy_band(
    kind: str,
    *,
    low: Sequence[float | int] = (0.0, 0.0),
    high: Sequence[float | int] = (0.0, 0.0),
    num_steps: int,
    points: Sequence[Sequence[float | int]] | None = None,
    period: float | int | None = None,
    hold_steps: int = 0,
) -> Band:
    """A band of entropy over the steps of a run.

    Between the pairs (start, end) of ``low`` and of ``high``, with x = step / num_steps clamped to [0, 1]:
    "constant" stays at the start; "linear" b0 + (b1 - b0) x; "cosine" b0 + (b1 - b0) (1 - cos pi x) / 2; "sine" swings
    from the start to the end and back once every ``period`` steps; "hold_decay" stays for ``hold_steps``, then falls
    linearly. "step" holds the values of the last of ``points`` passed, "piecewise" interpolates between them.

    Source: Entrocraft, https://arxiv.org/abs/2604.26326 (linear, cosine, constant); the others are ours.

    Args:
        kind: one of ``ENTROPY_BANDS``.
        low, high: nats, at the start and at the end.
        num_steps: steps of the run; past it the band stays.
        points: (step, low, high), ascending; only for "step" and "piecewise".
        period: steps; only for "sine".
        hold_steps: steps; only for "hold_decay".

    Returns:
        step -> (low, high), f32 scalars; works under jit.

    Raises:
        ValueError: for an unknown kind, an upside-down band, or ``points``, ``period`` or ``hold_steps`` of another
            kind ("step" and "piecewise" do not look at ``low`` and ``high``, "constant" not at their ends).
    """
    _check_band(kind, low, high, num_steps, points, period, hold_steps)

    def between(step):
        part = _progress(
            kind, jnp.asarray(step, jnp.float32), num_steps=num_steps, period=period, hold_steps=hold_steps
        )
        # Not b0 + (b1 - b0) x: at x = 1 that need not be b1.
        return tuple((1 - part) * edge[0] + part * edge[1] for edge in (low, high))

    def through_points(step):
        steps, lows, highs = (jnp.asarray(column, jnp.float32) for column in zip(*points, strict=True))
        step = jnp.asarray(step, jnp.float32)
        if kind == "piecewise":
            return jnp.interp(step, steps, lows), jnp.interp(step, steps, highs)
        index = jnp.clip(jnp.searchsorted(steps, step, side="right") - 1, 0, len(points) - 1)
        return lows[index], highs[index]

    return through_points if kind in ("step", "piecewise") else between
