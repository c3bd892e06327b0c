"""The policy network: a decoder-only transformer in Flax linen, pure in its parameters.

``model.apply(params, tokens, positions, cache) -> (hidden, cache)``: it returns final hidden states, never logits,
so that fused kernels get (hidden, W); ``head_weight`` gives W. Layers are scanned over stacked parameters and
rematerialised; every parameter carries logical axis names, which ``entropy_rl.parallel.mesh`` maps to a mesh.
One set of options covers Qwen2/2.5/3, Llama 2/3 and Mistral.
"""

import dataclasses
import functools
import math
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

import pallas_kernels
from entropy_rl.model.cache import KVCache, LayerCache, cached_attention, init_cache, layer_cache
from pallas_kernels import SharedPrompt

REMAT_POLICIES = {
    "none": None,
    "full": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


@dataclasses.dataclass(frozen=True)
class RopeScaling:
    """Frequency scaling of rotary positions.

    Attributes:
        kind: "linear" divides every frequency by ``factor``; "llama3" divides only those of long wavelength.
        factor: how much longer the context becomes.
        low_frequency_factor, high_frequency_factor, original_max_positions: of "llama3", as in its config.json.
    """

    kind: str = "linear"
    factor: float = 1.0
    low_frequency_factor: float = 1.0
    high_frequency_factor: float = 4.0
    original_max_positions: int = 8192

    def __post_init__(self):
        if self.kind not in ("linear", "llama3"):
            raise ValueError(f"rope scaling {self.kind!r} is not one of linear, llama3")


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes and options of a decoder-only transformer.

    Attributes:
        vocab_size, num_layers, embed_dim, mlp_dim: V, L, D, F.
        num_heads, num_kv_heads, head_dim: N, K (divides N), H (even).
        rope_theta: base of the rotary frequencies; ``rope_scaling``: None or their scaling.
        norm_eps: epsilon of every RMSNorm.
        qkv_bias: biases on query, key and value projections (Qwen2).
        qk_norm: RMSNorm over H on queries and keys before rotation (Qwen3).
        tied_embeddings: the unembedding is the embedding.
        logit_soft_cap: c of c*tanh(logits/c), or None.
        dtype: of computations, "float32" or "bfloat16"; softmax and norms are in f32 either way.
        param_dtype: of stored parameters.
        remat: "none", "full" (recompute each layer) or "dots" (keep matrix products).
    """

    vocab_size: int
    num_layers: int
    embed_dim: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    rope_theta: float = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: float = 1e-6
    qkv_bias: bool = False
    qk_norm: bool = False
    tied_embeddings: bool = False
    logit_soft_cap: float | None = None
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "dots"

    def __post_init__(self):
        sizes = ("vocab_size", "num_layers", "embed_dim", "mlp_dim", "num_heads", "num_kv_heads", "head_dim")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.num_heads % self.num_kv_heads:
            raise ValueError(f"num_heads={self.num_heads} is not a multiple of num_kv_heads={self.num_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} is odd; rotary positions need pairs")
        if self.remat not in REMAT_POLICIES:
            raise ValueError(f"remat={self.remat!r} is not one of {', '.join(REMAT_POLICIES)}")


def rotary_angles(config: TransformerConfig, positions: Int[Array, "B T"]) -> Float[Array, "B T h"]:
    """Angles position * frequency of each pair of the head, [B, T, H/2], in f32 or wider."""
    half = config.head_dim // 2
    dtype = jnp.promote_types(config.dtype, jnp.float32)
    frequency = config.rope_theta ** -(jnp.arange(half, dtype=dtype) / half)
    scaling = config.rope_scaling
    if scaling is not None and scaling.kind == "linear":
        frequency = frequency / scaling.factor
    elif scaling is not None:
        wavelength = 2 * math.pi / frequency
        low, high = scaling.low_frequency_factor, scaling.high_frequency_factor
        smooth = (scaling.original_max_positions / wavelength - low) / (high - low)
        smooth = jnp.clip(smooth, 0.0, 1.0)
        frequency = (1 - smooth) * frequency / scaling.factor + smooth * frequency
    return positions[..., None].astype(dtype) * frequency[None, None]


def rotate(x: Float[Array, "B T N H"], angles: Float[Array, "B T h"]) -> Float[Array, "B T N H"]:
    """Rotates the pairs (x[i], x[i + H/2]) by the angles (the half-split convention), computed in f32 or wider."""
    cos, sin = jnp.cos(angles)[:, :, None], jnp.sin(angles)[:, :, None]
    first, second = jnp.split(x.astype(angles.dtype), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


class Readout(NamedTuple):
    """Which attention to return besides the hidden states.

    Attributes:
        positions: int32 [B, Q], the tokens whose attention is wanted; Q of at most 64 keeps it small.
        layer: of which layer; negative ones count from the end.
    """

    positions: Array
    layer: int


MAX_READOUT = 64


def attention_readout(
    query: Float[Array, "B T N H"], keys: Float[Array, "B T K H"], positions: Int[Array, "B Q"]
) -> Float[Array, "B Q T"]:
    """Causal attention of the tokens at ``positions``, averaged over heads; [B, N, T, T] is never made."""
    batch, size, heads, width = query.shape
    chosen = jnp.take_along_axis(query, positions[:, :, None, None], axis=1)
    chosen = chosen.reshape(batch, -1, keys.shape[2], heads // keys.shape[2], width).astype(jnp.float32)
    scores = jnp.einsum("BQKGH,BTKH->BKGQT", chosen * width**-0.5, keys.astype(jnp.float32))
    seen = jnp.arange(size)[None, None] <= positions[:, :, None]
    weights = jax.nn.softmax(jnp.where(seen[:, None, None], scores, -1e30), axis=-1)
    return jnp.mean(weights, axis=(1, 2))


def _named(axes: tuple[str, ...], scale: float = 1.0, fan_in: int = 1):
    initializer = nn.initializers.normal(scale * fan_in**-0.5)
    return nn.with_logical_partitioning(initializer, axes)


class Projection(nn.Module):
    """A dense map between named axes of the model, applied to all tokens as the rows of one matrix product.

    Rows and features are flattened before the product: its gradient with respect to the kernel is then one plain
    product too, where a product over [B, T, D] makes XLA transpose copies of the activations.
    """

    config: TransformerConfig
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    bias: bool = False
    scale: float = 1.0

    def _sizes(self, axes: tuple[str, ...]) -> tuple[int, ...]:
        c = self.config
        sizes = {"embed": c.embed_dim, "mlp": c.mlp_dim, "head_dim": c.head_dim}
        sizes |= {"heads": c.num_heads, "kv_heads": c.num_kv_heads}
        return tuple(sizes[axis] for axis in axes)

    @nn.compact
    def __call__(self, x: Float[Array, "B T ..."]) -> Float[Array, "B T ..."]:
        """The inputs' axes replaced by the outputs'."""
        c = self.config
        inputs, outputs = self._sizes(self.inputs), self._sizes(self.outputs)
        fan_in, width = math.prod(inputs), math.prod(outputs)
        initializer = _named(self.inputs + self.outputs, self.scale, fan_in)
        kernel: Any = self.param("kernel", initializer, inputs + outputs, c.param_dtype)
        y = x.reshape(-1, fan_in).astype(c.dtype) @ kernel.reshape(fan_in, width).astype(c.dtype)
        if self.bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.outputs)
            bias: Any = self.param("bias", zeros, outputs, c.param_dtype)
            y += bias.reshape(1, width).astype(c.dtype)
        return y.reshape(*x.shape[:2], *outputs)


class FusedProjection(nn.Module):
    """Several projections of the same inputs as one product, [D, ...]; made by ``decoding_params``, never initialised.

    No axis is flattened: one of them may be split over devices, and is not always the outermost.
    """

    config: TransformerConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B T D"]) -> Float[Array, "B T X Y ..."]:
        """x @ kernel + bias, where there is one."""
        read = lambda name: jnp.asarray(self.get_variable("params", name)).astype(self.config.dtype)  # noqa: E731
        y = jnp.einsum("BTD,D...->BT...", x, read("kernel"))
        return y + read("bias")[None, None] if self.has_variable("params", "bias") else y


class Layer(nn.Module):
    """One pre-norm block: attention, then SwiGLU.

    It takes the parameters of a layer, or those that ``decoding_params`` makes of them.

    Attributes:
        kernels: see ``Transformer``.
        keep: without a cache, return one of the tokens.
    """

    config: TransformerConfig
    kernels: Any
    keep: bool = False

    def _norm(self, name: str, axis: str = "embed_norm"):
        c = self.config
        scale = nn.with_logical_partitioning(nn.initializers.ones, (axis,))
        return nn.RMSNorm(c.norm_eps, c.dtype, c.param_dtype, scale_init=scale, name=name)

    def _project(self, name: str, inputs: tuple[str, ...], outputs: tuple[str, ...], *, bias=False, scale=1.0):
        return Projection(self.config, inputs, outputs, bias, scale, name=name)

    @nn.compact
    def __call__(self, carry, angles, readout, prompt, layer, cache: LayerCache | None = None, length=None):
        """((hidden [B, T, D], attention read out so far), the layer's cache with the tokens in it, or None)."""
        c = self.config
        hidden, attention = carry
        fused = self.has_variable("params", "qkv")
        residual_scale = (2 * c.num_layers) ** -0.5
        x = self._norm("attention_norm")(hidden)
        if not fused:
            query = self._project("query", ("embed",), ("heads", "head_dim"), bias=c.qkv_bias)(x)
            keys = self._project("key", ("embed",), ("kv_heads", "head_dim"), bias=c.qkv_bias)(x)
            values = self._project("value", ("embed",), ("kv_heads", "head_dim"), bias=c.qkv_bias)(x)
        else:
            joint = FusedProjection(c, name="qkv")(x)
            query, keys, values = joint[..., :-2, :], joint[..., -2, :], joint[..., -1, :]
            query = query.reshape(*x.shape[:2], c.num_heads, c.head_dim)
        if c.qk_norm:
            query, keys = self._norm("query_norm", "head_dim")(query), self._norm("key_norm", "head_dim")(keys)
        query, keys = rotate(query, angles), rotate(keys, angles)
        if cache is None:
            attended = self.kernels.causal_attention(query, keys, values, prompt=prompt)
            cache = layer_cache(keys, values) if self.keep else None
        else:
            attended, cache = cached_attention(query, keys, values, cache, length, attend=self.kernels.decode_attention)
        if readout is not None:
            read = lambda: attention_readout(query, keys, readout.positions)  # noqa: E731
            attention = jax.lax.cond(layer == readout.layer, read, lambda: attention)
        hidden += self._project("out", ("heads", "head_dim"), ("embed",), scale=residual_scale)(attended)
        x = self._norm("mlp_norm")(hidden)
        if not fused:
            gate, up = (self._project(name, ("embed",), ("mlp",))(x) for name in ("gate", "up"))
        else:
            gate, up = jnp.unstack(FusedProjection(c, name="gate_up")(x), axis=2)
        hidden += self._project("down", ("mlp",), ("embed",), scale=residual_scale)(nn.silu(gate) * up)
        return (hidden, attention), cache


class Transformer(nn.Module):
    """A decoder: ``apply(params, tokens, positions, cache=None, *, readout=None) -> (hidden, cache)``.

    Attributes:
        kernels: what has ``causal_attention``, ``decode_attention`` and ``linear_token_stats``: ``pallas_kernels``, or
            on several devices ``entropy_rl.parallel.MeshKernels``.
    """

    config: TransformerConfig
    kernels: Any = pallas_kernels

    @nn.compact
    def __call__(
        self,
        tokens: Int[Array, "B T"],
        positions: Int[Array, "B T"],
        cache: KVCache | None = None,
        *,
        readout: Readout | None = None,
        prompt: SharedPrompt | None = None,
        keep: bool = False,
    ) -> tuple[Any, ...]:
        """Final hidden states of ``tokens`` at absolute ``positions``.

        Without a cache the tokens are whole right-padded rows. With one they continue each row behind the cache's
        length, and the returned cache holds them too; ``positions`` must say so. Parameters are as ``init`` made them
        or those of ``decoding_params``.

        Args:
            tokens, positions: see above.
            cache: of what comes before the tokens.
            readout: which attention to return.
            prompt: without a cache, rows are prompts with several continuations each; ``positions`` must say so.
            keep: without a cache, return one of exactly these tokens.

        Returns:
            (hidden [B, T, D], cache or None); with ``readout`` also the attention it names, f32 [B, Q, T], without
            gradient.

        Raises:
            ValueError: for a readout with a cache or a shared prompt, of more than 64 positions, or of a layer the
                model does not have; for ``keep`` or ``prompt`` with a cache.
        """
        c = self.config
        if keep and cache is not None:
            raise ValueError("keep makes a cache of whole rows; the one given is returned with the tokens in it anyway")
        if prompt is not None and (cache is not None or readout is not None):
            raise ValueError("rows with a shared prompt take no cache and no readout")
        attention = None
        if readout is not None:
            if cache is not None or readout.positions.shape[1] > MAX_READOUT:
                raise ValueError(f"a readout takes at most {MAX_READOUT} positions, and whole rows without a cache")
            if not -c.num_layers <= readout.layer < c.num_layers:
                raise ValueError(f"layer {readout.layer} is not one of the model's {c.num_layers}")
            readout = Readout(readout.positions, readout.layer % c.num_layers)
            attention = jnp.zeros((*readout.positions.shape, tokens.shape[1]), jnp.float32)
        embed = nn.Embed(
            c.vocab_size,
            c.embed_dim,
            dtype=c.dtype,
            param_dtype=c.param_dtype,
            embedding_init=_named(("vocab", "embed"), fan_in=c.embed_dim),
            name="embed",
        )
        if not c.tied_embeddings:
            self.param(
                "head", _named(("embed", "vocab"), fan_in=c.embed_dim), (c.embed_dim, c.vocab_size), c.param_dtype
            )
        hidden = embed(tokens)
        angles = rotary_angles(c, positions)
        inputs, start = (angles, readout, prompt), 0 if cache is None else cache.length
        if cache is None and not isinstance(self.get_variable("params", "layers"), tuple):
            (hidden, attention), kept = self._scanned(keep)((hidden, attention), *inputs, jnp.arange(c.num_layers))
            written = _slices(kept, c.num_layers) if keep else ()
        else:
            (hidden, attention), written = self._unrolled((hidden, attention), inputs, cache, keep)
        if written:
            cache = KVCache(written, jnp.broadcast_to(start + tokens.shape[1], tokens.shape[:1]).astype(jnp.int32))
        final_scale = nn.with_logical_partitioning(nn.initializers.ones, ("embed_norm",))
        norm = nn.RMSNorm(c.norm_eps, c.dtype, c.param_dtype, scale_init=final_scale, name="final_norm")
        hidden = norm(hidden)
        return (hidden, cache) if readout is None else (hidden, cache, jax.lax.stop_gradient(attention))

    def _scanned(self, keep: bool):
        """All layers as one scan over stacked parameters, rematerialised; ``keep`` makes their caches its output."""
        c = self.config
        policy = REMAT_POLICIES[c.remat]
        scanned = nn.scan(
            Layer if policy is None else nn.remat(Layer, policy=policy, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=(nn.broadcast, nn.broadcast, nn.broadcast, 0),
            length=c.num_layers,
            metadata_params={nn.PARTITION_NAME: "layers"},
        )
        return scanned(c, self.kernels, keep, name="layers")

    def _unrolled(self, carry, inputs, cache: KVCache | None, keep: bool):
        """Layer after layer, each with a cache of its own; parameters as they are or those of ``decoding_params``."""
        c = self.config
        params: Any = self.get_variable("params", "layers")
        layers = params if isinstance(params, tuple) else _for_decoding(c, params)
        written = []
        for number, layer in enumerate(layers):
            own = () if cache is None else (cache.layers[number], cache.length)
            apply: Any = functools.partial(Layer(c, self.kernels, keep, parent=None).apply, {"params": layer})
            carry, new = apply(carry, *inputs, number, *own)
            written.append(new)
        return carry, tuple(written) if keep or cache is not None else ()

    def init_params(self, key: Any) -> Any:
        """Fresh parameters as plain arrays (``{"params": ...}``), without the boxes that hold logical axis names."""
        return nn.unbox(self.init(key, *self._example()))

    def logical_axes(self) -> Any:
        """A tree like the parameters with a PartitionSpec of logical axis names at each leaf."""
        boxed = jax.eval_shape(self.init, jax.random.key(0), *self._example())
        return nn.get_partition_spec(boxed)

    def decoding_axes(self) -> Any:
        """``logical_axes`` of what ``decoding_params`` makes."""
        tree = self.logical_axes()["params"]
        drop = lambda specs: jax.tree.map(lambda spec: PartitionSpec(*spec[1:]), specs)  # noqa: E731
        layer = {name: drop(specs) for name, specs in tree["layers"].items() if name not in sum(_FUSED.values(), ())}
        layer["qkv"] = {"kernel": PartitionSpec("embed", "kv_heads", None, "head_dim")}
        if self.config.qkv_bias:
            layer["qkv"]["bias"] = PartitionSpec("kv_heads", None, "head_dim")
        layer["gate_up"] = {"kernel": PartitionSpec("embed", None, "mlp")}
        return {"params": tree | {"layers": (layer,) * self.config.num_layers, "head": PartitionSpec("embed", "vocab")}}

    def _example(self):
        return jnp.zeros((1, 2), jnp.int32), jnp.arange(2)[None]

    def empty_cache(self, batch: int, slots: int) -> KVCache:
        """An empty cache that fits this model; see ``init_cache``."""
        c = self.config
        return init_cache(
            num_layers=c.num_layers,
            batch=batch,
            num_kv_heads=c.num_kv_heads,
            slots=slots,
            head_dim=c.head_dim,
            dtype=jnp.dtype(c.dtype),
        )


def _slices(stacked: Any, count: int) -> tuple[Any, ...]:
    return tuple(jax.tree.map(lambda x: x[i], stacked) for i in range(count))  # noqa: B023


_FUSED = {"qkv": ("query", "key", "value"), "gate_up": ("gate", "up")}


def _for_decoding(config: TransformerConfig, layers: Any) -> tuple[Any, ...]:
    groups = config.num_heads // config.num_kv_heads

    def per_kv_head(name, leaf):
        x = layers[name][leaf]
        return x.reshape(*x.shape[:-2], config.num_kv_heads, groups if name == "query" else 1, config.head_dim)

    def qkv(leaf):
        return jnp.concatenate([per_kv_head(name, leaf) for name in _FUSED["qkv"]], axis=-2)

    fused = {
        "qkv": {leaf: qkv(leaf) for leaf in layers["query"]},
        "gate_up": {"kernel": jnp.stack([layers[name]["kernel"] for name in _FUSED["gate_up"]], axis=2)},
    }
    rest = {name: tree for name, tree in layers.items() if name not in sum(_FUSED.values(), ())}
    return _slices(rest | fused, config.num_layers)


def decoding_params(config: TransformerConfig, params: Any) -> Any:
    """The variables as a loop over tokens reads them best; ``apply`` and ``head_weight`` take them too.

    In the dtype of computations, but for norms. Every layer has arrays of its own, which such a loop reads in place; of
    stacked ones it would copy every layer at every token. Query, key and value are one product, "qkv"
    [D, K, N / K + 2, H], and so are gate and up, "gate_up" [D, 2, F]; the unembedding is [D, V] even where it is tied.
    What are such variables already is returned as it is.
    """
    tree = params["params"]
    if isinstance(tree["layers"], tuple):
        return params
    weight, layout = head_weight(config, params)
    head = weight if layout == "DV" else weight.T
    tree = tree | {"layers": _for_decoding(config, tree["layers"]), "head": head}
    cast = lambda path, x: x if path[-1].key == "scale" else x.astype(config.dtype)  # noqa: E731
    return {"params": jax.tree_util.tree_map_with_path(cast, tree)}


def head_weight(config: TransformerConfig, params: Any) -> tuple[Array, str]:
    """The unembedding and its layout ("DV" or, tied, "VD"), in the dtype of computations."""
    tree = params["params"]
    weight, layout = (tree["head"], "DV") if "head" in tree else (tree["embed"]["embedding"], "VD")
    return weight.astype(config.dtype), layout
