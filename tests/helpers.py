"""Small models and batches that several tests use."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from entropy_rl.model import Transformer, TransformerConfig
from entropy_rl.types import PromptBatch, Rollout

TINY = TransformerConfig(
    vocab_size=300,
    num_layers=3,
    embed_dim=64,
    mlp_dim=160,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    qkv_bias=True,
    qk_norm=True,
    remat="none",
)


def tiny_model(sharpness: float = 1.0, **changes):
    """(model, params); ``sharpness`` scales the matrices, so that the policy is not nearly uniform."""
    model = Transformer(dataclasses.replace(TINY, **changes))
    params = jax.jit(model.init_params)(jax.random.key(0))
    return model, jax.tree.map(lambda x: x * sharpness if x.ndim > 2 else x, params)


def prompt_batch(count: int, size: int, vocab: int, seed: int = 0) -> PromptBatch:
    """Random prompts of random lengths 1 to ``size``."""
    rng = np.random.default_rng(seed)
    zeros = jnp.zeros(count, jnp.int32)
    return PromptBatch(
        tokens=jnp.asarray(rng.integers(0, vocab, (count, size)), jnp.int32),
        length=jnp.asarray(rng.integers(1, size + 1, count), jnp.int32),
        ids=jnp.arange(count, dtype=jnp.int32) + 5,
        context=zeros,
        round=zeros,
    )


def random_rollout(rows: int, prompt: int, response: int, vocab: int, seed: int = 0) -> Rollout:
    """A rollout of random tokens, lengths and statistics, as the learner sees it."""
    rng = np.random.default_rng(seed)
    size = prompt + response
    start = rng.integers(1, prompt + 1, rows)
    length = start + rng.integers(1, response + 1, rows)
    at = np.arange(size)[None]
    mask = (at >= start[:, None]) & (at < length[:, None])
    noise = lambda scale: np.where(mask, rng.normal(0, scale, (rows, size)), 0).astype(np.float32)
    level = np.where(mask, -np.log(vocab), 0).astype(np.float32)
    arrays = Rollout(
        tokens=rng.integers(0, vocab, (rows, size)).astype(np.int32),
        prompt_length=start.astype(np.int32),
        length=length.astype(np.int32),
        response_mask=mask,
        sampler_log_probs=level + noise(0.1),
        raw_log_probs=level + noise(0.1),
        entropy=np.abs(noise(1)),
        stopped=rng.random(rows) < 0.7,
        old_log_probs=level + noise(0.2),
        old_entropy=np.abs(noise(1)),
        ref_log_probs=level + noise(0.2),
        rewards=rng.integers(0, 2, rows).astype(np.float32),
        advantages=np.where(mask, rng.normal(0, 1, (rows, 1)), 0).astype(np.float32),
        loss_mask=mask & (rng.random((rows, 1)) < 0.8),
    )
    return jax.tree.map(jnp.asarray, arrays)


def spoil(cache, keep, value=jnp.nan):
    """``cache`` with ``value`` in every slot at or past ``keep`` [B]."""

    def one(layer):
        starts = layer.starts()
        dead = [jnp.arange(v.shape[2])[None] + at >= keep[:, None] for v, at in zip(layer.values, starts, strict=True)]
        keys = tuple(jnp.where(d[:, None, None], value, x) for d, x in zip(dead, layer.keys, strict=True))
        return layer.replace(keys=keys, values=tuple(
            jnp.where(d[:, None, :, None], value, x) for d, x in zip(dead, layer.values, strict=True)
        ))  # fmt: skip

    return cache.replace(layers=tuple(map(one, cache.layers)))
