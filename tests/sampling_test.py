"""The sampler: agrees with the trainer, and a row depends on nothing beside it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl.learner import response_stats
from entropy_rl.parallel import make_mesh, sampling_shardings
from entropy_rl.rollout import make_sampler, sample
from tests.helpers import prompt_batch, tiny_model

P, G, S, T = 16, 4, 20, 70
OPTIONS = {"samples_per_prompt": G, "max_response": T, "stop_tokens": (7, 8, 9), "temperature": 0.8}
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def setting():
    model, params = tiny_model(2.0)
    prompts = prompt_batch(P, S, 300)
    return model, params, prompts, sample(model, params, prompts, KEY, slots=8, **OPTIONS)


def assert_identical(a, b):
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def test_shape_of_a_rollout(setting):
    _, _, prompts, rollout = setting
    assert rollout.tokens.shape == (P * G, S + T)
    at = np.arange(S + T)[None]
    start, end = np.asarray(rollout.prompt_length)[:, None], np.asarray(rollout.length)[:, None]
    np.testing.assert_array_equal(rollout.response_mask, (at >= start) & (at < end))
    for row in range(P * G):
        length = int(prompts.length[row // G])
        np.testing.assert_array_equal(rollout.tokens[row, :length], prompts.tokens[row // G, :length])
        response = np.asarray(rollout.tokens[row, length : int(rollout.length[row])])
        stops = np.isin(response, OPTIONS["stop_tokens"])
        assert not stops[:-1].any()
        assert stops[-1] == bool(rollout.stopped[row])
        assert bool(rollout.stopped[row]) or len(response) == T
    lengths = (rollout.length - rollout.prompt_length).tolist()
    assert min(lengths) < 10
    assert max(lengths) == T  # rows of very different lengths are among them
    for name in ("sampler_log_probs", "raw_log_probs", "entropy"):
        assert float(jnp.max(jnp.abs(jnp.where(rollout.response_mask, 0, getattr(rollout, name))))) == 0.0


def test_sampler_and_trainer_agree(setting):
    """Max gap 1e-5 on up to 70 tokens; the padding id 0 is sampled too, and counts as any other token."""
    model, params, _, rollout = setting
    sampled = np.asarray(rollout.tokens)[np.asarray(rollout.response_mask)]
    assert (sampled == 0).any()
    log_probs, entropy = response_stats(model, params, rollout, max_response=T, temperature=0.8)
    mask = rollout.response_mask
    assert int(jnp.max(rollout.length - rollout.prompt_length)) >= 64
    assert float(jnp.max(jnp.abs(log_probs - rollout.raw_log_probs)[mask])) <= 1e-5
    assert float(jnp.max(jnp.abs(entropy - rollout.entropy)[mask])) <= 1e-5


def test_order_of_rows_and_neighbours_change_not_one_bit(setting):
    model, params, prompts, rollout = setting
    order = np.random.default_rng(1).permutation(P)[: P - 3]
    shuffled = sample(model, params, jax.tree.map(lambda x: x[order], prompts), KEY, slots=8, **OPTIONS)
    rows = (order[:, None] * G + np.arange(G)).reshape(-1)
    assert_identical(shuffled, jax.tree.map(lambda x: x[rows], rollout))


def test_number_of_devices_changes_not_one_bit(setting):
    model, params, prompts, rollout = setting
    for mesh in (make_mesh(devices=jax.devices()[:1]), make_mesh(), make_mesh(data=4, fsdp=2)):
        sampler = make_sampler(model, mesh, slots_per_device=8, **OPTIONS)
        assert_identical(sampler(params, prompts, KEY), rollout)


def test_other_slot_counts_and_tensor_sharding_draw_the_same_tokens(setting):
    model, params, prompts, rollout = setting
    for slots in (3, 100):
        other = sample(model, params, prompts, KEY, slots=slots, **OPTIONS)
        np.testing.assert_array_equal(other.tokens, rollout.tokens)
        np.testing.assert_allclose(other.raw_log_probs, rollout.raw_log_probs, atol=1e-5)
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    sharded = jax.device_put(params, sampling_shardings(mesh, model.logical_axes(), params))
    other = make_sampler(model, mesh, slots_per_device=8, **OPTIONS)(sharded, prompts, KEY)
    np.testing.assert_array_equal(other.tokens, rollout.tokens)
    np.testing.assert_allclose(other.raw_log_probs, rollout.raw_log_probs, atol=1e-5)


def test_steps_samples_contexts_and_rounds_draw_different_noise(setting):
    model, params, prompts, _ = setting
    same = prompts.replace(tokens=jnp.tile(prompts.tokens[:1], (P, 1)), length=jnp.full(P, 5, jnp.int32))
    options = OPTIONS | {"samples_per_prompt": 1, "stop_tokens": (), "max_response": 24}
    # P copies of one prompt that differ in id, context or round alone.
    for field in ("ids", "context", "round"):
        batch = same.replace(**{name: jnp.zeros(P, jnp.int32) for name in ("ids", "context", "round")})
        rollout = sample(model, params, batch.replace(**{field: jnp.arange(P)}), KEY, **options)
        assert len({tuple(row) for row in np.asarray(rollout.tokens).tolist()}) == P, field
    first = sample(model, params, same, jax.random.fold_in(KEY, 0), **options)
    second = sample(model, params, same, jax.random.fold_in(KEY, 1), **options)
    assert not np.any(np.all(np.asarray(first.tokens) == np.asarray(second.tokens), axis=1))
    many = sample(model, params, same, KEY, **options | {"samples_per_prompt": 8})
    assert len({tuple(row) for row in np.asarray(many.tokens).tolist()}) == 8 * P


def test_greedy_and_truncated(setting):
    model, params, prompts, _ = setting
    greedy = sample(model, params, prompts, KEY, max_response=20, temperature=0.0)
    assert float(jnp.max(jnp.abs(greedy.sampler_log_probs))) == 0.0
    only = sample(model, params, prompts, KEY, max_response=20, top_k=1)
    np.testing.assert_array_equal(greedy.tokens, only.tokens)
    nucleus = sample(model, params, prompts, KEY, max_response=20, top_p=0.5)
    gap = (nucleus.sampler_log_probs - nucleus.raw_log_probs)[nucleus.response_mask]
    assert float(jnp.min(gap)) >= -1e-5
    assert float(jnp.max(gap)) <= np.log(2) + 1e-4  # at least half of the mass was kept
    assert float(jnp.max(gap)) > 0.1


def test_length_limit_per_row(setting):
    model, params, prompts, _ = setting
    limit = jnp.arange(P * G, dtype=jnp.int32) % 9 + 1
    options = OPTIONS | {"stop_tokens": ()}
    rollout = sample(model, params, prompts, KEY, response_limit=limit, slots=8, **options)
    np.testing.assert_array_equal(rollout.length - rollout.prompt_length, limit)


def test_soft_cap_reaches_both_sides():
    model, params = tiny_model(2.0, logit_soft_cap=0.5)
    rollout = sample(model, params, prompt_batch(4, 6, 300), KEY, max_response=30)
    log_probs, _ = response_stats(model, params, rollout, max_response=30, temperature=1.0)
    assert float(jnp.max(jnp.abs(log_probs - rollout.raw_log_probs))) <= 1e-5
    distance = jnp.abs(rollout.raw_log_probs + np.log(300))[rollout.response_mask]
    assert float(jnp.max(distance)) <= 1.0 + 1e-4  # logits lie within 0.5 of 0


def test_prompts_of_one_token():
    model, params = tiny_model(2.0)
    prompts = prompt_batch(4, 1, 300)
    rollout = sample(model, params, prompts, KEY, max_response=12)
    log_probs, _ = response_stats(model, params, rollout, max_response=12, temperature=1.0)
    np.testing.assert_allclose(log_probs, rollout.raw_log_probs, atol=1e-5)


def test_prompts_must_divide():
    model, _ = tiny_model()
    sampler = make_sampler(model, make_mesh(), slots_per_device=2, samples_per_prompt=1, max_response=4)
    with pytest.raises(ValueError, match="do not divide over 8"):
        sampler({}, prompt_batch(6, 4, 300), KEY)
