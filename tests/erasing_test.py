"""Erasing inside the sampler: what it leaves alone, what it erases, and that it ends."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl.learner import make_score
from entropy_rl.methods.e3rl import Erasing, RunningUncertainty, segment_ids, segment_uncertainty
from entropy_rl.parallel.mesh import make_mesh
from entropy_rl.rollout import make_sampler, sample, sampling
from entropy_rl.rollout.erasing import erased_attempts
from tests.helpers import prompt_batch, spoil, tiny_model

P, G, RESPONSE, SEGMENT = 4, 4, 24, 5
STOP = tuple(range(0, 300, 30))  # ten of 300 tokens end a response: rows of very different lengths
OPTIONS = dict(samples_per_prompt=G, max_response=RESPONSE, stop_tokens=STOP, slots=6)
ERASING = Erasing(SEGMENT, window=3, recorded_draws=7, kappa=0.0)


@pytest.fixture(scope="module")
def setting():
    model, params = tiny_model(2.5)
    return model, params, prompt_batch(P, 7, 300)


@functools.cache
def plain(setting_id):
    del setting_id
    model, params = tiny_model(2.5)
    return sample(model, params, prompt_batch(P, 7, 300), jax.random.key(1), **OPTIONS)


def statistics(erasing, mean, std=0.1):
    """As if every index had been seen with this mean and deviation."""
    count = erasing.num_segments(RESPONSE)
    ones = jnp.ones(count)
    return RunningUncertainty(ones, ones * mean, ones * (mean**2 + std**2), jnp.ones(()), jnp.full((), mean))


@pytest.fixture(scope="module")
def erased(setting):
    return sample(*setting, jax.random.key(1), erasing=ERASING, running=statistics(ERASING, 4.0), **OPTIONS)


def same(a, b):
    for name in ("tokens", "length", "sampler_log_probs", "raw_log_probs", "entropy", "stopped"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_without_estimate_or_with_infinite_kappa_it_is_the_plain_sampler(setting):
    want = plain(0)
    unknown = sample(*setting, jax.random.key(1), erasing=ERASING, **OPTIONS)
    same(unknown, want)
    assert not np.any(unknown.segments.erasures)
    assert np.any(unknown.segments.uncertainty)
    np.testing.assert_array_equal(unknown.segments.draws, want.response_mask.sum(1))
    off = sample(*setting, jax.random.key(1), erasing=Erasing(SEGMENT, kappa=float("inf")), **OPTIONS)
    same(off, want)
    assert off.segments is None
    high = sample(*setting, jax.random.key(1), erasing=ERASING, running=statistics(ERASING, 1e3), **OPTIONS)
    same(high, want)


def test_scores_are_those_of_the_pure_function(setting, erased):
    ids = segment_ids(erased.tokens, erased.response_mask, segment_length=SEGMENT)
    want = segment_uncertainty(
        -erased.raw_log_probs, ids, erased.response_mask, num_segments=ERASING.num_segments(RESPONSE), window=3
    )
    got, count = np.asarray(erased.segments.uncertainty), np.asarray(erased.segments.count)
    scored = np.arange(got.shape[1])[None] < count[:, None]
    np.testing.assert_allclose(got[scored], np.asarray(want)[scored], rtol=1e-5, atol=1e-5)
    lengths = np.asarray(erased.response_mask).sum(1)
    whole = -(-lengths // SEGMENT)
    cut = ~np.asarray(erased.stopped) & (lengths % SEGMENT > 0)  # cut by the limit: not scored
    np.testing.assert_array_equal(count, whole - cut)


def test_erased_are_those_above_the_threshold_and_it_ends(erased):
    s = jax.tree.map(np.asarray, erased.segments)
    assert s.erasures.sum() > 0
    assert s.erasures.max() <= ERASING.max_erasures
    accepted = np.arange(s.count.max())[None] < s.count[:, None]
    assert np.all((s.uncertainty <= s.threshold)[accepted] | (s.erasures == ERASING.max_erasures)[accepted])
    lengths = np.asarray(erased.response_mask).sum(1)
    assert np.all(s.draws <= (1 + ERASING.max_erasures) * ERASING.num_segments(RESPONSE) * SEGMENT)
    assert np.all(s.draws >= lengths)
    assert np.any(s.draws > lengths)
    np.testing.assert_array_equal((s.draws == lengths), s.erasures.sum(1) == 0)
    untouched = s.erasures.sum(1) == 0
    assert untouched.any()  # rows nothing was erased of are the plain sampler's
    np.testing.assert_array_equal(np.asarray(erased.tokens)[untouched], np.asarray(plain(0).tokens)[untouched])


def test_the_log_replays_the_row(erased):
    s = jax.tree.map(np.asarray, erased.segments)
    for row in range(P * G):
        response = np.asarray(erased.tokens[row])[np.asarray(erased.response_mask[row])]
        draws = int(s.draws[row])
        final: dict[int, int] = dict(zip(s.drawn_position[row, :draws], s.drawn_tokens[row, :draws], strict=True))
        assert [final[i] for i in range(len(response))] == response.tolist()
        attempts = erased_attempts(s.drawn_position[row], draws)
        assert len(attempts) == s.erasures[row].sum()
        assert sum(last - first for _, first, last in attempts) == draws - len(response)
        for start, first, last in attempts:
            assert start % SEGMENT == 0
            again = s.drawn_tokens[row, last : last + (last - first)]
            assert not np.array_equal(again, s.drawn_tokens[row, first:last])  # the stream does not repeat


def test_after_a_rewind_the_cache_is_that_of_the_kept_tokens(setting, erased):
    model, params, _ = setting
    rows = np.asarray(erased.segments.erasures).sum(1) > 0
    assert rows.any()
    log_probs, entropy = make_score(model, max_response=RESPONSE, temperature=1.0)(params, erased)
    mask = np.asarray(erased.response_mask) & rows[:, None]
    np.testing.assert_allclose(np.asarray(erased.raw_log_probs)[mask], np.asarray(log_probs)[mask], atol=1e-5)
    np.testing.assert_allclose(np.asarray(erased.entropy)[mask], np.asarray(entropy)[mask], atol=1e-5)


def test_rows_do_not_depend_on_slots_neighbours_or_devices(setting, erased):
    model, params, prompts = setting
    order = np.array([2, 0, 3, 1])
    options = dict(erasing=ERASING, running=statistics(ERASING, 4.0))
    moved = sample(model, params, jax.tree.map(lambda x: x[order], prompts), jax.random.key(1), **options, **OPTIONS)
    rows = (order[:, None] * G + np.arange(G)).reshape(-1)
    np.testing.assert_array_equal(moved.tokens, np.asarray(erased.tokens)[rows])
    for a, b in zip(jax.tree.leaves(moved.segments), jax.tree.leaves(erased.segments), strict=True):
        np.testing.assert_array_equal(a, np.asarray(b)[rows])
    sharded = make_sampler(
        model, make_mesh(devices=jax.devices()[:2]), samples_per_prompt=G, max_response=RESPONSE, stop_tokens=STOP,
        slots_per_device=6, erasing=ERASING,
    )(params, prompts, jax.random.key(1), statistics(ERASING, 4.0))  # fmt: skip
    np.testing.assert_array_equal(sharded.tokens, erased.tokens)
    np.testing.assert_array_equal(sharded.segments.erasures, erased.segments.erasures)


def test_group_statistics_erase_without_an_estimate(setting):
    live = Erasing(SEGMENT, window=3, kappa=0.0, baseline="group", score="entropy")
    rollout = sample(*setting, jax.random.key(1), erasing=live, **OPTIONS)
    s = jax.tree.map(np.asarray, rollout.segments)
    assert s.erasures.sum() > 0
    first_of_group = s.threshold.reshape(P, G, -1)[:, :, 0]
    assert np.any(first_of_group == 0)  # the first rows to get there have nobody to be compared with
    in_step = sample(*setting, jax.random.key(1), erasing=live, **OPTIONS | {"slots": P * G})
    s = jax.tree.map(np.asarray, in_step.segments)
    whole = np.asarray(in_step.response_mask).sum(1) >= SEGMENT
    assert np.all(s.threshold[whole, 0] > 0)  # they end their first segment at the same draw, and see each other
    row = int(np.flatnonzero(whole & (s.erasures[:, 0] == 0))[0])
    group = row // G * G
    others = np.delete(s.first_uncertainty[group : group + G, 0], row - group)  # its own attempt is left out
    np.testing.assert_allclose(s.threshold[row, 0], others.mean(), rtol=1e-5)  # kappa is 0, phi 1


def test_delimiters_cut_segments(setting):
    by_mark = Erasing(8, delimiters=tuple(range(1, 300, 4)), window=2, kappa=0.0, recorded_draws=2)
    rollout = sample(*setting, jax.random.key(1), erasing=by_mark, running=statistics(by_mark, 4.0), **OPTIONS)
    ids = segment_ids(rollout.tokens, rollout.response_mask, segment_length=8, delimiters=by_mark.delimiters)
    lengths = np.asarray(rollout.response_mask).sum(1)
    last = np.asarray(jnp.max(ids, axis=1)) + (lengths > 0)
    count = np.asarray(rollout.segments.count)
    assert np.all((count == last) | (count == last - 1))
    assert np.asarray(rollout.segments.erasures).sum() > 0


def test_memory_is_that_of_the_plain_sampler(setting):
    """Peak cache memory: the compiled program's temporaries differ by erasing's own few numbers only."""
    model, params, prompts = setting

    def temporaries(erasing):
        running = None if erasing is None else statistics(erasing, 4.0)
        run = jax.jit(lambda p, b, k: sample(model, p, b, k, erasing=erasing, running=running, **OPTIONS))
        return run.lower(params, prompts, jax.random.key(1)).compile().memory_analysis()

    bare, watching = temporaries(None), temporaries(Erasing(SEGMENT))
    layer = OPTIONS["slots"] * model.config.num_kv_heads * RESPONSE * 16 * 4
    grown = watching.temp_size_in_bytes - bare.temp_size_in_bytes
    assert grown < 0.5 * layer, (grown, layer)  # a copy of one layer's keys would be twice that


def test_statistics_of_another_size_are_refused(setting):
    with pytest.raises(ValueError, match="of 3 segments, a response has 5"):
        sample(*setting, jax.random.key(1), erasing=ERASING, running=RunningUncertainty.empty(3), **OPTIONS)


def test_the_cache_holds_what_was_accepted(erased):
    """At every draw the cache is as long as what is kept so far, and what is kept in the end is the response."""
    segments = jax.tree.map(np.asarray, erased.segments)
    for row in range(P * G):
        kept: list[int] = []
        for draw in range(int(segments.draws[row])):
            at = int(segments.drawn_position[row, draw])
            assert at == len(kept) or (at < len(kept) and at % SEGMENT == 0)
            kept = [*kept[:at], int(segments.drawn_tokens[row, draw])]
        mask = np.asarray(erased.response_mask[row])
        np.testing.assert_array_equal(kept, np.asarray(erased.tokens[row])[mask])


def test_what_was_rewound_is_never_read(setting, erased, monkeypatch):
    """Every slot behind a row's length is NaN after every draw: erased segments, ended rows, slots not yet used."""
    rewind, compiled = sampling.rewind, sampling._jitted_sample

    def poisoned(cache, length):
        cache = rewind(cache, length)
        return spoil(cache, cache.length)

    traced, observe = [], sampling.observe
    monkeypatch.setattr(sampling, "rewind", poisoned)
    monkeypatch.setattr(sampling, "observe", lambda *args, **kwargs: traced.append(1) or observe(*args, **kwargs))
    compiled.clear_cache()
    got = sample(*setting, jax.random.key(1), erasing=ERASING, running=statistics(ERASING, 4.0), **OPTIONS)
    assert np.sum(got.segments.erasures) > 10
    same(got, erased)
    sample(*setting, jax.random.key(2), erasing=ERASING, running=statistics(ERASING, 5.0), **OPTIONS)
    assert len(traced) == 1  # one program for every row, whatever it erases, and for every step
    compiled.clear_cache()
