"""R3 as what the host adds to a step, and a stage that ranks failures and rewards short successes."""

import dataclasses

import jax
import jax.numpy as jnp

from entropy_rl.masked import masked_mean
from entropy_rl.methods import r3 as lib
from entropy_rl.objectives.recipe import Recipe, Replay, RunFacts, Stage, StepContext, stateless
from entropy_rl.objectives.recipes import refuse_unread
from entropy_rl.types import FRESH, Rollout


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
    max_reward: float = 0.1,
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
            Where the advantages are divided by the group's deviation, give the recipe an ``advantage_epsilon`` of 1 or
            so: with a tiny one, ranks weigh as much as success whatever this is.
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
    read = {
        "top_fraction": max_reward > 0,
        "reflection_threshold": reflections > 0,
        "max_tokens": replays > 0 or reflections > 0,
        "per_prompt": replays > 0 or reflections > 0,
    }
    refuse_unread(r3, locals(), read, f"max_reward={max_reward}, replays={replays}, reflections={reflections}")
    lib.reflection_text(reflection_template, "", "")
    recipe = base
    if replays or reflections:
        lib.ReplayBuffer(max_tokens=max_tokens, per_prompt=per_prompt)
        replay = Replay(replays, reflections, reflection_threshold, reflection_template, max_tokens, per_prompt)
        recipe = dataclasses.replace(recipe, replay=replay)
    if max_reward or length_bonus:
        stage = _ranking_stage(max_reward=max_reward, top_fraction=top_fraction, bonus=length_bonus)
        recipe = recipe.with_stage(stage, ahead=True)  # a penalty for length comes on top of a rank
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
            rank = lambda h, m: lib.ranking_rewards(h, m, top_fraction=top_fraction, max_reward=max_reward)  # noqa: E731
            added = jax.vmap(rank)(by_group(rollout.old_entropy), by_group(ranked)).reshape(-1)
            is_ranked = ranked.any(axis=1)
            rewards = jnp.where(is_ranked, added, rewards)
            metrics |= {"ranking_reward": masked_mean(added, is_ranked)}
        if bonus:
            length = jnp.sum(rollout.response_mask, axis=1).astype(jnp.float32)
            rewards = rewards + bonus * lib.length_bonus(length, rollout.correct, max_length=context.max_response)
        return rollout.replace(rewards=rewards), metrics

    return Stage("ranking", "reward", stateless(apply))
