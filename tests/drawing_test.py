"""What is drawn: exact truncation sets, the right frequencies, no forbidden token."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from entropy_rl.rollout.drawing import categorical, check_sampling_options, draw, truncate, uniforms


def kept(logits, **options):
    return np.isfinite(np.asarray(truncate(jnp.asarray(logits), **options)))


def sorted_nucleus(logits, top_p):
    """The textbook set by sorting."""
    p = special.softmax(logits.astype(np.float64))
    order = np.argsort(-p, kind="stable")
    count = np.searchsorted(np.cumsum(p[order]), top_p) + 1
    mask = np.zeros(len(p), bool)
    mask[order[:count]] = True
    return mask


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10**6), st.integers(1, 60), st.floats(0.05, 0.99), st.floats(0.01, 0.9))
def test_truncation_sets(seed, top_k, top_p, min_p):
    logits = np.random.default_rng(seed).normal(0, 3, (2, 50)).astype(np.float32)
    for row, mask in zip(logits, kept(logits, top_k=top_k), strict=True):
        assert mask.sum() == min(top_k, 50)
        assert row[mask].min() >= (row[~mask].max() if (~mask).any() else -np.inf)
    for row, mask in zip(logits, kept(logits, top_p=top_p), strict=True):
        want = sorted_nucleus(row, top_p)
        assert abs(int(mask.sum()) - int(want.sum())) <= 1  # the edge itself is decided in f32
        assert row[mask].min() >= (row[~mask].max() if (~mask).any() else -np.inf)
    for row, mask in zip(logits, kept(logits, min_p=min_p), strict=True):
        p = special.softmax(row.astype(np.float64))
        assert np.all(mask[p > min_p * p.max() * 1.0001])
        assert not np.any(mask[p < min_p * p.max() * 0.9999])


def test_order_and_ties():
    logits = np.log(np.array([[0.4, 0.3, 0.2, 0.1]], np.float32))
    # After top-3 the mass is .444 .333 .222: a nucleus of .5 takes two.
    assert kept(logits, top_k=3, top_p=0.5).tolist() == [[True, True, False, False]]
    assert kept(np.zeros((1, 4), np.float32), top_k=2).all()  # equal logits stay together
    assert kept(np.array([[-0.0, 0.0, -1.0]], np.float32), top_k=1).tolist()[0][2] is False


@pytest.mark.parametrize("vocab", [3, 128, 129, 1000])
def test_frequencies(vocab):
    """Chi-square of 200,000 draws; fails by chance once in 10,000."""
    logits = np.random.default_rng(0).normal(0, 2, vocab).astype(np.float32)
    count = 200_000
    noise = uniforms(jax.random.split(jax.random.key(7), count), jnp.zeros(count, int))
    tokens = jax.jit(lambda u: categorical(u, jnp.broadcast_to(jnp.asarray(logits), (u.shape[0], vocab))))
    drawn = np.concatenate([np.asarray(tokens(part)) for part in jnp.split(noise, 20)])
    observed = np.bincount(drawn, minlength=vocab)
    expected = special.softmax(logits.astype(np.float64)) * count
    rare = expected < 10
    observed = np.r_[observed[~rare], observed[rare].sum()]
    expected = np.r_[expected[~rare], expected[rare].sum()]
    keep = expected > 0
    assert stats.chisquare(observed[keep], expected[keep]).pvalue > 1e-4


def test_never_draws_what_is_forbidden():
    logits = jnp.full((2000, 300), -jnp.inf).at[:, 17].set(0.0).at[:, 299].set(-1.0)
    tokens = categorical(jax.random.uniform(jax.random.key(0), (2000, 2)), logits)
    assert set(np.asarray(tokens).tolist()) == {17, 299}


def test_log_prob_is_of_the_truncated_distribution():
    logits = jnp.log(jnp.array([[0.5, 0.25, 0.25]]))
    tokens, log_probs, _ = draw(jnp.array([[0.3, 0.6]]), logits, top_k=1)
    assert tokens.tolist() == [0]
    np.testing.assert_allclose(log_probs, [0.0], atol=1e-6)
    tokens, log_probs, _ = draw(jnp.array([[0.3, 0.6]]), logits, temperature=0.5)
    p = np.array([0.25, 0.0625, 0.0625]) / 0.375
    np.testing.assert_allclose(log_probs, np.log(p)[np.asarray(tokens)], atol=1e-6)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"temperature": -1.0}, "neither 0"),
        ({"top_k": 0}, "top_k"),
        ({"top_p": 0.0}, "top_p"),
        ({"min_p": 1.5}, "min_p"),
    ],
)
def test_wrong_options(options, words):
    with pytest.raises(ValueError, match=words):
        check_sampling_options(**({"temperature": 1.0, "top_k": None, "top_p": 1.0, "min_p": 0.0} | options))
