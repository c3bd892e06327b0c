"""Scoring and updates: oracle gradient through the whole network, microbatches, skipped steps, sharding."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from entropy_rl import learner
from entropy_rl.distributions import entropy as entropy_of
from entropy_rl.distributions import log_prob
from entropy_rl.model import head_weight
from entropy_rl.objectives import make_recipe
from entropy_rl.objectives.losses import REDUCTIONS
from entropy_rl.types import ERASED, REPLAYED
from tests.helpers import random_rollout, tiny_model
from tests.transformer_test import numpy_forward

ROWS, PROMPT, RESPONSE = 8, 5, 11
SHAPE = {"max_response": RESPONSE, "temperature": 0.9, "chunk_size": 64}


@pytest.fixture(scope="module")
def setting():
    model, params = tiny_model(2.0)
    rollout = random_rollout(ROWS, PROMPT, RESPONSE, vocab=300)
    log_probs, entropy = learner.make_score(model, **SHAPE)(params, rollout)
    noise = 0.2 * jax.random.normal(jax.random.key(5), log_probs.shape)
    old = jnp.where(rollout.response_mask, log_probs + noise, 0)
    return model, params, rollout.replace(old_log_probs=old, old_entropy=entropy)


def dense_stats(model, params, tokens, temperature):
    """Log-prob and entropy of every token from all logits, index 0 left at 0."""
    hidden = model.apply(params, tokens, jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape))[0]
    logits = hidden[:, :-1] @ head_weight(model.config, params)[0] / temperature
    pad = lambda x: jnp.pad(x, ((0, 0), (1, 0)))
    return pad(log_prob(logits, tokens[:, 1:])), pad(entropy_of(logits))


def test_scores_against_all_logits(setting):
    model, params, rollout = setting
    want = dense_stats(model, params, rollout.tokens, 0.9)
    for pieces, buckets in ((1, 1), (2, 1), (4, 1), (4, 3), (8, 11), (2, 100)):
        score = learner.make_score(model, num_microbatches=pieces, num_buckets=buckets, **SHAPE)
        got = score(params, rollout)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, jnp.where(rollout.response_mask, b, 0), atol=1e-5)


@pytest.fixture(scope="module")
def grouped(setting):
    """Four rows to a prompt; prompts of all lengths; a row without a response."""
    model, params, rollout = setting
    first = lambda x: jnp.repeat(x[::4], 4, axis=0)
    start = first(rollout.prompt_length)
    length = start + (rollout.length - rollout.prompt_length)
    place = jnp.arange(PROMPT + RESPONSE)[None]
    mask = (place >= start[:, None]) & (place < length[:, None]) & (jnp.arange(ROWS) != 5)[:, None]
    tokens = jnp.where(place < start[:, None], first(rollout.tokens), rollout.tokens)
    rollout = rollout.replace(tokens=tokens, prompt_length=start, length=length, response_mask=mask, loss_mask=mask)
    log_probs, entropy = learner.make_score(model, **SHAPE)(params, rollout)
    noise = 0.2 * jax.random.normal(jax.random.key(6), log_probs.shape)
    old = jnp.where(mask, log_probs + noise, 0)
    return model, params, rollout.replace(old_log_probs=old, old_entropy=entropy)


@pytest.mark.parametrize(("group_size", "pieces", "buckets"), [(4, 1, 1), (2, 2, 3)])
def test_a_prompt_read_once_for_its_group(grouped, group_size, pieces, buckets):
    """Scores and gradient are those of rows that each read their own."""
    model, params, rollout = grouped
    assert len(set(rollout.prompt_length.tolist())) == 2
    want = dense_stats(model, params, rollout.tokens, 0.9)
    shape = dict(num_microbatches=pieces, num_buckets=buckets, group_size=group_size, **SHAPE)
    for a, b in zip(learner.make_score(model, **shape)(params, rollout), want, strict=True):
        np.testing.assert_allclose(a, jnp.where(rollout.response_mask, b, 0), atol=1e-5)
    alone, metrics = sgd_gradient(grouped, "token_mean", 1, kl_coef=0.01)
    shared, shared_metrics = sgd_gradient(grouped, "token_mean", pieces, buckets, kl_coef=0.01, group_size=group_size)
    difference = jax.tree.map(lambda a, b: a - b, alone, shared)
    assert optax.tree.norm(difference) <= 1e-5 * optax.tree.norm(alone)
    for name in metrics:
        np.testing.assert_allclose(metrics[name], shared_metrics[name], rtol=1e-4, atol=1e-6)


def test_groups_stay_together():
    rows = jnp.arange(24)
    for pieces, group in ((1, 1), (3, 1), (2, 4), (3, 2), (6, 4)):
        split = learner.split_rows(rows, pieces, group)
        np.testing.assert_array_equal(split.reshape(-1, group) % group, np.tile(np.arange(group), (24 // group, 1)))
        np.testing.assert_array_equal(learner.join_rows(split, group), rows)


def test_a_bucket_holds_its_longest_response(setting):
    """Every row alone in its piece is scored by a program of its own length; a shorter one would lose tokens."""
    rollout = setting[2]
    lengths = learner._lengths(RESPONSE, 3)
    assert lengths == (4, 8, 11)
    for row in range(ROWS):
        part = jax.tree.map(lambda x, row=row: x[row : row + 1], rollout)
        count = int(part.response_mask.sum())
        used = int(learner._at_length(lengths, part, lambda longest: jnp.int32(longest)))
        assert used == min(x for x in lengths if x >= count)


def sgd_gradient(setting, reduction, pieces, buckets=1, group_size=1, **options):
    """Gradient of one update, read off an SGD step of rate 1."""
    model, params, rollout = setting
    recipe = make_recipe("grpo", reduction=reduction, **options)
    optimizer = optax.sgd(1.0)
    update = learner.make_update(
        model, optimizer, recipe.token_loss, reduction=reduction, num_microbatches=pieces, num_buckets=buckets,
        group_size=group_size, **SHAPE,
    )  # fmt: skip
    state = learner.init_state(jax.tree.map(jnp.copy, params), optimizer)
    state, metrics = update(state, rollout, jnp.arange(ROWS))
    return jax.tree.map(lambda a, b: a - b, params, state.params), metrics


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_gradient_and_microbatches(setting, reduction):
    """Whole-network gradient against autodiff of the formula on dense logits; microbatches, sorted by length or not,
    agree to 1e-6."""
    model, params, rollout = setting

    def plain(params):
        log_probs, _ = dense_stats(model, params, rollout.tokens, 0.9)
        ratio, a = jnp.exp(log_probs - rollout.old_log_probs), rollout.advantages
        d = rollout.ref_log_probs - log_probs
        per_token = -jnp.minimum(ratio * a, jnp.clip(ratio, 0.8, 1.2) * a) + 0.01 * (jnp.exp(d) - d - 1)
        per_token = jnp.where(rollout.loss_mask, per_token, 0)
        counts = rollout.loss_mask.sum(1)
        if reduction == "sequence_mean":
            return jnp.sum(per_token.sum(1) / jnp.maximum(counts, 1)) / jnp.sum(counts > 0)
        return per_token.sum() / (counts.sum() if reduction == "token_mean" else jnp.sum(counts > 0) * RESPONSE)

    value, want = jax.jit(jax.value_and_grad(plain))(params)
    one, metrics = sgd_gradient(setting, reduction, 1, kl_coef=0.01)
    np.testing.assert_allclose(metrics["loss"], value, atol=1e-6)
    np.testing.assert_allclose(metrics["grad_norm"], optax.tree.norm(want), rtol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), one, want)
    for pieces, buckets in ((2, 1), (4, 1), (4, 3)):
        other, other_metrics = sgd_gradient(setting, reduction, pieces, buckets, kl_coef=0.01)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), one, other)
        for name in metrics:
            np.testing.assert_allclose(metrics[name], other_metrics[name], rtol=1e-4, atol=1e-6)


def test_update_takes_the_chosen_rows(setting):
    model, params, rollout = setting
    recipe, optimizer = make_recipe("grpo"), optax.sgd(1.0)
    update = learner.make_update(model, optimizer, recipe.token_loss, reduction=recipe.reduction, **SHAPE)
    rows = jnp.array([6, 1])
    part = jax.tree.map(lambda x: x[rows], rollout)
    a, _ = update(learner.init_state(jax.tree.map(jnp.copy, params), optimizer), rollout, rows)
    b, _ = update(learner.init_state(jax.tree.map(jnp.copy, params), optimizer), part, jnp.arange(2))
    jax.tree.map(np.testing.assert_array_equal, a.params, b.params)


def test_non_finite_gradient_is_skipped_and_counted(setting):
    model, params, rollout = setting
    recipe, optimizer = make_recipe("grpo"), learner.make_optimizer(1e-2)
    update = learner.make_update(model, optimizer, recipe.token_loss, reduction=recipe.reduction, **SHAPE)
    start = lambda: learner.init_state(jax.tree.map(jnp.copy, params), optimizer)
    bad = rollout.replace(advantages=rollout.advantages * jnp.inf)
    state, metrics = update(start(), bad, jnp.arange(ROWS))
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    jax.tree.map(np.testing.assert_array_equal, state.opt_state, optimizer.init(params))
    assert (int(state.skipped), int(state.skipped_in_a_row), int(state.updates)) == (1, 1, 1)
    assert int(metrics["skipped"]) == 1
    state, _ = update(state, rollout, jnp.arange(ROWS))
    assert (int(state.skipped), int(state.skipped_in_a_row), int(state.updates)) == (1, 0, 2)
    moved = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), state.params, params)
    assert max(jax.tree.leaves(moved)) > 1e-3


def test_nothing_to_learn_from_is_a_zero_step(setting):
    model, params, rollout = setting
    recipe, optimizer = make_recipe("grpo"), optax.sgd(1.0)
    update = learner.make_update(model, optimizer, recipe.token_loss, reduction=recipe.reduction, **SHAPE)
    empty = rollout.replace(loss_mask=jnp.zeros_like(rollout.loss_mask))
    state, metrics = update(learner.init_state(jax.tree.map(jnp.copy, params), optimizer), empty, jnp.arange(ROWS))
    jax.tree.map(np.testing.assert_array_equal, state.params, params)
    assert float(metrics["loss"]) == 0.0


def test_weight_decay_spares_norms_biases_and_embeddings():
    params = {
        "embed": {"embedding": jnp.ones(3)},
        "x": {"kernel": jnp.ones(3), "bias": jnp.ones(3), "scale": jnp.ones(3)},
    }
    optimizer = learner.make_optimizer(1.0, weight_decay=0.5, max_grad_norm=None)
    zero = jax.tree.map(jnp.zeros_like, params)
    updates, _ = optimizer.update(zero, optimizer.init(params), params)
    assert float(updates["x"]["kernel"][0]) == -0.5
    assert (
        float(updates["x"]["bias"][0])
        == float(updates["x"]["scale"][0])
        == float(updates["embed"]["embedding"][0])
        == 0
    )


def test_split_and_join():
    tree = {"a": jnp.arange(12).reshape(6, 2)}
    pieces = learner.split_rows(tree, 3)
    assert pieces["a"][1].tolist() == [[2, 3], [8, 9]]
    np.testing.assert_array_equal(learner.join_rows(pieces)["a"], tree["a"])


def test_rollout_metrics_by_hand(setting):
    rewards = jnp.array([1.0, 1, 0, 1, 0, 0, 0, 0])
    rollout = setting[2].fresh().replace(rewards=rewards, correct=rewards > 0)
    metrics = learner.rollout_metrics(rollout, 2)
    assert float(metrics["reward"]) == 3 / 8
    assert float(metrics["equal_groups"]) == 3 / 4
    assert float(metrics["accuracy"]) == 3 / 8
    replayed = rollout.replace(origin=rollout.origin.at[0].set(REPLAYED))
    assert float(learner.rollout_metrics(replayed, 2)["reward"]) == pytest.approx(2 / 7)
    np.testing.assert_allclose(metrics["truncated"], 1 - np.mean(rollout.stopped), rtol=1e-6)


def test_erased_rows_change_no_other_weight(setting):
    """Their tokens weigh as the mean accepted token, and the loss is that of the others plus theirs."""
    model, params, rollout = setting
    rollout = rollout.fresh().replace(loss_mask=rollout.response_mask)
    rollout = rollout.replace(origin=rollout.origin.at[4].set(ERASED))
    optimizer, recipe = optax.sgd(1.0), make_recipe("grpo")

    def loss(rollout):
        update = learner.make_update(model, optimizer, recipe.token_loss, reduction="sequence_mean", **SHAPE)
        state = learner.init_state(jax.tree.map(jnp.copy, params), optimizer)
        return float(update(state, rollout, jnp.arange(ROWS))[1]["loss"])

    without = rollout.replace(loss_mask=rollout.loss_mask.at[4].set(False))
    ratio = jnp.exp(learner.make_score(model, **SHAPE)(params, rollout)[0] - rollout.old_log_probs)
    a = rollout.advantages
    tokens = -jnp.minimum(ratio * a, jnp.clip(ratio, 0.8, 1.2) * a)[4]
    weight = 1 / int(without.loss_mask.sum())
    want = loss(without) + weight * float(jnp.sum(jnp.where(rollout.loss_mask[4], tokens, 0)))
    assert loss(rollout) == pytest.approx(want, abs=1e-6)


def test_an_empty_minibatch_does_not_coast_on_momentum(setting):
    model, params, rollout = setting
    optimizer, recipe = learner.make_optimizer(1e-2, weight_decay=0.1), make_recipe("grpo")
    update = learner.make_update(model, optimizer, recipe.token_loss, reduction="sequence_mean", **SHAPE)
    state = learner.init_state(jax.tree.map(jnp.copy, params), optimizer)
    state, _ = update(state, rollout, jnp.arange(ROWS))
    before = jax.tree.map(np.asarray, state.params)
    empty = rollout.replace(loss_mask=jnp.zeros_like(rollout.loss_mask))
    state, metrics = update(state, empty, jnp.arange(ROWS))
    jax.tree.map(np.testing.assert_array_equal, state.params, before)
    assert int(metrics["skipped"]) == 0


def test_rows_of_other_steps_have_no_sampler(setting):
    rollout = setting[2].fresh()
    rollout = rollout.replace(origin=rollout.origin.at[2].set(REPLAYED), stopped=rollout.stopped.at[3].set(False))
    ready = learner.scored(rollout, rollout.old_log_probs, rollout.old_entropy, mask_truncated=True)
    np.testing.assert_array_equal(ready.sampler_log_probs[2], rollout.old_log_probs[2])
    np.testing.assert_array_equal(ready.sampler_log_probs[1], rollout.sampler_log_probs[1])
    assert not np.any(ready.loss_mask[3])
    np.testing.assert_array_equal(ready.loss_mask[rollout.stopped], rollout.response_mask[rollout.stopped])


def test_attention_from_the_answer_to_segments(setting):
    model, params, rollout = setting
    answer_start = jnp.where(jnp.arange(ROWS) % 2 == 0, rollout.length - 2, 0)
    answer_start = jnp.maximum(answer_start, jnp.where(answer_start > 0, rollout.prompt_length, 0))
    answer_end = jnp.where(answer_start > 0, rollout.length, 0)
    rollout = rollout.replace(answer_start=answer_start, answer_end=answer_end)
    options = dict(layer=1, segment_length=3, delimiters=(), num_segments=4)
    got = learner.make_answer_attention(model, num_microbatches=2, **options)(params, rollout)
    for row in range(ROWS):
        layers, size = [], int(rollout.length[row])
        numpy_forward(model.config, params, np.asarray(rollout.tokens[row]), attention=layers)
        first = int(rollout.prompt_length[row])
        ids = (np.arange(first, size) - first) // 3
        start, end = int(answer_start[row]), int(answer_end[row])
        if not start:  # no answer: its last segment asks
            start, end = first + int(np.argmax(ids == ids[-1])), size
        paid = layers[1][start:end, first:size].sum(0)
        mass = np.array([paid[ids == n].sum() for n in range(4)])
        own = ids[start - first]
        others = [n for n in set(ids.tolist()) if n != own]
        mass[own] = mass[others].mean() if others else 0.0
        np.testing.assert_allclose(got[row], mass, atol=1e-5)


def test_bfloat16_state_keeps_its_dtypes():
    """A checkpoint's template is the fresh state: an update must not change a dtype, or resuming would round."""
    model, params = tiny_model(param_dtype="bfloat16", dtype="bfloat16", num_layers=1)
    rollout, optimizer = random_rollout(4, 3, 5, vocab=300), learner.make_optimizer(1e-3)
    rollout = rollout.replace(loss_mask=rollout.response_mask)
    recipe = make_recipe("grpo", clip_low=1.0, clip_high=1e6)
    options = {"max_response": 5, "temperature": 1.0}
    update = learner.make_update(model, optimizer, recipe.token_loss, reduction=recipe.reduction, **options)
    fresh = learner.init_state(jax.tree.map(jnp.copy, params), optimizer)
    dtypes = jax.tree.map(lambda x: x.dtype, fresh)
    state, metrics = update(fresh, rollout, jnp.arange(4))
    assert jax.tree.map(lambda x: x.dtype, state) == dtypes
    assert float(metrics["grad_norm"]) > 0
