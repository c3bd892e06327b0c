"""Rewinding, poisoned slots, and block boundaries of the cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl.model import cache as cache_lib
from entropy_rl.model import rewind
from tests.helpers import tiny_model

SIZE = 40


@pytest.fixture(scope="module")
def setting():
    model, params = tiny_model(2.0)
    tokens = jax.random.randint(jax.random.key(1), (3, SIZE), 0, 300)
    positions = jnp.broadcast_to(jnp.arange(SIZE), tokens.shape)
    apply = jax.jit(model.apply)
    return model, params, tokens, positions, apply, apply(params, tokens, positions)[0]


def feed(setting, cache, tokens):
    """One token at a time, each row at its own position."""
    _, params, _, _, apply, _ = setting
    hidden = []
    for t in range(tokens.shape[1]):
        out, cache = apply(params, tokens[:, t : t + 1], cache.length[:, None], cache)
        hidden.append(out)
    return jnp.concatenate(hidden, 1), cache


def test_decoding_equals_full_forward(setting):
    model, _, tokens, _, _, full = setting
    hidden, cache = feed(setting, model.empty_cache(3, SIZE), tokens)
    np.testing.assert_allclose(hidden, full, atol=1e-5)
    assert cache.length.tolist() == [SIZE] * 3


@pytest.mark.parametrize("block", [1, 7, 16])
def test_block_size_changes_nothing(setting, block, monkeypatch):
    model, params, tokens, positions, _, full = setting
    monkeypatch.setattr(cache_lib, "BLOCK", block)
    apply = jax.jit(lambda *a: model.apply(*a))  # compiled anew for every block size
    _, cache = apply(params, tokens[:, :30], positions[:, :30], model.empty_cache(3, SIZE))
    hidden, _ = apply(params, tokens[:, 30:], positions[:, 30:], cache)
    np.testing.assert_allclose(hidden, full[:, 30:], atol=1e-5)


def test_rewind_then_continue_equals_fresh_forward(setting):
    """Rows are rewound to different lengths, what lies behind is NaN, and other tokens follow."""
    model, params, tokens, positions, apply, _ = setting
    _, cache = apply(params, tokens, positions, model.empty_cache(3, SIZE))
    keep = jnp.array([5, 17, 39])
    cache = rewind(cache, keep)
    live = (jnp.arange(SIZE)[None] < keep[:, None])[None, :, None, :, None]
    cache = cache.replace(keys=jnp.where(live, cache.keys, jnp.nan), values=jnp.where(live, cache.values, jnp.nan))
    fresh = jax.random.randint(jax.random.key(2), (3, 1), 0, 300)
    hidden, cache = apply(params, fresh, cache.length[:, None], cache)
    assert cache.length.tolist() == [6, 18, 40]
    for row, length in enumerate(keep.tolist()):
        whole = jnp.concatenate([tokens[row, :length], fresh[row]])[None]
        want = apply(params, whole, jnp.arange(length + 1)[None])[0]
        np.testing.assert_allclose(hidden[row, 0], want[0, -1], atol=1e-5)


def test_poisoned_slots_change_not_one_bit(setting):
    model, params, tokens, positions, apply, _ = setting
    _, clean = apply(params, tokens[:, :20], positions[:, :20], model.empty_cache(3, SIZE))
    live = (jnp.arange(SIZE) < 20)[None, None, None, :, None]
    dirty = clean.replace(keys=jnp.where(live, clean.keys, jnp.nan), values=jnp.where(live, clean.values, jnp.nan))
    step = tokens[:, 20:21], clean.length[:, None]
    np.testing.assert_array_equal(apply(params, *step, clean)[0], apply(params, *step, dirty)[0])


def test_rewind_never_lengthens():
    model, _ = tiny_model()
    cache = model.empty_cache(2, 8).replace(length=jnp.array([3, 5]))
    assert rewind(cache, jnp.array([4, 2])).length.tolist() == [3, 2]


def test_stored_prompt_comes_before_the_row(setting):
    model, params, tokens, positions, apply, full = setting
    _, stored = apply(params, tokens[:, :24], positions[:, :24], model.empty_cache(3, 24))
    index = jnp.array([2, 0, 0, 1])
    cache = model.empty_cache(4, 16).replace(
        prefix=cache_lib.as_prefix(rewind(stored, jnp.array([24, 10, 3]))), prefix_index=index
    )
    length = jnp.array([3, 24, 24, 10])
    for t in range(8):
        step = tokens[index, length + t][:, None]
        hidden, cache = apply(params, step, (length + cache.length)[:, None], cache)
        np.testing.assert_allclose(hidden[:, 0], full[index, length + t], atol=1e-5)


def test_writes_past_the_end_are_dropped():
    model, _ = tiny_model()
    cache = model.empty_cache(2, 4).replace(length=jnp.array([3, 4]))
    new = jnp.ones((3, 2, 2, 2, 16))
    written = cache_lib.append(cache, new, new)
    assert float(jnp.sum(written.keys)) == 3 * 2 * 16  # one slot of row 0, all layers and heads
