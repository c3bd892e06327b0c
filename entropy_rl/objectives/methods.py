"""The four methods as additions to a recipe: each puts its functions at its places, and any subset can be combined."""

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from entropy_rl.masked import masked_mean
from entropy_rl.methods import e3rl as e3rl_lib
from entropy_rl.methods import entrocraft as entrocraft_lib
from entropy_rl.methods import r3 as r3_lib
from entropy_rl.methods import sent as sent_lib
from entropy_rl.methods.entropy_dynamics import sequence_entropy_change
from entropy_rl.objectives import losses
from entropy_rl.objectives.recipe import (
    Readout,
    Recipe,
    Replay,
    Stage,
    StepContext,
    add_weight,
    fresh_mask,
    policy_entropy,
    policy_mask,
    stateless,
)
from entropy_rl.objectives.recipes import check_choice
from entropy_rl.schedules import Band, entropy_band
from entropy_rl.types import ERASED, FRESH, REPLAYED, Rollout

ENTROCRAFT_SELECTS = (*entrocraft_lib.SELECTS, "controlled", "controlled_rejection")
ENTROCRAFT_VARIANTS = ("paper", "reward_sign")
ERASED_LOSSES = ("none", "negative")
CREDITS = ("uniform", "attention")
SENT_VARIANTS = ("paper", "released")


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """What a method may need to know of the run.

    Attributes:
        num_steps: rollout batches.
        max_response: tokens a response may have.
        encode: text -> token ids, for delimiters.
    """

    num_steps: int
    max_response: int
    encode: Callable[[str], Sequence[int]]


def entrocraft(
    base: Recipe,
    facts: RunFacts,
    *,
    band: str | Band = "linear",
    low: Sequence[float] = (0.6, 0.4),
    high: Sequence[float] = (0.7, 0.5),
    points: Sequence[Sequence[float]] = (),
    period: float = 0.0,
    hold_steps: int = 0,
    num_steps: int = 0,
    select: str = "sign",
    variant: str = "paper",
    margin: float = 0.0,
    full_at: float = 0.0,
    proportional: float = 8.0,
    integral: float = 2.0,
    max_gain: float = 2.0,
    feedforward: float = 1.0,
) -> Recipe:
    """Keeps the policy's entropy inside a band over the steps; see ``methods.entrocraft``.

    Args:
        band: a kind of ``entropy_band``, or a function step -> (low, high); "off" changes nothing.
        low, high, points, period, hold_steps: of the band, nats and steps; 0 and () where a kind does not use them.
        num_steps: over which the band runs; 0: the run's.
        select: "sign" (paper); ours: "predicted" (reject by predicted change of entropy), "controlled" (nothing is
            rejected, every token's advantage is biased by a PI controller on the distance from the band's middle),
            "controlled_rejection" (that controller sets which fraction of the wrong-way responses is rejected).
        variant: "paper", or "reward_sign" (the released code: raw signs of the outcome, rejected rows count).
        margin: nats by which the band is narrowed on either side when deciding.
        full_at: nats outside the band at which all rejectable responses are rejected, fewer nearer to it; 0: always.
        proportional, integral, max_gain: of the controller, per nat, per nat and step, and the largest bias, whatever
            it comes from.
        feedforward: under "controlled", how much of the batch's own predicted change of entropy is taken out before the
            controller acts: 1 leaves advantages that are neutral to first order, 0 nothing.

    Source: https://arxiv.org/abs/2604.26326.
    """
    check_choice("entrocraft select", select, ENTROCRAFT_SELECTS)
    check_choice("entrocraft variant", variant, ENTROCRAFT_VARIANTS)
    if variant == "reward_sign" and select != "sign":
        raise ValueError(f"entrocraft variant 'reward_sign' has its own rule; select={select!r} does not go with it")
    if min(margin, full_at, proportional, integral, max_gain, feedforward) < 0:
        raise ValueError(
            "entrocraft margin, full_at, proportional, integral, max_gain and feedforward must not be negative"
        )
    if band == "off":
        return base
    band = band if callable(band) else entropy_band(
        band, low=low, high=high, num_steps=num_steps or facts.num_steps, points=points or None,
        period=period or None, hold_steps=hold_steps,
    )  # fmt: skip

    def rejected(rollout, change, entropy, low, high, strength):
        rule = "predicted" if select == "controlled_rejection" else select
        return ~entrocraft_lib.keep_mask(
            rollout.outcome_advantages, entropy, low, high, select=rule, predicted_change=change, strength=strength
        )

    def apply(rollout: Rollout, state: Any, context: StepContext):
        entropy = policy_entropy(rollout)
        low, high = band(context.step)
        middle = 0.5 * (low + high)
        inner = jnp.minimum(low + margin, middle), jnp.maximum(high - margin, middle)
        change = sequence_entropy_change(
            rollout.old_log_probs, rollout.old_entropy, rollout.loss_mask, rollout.advantages
        )
        side = entrocraft_lib.band_side(entropy, *inner)
        metrics = {"band_low": low, "band_high": high, "band_side": side}
        if select.startswith("controlled"):
            state, gain = entrocraft_lib.control(
                state, entropy, middle, proportional=proportional, integral=integral, max_gain=max_gain
            )
            metrics |= {"band_gain": gain}
        if select == "controlled":
            if feedforward:
                weights = losses.reduction_weights(
                    rollout.loss_mask, reduction=base.reduction, max_response=context.max_response
                )
                neutral = entrocraft_lib.neutral_gain(
                    rollout.advantages, rollout.old_log_probs, rollout.old_entropy, rollout.loss_mask, weights
                )
                metrics |= {"band_neutral_gain": neutral}
                gain = jnp.clip(gain + feedforward * neutral, -max_gain, max_gain)
            biased = entrocraft_lib.entropy_biased_advantages(
                rollout.advantages, rollout.old_log_probs, rollout.old_entropy, rollout.loss_mask, gain
            )
            return rollout.replace(advantages=biased), state, metrics
        if variant == "reward_sign":
            signs = jnp.where(rollout.correct, 1.0, -1.0)
            outcome = entrocraft_lib.reward_sign_advantages(rollout.outcome_advantages, signs, entropy, *inner)
            counted = (rollout.origin == FRESH) | (rollout.origin == REPLAYED)
            spread = jnp.where(rollout.response_mask & counted[:, None], outcome[:, None], rollout.advantages)
            spread = jnp.where(side == 0, rollout.advantages, spread)
            metrics |= {"rejected": masked_mean((outcome == 0).astype(jnp.float32), counted)}
            return rollout.replace(advantages=spread), state, metrics
        if select == "controlled_rejection":
            # A point of the controller's sign stands in for the entropy: outside the band, on the side to leave.
            strength: Any = jnp.minimum(jnp.abs(gain) / max(max_gain, 1e-9), 1.0)
            at = middle - jnp.sign(gain) * (high - low + 1.0)
            drop = rejected(rollout, change, at, low, high, strength)
        else:
            strength = entrocraft_lib.rejection_strength(entropy, *inner, full_at=full_at) if full_at else 1.0
            drop = rejected(rollout, change, entropy, *inner, strength)
        rows = jnp.any(rollout.loss_mask, axis=1)
        metrics |= {"rejected": masked_mean(drop.astype(jnp.float32), rows)}
        return rollout.replace(loss_mask=rollout.loss_mask & ~drop[:, None]), state, metrics

    return base.with_stage(Stage("entrocraft", "select", apply, entrocraft_lib.Controller.start))


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
    segment_length = segment_length or -(-facts.max_response // 16)
    ids: list[int] = []
    for text in delimiters:
        encoded = list(facts.encode(text))
        if len(encoded) != 1:
            raise ValueError(f"e3rl delimiter {text!r} is {len(encoded)} tokens of this tokenizer, it must be one")
        ids += encoded
    erasing = e3rl_lib.Erasing(
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


def _erasing_stage(erasing: e3rl_lib.Erasing, num_segments: int) -> Stage:
    """Updates the running statistics by a rollout's first attempts."""

    def apply(rollout: Rollout, state: e3rl_lib.RunningUncertainty, context: StepContext):
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

    return Stage("erasing", "reward", apply, lambda: e3rl_lib.RunningUncertainty.empty(num_segments))


def _credit_stage(erasing: e3rl_lib.Erasing, num_segments: int, temperature: float | None) -> Stage:
    """Spreads each outcome advantage over segments by the attention the answer pays them."""

    def apply(rollout: Rollout, context: StepContext):
        del context
        ids = e3rl_lib.segment_ids(
            rollout.tokens, rollout.response_mask,
            segment_length=erasing.segment_length, delimiters=erasing.delimiters,
        )  # fmt: skip
        lengths = e3rl_lib.segment_lengths(ids, rollout.response_mask, num_segments)
        credit = e3rl_lib.segment_credit(rollout.attention_mass, lengths, temperature=temperature)
        spread = e3rl_lib.segment_advantages(rollout.outcome_advantages, credit, ids, rollout.response_mask)
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


def sent(
    base: Recipe,
    facts: RunFacts,
    *,
    stages: int = 2,
    low_entropy_fraction: float = 0.8,
    high_covariance_fraction: float = 0.02,
    beta_low: float = 0.05,
    beta_high: float = 0.2,
    variant: str = "paper",
    coefficient: float = 0.1,
    global_kl: float = 1e-3,
) -> Recipe:
    """A curriculum by semantic entropy, and a KL penalty on low-entropy tokens; see ``methods.sent``.

    Args:
        stages: of the curriculum, by the file ``experiments.rank_prompts`` wrote (``config.curriculum.path``); 1: none.
        low_entropy_fraction, high_covariance_fraction, beta_low, beta_high: see ``token_kl_weights``.
        variant: "paper", or "released": no clip (-r A), |log pi - log pi_old| at 2x and .5x ``coefficient`` on the two
            ends of T_low by covariance, and ``global_kl`` of k3 on every token.
        coefficient, global_kl: of the released variant.

    Source: https://arxiv.org/abs/2512.04359.
    """
    del facts
    check_choice("sent variant", variant, SENT_VARIANTS)
    if stages < 1:
        raise ValueError(f"sent stages={stages} must be at least 1")
    if min(beta_low, beta_high, coefficient, global_kl) < 0:
        raise ValueError("sent beta_low, beta_high, coefficient and global_kl must not be negative")
    for name, value in dict(low_entropy_fraction=low_entropy_fraction,
                            high_covariance_fraction=high_covariance_fraction).items():  # fmt: skip
        if not 0 <= value <= 1:
            raise ValueError(f"sent {name}={value} must lie in [0, 1]")
    recipe = dataclasses.replace(base, curriculum_stages=stages)

    def arrays(rollout: Rollout):
        return rollout.old_entropy, rollout.old_log_probs, rollout.advantages, policy_mask(rollout)

    def paper(rollout: Rollout, context: StepContext):
        del context
        weights = sent_lib.token_kl_weights(
            *arrays(rollout),
            low_entropy_fraction=low_entropy_fraction,
            high_covariance_fraction=high_covariance_fraction,
            beta_low=beta_low,
            beta_high=beta_high,
        )
        return add_weight(rollout, "kl_ref", weights), {"kl_weight": masked_mean(weights, rollout.loss_mask)}

    def released(rollout: Rollout, context: StepContext):
        del context
        weights = sent_lib.released_token_weights(
            *arrays(rollout),
            low_entropy_fraction=low_entropy_fraction,
            covariance_fraction=high_covariance_fraction,
            coefficient=coefficient,
        )
        rollout = add_weight(rollout, "kl_old", weights)
        rollout = add_weight(rollout, "kl_ref", global_kl) if global_kl else rollout
        return rollout, {"kl_weight": masked_mean(weights, rollout.loss_mask)}

    if variant == "released" and base.is_clipped:
        raise ValueError("sent variant 'released' has no clip: set config.recipe.options.policy_loss to 'unclipped'")
    if variant == "released":
        return recipe.with_stage(
            Stage("sent", "weigh", stateless(released)),
            needs_reference=base.needs_reference or global_kl > 0,
        )
    if not beta_low and not beta_high:
        return recipe
    return recipe.with_stage(Stage("sent", "weigh", stateless(paper)), needs_reference=True)


def r3(
    base: Recipe,
    facts: RunFacts,
    *,
    replays: int = 2,
    reflections: int = 0,
    reflection_threshold: float = 0.5,
    reflection_template: str = "{problem}{failure}",
    max_tokens: int = 1 << 22,
    per_prompt: int = 8,
    max_reward: float = 0.5,
    top_fraction: float = 0.2,
    length_bonus: float = 1.0,
) -> Recipe:
    """Replay, reflection and a ranking reward; see ``methods.r3``.

    Args:
        replays: stored responses added to a group without signal; 0: no replay.
        reflections: prompts a step may add, per process, from the second pass over the data on, to reflect on a
            stored failure.
        reflection_threshold: prompts of lower mean historical reward are reflected on.
        reflection_template: text with ``{problem}`` and ``{failure}``.
        max_tokens, per_prompt: bounds of the buffer, per process: tokens over all prompts; successes, and failures, of
            one prompt.
        max_reward: of the ranking among the failures of an all-failed group, which then is their reward; 0: no ranking.
        top_fraction: tokens of a response whose entropy makes its peak.
        length_bonus: weight of max(0, 1 - l / L_max) added to the reward of correct responses.

    The advantage (R - mu) / (alpha sigma + lambda) is the recipe's own, with its ``advantage_scale`` and
    ``advantage_epsilon``. Source: https://arxiv.org/abs/2601.19620.
    """
    del facts
    if min(replays, reflections, length_bonus) < 0 or not 0 < top_fraction <= 1 or not 0 <= max_reward < 1:
        raise ValueError(
            "r3 replays, reflections, length_bonus must not be negative, top_fraction in (0, 1], max_reward in [0, 1)"
        )
    if (max_reward or length_bonus) and not base.reads_rewards:
        raise ValueError(
            "r3 max_reward and length_bonus change rewards, which this recipe's advantages do not read; set both to 0"
        )
    r3_lib.reflection_text(reflection_template, "", "")
    recipe = base
    if replays or reflections:
        r3_lib.ReplayBuffer(max_tokens=max_tokens, per_prompt=per_prompt)
        replay = Replay(replays, reflections, reflection_threshold, reflection_template, max_tokens, per_prompt)
        recipe = dataclasses.replace(recipe, replay=replay)
    if max_reward or length_bonus:
        stage = _ranking_stage(max_reward=max_reward, top_fraction=top_fraction, bonus=length_bonus)
        recipe = recipe.with_stage(stage)
    return recipe


def _ranking_stage(*, max_reward: float, top_fraction: float, bonus: float) -> Stage:
    def apply(rollout: Rollout, context: StepContext):
        group = (-1, context.group_size)
        is_fresh = (rollout.origin == FRESH).reshape(group)
        correct = rollout.correct.reshape(group)
        failed = jnp.any(is_fresh, axis=1) & ~jnp.any(is_fresh & correct, axis=1)
        rewards = rollout.rewards
        metrics = {"all_failed_groups": masked_mean(failed.astype(jnp.float32), jnp.any(is_fresh, axis=1))}
        if max_reward:
            ranked = (is_fresh & failed[:, None]).reshape(-1)[:, None] & rollout.response_mask
            by_group = lambda x: x.reshape(*is_fresh.shape, -1)  # noqa: E731
            rank = lambda h, m: r3_lib.ranking_rewards(h, m, top_fraction=top_fraction, max_reward=max_reward)  # noqa: E731
            added = jax.vmap(rank)(by_group(rollout.old_entropy), by_group(ranked)).reshape(-1)
            is_ranked = ranked.any(axis=1)
            rewards = jnp.where(is_ranked, added, rewards)
            metrics |= {"ranking_reward": masked_mean(added, is_ranked)}
        if bonus:
            length = jnp.sum(rollout.response_mask, axis=1).astype(jnp.float32)
            rewards = rewards + bonus * r3_lib.length_bonus(length, rollout.correct, max_length=context.max_response)
        return rollout.replace(rewards=rewards), metrics

    return Stage("ranking", "reward", stateless(apply))


# In the order in which they are applied to a recipe.
METHODS: dict[str, Callable[..., Recipe]] = {"r3": r3, "e3rl": e3rl, "sent": sent, "entrocraft": entrocraft}


def method_defaults(name: str) -> dict[str, Any]:
    """Every option of a method with its default."""
    check_choice("method", name, tuple(METHODS))
    return {option: p.default for option, p in list(inspect.signature(METHODS[name]).parameters.items())[2:]}


def add_methods(base: Recipe, facts: RunFacts, options: dict[str, dict[str, Any]]) -> Recipe:
    """``base`` with each method named in ``options``, by its options.

    Raises:
        ValueError: for an unknown method or option, naming those there are.
    """
    for name, given in options.items():
        known = method_defaults(name)
        for option in given:
            if option not in known:
                raise ValueError(f"method {name!r} has no option {option!r}; it has {', '.join(known)}")
    recipe = base
    for name in (name for name in METHODS if name in options):
        recipe = METHODS[name](recipe, facts, **options[name])
    return recipe
