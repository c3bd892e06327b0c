"""R3: ranking against a NumPy oracle, the buffer against a list, mixing and reflection."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from entropy_rl.methods.r3 import (
    ReplayBuffer,
    Stored,
    choose_reflections,
    entropy_peak,
    length_bonus,
    mix_group,
    ranking_rewards,
    reflection_text,
)
from entropy_rl.objectives.recipe import Replay
from entropy_rl.rollout.replaying import ExtraRow, Replayer, regroup
from entropy_rl.types import ABSENT, ERASED, FRESH, REPLAYED

G, T = 5, 6


def test_ranking_by_hand():
    # One token of five makes the peak (p = .2 of 5). Peaks .9 .8 .5, means .3 .4 .5: 0 beats 1 and 2, 1 beats 2.
    entropy = jnp.array([[0.9, 0.3, 0.1, 0.1, 0.1], [0.8, 0.3, 0.3, 0.3, 0.3], [0.5, 0.5, 0.5, 0.5, 0.5]])
    mask = jnp.ones((3, 5), bool)
    np.testing.assert_allclose(entropy_peak(entropy, mask, top_fraction=0.2), [0.9, 0.8, 0.5], rtol=1e-6)
    np.testing.assert_allclose(ranking_rewards(entropy, mask), [0.5, 0.25, 0.0], atol=1e-6)


def numpy_ranking(entropy, mask, fraction, max_reward):
    rows = [i for i in range(len(mask)) if mask[i].any()]
    peak, mean = {}, {}
    for i in rows:
        values = np.sort(entropy[i][mask[i]].astype(np.float64))[::-1]
        peak[i], mean[i] = values[: max(1, int(fraction * len(values) + 1e-9))].mean(), values.mean()
    score = {i: sum(peak[i] > peak[j] and mean[i] < mean[j] for j in rows) for i in rows}
    rewards = np.zeros(len(mask))
    for i in rows:
        places = [k for k, j in enumerate(sorted(rows, key=lambda j: -score[j])) if score[j] == score[i]]
        rewards[i] = max_reward * (1 - np.mean(places) / (len(rows) - 1)) if len(rows) > 1 else 0.0
    return rewards


# Multiples of 1/8 add up exactly in f32, so equal means are equal for us and for the oracle.
grid = st.lists(st.integers(0, 16).map(lambda i: i / 8), min_size=G * T, max_size=G * T)


@settings(max_examples=40, deadline=None)
@given(grid, st.lists(st.sampled_from([0, 1, 2, 4]), min_size=G, max_size=G), st.sampled_from([0.2, 0.5, 1.0]))
def test_ranking_against_numpy(values, lengths, fraction):
    entropy = np.array(values, np.float32).reshape(G, T)
    mask = np.arange(T)[None] < np.array(lengths)[:, None]
    got = np.asarray(ranking_rewards(jnp.asarray(entropy), jnp.asarray(mask), top_fraction=fraction))
    np.testing.assert_allclose(got, numpy_ranking(entropy, mask, fraction, 0.5), atol=1e-6)
    assert got.min() >= 0
    assert got.max() <= 0.5
    noisy = np.where(mask, entropy, 99.0).astype(np.float32)  # padding means nothing
    np.testing.assert_array_equal(got, ranking_rewards(jnp.asarray(noisy), jnp.asarray(mask), top_fraction=fraction))


def rank_of(peak, mean):
    """Rewards of responses of five tokens: one at ``peak``, the others such that the mean is ``mean``; exact in f32."""
    rest = (5 * mean - peak) / 4
    entropy = jnp.asarray(np.stack([peak, rest, rest, rest, rest], axis=1), jnp.float32)
    mask = jnp.ones(entropy.shape, bool)
    return np.asarray(ranking_rewards(entropy, mask, top_fraction=0.2, max_reward=1.0))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=6))
def test_ranks_go_by_the_order_of_peaks_and_means_alone(pairs):
    """An increasing map of the peaks and another of the means leave the rewards; and pairs are as defined."""
    peaks, means = np.array(pairs, np.float64).T
    got = rank_of(4 + peaks, 1 + means / 4)
    np.testing.assert_array_equal(got, rank_of(4 + peaks**2, 1 + means**2 / 4))
    beats = (peaks[:, None] > peaks[None]) & (means[:, None] < means[None])
    for i, j in itertools.permutations(range(len(pairs)), 2):
        if beats[i, j]:
            assert got[i] > got[j]
        alone = rank_of(4 + peaks[[i, j]], 1 + means[[i, j]] / 4)
        assert (alone[0] > alone[1]) == beats[i, j]


def test_length_bonus():
    got = length_bonus(jnp.array([2.0, 10.0, 12.0, 2.0]), jnp.array([True, True, True, False]), max_length=10)
    np.testing.assert_allclose(got, [0.8, 0, 0, 0], rtol=1e-6)


def stored(prompt, reward, size=2, tag=0):
    return Stored(prompt, np.full(size, tag, np.int32), reward, reward >= 1)


items = st.lists(st.tuples(st.integers(0, 3), st.booleans(), st.integers(1, 7)), max_size=40)


@settings(max_examples=60, deadline=None)
@given(items, st.integers(1, 30), st.integers(1, 3))
def test_buffer_is_bounded_exact_and_oldest_out(added, max_tokens, per_prompt):
    buffer = ReplayBuffer(max_tokens=max_tokens, per_prompt=per_prompt)
    kept: list[Stored] = []
    for tag, (prompt, is_correct, size) in enumerate(added):
        new = stored(prompt, float(is_correct), size, tag)
        buffer.add(new)
        if size <= max_tokens:
            kept.append(new)
            own = [x for x in kept if (x.prompt_id, x.is_correct) == (prompt, is_correct)]
            if len(own) > per_prompt:
                kept.remove(own[0])
            while sum(len(x.tokens) for x in kept) > max_tokens:
                kept.pop(0)
        assert buffer.num_tokens == sum(len(x.tokens) for x in kept) <= max_tokens
    copy = ReplayBuffer(max_tokens=max_tokens, per_prompt=per_prompt)
    copy.restore(buffer.state())
    for one in (buffer, copy):
        assert len(one) == len(kept)
        for prompt in range(4):
            for verdict in (True, False):
                want = [x.tokens.tolist() for x in kept if (x.prompt_id, x.is_correct) == (prompt, verdict)]
                assert [x.tokens.tolist() for x in one.find(prompt, is_correct=verdict)] == want
            own = [float(c) for p, c, _ in added if p == prompt]
            assert one.mean_reward(prompt) == (np.mean(own) if own else None)
    more = stored(0, 1.0, 1, 99)
    buffer.add(more)
    copy.add(more)
    for name, array in buffer.state().items():
        np.testing.assert_array_equal(array, copy.state()[name], err_msg=name)


def test_mixing():
    good, bad = [stored(0, 1.0, tag=i) for i in range(3)], [stored(0, 0.0, tag=9)]
    rng = np.random.default_rng(0)
    assert mix_group([True, False], good, bad, count=2, rng=rng) == []
    added = mix_group([False, False], good, bad, count=2, rng=rng)
    assert len(added) == 2
    assert all(x.is_correct for x in added)
    assert mix_group([True, True], good, bad, count=2, rng=rng) == bad
    assert mix_group([False], [], bad, count=2, rng=rng) == []


def test_reflection_is_off_in_the_first_epoch_and_takes_the_hardest():
    replayer = Replayer(Replay(reflections=1, template="{problem}|{failure}|"))
    for prompt, rewards in ((1, [0, 1, 1]), (2, [0, 0, 1]), (3, [0, 0])):
        for reward in rewards:
            replayer.buffer.add(stored(prompt, float(reward), tag=prompt))
    ask = lambda epoch: replayer.reflections(
        [1, 2, 3, 4], list("abcd"), lambda t: str(t[0]), epoch=epoch, rng=np.random.default_rng(0)
    )
    assert ask(0) == []
    assert ask(1) == [(2, "c|3|", 1)]
    chosen = choose_reflections([1, 2, 3, 4], replayer.buffer, threshold=0.5, count=9, rng=np.random.default_rng(0))
    assert [index for index, _ in chosen] == [2, 1]


def test_templates():
    assert reflection_text("{problem}{x} / {failure}", "p{failure}", "f{problem}") == "p{failure}{x} / f{problem}"
    with pytest.raises(ValueError, match=r"no place for \{failure\}"):
        reflection_text("{problem}", "p", "f")


def test_regrouped_rows():
    arrays = {
        "tokens": np.array([[1, 5, 6, 0], [1, 7, 0, 0], [2, 2, 8, 0], [2, 2, 9, 9]], np.int32),
        "prompt_length": np.array([1, 1, 2, 2], np.int32),
        "length": np.array([3, 2, 3, 4], np.int32),
        "response_mask": np.array([[0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 1, 1]], bool),
        "origin": np.zeros(4, np.int32),
        "rewards": np.zeros(4, np.float32),
        "correct": np.zeros(4, bool),
        "stopped": np.ones(4, bool),
        "entropy": np.ones((4, 4), np.float32),
    }
    extra = [
        [ExtraRow(np.array([4, 3]), 0, REPLAYED, 1.0, True)],
        [ExtraRow(np.array([8, 6]), 1, ERASED), ExtraRow(np.array([3]), 0, REPLAYED, 1.0, True, False)],
    ]
    wide = regroup(arrays, extra, samples=2, places=2)
    np.testing.assert_array_equal(wide["origin"], [FRESH, FRESH, REPLAYED, ABSENT, FRESH, FRESH, ERASED, REPLAYED])
    np.testing.assert_array_equal(wide["tokens"][2], [1, 4, 3, 0])
    np.testing.assert_array_equal(wide["response_mask"][6], [0, 0, 0, 1])
    np.testing.assert_array_equal(wide["tokens"][6], [2, 2, 8, 6])
    np.testing.assert_array_equal(wide["length"], [3, 2, 3, 1, 3, 4, 4, 3])
    np.testing.assert_array_equal(wide["prompt_length"], [1] * 4 + [2] * 4)
    assert not wide["response_mask"][3].any()
    assert not wide["entropy"][2].any()
    assert not wide["stopped"][7]


def test_ranking_is_jittable_over_groups():
    entropy = jax.random.uniform(jax.random.key(0), (3, G, T))
    mask = jnp.ones((3, G, T), bool)
    got = jax.jit(jax.vmap(lambda h, m: ranking_rewards(h, m)))(entropy, mask)
    assert got.shape == (3, G)
