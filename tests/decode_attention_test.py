"""Attention of one token per row against float64, for every implementation; the TPU kernel is interpreted."""

import itertools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from scipy import special

from pallas_kernels import decode_attention
from pallas_kernels.decode_attention import pallas_tpu, tiles

IMPLEMENTATIONS = ("reference", "xla", "pallas_tpu")
BLOCK = 128
# Empty, one slot, about one block, several blocks with a tail, and the whole window.
LENGTHS = (0, 1, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK + 3, 300)
SLOTS = 300


def oracle(query, keys, values, length):
    """float64, head by head over live slots only."""
    rows, heads, size = query.shape
    group = heads // keys.shape[1]
    output, logsumexp = np.zeros(query.shape), np.full((rows, heads), -1e30)
    for b in range(rows):
        for n in range(heads) if length[b] else ():
            k, v = keys[b, n // group, :, : length[b]], values[b, n // group, : length[b]]
            scores = query[b, n].astype(np.float64) @ k.astype(np.float64) / np.sqrt(size)
            logsumexp[b, n] = special.logsumexp(scores)
            output[b, n] = special.softmax(scores) @ v.astype(np.float64)
    return output, logsumexp


def case(length=LENGTHS, group=2, kv_heads=2, size=16, slots=SLOTS, poison=None, seed=0):
    """(query, keys, values, length), with ``poison`` in every slot that is not live."""
    rng = np.random.default_rng(seed)
    rows = len(length)
    query = rng.normal(0, 2, (rows, kv_heads * group, size)).astype(np.float32)
    keys = rng.normal(0, 1, (rows, kv_heads, size, slots)).astype(np.float32)
    values = rng.normal(0, 1, (rows, kv_heads, slots, size)).astype(np.float32)
    if poison is not None:
        for b, live in enumerate(length):
            keys[b, :, :, live:] = values[b, :, live:] = poison
    return query, keys, values, np.array(length, np.int32)


def run(inputs, implementation, dtype=None, **options):
    options = {"block": BLOCK, "interpret": True} | options if implementation == "pallas_tpu" else {}
    query, keys, values, length = inputs
    caches = (jnp.asarray(x, dtype) for x in (query, keys, values))
    return decode_attention(*caches, jnp.asarray(length), implementation=implementation, **options)


def assert_close(found, inputs, atol=2e-5):
    for got, want in zip(found, oracle(*inputs), strict=True):
        assert got.dtype == jnp.float32
        np.testing.assert_allclose(got, want, atol=atol, rtol=1e-6)


def test_a_number_by_hand():
    """H = 4, so scores are q k / 2 = 0 and ln 3, weights 1/4 and 3/4 of the values 2 and 6; the third slot is dead."""
    query = np.array([[[2.0, 0, 0, 0]]], np.float32)
    keys = np.zeros((1, 1, 4, 3), np.float32)
    keys[0, 0, 0] = [0, np.log(3), 50]
    values = np.full((1, 1, 3, 4), [[2.0], [6.0], [1000.0]], np.float32)
    for implementation in IMPLEMENTATIONS:
        output, logsumexp = run((query, keys, values, np.array([2], np.int32)), implementation)
        np.testing.assert_allclose(output, np.full((1, 1, 4), 5.0), rtol=1e-6)
        np.testing.assert_allclose(logsumexp, [[np.log(4)]], rtol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("kv_heads", "group"), [(2, 1), (2, 2), (1, 4), (2, 7), (1, 8)])
def test_lengths_and_groups(implementation, kv_heads, group):
    inputs = case(group=group, kv_heads=kv_heads)
    assert_close(run(inputs, implementation), inputs)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("size", [64, 128])
def test_head_sizes_and_whole_blocks(implementation, size):
    inputs = case((256, 128, 5), size=size, slots=256)
    assert_close(run(inputs, implementation), inputs)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_bfloat16(implementation):
    inputs = case(size=128)
    rounded = tuple(np.asarray(jnp.asarray(x, jnp.bfloat16), np.float32) for x in inputs[:3])
    assert_close(run(inputs, implementation, jnp.bfloat16), (*rounded, inputs[3]), atol=1e-2)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_float64_stays(implementation):
    with jax.enable_x64(True):
        inputs = case()
        found = run(inputs, implementation, jnp.float64)
        for got, want in zip(found, oracle(*inputs), strict=True):
            assert got.dtype == jnp.float64
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
def test_dead_slots_change_not_one_bit(implementation, poison):
    clean, dirty = (run(case(poison=value), implementation) for value in (None, poison))
    for got, want in zip(dirty, clean, strict=True):
        np.testing.assert_array_equal(got, want)
    assert_close(dirty, case())


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_empty_rows(implementation):
    output, logsumexp = run(case((0, 0), poison=np.nan), implementation)
    assert not np.any(output)
    np.testing.assert_array_equal(logsumexp, np.full((2, 4), np.float32(-1e30)))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_long_window(implementation):
    """More than 32,768 slots, blocks of 2,048 and a tail."""
    inputs = case((33_000, 40), size=8, kv_heads=1, slots=33_024, poison=np.nan)
    assert_close(run(inputs, implementation, block=2048), inputs)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_halves_merge(implementation):
    """Slots [0, 140) and [140, 300) of one window; some rows have nothing in the second half, one in neither."""
    query, keys, values, length = case()
    first = run((query, keys[..., :140], values[:, :, :140], np.minimum(length, 140)), implementation)
    second = run((query, keys[..., 140:], values[:, :, 140:], np.maximum(length - 140, 0)), implementation)
    logsumexp = np.logaddexp(first[1], second[1])
    output = sum(np.exp(lse - logsumexp)[..., None] * out for out, lse in (first, second))
    want, want_lse = oracle(query, keys, values, length)
    np.testing.assert_allclose(output, want, atol=2e-5)
    np.testing.assert_allclose(logsumexp[length > 0], want_lse[length > 0], atol=2e-5)
    assert np.all(logsumexp[length == 0] < -0.9e30)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rows_are_independent_of_their_neighbours(implementation):
    """The same number of rows, other neighbours, longer and shorter: not one bit differs."""
    query, keys, values, length = case()
    other = case((300, 1, 0, 300, 7, 300, 0), seed=1, poison=np.nan)
    found = run((query, keys, values, length), implementation)
    for row in range(len(length)):
        mixed = [np.array(x) for x in other]
        for array, own in zip(mixed, (query, keys, values, length), strict=True):
            array[row] = own[row]
        for got, want in zip(run(mixed, implementation), found, strict=True):
            np.testing.assert_array_equal(got[row], want[row])


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_lengths_are_clipped(implementation):
    query, keys, values, _ = case((0, 0))
    found = run((query, keys, values, np.array([-3, 1000], np.int32)), implementation)
    assert_close(found, (query, keys, values, np.array([0, SLOTS], np.int32)))


@pytest.mark.parametrize("size", [16, 128])
@pytest.mark.parametrize("lengths", [LENGTHS, (0, 0, 0), (300, 0, 0, 1)], ids=["all", "empty", "holes"])
def test_tpu_kernel_has_no_races(lengths, size):
    """In memory that starts as NaN, rows in any order."""
    interpret = pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan", random_seed=1)
    inputs = case(lengths, size=size, poison=np.nan)
    assert_close(run(inputs, "pallas_tpu", interpret=interpret), inputs)
    from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # its only place

    assert not interpret_pallas_call.races.races_found


@pytest.mark.parametrize("lengths", [(1000, 3, 130, 128), (3, 1000, 0, 129), (129, 1000), (1000, 129), (0, 0, 0)])
def test_tpu_kernel_reads_live_blocks_only(lengths, monkeypatch):
    """A step whose block is not the last step's is a transfer. Beyond live blocks: one per empty row, and one."""
    maps = []
    spec = pallas_tpu.pl.BlockSpec
    monkeypatch.setattr(pallas_tpu.pl, "BlockSpec", lambda shape, index: maps.append(index) or spec(shape, index))
    pallas_tpu.decode_attention.clear_cache()
    run(case(lengths, slots=1000), "pallas_tpu")
    steps = max(1, -(-max(lengths) // BLOCK))
    live = sum(-(-length // BLOCK) for length in lengths)
    for index in maps[1:3]:
        blocks = [tuple(map(int, index(b, i, np.array(lengths)))) for b in range(len(lengths)) for i in range(steps)]
        transfers = 1 + sum(this != last for last, this in itertools.pairwise(blocks))
        assert transfers <= live + lengths.count(0) + 1


def test_unmeasured_kernels_are_not_chosen():
    inputs = case()
    for got, want in zip(run(inputs, "auto"), run(inputs, "xla"), strict=True):
        np.testing.assert_array_equal(got, want)
    assert tiles.measured_implementation("v6e", 8, 4, 128, "bfloat16") == "xla"


@pytest.mark.parametrize("chip", ["v5e", "v5p", "v6e", "a chip of next year"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_blocks_fit(chip, dtype):
    """Two buffers of keys and values take at most half of VMEM's share, in whole lanes."""
    for kv_heads in (1, 2, 8, 32):
        for size in (64, 128, 256):
            block = tiles.tpu_block(chip, kv_heads, size, dtype)
            assert block % 128 == 0
            assert 4 * block * kv_heads * size * jnp.dtype(dtype).itemsize <= tiles.VMEM_LIMIT // 2


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"implementation": "fast"}, "not one of"),
        ({"query": jnp.zeros((2, 3, 8))}, "evenly"),
        ({"keys": jnp.zeros((2, 2, 16, 8))}, "are not"),
        ({"length": jnp.zeros(3, jnp.int32)}, "one length"),
        ({"keys": jnp.zeros((2, 2, 8, 0)), "values": jnp.zeros((2, 2, 0, 8))}, "no slots"),
        ({"block": 100}, "multiple of 128"),
        ({"implementation": "pallas_tpu", "keys": jnp.zeros((2, 2, 8, 16), jnp.bfloat16)}, "f32 or bf16"),
    ],
)
def test_wrong_input(change, words, monkeypatch):
    good = {"query": jnp.zeros((2, 4, 8)), "keys": jnp.zeros((2, 2, 8, 16)), "values": jnp.zeros((2, 2, 16, 8)),
            "length": jnp.zeros(2, jnp.int32)}  # fmt: skip
    arguments = good | change
    arrays = [arguments.pop(name) for name in good]
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as users run it
    with pytest.raises(ValueError, match=words):
        decode_attention(*arrays, **arguments)
