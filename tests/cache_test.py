"""Rewinding, poisoned slots, and block boundaries of the cache."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entropy_rl.model import cache as cache_lib
from entropy_rl.model import rewind
from tests.helpers import spoil, tiny_model

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


def segments(monkeypatch, slots):
    """Makes caches of many small segments."""
    monkeypatch.setattr(cache_lib, "SEGMENT_SLOTS", slots)
    monkeypatch.setattr(cache_lib, "SEGMENT_BYTES", 1)


@pytest.mark.parametrize("slots", [1, 3, 64])
def test_segments_change_nothing(setting, slots, monkeypatch):
    model, params, tokens, positions, apply, full = setting
    segments(monkeypatch, slots)
    cache = model.empty_cache(3, SIZE)
    assert len(cache.layers[0].keys) == (1 if slots == 64 else 5)
    _, cache = apply(params, tokens[:, :25], positions[:, :25], cache)
    hidden, cache = apply(params, tokens[:, 25:30], positions[:, 25:30], cache)
    np.testing.assert_allclose(hidden, full[:, 25:30], atol=1e-5)
    hidden, _ = feed(setting, cache, tokens[:, 30:])
    np.testing.assert_allclose(hidden, full[:, 30:], atol=1e-5)


@given(st.integers(1, 5000), st.integers(1, 10**8))
def test_segment_sizes(slots, slot_bytes):
    sizes = cache_lib.segment_sizes(slots, slot_bytes)
    assert sum(sizes) == slots
    assert min(sizes) > 0
    assert len(sizes) <= cache_lib.MAX_SEGMENTS


def test_rewind_then_continue_equals_fresh_forward(setting):
    """Rows are rewound to different lengths, what lies behind is NaN, and other tokens follow."""
    model, params, tokens, positions, apply, _ = setting
    _, cache = apply(params, tokens, positions, model.empty_cache(3, SIZE))
    keep = jnp.array([5, 17, 39])
    cache = rewind(cache, keep)
    cache = spoil(cache, keep)
    fresh = jax.random.randint(jax.random.key(2), (3, 1), 0, 300)
    hidden, cache = apply(params, fresh, cache.length[:, None], cache)
    assert cache.length.tolist() == [6, 18, 40]
    for row, length in enumerate(keep.tolist()):
        whole = jnp.concatenate([tokens[row, :length], fresh[row]])[None]
        want = apply(params, whole, jnp.arange(length + 1)[None])[0]
        np.testing.assert_allclose(hidden[row, 0], want[0, -1], atol=1e-5)


@pytest.mark.parametrize("value", [jnp.nan, jnp.inf, 1e30])
def test_poisoned_slots_change_not_one_bit(setting, value, monkeypatch):
    model, params, tokens, positions, apply, _ = setting
    segments(monkeypatch, 3)
    _, clean = apply(params, tokens[:, :20], positions[:, :20], model.empty_cache(3, SIZE))
    clean = rewind(clean, jnp.array([20, 4, 11]))
    dirty = spoil(clean, clean.length, value)
    step = tokens[:, 20:21], clean.length[:, None]
    np.testing.assert_array_equal(apply(params, *step, clean)[0], apply(params, *step, dirty)[0])


def test_neighbours_change_not_one_bit(setting, monkeypatch):
    """Whether a row is read in place or gathered depends on its neighbours' lengths, and changes nothing."""
    model, params, tokens, positions, apply, _ = setting
    segments(monkeypatch, 3)
    tokens, positions = (jnp.tile(x, (7, 1)) for x in (tokens, positions))
    _, cache = apply(params, tokens, positions, model.empty_cache(21, SIZE))
    step = tokens[:, -1:], jnp.full((21, 1), 30)
    want = apply(params, *step, rewind(cache, jnp.full(21, 30)))[0][0]
    for others in (0, 2, 7, 39):
        length = jnp.full(21, others).at[jnp.array([0, 5])].set(30)
        np.testing.assert_array_equal(apply(params, *step, rewind(cache, length))[0][0], want)


def test_rewind_never_lengthens():
    model, _ = tiny_model()
    cache = model.empty_cache(2, 8).replace(length=jnp.array([3, 5]))
    assert rewind(cache, jnp.array([4, 2])).length.tolist() == [3, 2]


def test_rows_start_as_copies_of_prompts(setting, monkeypatch):
    model, params, tokens, positions, apply, full = setting
    stored = model.apply(params, tokens[:, :24], positions[:, :24], keep=True)[1]
    assert stored.length.tolist() == [24] * 3
    stored = rewind(stored, jnp.array([24, 10, 3]))
    segments(monkeypatch, 5)
    prompt = jnp.array([2, 0, 0, 1])
    rows = jnp.array([0, 3, 2, 1, 4])  # the last one is past the end
    cache = spoil(model.empty_cache(4, SIZE), jnp.zeros(4, jnp.int32))
    cache = cache_lib.copy_rows(cache, rows, stored, jnp.append(prompt[rows[:4]], 0))
    assert cache.length.tolist() == [3, 24, 24, 10]
    for _ in range(8):
        step = jnp.take_along_axis(tokens[prompt], cache.length[:, None], 1)
        before = cache.length
        hidden, cache = apply(params, step, before[:, None], cache)
        np.testing.assert_allclose(hidden[:, 0], full[prompt, before], atol=1e-5)


def test_writes_past_the_end_are_dropped(setting):
    model, params, tokens, _, apply, _ = setting
    cache = model.empty_cache(2, 4).replace(length=jnp.array([3, 4]))
    written = apply(params, tokens[:2, :1], cache.length[:, None], cache)[1]
    used = jax.tree.map(lambda x: int(jnp.sum(x != 0)), written.layers)
    assert set(jax.tree.leaves(used)) == {2 * 16}  # one slot of row 0, in every layer
