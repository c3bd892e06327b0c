"""Kernels compiled ahead of time for real TPU chips, without one; the compiler comes with the "tpu" extra."""

import functools
import math
import re

import pytest

pytest.importorskip("libtpu")
pytestmark = pytest.mark.slow

import jax
import jax.numpy as jnp
from jax.experimental import topologies

from entropy_rl import learner
from entropy_rl.model import Transformer, TransformerConfig, decoding_params
from entropy_rl.objectives import make_recipe
from entropy_rl.parallel import (
    MeshKernels,
    make_mesh,
    param_shardings,
    replicated,
    row_sharding,
    sampling_shardings,
)
from entropy_rl.rollout import engine
from entropy_rl.types import PromptBatch
from experiments.benchmarks.head import CHIPS, FORMS, compiled, device
from pallas_kernels import SharedPrompt, causal_attention, decode_attention
from tests.helpers import random_rollout


@pytest.mark.parametrize("vocab", [32_000, 151_936])
@pytest.mark.parametrize("width", [1024, 2560, 4096])
@pytest.mark.parametrize("chip", list(CHIPS))
def test_the_kernel_compiles(chip, width, vocab):
    layout = "VD" if width == 4096 else "DV"
    program = compiled(chip, "pallas_tpu", rows=32_768, width=width, vocab=vocab, layout=layout, forward_only=True)
    assert program.memory_analysis().temp_size_in_bytes < 2**23  # no [R, V] array, nor a tenth of one
    assert 'custom_call_target="tpu_custom_call"' in program.as_text()


@pytest.mark.parametrize("form", [form for form in FORMS if form != "unfused"])
@pytest.mark.parametrize("chip", list(CHIPS))
def test_gradients_temporaries(chip, form):
    """At R = 32,768 and V = 151,936 in bf16: at most 1 GiB, where the logits alone are 9.3."""
    program = compiled(chip, form, rows=32_768, width=2560, vocab=151_936)
    assert program.memory_analysis().temp_size_in_bytes <= 2**30


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float32], ids=["bf16", "f32"])
@pytest.mark.parametrize("slots", [128, 32_768 + 128])
@pytest.mark.parametrize("group", [1, 4, 7])
@pytest.mark.parametrize("kv_heads", [2, 8])
@pytest.mark.parametrize("size", [64, 128])
@pytest.mark.parametrize("chip", list(CHIPS))
def test_decode_attention_compiles(chip, size, kv_heads, group, slots, dtype):
    """Without a copy of the cache, nor of a hundredth of it, in HBM or in VMEM."""
    rows = 8
    sharding = jax.sharding.SingleDeviceSharding(device(chip))

    def shape(*dims, dtype=dtype):
        return jax.ShapeDtypeStruct(dims, dtype, sharding=sharding)

    arguments = (
        shape(rows, kv_heads * group, size),
        shape(rows, kv_heads, size, slots),
        shape(rows, kv_heads, slots, size),
        shape(rows, dtype=jnp.int32),
    )
    attend = functools.partial(decode_attention, implementation="pallas_tpu", chip=chip)
    program = jax.jit(attend).lower(*arguments).compile()
    assert program.memory_analysis().temp_size_in_bytes < 2**20
    text = program.as_text()
    assert 'custom_call_target="tpu_custom_call"' in text
    cache = rf"\[{rows},{kv_heads},({size},{slots}|{slots},{size})\]\S* copy"
    assert not re.search(cache, text)


@pytest.mark.parametrize("shared", [None, (1024, 8)], ids=["plain", "shared"])
@pytest.mark.parametrize("chip", list(CHIPS))
def test_causal_attention_compiles(chip, shared):
    """Forward and backward, in memory that is a small part of the scores'."""
    size = 8192 if shared is None else shared[0] + shared[1] * 1024
    sharding = jax.sharding.SingleDeviceSharding(device(chip))
    query, keys = (jax.ShapeDtypeStruct((1, size, n, 128), jnp.bfloat16, sharding=sharding) for n in (8, 2))
    length = jax.ShapeDtypeStruct((1,), jnp.int32, sharding=sharding)

    def loss(query, keys, values, length):
        prompt = None if shared is None else SharedPrompt(length, *shared)
        return jnp.sum(causal_attention(query, keys, values, prompt=prompt, platform="tpu").astype(jnp.float32))

    program = jax.jit(jax.grad(loss, (0, 1, 2))).lower(query, keys, keys, length).compile()
    assert program.as_text().count('custom_call_target="tpu_custom_call"') >= 3
    assert program.memory_analysis().temp_size_in_bytes < 8 * size**2 * 4 / 8


@pytest.mark.parametrize("sizes", [{"data": 1}, {"data": 4}, {"fsdp": 4}, {"fsdp": 2, "tensor": 2}], ids=str)
def test_sampler_and_update_compile_for_a_mesh(sizes):
    """The real ones, small; a TPU refuses a kernel on a mesh that is not split by hand over all of its axes."""
    devices = topologies.get_topology_desc("v5e:2x2", platform="tpu").devices
    mesh = make_mesh(**sizes, devices=devices[: math.prod(sizes.values())])
    config = TransformerConfig(
        vocab_size=1024, num_layers=2, embed_dim=256, mlp_dim=512, num_heads=4, num_kv_heads=2, head_dim=128,
        dtype="bfloat16", remat="full",
    )  # fmt: skip
    model = Transformer(config, MeshKernels(mesh))
    shapes, axes = jax.eval_shape(model.init_params, jax.random.key(0)), model.logical_axes()
    on = functools.partial(jax.tree.map, lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s))
    rows = functools.partial(jax.ShapeDtypeStruct, sharding=row_sharding(mesh))
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype, sharding=replicated(mesh))

    own = jax.eval_shape(functools.partial(decoding_params, config), shapes)
    own = on(own, sampling_shardings(mesh, model.decoding_axes(), own))
    each = rows((4,), jnp.int32)
    prompts = PromptBatch(tokens=rows((4, 128), jnp.int32), length=each, ids=each, context=each, round=each)
    options = dict(samples_per_prompt=4, max_response=128, slots=8, stop_tokens=(), erasing=None)
    loop = engine._compiled(model, mesh, temperature=1.0, top_k=None, top_p=1.0, min_p=0.0, **options)
    assert "tpu_custom_call" in loop.lower(own, prompts, key, None).compile().as_text()

    optimizer, recipe = learner.make_optimizer(1e-6), make_recipe("grpo")
    params = on(shapes, param_shardings(mesh, axes, shapes))
    state = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None) or replicated(mesh)),
        jax.eval_shape(functools.partial(learner.init_state, optimizer=optimizer), params),
    ).replace(params=params)
    batch = jax.tree.map(lambda x: rows(x.shape, x.dtype), random_rollout(16, 128, 128, vocab=1024))
    for group_size in (1, 4):
        update = learner.make_update(
            model, optimizer, recipe.token_loss, reduction=recipe.reduction, max_response=128, temperature=1.0,
            group_size=group_size,
        )  # fmt: skip
        chosen = jax.ShapeDtypeStruct((16,), jnp.int32, sharding=replicated(mesh))
        assert "tpu_custom_call" in update.lower(state, batch, chosen).compile().as_text()
