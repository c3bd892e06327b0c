"""Kernels on a mesh: what one device computes, values and gradients, for rows that divide and rows that do not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from entropy_rl.parallel import MeshKernels, make_mesh
from pallas_kernels import SharedPrompt

SIZES = [dict(data=8), dict(data=2, fsdp=2, tensor=2), dict(fsdp=4, tensor=2), dict(tensor=2, data=4)]


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def assert_same(mine, plain, *arrays):
    """Values and gradients of a nonlinear sum, jitted."""

    def both(run):
        out = lambda *x: sum(jnp.sum(jnp.sin(y)) for y in jax.tree.leaves(run(*x)))
        return jax.jit(jax.value_and_grad(out, tuple(range(len(arrays)))))(*arrays)

    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=2e-5, atol=2e-5), both(mine), both(plain))


@pytest.mark.parametrize("rows", [8, 3])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_causal_attention(sizes, rows):
    kernels = MeshKernels(make_mesh(**sizes))
    query, keys, values = (normal(rows, 4 + 2 * 3, heads, 8, seed=heads) for heads in (4, 2, 2))
    for prompt in (None, SharedPrompt(jnp.arange(rows, dtype=jnp.int32) % 3 + 1, 4, 2)):
        mine, plain = (functools.partial(k.causal_attention, prompt=prompt) for k in (kernels, pallas_kernels))
        assert_same(mine, plain, query, keys, values)


@pytest.mark.parametrize("rows", [8, 3])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_decode_attention(sizes, rows):
    kernels = MeshKernels(make_mesh(**sizes))
    arrays = normal(rows, 4, 8), normal(rows, 2, 8, 16, seed=1), normal(rows, 2, 16, 8, seed=2)
    length = jnp.arange(rows, dtype=jnp.int32) + 1
    found, expected = (jax.jit(k.decode_attention)(*arrays, length) for k in (kernels, pallas_kernels))
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-5), found, expected)


@pytest.mark.parametrize("layout", ["DV", "VD"])
@pytest.mark.parametrize("rows", [16, 5])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
def test_linear_token_stats(sizes, rows, layout):
    kernels = MeshKernels(make_mesh(**sizes))
    hidden, weight = normal(rows, 8), normal(8, 50, seed=1)
    targets = jnp.arange(rows) % 50
    options = dict(weight_layout=layout, chunk_size=16, temperature=0.9)
    mine, plain = (lambda h, w, k=k: k.linear_token_stats(h, w, targets, **options) for k in (kernels, pallas_kernels))
    assert_same(mine, plain, hidden, weight if layout == "DV" else weight.T)


def test_inside_a_shard_map_over_rows():
    """As in the sampler: rows are split already, heads are not."""
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    kernels = MeshKernels(mesh)
    arrays = [normal(8, 6, heads, 8, seed=heads) for heads in (4, 2, 2)]
    rows = jax.P(("data", "fsdp"))
    run = jax.shard_map(
        kernels.causal_attention, mesh=mesh, in_specs=rows, out_specs=rows, axis_names={"data", "fsdp"}, check_vma=False
    )
    np.testing.assert_allclose(jax.jit(run)(*arrays), pallas_kernels.causal_attention(*arrays), atol=2e-6)
