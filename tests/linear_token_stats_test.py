"""Token statistics against float64, forward and backward, for every implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import PartitionSpec as P
from scipy import special

from pallas_kernels import linear_token_stats, token_stats
from pallas_kernels.chips import chip_name
from pallas_kernels.linear_token_stats import tiles

OUTPUTS = ("log_probs", "entropy", "logsumexp", "varentropy")


def oracle(hidden, weight, targets, temperature=1.0, soft_cap=None):
    """float64 statistics from full logits, weight [D, V]."""
    a = hidden.astype(np.float64) @ weight.astype(np.float64)
    z = (a if soft_cap is None else soft_cap * np.tanh(a / soft_cap)) / temperature
    lse = special.logsumexp(z, axis=-1)
    log_p = z - lse[:, None]
    p = np.exp(log_p)
    entropy = -np.sum(p * log_p, -1)
    return {
        "log_probs": log_p[np.arange(len(targets)), targets],
        "entropy": entropy,
        "logsumexp": lse,
        "varentropy": np.sum(p * log_p**2, -1) - entropy**2,
    }


def oracle_gradient(hidden, weight, targets, cotangents, temperature=1.0, soft_cap=None):
    """float64 (dh, dW) by the closed form."""
    h, w = hidden.astype(np.float64), weight.astype(np.float64)
    a = h @ w
    u = a if soft_cap is None else soft_cap * np.tanh(a / soft_cap)
    z = u / temperature
    log_p = z - special.logsumexp(z, axis=-1, keepdims=True)
    p = np.exp(log_p)
    entropy = -np.sum(p * log_p, -1, keepdims=True)
    var = np.sum(p * log_p**2, -1, keepdims=True) - entropy**2
    d = log_p + entropy
    g_lp, g_h, g_lse, g_var = (np.asarray(cotangents[name], np.float64)[:, None] for name in OUTPUTS)
    onehot = np.eye(weight.shape[1])[targets]
    gz = p * (g_lse - g_lp - g_h * d + g_var * (d**2 - var + 2 * d)) + g_lp * onehot
    ga = gz * (1.0 if soft_cap is None else 1 - (u / soft_cap) ** 2) / temperature
    return ga @ w.T, h.T @ ga


def case(rows, width, vocab, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(0, scale, (rows, width)).astype(np.float32)
    weight = rng.normal(0, 1, (width, vocab)).astype(np.float32)
    targets = rng.integers(0, vocab, rows).astype(np.int32)
    targets[: min(3, rows)] = [0, vocab // 2, vocab - 1][: min(3, rows)]
    return hidden, weight, targets


def run(hidden, weight, targets, layout="DV", **options):
    w = weight if layout == "DV" else weight.T
    return linear_token_stats(
        jnp.asarray(hidden), jnp.asarray(w), jnp.asarray(targets), weight_layout=layout, with_varentropy=True, **options
    )


@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize("layout", ["DV", "VD"])
@pytest.mark.parametrize(
    ("rows", "width", "vocab", "chunk"),
    [(7, 16, 1000, 256), (5, 24, 1000, 1000), (3, 8, 33, 4096), (16, 16, 130, 128), (2, 8, 1, 4)],
)
def test_forward(implementation, layout, rows, width, vocab, chunk):
    inputs = case(rows, width, vocab)
    stats = run(*inputs, layout, chunk_size=chunk, implementation=implementation)
    for name, expected in oracle(*inputs).items():
        tolerance = 1e-4 if name == "varentropy" else 2e-5
        np.testing.assert_allclose(getattr(stats, name), expected, atol=tolerance, err_msg=name)


@pytest.mark.parametrize("options", [{"temperature": 0.6}, {"soft_cap": 5.0}, {"temperature": 1.7, "soft_cap": 30.0}])
def test_temperature_and_cap(options):
    inputs = case(6, 16, 500, scale=2.0)
    stats = run(*inputs, chunk_size=128, **options)
    for name, expected in oracle(*inputs, **options).items():
        np.testing.assert_allclose(getattr(stats, name), expected, atol=2e-4 if name == "varentropy" else 2e-5)


@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize("offset", [-1000.0, 1000.0])
def test_large_offsets(implementation, offset):
    """A column of ones in the hidden state shifts every logit; tolerance 4 * 2^-24 * |z| on lse, none on the rest."""
    hidden, weight, targets = case(6, 16, 700)
    hidden, weight = np.c_[hidden, np.ones(6, np.float32)], np.r_[weight, np.full((1, 700), offset, np.float32)]
    stats = run(hidden, weight, targets, chunk_size=256, implementation=implementation)
    expected = oracle(hidden, weight, targets)
    for name in ("log_probs", "entropy", "logsumexp"):
        # Logits near 1000 are themselves rounded to 6e-5.
        np.testing.assert_allclose(getattr(stats, name), expected[name], atol=2e-5 + 8 * 2**-24 * 1000, err_msg=name)


@pytest.mark.parametrize("implementation", ["xla", "reference"])
def test_one_hot_uniform_and_ties(implementation):
    vocab = 300
    hidden = np.eye(3, dtype=np.float32)
    weight = np.zeros((3, vocab), np.float32)
    weight[0, 299] = 60.0  # one-hot in the tail chunk
    weight[2, [0, 150, 299]] = 40.0  # three-way tie over three chunks
    stats = run(hidden, weight, np.array([299, 7, 150], np.int32), chunk_size=128, implementation=implementation)
    np.testing.assert_allclose(stats.log_probs, [0, -np.log(vocab), -np.log(3)], atol=2e-6)
    np.testing.assert_allclose(stats.entropy, [0, np.log(vocab), np.log(3)], atol=2e-6)
    assert float(jnp.min(stats.entropy)) >= -1e-6


@pytest.mark.parametrize("names", [(name,) for name in OUTPUTS] + [OUTPUTS])
@pytest.mark.parametrize("implementation", ["xla", "reference"])
@pytest.mark.parametrize("layout", ["DV", "VD"])
def test_gradient(names, implementation, layout):
    hidden, weight, targets = case(6, 16, 500)
    rng = np.random.default_rng(3)
    # Strided cotangents: every second entry of a longer array.
    strided = {name: rng.normal(0, 1, 12)[::2] if name in names else np.zeros(6) for name in OUTPUTS}

    def loss(h, w):
        stats = linear_token_stats(
            h,
            w,
            jnp.asarray(targets),
            weight_layout=layout,
            with_varentropy=True,
            chunk_size=128,
            soft_cap=20.0,
            temperature=0.8,
            implementation=implementation,
        )
        return sum(jnp.sum(getattr(stats, name) * jnp.asarray(strided[name], jnp.float32)) for name in OUTPUTS)

    w = weight if layout == "DV" else weight.T
    dh, dw = jax.grad(loss, (0, 1))(jnp.asarray(hidden), jnp.asarray(w))
    expected = oracle_gradient(hidden, weight, targets, strided, 0.8, 20.0)
    for got, want in ((dh, expected[0]), (dw if layout == "DV" else dw.T, expected[1])):
        assert np.linalg.norm(got - want) <= 2e-5 * np.linalg.norm(want)


def test_bfloat16_gradient():
    hidden, weight, targets = case(32, 64, 700)
    h, w = jnp.asarray(hidden, jnp.bfloat16), jnp.asarray(weight, jnp.bfloat16)
    cotangents = {name: np.ones(32) if name in ("log_probs", "entropy") else np.zeros(32) for name in OUTPUTS}

    def loss(h, w):
        stats = linear_token_stats(h, w, jnp.asarray(targets), chunk_size=256)
        return jnp.sum(stats.log_probs + stats.entropy)

    gradients = jax.grad(loss, (0, 1))(h, w)
    exact = oracle_gradient(np.asarray(h, np.float32), np.asarray(w, np.float32), targets, cotangents)
    for got, want in zip(gradients, exact, strict=True):
        assert got.dtype == jnp.bfloat16
        assert np.linalg.norm(np.asarray(got, np.float64) - want) <= 4e-3 * np.linalg.norm(want)


def test_chunk_size_changes_nothing_and_runs_repeat():
    inputs = case(9, 16, 1000)
    runs = [run(*inputs, chunk_size=size) for size in (64, 333, 1000, 5000)]
    for other in runs[1:]:
        np.testing.assert_allclose(other.entropy, runs[0].entropy, atol=5e-6)
    again = run(*inputs, chunk_size=64)
    assert bool(jnp.all(again.entropy == runs[0].entropy))


def test_holds_no_rows_by_vocabulary():
    rows, width, vocab = 512, 8, 16384
    hidden, weight = jnp.zeros((rows, width)), jnp.zeros((width, vocab))

    def loss(h, w):
        stats = linear_token_stats(h, w, jnp.zeros(rows, jnp.int32), chunk_size=512)
        return jnp.sum(stats.log_probs + stats.entropy)

    compiled = jax.jit(jax.grad(loss, (0, 1))).lower(hidden, weight).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < rows * vocab * 4 / 4


def test_from_logits():
    logits = np.random.default_rng(0).normal(0, 4, (5, 90)).astype(np.float32)
    targets = np.array([0, 4, 89, 3, 3], np.int32)
    stats = token_stats(jnp.asarray(logits), jnp.asarray(targets), temperature=0.7, with_varentropy=True)
    for name, expected in oracle(logits, np.eye(90), targets, temperature=0.7).items():
        np.testing.assert_allclose(getattr(stats, name), expected, atol=1e-4 if name == "varentropy" else 2e-5)
    assert token_stats(jnp.asarray(logits), jnp.asarray(targets)).varentropy is None


@pytest.mark.parametrize(
    ("options", "words"),
    [({"implementation": "fast"}, "not one of"), ({"weight_layout": "V"}, "DV"), ({"temperature": 0.0}, "positive")],
)
def test_wrong_input(options, words):
    with pytest.raises(ValueError, match=words):
        linear_token_stats(jnp.zeros((2, 4)), jnp.zeros((4, 8)), jnp.zeros(2, jnp.int32), **options)


# --- The TPU kernel, interpreted: plainly, and with races looked for in memory that starts as NaN.

MODES = {"plain": True, "races": pltpu.InterpretParams(detect_races=True, uninitialized_memory="nan")}


@pytest.mark.parametrize("mode", list(MODES))
@pytest.mark.parametrize("layout", ["DV", "VD"])
@pytest.mark.parametrize(
    ("rows", "width", "vocab"), [(7, 16, 1000), (200, 24, 1300), (128, 16, 1024)], ids=["small", "tails", "whole tiles"]
)
def test_tpu_kernel(mode, layout, rows, width, vocab):
    """Rows and vocabulary on and off the tile size; a target in the first, a middle and the tail tile."""
    inputs = case(rows, width, vocab)
    options = dict(temperature=0.8, soft_cap=15.0)
    stats = run(*inputs, layout, implementation="pallas_tpu", interpret=MODES[mode], **options)
    for name, expected in oracle(*inputs, **options).items():
        tolerance = 1e-4 if name == "varentropy" else 2e-5
        np.testing.assert_allclose(getattr(stats, name), expected, atol=tolerance, err_msg=name)
    if mode == "races":
        from jax._src.pallas.mosaic.interpret import interpret_pallas_call  # its only place

        assert not interpret_pallas_call.races.races_found


@pytest.mark.parametrize("offset", [-1000.0, 0.0, 1000.0])
def test_tpu_kernel_far_from_zero(offset):
    hidden, weight, targets = case(6, 16, 700)
    hidden, weight = np.c_[hidden, np.ones(6, np.float32)], np.r_[weight, np.full((1, 700), offset, np.float32)]
    stats = run(hidden, weight, targets, implementation="pallas_tpu", interpret=True)
    for name, expected in oracle(hidden, weight, targets).items():
        if name != "varentropy":
            atol = 2e-5 + 8 * 2**-24 * abs(offset)
            np.testing.assert_allclose(getattr(stats, name), expected, atol=atol, err_msg=name)


def test_tpu_kernel_one_hot_uniform_and_ties():
    vocab = 1100
    weight = np.zeros((3, vocab), np.float32)
    weight[0, 1099] = 60.0
    weight[2, [0, 550, 1099]] = 40.0
    targets = np.array([1099, 7, 550], np.int32)
    stats = run(np.eye(3, dtype=np.float32), weight, targets, implementation="pallas_tpu", interpret=True)
    np.testing.assert_allclose(stats.log_probs, [0, -np.log(vocab), -np.log(3)], atol=2e-6)
    np.testing.assert_allclose(stats.entropy, [0, np.log(vocab), np.log(3)], atol=2e-6)


def test_tpu_kernel_gradient_and_repetition():
    hidden, weight, targets = case(6, 16, 700)
    cotangents = {name: np.random.default_rng(i).normal(0, 1, 6) for i, name in enumerate(OUTPUTS)}

    @jax.jit
    def gradients(h, w):
        def loss(h, w):
            stats = linear_token_stats(
                h, w, jnp.asarray(targets), with_varentropy=True, implementation="pallas_tpu", interpret=True,
                soft_cap=20.0,
            )  # fmt: skip
            return sum(jnp.sum(getattr(stats, n) * jnp.asarray(g, jnp.float32)) for n, g in cotangents.items())

        return jax.grad(loss, (0, 1))(h, w)

    found = gradients(jnp.asarray(hidden), jnp.asarray(weight))
    for got, want in zip(found, oracle_gradient(hidden, weight, targets, cotangents, 1.0, 20.0), strict=True):
        assert np.linalg.norm(got - want) <= 2e-5 * np.linalg.norm(want)
    for first, second in zip(found, gradients(jnp.asarray(hidden), jnp.asarray(weight)), strict=True):
        assert bool(jnp.all(first == second))


# --- A vocabulary sharded over a mesh.


@pytest.mark.parametrize(("implementation", "layout"), [("xla", "DV"), ("xla", "VD"), ("pallas_tpu", "DV")])
def test_sharded_vocabulary(implementation, layout):
    """Four shards of 250 columns and rows over two: forward and gradient against float64."""
    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(2, 4), ("data", "tensor"))
    hidden, weight, targets = case(8, 16, 1000)
    cotangents = {name: np.random.default_rng(i).normal(0, 1, 8) for i, name in enumerate(OUTPUTS)}
    weights = P(None, "tensor") if layout == "DV" else P("tensor", None)

    def stats(h, w, y):
        found = linear_token_stats(
            h, w, y, weight_layout=layout, with_varentropy=True, chunk_size=96, vocab_axis="tensor",
            implementation=implementation, interpret=implementation == "pallas_tpu", temperature=0.9,
        )  # fmt: skip
        return tuple(getattr(found, name) for name in OUTPUTS)

    sharded = jax.shard_map(
        stats, mesh=mesh, in_specs=(P("data"), weights, P("data")), out_specs=(P("data"),) * 4, check_vma=False
    )
    w = jnp.asarray(weight if layout == "DV" else weight.T)
    found = sharded(jnp.asarray(hidden), w, jnp.asarray(targets))
    for got, (name, expected) in zip(found, oracle(hidden, weight, targets, 0.9).items(), strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-4 if name == "varentropy" else 2e-5, err_msg=name)

    def loss(h, w, y):
        return sum(jnp.sum(s * jnp.asarray(cotangents[n], jnp.float32)) for n, s in zip(OUTPUTS, sharded(h, w, y)))  # noqa: B905

    dh, dw = jax.grad(loss, (0, 1))(jnp.asarray(hidden), w, jnp.asarray(targets))
    expected = oracle_gradient(hidden, weight, targets, cotangents, 0.9)
    for got, want in ((dh, expected[0]), (dw if layout == "DV" else dw.T, expected[1])):
        assert np.linalg.norm(got - want) <= 2e-5 * np.linalg.norm(want)


def test_tiles_fit_and_unmeasured_kernels_are_not_chosen():
    for chip in ("v5e", "v5p", "v6e", "a chip of next year"):
        for width in (1024, 2560, 4096, 8192):
            rows, columns, limit = tiles.tpu_tiles(chip, width, 151_936, "bfloat16")
            assert rows % 128 == 0 == columns % 128
            assert 4 * width * (rows + columns) + 48 * rows * columns <= limit or rows == 128
    assert chip_name("TPU v6 lite") == "v6e"
    assert tiles.measured_implementation("v6e", 2560, 151_936, "bfloat16") == "xla"
