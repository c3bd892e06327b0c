"""E3RL as stages: the sampler's running statistics, credit by segment, and erased attempts in the loss."""

from collections.abc import Sequence

import jax.numpy as jnp

from entropy_rl.masked import masked_mean
from entropy_rl.methods import e3rl as lib
from entropy_rl.objectives.recipe import (
    Readout,
    Recipe,
    RunFacts,
    Stage,
    StepContext,
    fresh_mask,
    stateless,
)
from entropy_rl.objectives.recipes import check_choice, refuse_unread
from entropy_rl.types import ERASED, FRESH, REPLAYED, Rollout

ERASED_LOSSES = ("none", "negative")
CREDITS = ("uniform", "attention")


def e3rl(
    base: Recipe,
    facts: RunFacts,
    *,
    kappa: float = 1.0,
    segment_length: int = 0,
    delimiters: Sequence[str] = (),
    score: str = "surprisal",
    window: int = 0,
    weights: Sequence[float] = (0.6, 0.2, 0.2),
    growth: float = 0.3,
    max_erasures: int = 5,
    modulate: float = 0.5,
    history_rate: float = 0.9,
    running_rate: float = 0.99,
    baseline: str = "running",
    min_attempts: int = 2,
    recorded_draws: int = 2,
    credit: str = "attention",
    credit_layer: int = -1,
    credit_temperature: float = 0.0,
    erased_loss: str = "none",
    erased_weight: float = 0.1,
    erased_rows: int = 1,
) -> Recipe:
    """Erases uncertain segments while generating and credits by segment; see ``methods.e3rl``.

    Args:
        kappa, score, weights, growth, max_erasures, modulate, history_rate, running_rate, baseline, min_attempts,
            recorded_draws: see ``Erasing``; kappa inf or max_erasures 0 erase nothing.
        segment_length: tokens; 0: a sixteenth of the response limit, rounded up (the paper's 16 x 512).
        delimiters: texts of one token each that end a segment before.
        window: tokens of the sliding mean; 0: a sixteenth of ``segment_length``, at least 1 (32 of 512).
        credit: "attention" of the answer to each segment, or "uniform" (which is plain outcome credit).
        credit_layer: whose attention, negative ones from the end.
        credit_temperature: of a softmax over normalised masses; 0: the masses themselves.
        erased_loss: "none", or "negative": erased attempts enter the same loss as defects.
        erased_weight: lambda, their advantage is -lambda; each of their tokens weighs as the mean accepted token does,
            and they change neither the accepted rows' weights nor any statistic.
        erased_rows: erased attempts of each response that are carried along under "negative".

    Source: https://arxiv.org/abs/2606.17735. Accepted segments follow pi given U <= Theta, not pi; the ratio is
    taken to the trainer's own pi_old all the same.
    """
    check_choice("e3rl credit", credit, CREDITS)
    check_choice("e3rl erased_loss", erased_loss, ERASED_LOSSES)
    if credit_temperature < 0 or erased_weight < 0 or erased_rows < 0:
        raise ValueError("e3rl credit_temperature, erased_weight and erased_rows must not be negative")
    read = {
        "credit_layer": credit == "attention",
        "credit_temperature": credit == "attention",
        "erased_weight": erased_loss == "negative",
        "erased_rows": erased_loss == "negative",
        "min_attempts": baseline == "group",
    }
    refuse_unread(e3rl, locals(), read, f"credit={credit!r}, erased_loss={erased_loss!r}, baseline={baseline!r}")
    segment_length = segment_length or -(-facts.max_response // 16)
    ids: list[int] = []
    for text in delimiters:
        encoded = list(facts.encode(text))
        if len(encoded) != 1:
            raise ValueError(f"e3rl delimiter {text!r} is {len(encoded)} tokens of this tokenizer, it must be one")
        ids += encoded
    erasing = lib.Erasing(
        segment_length=segment_length,
        delimiters=tuple(ids),
        score=score,
        window=window or max(1, segment_length // 16),
        weights=tuple(float(w) for w in weights),  # type: ignore[arg-type]
        kappa=float(kappa),
        growth=growth,
        max_erasures=max_erasures,
        modulate=modulate,
        history_rate=history_rate,
        running_rate=running_rate,
        baseline=baseline,
        min_attempts=min_attempts,
        recorded_draws=recorded_draws or (2 if erased_loss == "negative" else 0),
    )
    num_segments = erasing.num_segments(facts.max_response)
    recipe = base
    if not erasing.is_off:
        recipe = recipe.with_stage(_erasing_stage(erasing, num_segments), erasing=erasing)
        if erased_loss == "negative" and erased_weight and erased_rows:
            recipe = recipe.with_stage(_erased_loss_stage(erased_weight), erased_rows=erased_rows)
    if credit == "attention":
        stage = _credit_stage(erasing, num_segments, credit_temperature or None)
        readout = Readout(credit_layer, segment_length, erasing.delimiters, num_segments)
        recipe = recipe.with_stage(stage, readout=readout)
    return recipe


def _erasing_stage(erasing: lib.Erasing, num_segments: int) -> Stage:
    """Updates the running statistics by a rollout's first attempts."""

    def apply(rollout: Rollout, state: lib.RunningUncertainty, context: StepContext):
        del context
        segments = rollout.segments
        index = jnp.arange(num_segments)[None]
        seen = (index < segments.count[:, None]) & (rollout.origin == FRESH)[:, None]
        state = state.update(segments.first_uncertainty, segments.first_level, seen, rate=erasing.running_rate)
        kept = jnp.sum(fresh_mask(rollout))
        drawn = jnp.sum(jnp.where(rollout.origin == FRESH, segments.draws, 0))
        metrics = {
            "erased_segments": masked_mean((segments.erasures > 0).astype(jnp.float32), seen),
            "erasures_per_segment": masked_mean(segments.erasures.astype(jnp.float32), seen),
            "erased_token_fraction": 1 - kept / jnp.maximum(drawn, 1),
            "segment_uncertainty": masked_mean(segments.uncertainty, seen),
            "segment_first_uncertainty": masked_mean(segments.first_uncertainty, seen),
        }
        return rollout, state, metrics

    return Stage("erasing", "reward", apply, lambda: lib.RunningUncertainty.empty(num_segments))


def _credit_stage(erasing: lib.Erasing, num_segments: int, temperature: float | None) -> Stage:
    """Spreads each outcome advantage over segments by the attention the answer pays them."""

    def apply(rollout: Rollout, context: StepContext):
        del context
        ids = lib.segment_ids(
            rollout.tokens, rollout.response_mask,
            segment_length=erasing.segment_length, delimiters=erasing.delimiters,
        )  # fmt: skip
        lengths = lib.segment_lengths(ids, rollout.response_mask, num_segments)
        credit = lib.segment_credit(rollout.attention_mass, lengths, temperature=temperature)
        spread = lib.segment_advantages(rollout.outcome_advantages, credit, ids, rollout.response_mask)
        counted = (rollout.origin == FRESH) | (rollout.origin == REPLAYED)
        rows = counted & jnp.any(rollout.response_mask, axis=1)
        concentration = jnp.max(credit, axis=1) * jnp.maximum(jnp.sum(lengths > 0, axis=1), 1)
        metrics = {"credit_largest_over_mean": masked_mean(concentration, rows)}
        return rollout.replace(advantages=jnp.where(counted[:, None], spread, rollout.advantages)), metrics

    return Stage("segment_credit", "credit", stateless(apply))


def _erased_loss_stage(weight: float) -> Stage:
    """The advantage -``weight`` on erased attempts; the learner gives each of their tokens the mean token's weight."""

    def apply(rollout: Rollout, context: StepContext):
        del context
        is_erased = rollout.origin == ERASED
        tokens = rollout.loss_mask & is_erased[:, None]
        metrics = {"erased_rows": jnp.sum(jnp.any(tokens, axis=1)).astype(jnp.float32)}
        rollout = rollout.replace(
            outcome_advantages=jnp.where(is_erased, -weight, rollout.outcome_advantages),
            advantages=jnp.where(tokens, -weight, rollout.advantages),
        )
        return rollout, metrics

    return Stage("erased_loss", "credit", stateless(apply))
