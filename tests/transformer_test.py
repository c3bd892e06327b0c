"""The network against an independent NumPy float64 forward pass, and the options of every family."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl.model import Readout, RopeScaling, Transformer, decoding_params, head_weight
from pallas_kernels import SharedPrompt
from tests.helpers import TINY, tiny_model


def numpy_forward(config, params, tokens, dtype=np.float64, attention=None):
    """Hidden states of one row, written from the equations, every operation in ``dtype``.

    Appends each layer's attention [T, T], averaged over heads, to the list ``attention``.
    """
    tree = jax.tree.map(lambda x: np.asarray(x, dtype), params)["params"]
    norm = lambda x, scale: x / np.sqrt(np.mean(x**2, -1, keepdims=True) + config.norm_eps) * scale
    half = config.head_dim // 2
    frequency = config.rope_theta ** (-np.arange(half) / half)
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "linear":
        frequency = frequency / scaling.factor
    elif scaling is not None:
        out = []
        for f in frequency:  # as in the published Llama 3 code, branch by branch
            wavelength = 2 * np.pi / f
            if wavelength < scaling.original_max_positions / scaling.high_frequency_factor:
                out.append(f)
            elif wavelength > scaling.original_max_positions / scaling.low_frequency_factor:
                out.append(f / scaling.factor)
            else:
                smooth = (scaling.original_max_positions / wavelength - scaling.low_frequency_factor) / (
                    scaling.high_frequency_factor - scaling.low_frequency_factor
                )
                out.append((1 - smooth) * f / scaling.factor + smooth * f)
        frequency = np.array(out)
    angles = np.arange(len(tokens), dtype=dtype)[:, None] * frequency.astype(dtype)

    def rotate(x):  # [T, N, H]
        first, second = x[..., :half], x[..., half:]
        cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
        return np.concatenate([first * cos - second * sin, second * cos + first * sin], -1)

    def project(x, weights):
        return np.einsum("TD,DNH->TNH", x, weights["kernel"]) + weights.get("bias", 0)

    x = tree["embed"]["embedding"][tokens]
    group = config.num_heads // config.num_kv_heads
    for i in range(config.num_layers):
        layer = jax.tree.map(lambda a, i=i: a[i], tree["layers"])
        y = norm(x, layer["attention_norm"]["scale"])
        q, k, v = project(y, layer["query"]), project(y, layer["key"]), project(y, layer["value"])
        if config.qk_norm:
            q, k = norm(q, layer["query_norm"]["scale"]), norm(k, layer["key_norm"]["scale"])
        q, k = rotate(q), rotate(k)
        out = np.zeros_like(q)
        mean = 0.0
        for n in range(config.num_heads):
            scores = q[:, n] @ k[:, n // group].T / dtype(config.head_dim**0.5)
            scores[np.triu_indices(len(tokens), 1)] = -np.inf
            weights = np.exp(scores - scores.max(-1, keepdims=True))
            weights /= weights.sum(-1, keepdims=True)
            out[:, n] = weights @ v[:, n // group]
            mean = mean + weights / config.num_heads
        if attention is not None:
            attention.append(mean)
        x = x + np.einsum("TNH,NHD->TD", out, layer["out"]["kernel"])
        y = norm(x, layer["mlp_norm"]["scale"])
        gate = y @ layer["gate"]["kernel"]
        x = x + (gate / (1 + np.exp(-gate)) * (y @ layer["up"]["kernel"])) @ layer["down"]["kernel"]
    return norm(x, tree["final_norm"]["scale"])


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qkv_bias": False, "qk_norm": False},
        {"num_kv_heads": 1},
        {"num_heads": 3, "num_kv_heads": 3},
        {"rope_scaling": RopeScaling("linear", 4.0)},
        {"rope_scaling": RopeScaling("llama3", 8.0, 1.0, 4.0, 16), "rope_theta": 500.0},
        {"remat": "full"},
    ],
    ids=str,
)
def test_forward_against_numpy(changes):
    model, params = tiny_model(2.0, **changes)
    # Biases start at zero and norms at one: move them, so that they are tested.
    params = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape) if x.ndim < 4 else x, params)
    tokens = np.random.default_rng(0).integers(0, 300, 33)
    positions = jnp.arange(33)[None]
    hidden, cache = jax.jit(model.apply)(params, jnp.asarray(tokens)[None], positions)
    assert cache is None
    np.testing.assert_allclose(hidden[0], numpy_forward(model.config, params, tokens), atol=2e-4)


@pytest.mark.parametrize(("layer", "remat"), [(1, "none"), (-1, "dots")])
def test_readout_against_numpy(layer, remat):
    model, params = tiny_model(2.0, remat=remat)
    tokens = np.random.default_rng(0).integers(0, 300, (2, 21))
    positions = jnp.broadcast_to(jnp.arange(21), (2, 21))
    chosen = jnp.array([[3, 20, 7], [0, 11, 11]])
    hidden, cache, attention = jax.jit(
        lambda p: model.apply(p, jnp.asarray(tokens), positions, readout=Readout(chosen, layer))
    )(params)
    assert cache is None
    np.testing.assert_allclose(hidden, jax.jit(model.apply)(params, jnp.asarray(tokens), positions)[0], atol=1e-6)
    for row in range(2):
        layers = []
        numpy_forward(model.config, params, tokens[row], attention=layers)
        np.testing.assert_allclose(attention[row], layers[layer][np.asarray(chosen[row])], atol=1e-5)


def test_wrong_readouts_are_refused():
    model, params = tiny_model()
    tokens, positions = jnp.zeros((1, 4), jnp.int32), jnp.arange(4)[None]
    for readout, words in (
        (Readout(jnp.zeros((1, 65), jnp.int32), 0), "at most 64"),
        (Readout(positions, 3), "layer 3"),
    ):
        with pytest.raises(ValueError, match=words):
            model.apply(params, tokens, positions, readout=readout)
    with pytest.raises(ValueError, match="without a cache"):
        model.apply(params, tokens, positions, model.empty_cache(1, 8), readout=Readout(positions, 0))
    shared = SharedPrompt(jnp.ones(1, jnp.int32), 2, 1)
    with pytest.raises(ValueError, match="shared prompt take no"):
        model.apply(params, tokens, positions, readout=Readout(positions, 0), prompt=shared)
    with pytest.raises(ValueError, match="keep makes a cache"):
        model.apply(params, tokens, positions, model.empty_cache(1, 8), keep=True)


def test_remat_changes_no_gradient():
    tokens, positions = jnp.arange(12)[None], jnp.arange(12)[None]
    gradients = []
    for remat in ("none", "dots"):
        model, params = tiny_model(remat=remat)
        loss = lambda p, m=model: jnp.sum(m.apply(p, tokens, positions)[0] ** 2)
        gradients.append(jax.jit(jax.grad(loss))(params))
    for other in gradients[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), gradients[0], other)


def test_head_layouts():
    model, params = tiny_model(tied_embeddings=True)
    weight, layout = head_weight(model.config, params)
    assert (layout, weight.shape) == ("VD", (300, 64))
    model, params = tiny_model()
    weight, layout = head_weight(model.config, params)
    assert (layout, weight.shape) == ("DV", (64, 300))


def test_every_parameter_has_logical_axes():
    model, params = tiny_model()
    axes = model.logical_axes()
    jax.tree.map(
        lambda spec, x: np.testing.assert_equal(len(spec), x.ndim), axes, params, is_leaf=lambda s: isinstance(s, jax.P)
    )


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_parameters_for_decoding(dtype):
    """Fused, unstacked and cast, they are the same model: whole rows, a readout, a cache, the head; axes fit."""
    model, params = tiny_model(2.0, tied_embeddings=True, dtype=dtype)
    params = jax.tree.map(lambda x: x + 0.1 * jnp.cos(jnp.arange(x.size)).reshape(x.shape) if x.ndim < 4 else x, params)
    own = decoding_params(model.config, params)
    assert decoding_params(model.config, own) is own
    assert {x.dtype.name for x in jax.tree.leaves(own)} == {dtype, "float32"}  # norms stay
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 300, (2, 9)))
    positions = jnp.broadcast_to(jnp.arange(9), (2, 9))
    readout = Readout(jnp.array([[3, 8], [0, 7]]), -1)

    def all_ways(p):
        hidden, _, attention = model.apply(p, tokens, positions, readout=readout)
        _, kept = model.apply(p, tokens[:, :8], positions[:, :8], keep=True)
        _, cache = model.apply(p, tokens[:, :8], positions[:, :8], model.empty_cache(2, 9))
        step, cache = model.apply(p, tokens[:, 8:], positions[:, 8:], cache)
        weight, layout = head_weight(model.config, p)
        return hidden, attention, kept, cache, step, weight if layout == "DV" else weight.T

    close = functools.partial(np.testing.assert_allclose, atol=2e-5 if dtype == "float32" else 0.15)
    as_f32 = lambda tree: jax.tree.map(lambda x: np.asarray(x, np.float32), tree)
    jax.tree.map(close, as_f32(jax.jit(all_ways)(params)), as_f32(jax.jit(all_ways)(own)))
    axes, is_spec = model.decoding_axes(), lambda x: isinstance(x, jax.P)
    jax.tree.map(lambda spec, x: np.testing.assert_equal(len(spec), x.ndim), axes, own, is_leaf=is_spec)


def test_bfloat16_is_near():
    model, params = tiny_model()
    low = Transformer(dataclasses.replace(TINY, dtype="bfloat16"))
    tokens, positions = jnp.arange(20)[None], jnp.arange(20)[None]
    hidden, other = (jax.jit(m.apply)(params, tokens, positions)[0] for m in (model, low))
    assert other.dtype == jnp.bfloat16
    assert float(jnp.max(jnp.abs(hidden - other.astype(jnp.float32)))) < 0.1


@pytest.mark.parametrize(
    ("changes", "words"),
    [({"num_kv_heads": 3}, "multiple"), ({"head_dim": 15}, "odd"), ({"remat": "some"}, "not one of")],
)
def test_wrong_sizes(changes, words):
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(TINY, **changes)
