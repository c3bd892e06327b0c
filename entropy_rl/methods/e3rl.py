"""E3RL: erase a segment the policy was unsure of while generating, sample it again, and credit by segment.

Source: https://arxiv.org/abs/2606.17735 (ancestor: ERL, https://arxiv.org/abs/2510.00861). The paper's exact formulas
are not public; the ones here are ours, built from what it states, with every constant an option.

Symbols: u surprisal or entropy of a token, B_n mean of its sliding-window mean M over segment n, X_n = max u - B_n,
D_n = max(0, B_n - B_{n-1}), U_n = w . (B, X, D); erased iff U_n > Theta_n(e) and e < E_max.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from entropy_rl.masked import masked_mean, masked_std, masked_sum

SCORES = ("surprisal", "entropy")
BASELINES = ("running", "group")


@dataclasses.dataclass(frozen=True)
class Erasing:
    """Options of erasing; static, so that a sampler is compiled for them.

    Attributes:
        segment_length: tokens after which a segment ends at the latest.
        delimiters: token ids that end a segment before; empty for segments of fixed length.
        score: what u is, "surprisal" (-log pi of the drawn token) or "entropy" of its distribution.
        window: tokens of the sliding mean M.
        weights: of B, X and D in U.
        kappa: deviations above the baseline's mean at which the threshold lies; inf never erases.
        growth: the threshold rises by exp(growth * erasures of the segment so far).
        max_erasures: E_max, per segment.
        modulate: phi, the strength of the row's history; 0 switches it off.
        history_rate: of the moving average over the segments of a row.
        running_rate: of the running statistics over steps.
        baseline: "running" (statistics of earlier steps, frozen during a rollout) or "group" (of the prompt's own
            group, live, the running ones until ``min_attempts`` exist).
        min_attempts: first attempts of a group at a segment before its own statistics serve.
        recorded_draws: draws of a row kept for transcripts, erased ones included, as a multiple of the response limit.
    """

    segment_length: int
    delimiters: tuple[int, ...] = ()
    score: str = "surprisal"
    window: int = 32
    weights: tuple[float, float, float] = (0.6, 0.2, 0.2)
    kappa: float = 1.0
    growth: float = 0.3
    max_erasures: int = 5
    modulate: float = 0.5
    history_rate: float = 0.9
    running_rate: float = 0.99
    baseline: str = "running"
    min_attempts: int = 2
    recorded_draws: int = 0

    def __post_init__(self):
        for name, choices in (("score", SCORES), ("baseline", BASELINES)):
            if getattr(self, name) not in choices:
                raise ValueError(f"erasing {name}={getattr(self, name)!r} is not one of {', '.join(choices)}")
        for name in ("segment_length", "window", "min_attempts"):
            if getattr(self, name) < 1:
                raise ValueError(f"erasing {name}={getattr(self, name)} must be at least 1")
        for name in ("growth", "max_erasures", "modulate", "recorded_draws"):
            if getattr(self, name) < 0:
                raise ValueError(f"erasing {name}={getattr(self, name)} must not be negative")
        if len(self.weights) != 3 or min(self.weights) < 0:
            raise ValueError(f"erasing weights={self.weights} must be three numbers, none negative")
        if math.isnan(self.kappa) or self.kappa < 0:
            raise ValueError(f"erasing kappa={self.kappa} must be a number of at least 0, or inf for no erasing")
        for name in ("running_rate", "history_rate"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"erasing {name}={getattr(self, name)} must lie in [0, 1)")

    @property
    def is_off(self) -> bool:
        """Whether nothing can ever be erased, so that the plain sampler serves."""
        return math.isinf(self.kappa) or self.max_erasures == 0

    def num_segments(self, max_response: int) -> int:
        """Segments a response can have at most, those a delimiter ends early included."""
        return max_response if self.delimiters else -(-max_response // self.segment_length)


class RunningUncertainty(struct.PyTreeNode):
    """Statistics of first attempts over earlier steps, per segment index [N].

    Attributes:
        weight: f32 [N], 0 where no segment of that index was ever seen.
        mean, square: f32 [N], weighted mean of U and of U^2, still to be divided by ``weight``.
        level_weight, level: f32 [], weight and weighted mean of B over all segments.
    """

    weight: Array
    mean: Array
    square: Array
    level_weight: Array
    level: Array

    @classmethod
    def empty(cls, num_segments: int) -> "RunningUncertainty":
        """Nothing seen."""
        weight, mean, square = (jnp.zeros(num_segments, jnp.float32) for _ in range(3))
        return cls(weight, mean, square, jnp.zeros((), jnp.float32), jnp.zeros((), jnp.float32))

    def baseline(self) -> tuple[Float[Array, "N"], Float[Array, "N"], Bool[Array, "N"]]:
        """(mean, population std, known) per index; an index never seen takes those of the last one seen before it."""
        index = jnp.arange(self.weight.shape[0])
        last = jax.lax.cummax(jnp.where(self.weight > 0, index, -1))
        at = jnp.maximum(last, 0)
        weight = jnp.maximum(self.weight[at], 1e-12)
        mean = self.mean[at] / weight
        variance = jnp.maximum(self.square[at] / weight - mean**2, 0.0)
        return mean, jnp.sqrt(variance), last >= 0

    def mean_level(self) -> Float[Array, ""]:
        """The running mean of B; 0 where nothing was seen."""
        return self.level / jnp.maximum(self.level_weight, 1e-12)

    def update(
        self,
        first_uncertainty: Float[Array, "B N"],
        level: Float[Array, "B N"],
        seen: Bool[Array, "B N"],
        *,
        rate: float,
    ) -> "RunningUncertainty":
        """With one more rollout's first attempts; indices it has none of stay as they are."""

        def blend(old, new, present):
            return jnp.where(present, rate * old + (1 - rate) * new, old)

        present = jnp.any(seen, axis=0)
        mean = masked_mean(first_uncertainty, seen, axis=0)
        spread = masked_std(first_uncertainty, seen, axis=0, ddof=0)
        return RunningUncertainty(
            weight=blend(self.weight, 1.0, present),
            mean=blend(self.mean, mean, present),
            square=blend(self.square, mean**2 + spread**2, present),
            level_weight=blend(self.level_weight, 1.0, jnp.any(seen)),
            level=blend(self.level, masked_mean(level, seen), jnp.any(seen)),
        )


def combine_uncertainty(
    level: Float[Array, "*R"],
    largest: Float[Array, "*R"],
    previous_level: Float[Array, "*R"],
    has_previous: Bool[Array, "*R"],
    weights: tuple[float, float, float],
) -> Float[Array, "*R"]:
    """U = w_1 B + w_2 (max u - B) + w_3 max(0, B - B_previous); the last term is 0 for a row's first segment."""
    rise = jnp.where(has_previous, jnp.maximum(0.0, level - previous_level), 0.0)
    return weights[0] * level + weights[1] * (largest - level) + weights[2] * rise


def segment_uncertainty(
    surprisal: Float[Array, "B T"],
    segment_ids: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    *,
    num_segments: int,
    window: int,
    weights: tuple[float, float, float] = (0.6, 0.2, 0.2),
) -> Float[Array, "B N"]:
    """U_n of every segment, as the sampler computes it token by token.

    Args:
        surprisal: u, nats.
        segment_ids: 0-based, not decreasing along a row.
        mask: tokens that count.
        num_segments: N.
        window: tokens of the sliding mean M, which does not reach back past the segment's start.
        weights: of B, X and D.

    Returns:
        f32 [B, N]; 0 for an index of which a row has no token.
    """
    size = surprisal.shape[1]
    values = jnp.where(mask, surprisal, 0.0)
    ids = jnp.where(mask, segment_ids, -1)
    column = jnp.arange(size)[None]

    def shifted(back, state):
        total, count = state
        source = jnp.maximum(column - back, 0)
        same = (column >= back) & (jnp.take_along_axis(ids, source, axis=1) == ids) & mask
        return total + jnp.where(same, jnp.take_along_axis(values, source, axis=1), 0.0), count + same

    zeros = jnp.zeros(values.shape, values.dtype)
    total, count = jax.lax.fori_loop(0, min(window, size), shifted, (zeros, zeros.astype(jnp.int32)))
    sliding = total / jnp.maximum(count, 1)
    member = mask[:, None] & (segment_ids[:, None] == jnp.arange(num_segments)[None, :, None])  # [B, N, T]
    present = jnp.any(member, axis=2)
    level = masked_mean(jnp.broadcast_to(sliding[:, None], member.shape), member, axis=2)
    largest = jnp.max(jnp.where(member, surprisal[:, None], -jnp.inf), axis=2)
    largest = jnp.where(present, largest, 0.0)
    before = jnp.pad(level, ((0, 0), (1, 0)))[:, :-1]
    is_later = jnp.broadcast_to(jnp.arange(num_segments)[None] > 0, level.shape)
    uncertainty = combine_uncertainty(level, largest, before, is_later, weights)
    return jnp.where(present, uncertainty, 0.0)


def threshold(
    mean: Float[Array, "*R"] | float,
    std: Float[Array, "*R"] | float,
    erasures: Int[Array, "*R"] | int,
    modulation: Float[Array, "*R"] | float = 1.0,
    *,
    kappa: float = 1.0,
    growth: float = 0.3,
) -> Float[Array, "*R"]:
    """Theta(e) = (mu + kappa sigma) exp(growth e) phi: rising in the erasures e where growth > 0.

    Retries come to an end by ``max_erasures`` whatever it is."""
    penalty = jnp.exp(growth * jnp.asarray(erasures, jnp.float32))
    if math.isinf(kappa):  # inf * 0 would be NaN
        return jnp.full_like(jnp.asarray(mean) * penalty * modulation, kappa)
    return (jnp.asarray(mean) + kappa * jnp.asarray(std)) * penalty * modulation


def history_modulation(
    running_level: Float[Array, ""],
    row_level: Float[Array, "*R"],
    has_history: Bool[Array, "*R"],
    *,
    strength: float = 0.5,
    epsilon: float = 1e-6,
) -> Float[Array, "*R"]:
    """phi = clip(1 + strength (mu_B - B_i) / (mu_B + eps), .5, 2): a shaky history lowers the threshold.

    mu_B is the running mean of B over steps, B_i the row's own moving average over its accepted segments; 1 for a row
    that has none yet.
    """
    phi = jnp.clip(1 + strength * (running_level - row_level) / (running_level + epsilon), 0.5, 2.0)
    return jnp.where(has_history, phi, 1.0)


def segment_ids(
    tokens: Int[Array, "B T"], mask: Bool[Array, "B T"], *, segment_length: int, delimiters: tuple[int, ...] = ()
) -> Int[Array, "B T"]:
    """0-based segment of each token of ``mask`` (contiguous in a row), as the sampler cuts them; 0 elsewhere.

    A segment ends with a delimiter, or after ``segment_length`` tokens.
    """
    ends = jnp.any(tokens[..., None] == jnp.asarray(delimiters, jnp.int32)[None, None], axis=-1)

    def step(carry, column):
        segment, length = carry
        end, live = column
        own = segment
        length = jnp.where(live, length + 1, length)
        is_last = live & (end | (length >= segment_length))
        return (jnp.where(is_last, segment + 1, segment), jnp.where(is_last, 0, length)), jnp.where(live, own, 0)

    zeros = jnp.zeros(tokens.shape[0], jnp.int32)
    ids = jax.lax.scan(step, (zeros, zeros), (jnp.swapaxes(ends, 0, 1), jnp.swapaxes(mask, 0, 1)))[1]
    return jnp.swapaxes(ids, 0, 1)


def segment_lengths(ids: Int[Array, "B T"], mask: Bool[Array, "B T"], num_segments: int) -> Float[Array, "B N"]:
    """Tokens of each segment."""
    rows = jnp.arange(ids.shape[0])[:, None]
    return jnp.zeros((ids.shape[0], num_segments), jnp.float32).at[rows, ids].add(mask.astype(jnp.float32))


def attention_mass(
    attention: Float[Array, "B Q T"],
    query_mask: Bool[Array, "B Q"],
    ids: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
    own_segment: Int[Array, "B"],
    num_segments: int,
) -> Float[Array, "B N"]:
    """s_n: the attention the answer's tokens pay to each segment; the answer's own segment gets the others' mean.

    Args:
        attention: head-averaged, of Q query positions to all T positions.
        query_mask: which queries are answer tokens.
        ids, mask: segments of the response's tokens; index 0 of a row is never part of a response.
        own_segment: the segment that holds the answer.
        num_segments: N.
    """
    paid = jnp.sum(jnp.where(query_mask[..., None], attention, 0.0), axis=1)
    rows = jnp.arange(ids.shape[0])[:, None]
    mass = jnp.zeros((ids.shape[0], num_segments), paid.dtype).at[rows, ids].add(jnp.where(mask, paid, 0.0))
    index = jnp.arange(num_segments)[None]
    others = (index != own_segment[:, None]) & (segment_lengths(ids, mask, num_segments) > 0)
    return jnp.where(index == own_segment[:, None], masked_mean(mass, others, axis=1)[:, None], mass)


def segment_credit(
    attention_mass: Float[Array, "B N"], segment_lengths: Float[Array, "B N"], *, temperature: float | None = None
) -> Float[Array, "B N"]:
    """a_n = s_n / sum s over the segments a row has, or softmax(a_n / temperature) over them; sums to 1.

    A row whose masses are all 0 gets equal credit.

    Raises:
        ValueError: for a temperature that is not positive.
    """
    if temperature is not None and temperature <= 0:
        raise ValueError(f"the temperature of segment credit must be positive, got {temperature}")
    present = segment_lengths > 0
    mass = jnp.where(present, jnp.maximum(attention_mass, 0.0), 0.0)
    largest = jnp.max(mass, axis=1, keepdims=True)
    is_known = largest > 1e-30  # measured against the largest, no sum can vanish
    mass = jnp.where(is_known, mass / jnp.where(is_known, largest, 1.0), present)
    credit = mass / jnp.maximum(jnp.sum(mass, axis=1, keepdims=True), 1.0)
    if temperature is None:
        return credit
    scaled = jnp.exp((credit - jnp.max(credit, axis=1, keepdims=True)) / temperature) * present
    return scaled / jnp.maximum(jnp.sum(scaled, axis=1, keepdims=True), 1e-30)


def segment_advantages(
    advantages: Float[Array, "B"],
    credit: Float[Array, "B N"],
    segment_ids: Int[Array, "B T"],
    mask: Bool[Array, "B T"],
) -> Float[Array, "B T"]:
    """A_{i,n} = A_i a_n / sum_m (|seg_m| / T_i) a_m on the tokens of segment n; the mean over a row's tokens stays A_i.

    Equal credit gives A_i on every token, exactly.
    """
    # Measured against the largest, equal credit is exactly 1, and so is its mean over tokens.
    share = credit / jnp.maximum(jnp.max(credit, axis=1, keepdims=True), 1e-30)
    per_token = jnp.take_along_axis(share, segment_ids, axis=1)
    mean = masked_sum(per_token, mask, axis=1) / jnp.maximum(jnp.sum(mask, axis=1), 1)
    relative = per_token / jnp.where(mean > 0, mean, 1.0)[:, None]
    return jnp.where(mask, advantages[:, None] * relative, 0.0)
