"""Scalar schedules over steps: pure functions step -> value, of optax form."""

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
        raise ValueError(f"warm-up of {warmup_steps} optimizer steps does not end within the run's {num_steps}")
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
