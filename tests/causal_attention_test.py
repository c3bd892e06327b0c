"""Causal attention of every implementation, plain and with a shared prompt, against a float64 oracle in NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import SharedPrompt, causal_attention
from pallas_kernels.causal_attention import api, xla

CASES = {
    "plain": (2, 12, 4, 2, 8, None),
    "one_head": (1, 5, 1, 1, 4, None),
    "one_place": (3, 1, 4, 4, 8, None),
    "shared": (3, 5 + 3 * 7, 4, 2, 8, ((5, 1, 3), 5, 3)),
    "one_continuation": (2, 4 + 6, 2, 1, 4, ((4, 2), 4, 1)),
    "single_tokens": (1, 3 + 4, 2, 2, 4, ((2,), 3, 4)),
}


def inputs(case, dtype=np.float32):
    batch, size, heads, kv_heads, width, shared = CASES[case]
    rng = np.random.default_rng(0)
    shapes = [(batch, size, heads, width), (batch, size, kv_heads, width), (batch, size, kv_heads, width)]
    prompt = None if shared is None else SharedPrompt(jnp.array(shared[0], jnp.int32), *shared[1:])
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes], prompt


def oracle(query, keys, values, prompt):
    """Token by token, from what each one sees; prompt places that are not in use see themselves."""
    query, keys, values = (np.asarray(x, np.float64) for x in (query, keys, values))
    batch, size, heads, width = query.shape
    output = np.zeros_like(query)
    for row in range(batch):
        for place in range(size):
            seen = list(range(place + 1))
            if prompt is not None and place >= prompt.size:
                each = (size - prompt.size) // prompt.count
                start = prompt.size + (place - prompt.size) // each * each
                seen = [*range(int(prompt.length[row])), *range(start, place + 1)]
            for head in range(heads):
                kv = head * keys.shape[2] // heads
                scores = keys[row, seen, kv] @ query[row, place, head] * width**-0.5
                weights = np.exp(scores - scores.max())
                output[row, place, head] = weights / weights.sum() @ values[row, seen, kv]
    return output


def in_use(array, prompt):
    """``array`` with 0 at prompt places that are not in use."""
    if prompt is None:
        return array
    place = np.arange(array.shape[1])[None]
    used = (place < np.asarray(prompt.length)[:, None]) | (place >= prompt.size)
    return array * used[:, :, None, None]


IMPLEMENTATIONS = {
    "reference": dict(implementation="reference"),
    "xla": dict(implementation="xla"),
    "splash_tpu": dict(implementation="splash_tpu", interpret=True),
}


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients(case, name):
    arrays, prompt = inputs(case)
    attend = jax.jit(functools.partial(causal_attention, prompt=prompt, **IMPLEMENTATIONS[name]))
    expected = in_use(oracle(*arrays, prompt), prompt)
    np.testing.assert_allclose(in_use(np.asarray(attend(*arrays)), prompt), expected, atol=3e-6)

    direction = in_use(np.random.default_rng(1).normal(size=expected.shape), prompt)
    loss = lambda *x: jnp.sum(attend(*x) * direction.astype(np.float32))
    grads = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(*arrays)
    step = 1e-5
    rng = np.random.default_rng(2)
    for i, grad in enumerate(grads):
        along = rng.normal(size=grad.shape)
        shifted = []
        for sign in (1, -1):
            moved = [np.asarray(x, np.float64) for x in arrays]
            moved[i] = moved[i] + sign * step * along
            shifted.append(np.sum(oracle(*moved, prompt) * direction))
        slope = (shifted[0] - shifted[1]) / (2 * step)
        np.testing.assert_allclose(np.sum(np.asarray(grad, np.float64) * along), slope, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("shared", [None, (9, 2), (1, 4)])
def test_long_rows_are_the_same_in_blocks(monkeypatch, shared):
    """With the threshold lowered, sizes that do not divide: as the whole, to rounding, in values and gradients."""
    rng = np.random.default_rng(0)
    query, keys, values = (jnp.asarray(rng.normal(size=(2, 61, heads, 8)), jnp.float32) for heads in (4, 2, 2))
    prompt = None if shared is None else SharedPrompt(jnp.array([shared[0], 1], jnp.int32), *shared)

    def run():
        attend = lambda *x: jnp.sum(jnp.sin(xla.causal_attention(*x, prompt)[:, 9:]))
        return jax.jit(jax.value_and_grad(attend, (0, 1, 2)))(query, keys, values)

    whole = run()
    monkeypatch.setattr(xla, "WHOLE", 16)
    monkeypatch.setattr(xla, "BLOCK", 8)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), run(), whole)


def test_bfloat16_keeps_its_dtype():
    (query, keys, values), prompt = inputs("shared", jnp.bfloat16)
    output = causal_attention(query, keys, values, prompt=prompt)
    assert output.dtype == jnp.bfloat16
    expected = oracle(*(x.astype(jnp.float32) for x in (query, keys, values)), prompt)
    np.testing.assert_allclose(in_use(np.asarray(output, np.float32), prompt), in_use(expected, prompt), atol=3e-2)


@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_unused_prompt_places_change_nothing(name):
    (query, keys, values), prompt = inputs("shared")
    row, place = 1, 3  # of row 1, whose prompt has one token
    attend = functools.partial(causal_attention, prompt=prompt, **IMPLEMENTATIONS[name])
    spoiled = attend(query.at[row, place].set(9.0), keys.at[row, place].set(1e4), values.at[row, place].set(-1e4))
    np.testing.assert_array_equal(in_use(spoiled, prompt), in_use(attend(query, keys, values), prompt))


def test_what_auto_chooses(monkeypatch):
    """By platform, dtype, width and prompt; a GPU's lowers for one without it."""
    from jax._src.cudnn import fused_attention_stablehlo as cudnn

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91_100)
    prompt = SharedPrompt(jnp.ones(2, jnp.int32), 4, 2)

    def choice(platform, width, dtype, prompt=None):
        query = jax.ShapeDtypeStruct((2, 256, 8, width), dtype)
        return api._fastest(platform, query, prompt)

    assert (
        choice("cpu", 128, jnp.bfloat16) == choice("tpu", 64, jnp.bfloat16) == choice("gpu", 64, jnp.float32) == "xla"
    )
    assert choice("gpu", 64, jnp.bfloat16, prompt) == choice("gpu", 20, jnp.bfloat16) == "xla"
    assert choice("tpu", 128, jnp.float32, prompt) == "splash_tpu"
    assert choice("gpu", 64, jnp.bfloat16) == "cudnn"
    query, keys = (jax.ShapeDtypeStruct((2, 256, heads, 64), jnp.bfloat16) for heads in (8, 2))
    loss = lambda *x: jnp.sum(causal_attention(*x, platform="gpu").astype(jnp.float32))
    lowered = jax.jit(jax.grad(loss, (0, 1, 2))).trace(query, keys, keys).lower(lowering_platforms=("cuda",)).as_text()
    assert lowered.count("cudnn$fmha") >= 2


def test_bad_input():
    (query, keys, values), _ = inputs("plain")
    for arrays, options, message in (
        ((query, keys, values), dict(implementation="flash"), "not one of"),
        (
            (query, keys, values),
            dict(prompt=SharedPrompt(jnp.ones(2, jnp.int32), 6, 1), implementation="cudnn"),
            "cuDNN",
        ),
        ((query[:, :, :3], keys, values), {}, "evenly"),
        ((query, keys, values), dict(prompt=SharedPrompt(jnp.ones(2, jnp.int32), 5, 3)), "equal continuations"),
        ((query, keys, values), dict(prompt=SharedPrompt(jnp.ones(2, jnp.int32), 12, 1)), "equal continuations"),
    ):
        with pytest.raises(ValueError, match=message):
            causal_attention(*arrays, **options)
