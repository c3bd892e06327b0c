"""The model all peers are timed on: a random Qwen3 of 4 layers, its weights and prompts written to one file."""

import numpy as np

SIZES = {
    "vocab_size": 2048,
    "num_layers": 4,
    "embed_dim": 256,
    "mlp_dim": 768,
    "num_heads": 4,
    "num_kv_heads": 2,
    "head_dim": 64,
}


def make_model():
    """(model, params) in this project's form."""
    import jax

    from entropy_rl.model import Transformer, TransformerConfig

    config = TransformerConfig(**SIZES, rope_theta=1e6, norm_eps=1e-6, qk_norm=True, tied_embeddings=True, remat="dots")
    model = Transformer(config)
    return model, model.init_params(jax.random.key(0))


def write_weights(path: str) -> None:
    """Weights as .npz under "name" keys, layers stacked in front."""
    import jax

    _, params = make_model()
    flat, _ = jax.tree_util.tree_flatten_with_path(params["params"])
    arrays = {"/".join(key.key for key in keys): np.asarray(value) for keys, value in flat}
    np.savez(path, allow_pickle=False, **arrays)


def prompt_ids(batch: int, size: int) -> np.ndarray:
    """The same prompts for everybody: start id 1, then random ids, [batch, size]."""
    ids = np.random.default_rng(0).integers(3, SIZES["vocab_size"], (batch, size))
    ids[:, 0] = 1
    return ids.astype(np.int32)
