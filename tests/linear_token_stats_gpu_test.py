"""The Hopper kernel of the token statistics: lowered for CUDA, and its numbers, interpreted or on a GPU.

Lowering runs all that JAX does in Python (layouts, transfers, the limit of shared memory) and needs no GPU; PTX and
machine code are made where the program is loaded. The interpreter compiles every block's threads anew, which is
nearly all of its time: few blocks, and XLA's optimizations off (conftest.py).
"""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.pallas.mosaic_gpu.interpret import interpret_pallas_call  # its only place in 0.10
from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams

from pallas_kernels import linear_token_stats
from pallas_kernels.linear_token_stats import pallas_gpu, tiles
from pallas_kernels.linear_token_stats.types import RowState, Settings
from tests.linear_token_stats_test import OUTPUTS, case, oracle, oracle_gradient

on_a_gpu = jax.default_backend() == "gpu"
INTERPRET = not on_a_gpu and InterpretGPUParams(
    detect_races=True, out_of_bounds_reads="uninitialized", uninitialized_memory="nan"
)


def rounded_case(*args, **options):
    """``case`` in numbers that bfloat16 holds, so that the oracle sees what the kernel sees."""
    hidden, weight, targets = case(*args, **options)
    return *(np.asarray(x.astype(jnp.bfloat16), np.float32) for x in (hidden, weight)), targets


def run(hidden, weight, targets, layout="DV", dtype=jnp.bfloat16, **options):
    w = weight if layout == "DV" else weight.T
    return linear_token_stats(
        jnp.asarray(hidden, dtype), jnp.asarray(w, dtype), jnp.asarray(targets), weight_layout=layout,
        with_varentropy=True, implementation="pallas_gpu", interpret=INTERPRET, **options,
    )  # fmt: skip


@pytest.fixture
def few_blocks(monkeypatch):
    """Small tiles, two stages, and splits of four vocabulary tiles."""
    monkeypatch.setattr(tiles, "GPU_UNTUNED", (128, 128, 2))
    monkeypatch.setattr(tiles, "gpu_split_tiles", lambda row_tiles, vocab_tiles: min(4, vocab_tiles))


def assert_close(stats, inputs, **options):
    for name, expected in oracle(*inputs, **options).items():
        tolerance = 1e-4 if name == "varentropy" else 2e-5
        np.testing.assert_allclose(getattr(stats, name), expected, atol=tolerance, err_msg=name)


@pytest.mark.parametrize(
    ("rows", "width", "vocab", "layout", "dtype"),
    [(7, 16, 650, "DV", "bfloat16"), (130, 128, 512, "VD", "bfloat16"), (128, 100, 33, "DV", "float16")],
    ids=["the last split half empty", "two row tiles, several steps", "a small vocabulary"],
)
def test_numbers(few_blocks, rows, width, vocab, layout, dtype):
    inputs = rounded_case(rows, width, vocab, scale=0.5)
    options = dict(temperature=0.8, soft_cap=15.0)
    assert_close(run(*inputs, layout, dtype, **options), inputs, **options)
    assert on_a_gpu or not interpret_pallas_call.get_races().races_found


@pytest.mark.parametrize("offset", [-1000.0, 1000.0])
def test_far_from_zero(few_blocks, offset):
    """A width of ones shifts all logits: 1000 = 8 * 125 is exact in bfloat16."""
    hidden, weight, targets = rounded_case(6, 8, 300, scale=0.5)
    hidden, weight = np.c_[hidden, np.full((6, 8), 8.0)], np.r_[weight, np.full((8, 300), offset / 64)]
    stats = run(hidden, weight, targets)
    for name, expected in oracle(hidden, weight, targets).items():
        if name != "varentropy":
            np.testing.assert_allclose(getattr(stats, name), expected, atol=2e-5 + 8 * 2**-24 * 1000, err_msg=name)


def test_one_hot_uniform_and_ties(few_blocks):
    vocab = 500
    weight = np.zeros((3, vocab), np.float32)
    weight[0, 499] = 60.0
    weight[2, [0, 250, 499]] = 40.0
    stats = run(np.eye(3, dtype=np.float32), weight, np.array([499, 7, 250], np.int32))
    np.testing.assert_allclose(stats.log_probs, [0, -np.log(vocab), -np.log(3)], atol=2e-6)
    np.testing.assert_allclose(stats.entropy, [0, np.log(vocab), np.log(3)], atol=2e-6)


def test_shards_merge(few_blocks):
    """Two shards of a vocabulary, where each row's target is outside one of them."""
    inputs = rounded_case(5, 16, 256)
    hidden, weight, targets = (jnp.asarray(x) for x in inputs)
    settings = Settings(tiles=(128, 128), stages=2, with_varentropy=True, interpret=INTERPRET)
    parts = [
        pallas_gpu.row_state(
            settings, hidden.astype(jnp.bfloat16), weight[:, i : i + 128].astype(jnp.bfloat16), targets - i
        )
        for i in (0, 128)
    ]
    m = jnp.maximum(parts[0].m, parts[1].m)
    state = RowState(m, *(a + b for a, b in zip(parts[0].moved_to(m)[1:], parts[1].moved_to(m)[1:], strict=True)))
    for found, (name, expected) in zip(state.stats(), oracle(*inputs).items(), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-4 if name == "varentropy" else 2e-5, err_msg=name)


def test_gradient(few_blocks):
    inputs = rounded_case(6, 16, 120)
    cotangents = {name: np.random.default_rng(i).normal(0, 1, 6) for i, name in enumerate(OUTPUTS)}

    def loss(h, w):
        stats = linear_token_stats(
            h, w, jnp.asarray(inputs[2]), with_varentropy=True, implementation="pallas_gpu", interpret=INTERPRET
        )
        return sum(jnp.sum(getattr(stats, n) * jnp.asarray(g, jnp.float32)) for n, g in cotangents.items())

    found = jax.grad(loss, (0, 1))(*(jnp.asarray(x, jnp.bfloat16) for x in inputs[:2]))
    for got, want in zip(found, oracle_gradient(*inputs, cotangents), strict=True):
        assert np.linalg.norm(np.asarray(got, np.float64) - want) <= 4e-3 * np.linalg.norm(want)


@pytest.mark.skipif(not on_a_gpu, reason="too much for the interpreter")
@pytest.mark.parametrize("layout", ["DV", "VD"])
@pytest.mark.parametrize("vocab", [1000, 32_000, 18_992])
def test_numbers_at_size(layout, vocab):
    inputs = rounded_case(300, 1024, vocab, scale=0.1)
    assert_close(run(*inputs, layout, soft_cap=30.0), inputs, soft_cap=30.0)
    first, second = (run(*inputs, layout) for _ in range(2))
    assert bool(jnp.all(first.entropy == second.entropy))


def lowered(rows, width, vocab, layout, dtype=jnp.bfloat16, **options) -> str:
    """The program for CUDA, as text."""
    weight = (width, vocab) if layout == "DV" else (vocab, width)
    shapes = [((rows, width), dtype), (weight, dtype), ((rows,), jnp.int32)]

    def stats(h, w, y):
        return linear_token_stats(
            h, w, y, weight_layout=layout, implementation="pallas_gpu", chip="h100", **options
        ).entropy

    traced = jax.jit(stats).trace(*(jax.ShapeDtypeStruct(*shape) for shape in shapes))
    return traced.lower(lowering_platforms=("cuda",)).as_text()


def assert_lowered(text: str, is_padded: bool):
    """One kernel; the weight, its last operand, is an argument of the program or was padded."""
    [operands] = re.findall(r"custom_call @mosaic_gpu_v2\((.*?)\)", text)
    assert operands.endswith("%arg1") != is_padded


@pytest.mark.parametrize(
    ("rows", "width", "vocab", "layout", "options", "is_padded"),
    [
        (32_768, 4096, 151_936, "DV", {}, False),
        (1000, 2560, 129_920, "VD", dict(soft_cap=30.0, with_varentropy=True), False),
        (3, 1024, 18_992, "DV", {}, False),  # an eighth of 151,936: no multiple of 64
        (300, 1024, 1000, "VD", {}, False),
        (300, 1024, 1000, "DV", {}, True),
        (300, 100, 32_000, "DV", {}, True),
    ],
)
def test_lowering(rows, width, vocab, layout, options, is_padded):
    assert_lowered(lowered(rows, width, vocab, layout, **options), is_padded)


@pytest.mark.slow
@pytest.mark.parametrize("with_varentropy", [False, True])
@pytest.mark.parametrize("soft_cap", [None, 30.0])
@pytest.mark.parametrize("layout", ["DV", "VD"])
@pytest.mark.parametrize("vocab", [1000, 32_000, 129_920, 151_936])
@pytest.mark.parametrize("width", [1024, 2560, 4096])
def test_lowering_everywhere(width, vocab, layout, soft_cap, with_varentropy):
    text = lowered(1000, width, vocab, layout, soft_cap=soft_cap, with_varentropy=with_varentropy)
    assert_lowered(text, is_padded=vocab == 1000 and layout == "DV")


def test_other_dtypes_are_refused():
    with pytest.raises(ValueError, match="bfloat16 or float16"):
        lowered(8, 64, 100, "DV", dtype=jnp.float32)


@pytest.mark.parametrize(("row_tiles", "vocab_tiles"), [(256, 594), (1, 594), (3, 1), (40, 7), (1000, 125)])
def test_splits_fill_the_blocks(row_tiles, vocab_tiles):
    """Waves of blocks take at most 5 % longer than with all of them busy, where there is work enough."""
    size = tiles.gpu_split_tiles(row_tiles, vocab_tiles)
    splits = -(-vocab_tiles // size)
    assert 1 <= size <= vocab_tiles
    time = -(-row_tiles * splits // tiles.GPU_BLOCKS) * size
    if row_tiles >= tiles.GPU_BLOCKS:
        assert time <= 1.05 * row_tiles * vocab_tiles / tiles.GPU_BLOCKS
    assert tiles.gpu_tiles("a chip of next year", 2560, 32_000, "bfloat16") == tiles.GPU_UNTUNED
