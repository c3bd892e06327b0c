"""Trained weights in the llama2.c format (github.com/karpathy/llama2.c, the version-0 ``.bin`` and its tokenizer)."""

import os
import struct

import jax.numpy as jnp
import numpy as np

from entropy_rl.model.transformer import TransformerConfig


def _take(data: np.ndarray, offset: int, *shape: int) -> tuple[np.ndarray, int]:
    size = int(np.prod(shape))
    return data[offset : offset + size].reshape(shape), offset + size


def _half_split(weight: np.ndarray, heads: int) -> np.ndarray:
    """[L, N*H, D] with rotary pairs (2i, 2i+1) -> [L, D, N, H] with pairs (i, i + H/2)."""
    layers, out, embed = weight.shape
    head = weight.reshape(layers, heads, out // heads // 2, 2, embed)
    return np.einsum("LNhpD->LDNph", head).reshape(layers, embed, heads, out // heads)


def load_llama2c(path: str | os.PathLike) -> tuple[TransformerConfig, dict]:
    """Reads a llama2.c checkpoint: 7 int32 sizes, then f32 tensors.

    Returns:
        (config, params) for ``Transformer``; the rotary convention is converted from interleaved to half-split.

    Raises:
        ValueError: where the file's size does not fit its header.
    """
    with open(path, "rb") as file:
        raw = file.read()
    if len(raw) < 28:
        raise ValueError(f"{path} is no llama2.c checkpoint: {len(raw)} bytes, shorter than its header")
    dim, mlp, layers, heads, kv_heads, vocab, max_length = struct.unpack("7i", raw[:28])
    tied, vocab = vocab > 0, abs(vocab)
    if min(dim, mlp, layers, heads, kv_heads, vocab, max_length) < 1 or dim % heads or (dim // heads) % 2:
        raise ValueError(f"{path} is no llama2.c checkpoint: impossible sizes in its header")
    size = dim // heads
    kv_dim = kv_heads * size
    floats = vocab * dim * (1 if tied else 2) + dim + max_length * size
    floats += layers * (2 * dim + 2 * dim * dim + 2 * kv_dim * dim + 3 * mlp * dim)
    if len(raw) != 28 + 4 * floats:
        raise ValueError(
            f"{path} is no llama2.c checkpoint: {len(raw)} bytes where its header asks for {28 + 4 * floats}"
        )
    data, at = np.frombuffer(raw, np.float32, offset=28), 0
    embedding, at = _take(data, at, vocab, dim)
    attention_norm, at = _take(data, at, layers, dim)
    wq, at = _take(data, at, layers, dim, dim)
    wk, at = _take(data, at, layers, kv_dim, dim)
    wv, at = _take(data, at, layers, kv_dim, dim)
    wo, at = _take(data, at, layers, dim, dim)
    mlp_norm, at = _take(data, at, layers, dim)
    w1, at = _take(data, at, layers, mlp, dim)
    w2, at = _take(data, at, layers, dim, mlp)
    w3, at = _take(data, at, layers, mlp, dim)
    final_norm, at = _take(data, at, dim)
    at += max_length * size  # stored rotary tables, recomputed here
    config = TransformerConfig(
        vocab_size=vocab,
        num_layers=layers,
        embed_dim=dim,
        mlp_dim=mlp,
        num_heads=heads,
        num_kv_heads=kv_heads,
        head_dim=size,
        norm_eps=1e-5,
        tied_embeddings=tied,
    )
    kernel = lambda x: {"kernel": jnp.asarray(x)}  # noqa: E731
    tree = {
        "embed": {"embedding": jnp.asarray(embedding)},
        "final_norm": {"scale": jnp.asarray(final_norm)},
        "layers": {
            "attention_norm": {"scale": jnp.asarray(attention_norm)},
            "mlp_norm": {"scale": jnp.asarray(mlp_norm)},
            "query": kernel(_half_split(wq, heads)),
            "key": kernel(_half_split(wk, kv_heads)),
            "value": kernel(np.einsum("LND->LDN", wv).reshape(layers, dim, kv_heads, size)),
            "out": kernel(np.einsum("LDN->LND", wo).reshape(layers, heads, size, dim)),
            "gate": kernel(np.einsum("LFD->LDF", w1)),
            "up": kernel(np.einsum("LFD->LDF", w3)),
            "down": kernel(np.einsum("LDF->LFD", w2)),
        },
    }
    if not tied:
        tree["head"] = jnp.asarray(_take(data, at, vocab, dim)[0].T)
    return config, {"params": tree}


def load_llama2c_tokenizer(path: str | os.PathLike, vocab_size: int) -> list[bytes]:
    """The pieces of a llama2.c ``tokenizer.bin``, as bytes, in the order of their ids; decoding concatenates them."""
    with open(path, "rb") as file:
        raw = file.read()
    pieces, at = [], 4  # after max_token_length
    for _ in range(vocab_size):
        _, length = struct.unpack_from("fi", raw, at)
        pieces.append(raw[at + 8 : at + 8 + length])
        at += 8 + length
    return pieces
