"""Tunix's Qwen3 with weights handed over as .npz; runs in the peer's environment, imports nothing of ours."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from protocol import LAYERS, VOCAB, prompt_ids
from tunix.models.qwen3 import model as q3

NAMES = {
    ("attn", "q_proj", "w"): "query/kernel",
    ("attn", "k_proj", "w"): "key/kernel",
    ("attn", "v_proj", "w"): "value/kernel",
    ("attn", "o_proj", "w"): "out/kernel",
    ("attn", "q_norm", "w"): "query_norm/scale",
    ("attn", "k_norm", "w"): "key_norm/scale",
    ("mlp", "gate_proj", "kernel"): "gate/kernel",
    ("mlp", "up_proj", "kernel"): "up/kernel",
    ("mlp", "down_proj", "kernel"): "down/kernel",
    ("input_layernorm", "w"): "attention_norm/scale",
    ("post_attention_layernorm", "w"): "mlp_norm/scale",
}


class Ids:
    """A tokenizer whose text is ids between blanks."""

    def encode(self, text, **_):
        return [int(word) for word in text.split()]

    def decode(self, ids, **_):
        return " ".join(map(str, ids))

    def bos_id(self):
        return 1

    def eos_id(self):
        return VOCAB + 7  # never drawn

    def pad_id(self):
        return 0


def texts(batch, size):
    """The prompts, without the start id that Tunix adds."""
    return [" ".join(map(str, row[1:])) for row in prompt_ids(batch, size)]


def make_mesh():
    return jax.make_mesh((1, 1), ("fsdp", "tp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)


def load(path):
    """A Qwen3 with our weights; every parameter must be found."""
    arrays = np.load(path)
    model = q3.Qwen3(
        q3.ModelConfig(
            num_layers=LAYERS,
            vocab_size=VOCAB,
            embed_dim=256,
            hidden_dim=768,
            num_heads=4,
            head_dim=64,
            num_kv_heads=2,
            rope_theta=1_000_000,
            norm_eps=1e-6,
            use_tied_embedding=True,
        ),
        rngs=nnx.Rngs(0),
    )
    state = nnx.state(model, nnx.Param)
    flat = []
    for path_, leaf in nnx.to_flat_state(state):
        if path_[0] == "layers":
            value = arrays["layers/" + NAMES[tuple(path_[2:])]][path_[1]]
        elif path_[0] == "embedder":
            value = arrays["embed/embedding"]
        else:
            value = arrays["final_norm/scale"]
        assert value.shape == leaf.shape, (path_, value.shape, leaf.shape)
        flat.append((path_, leaf.replace(jnp.asarray(value))))
    nnx.update(model, nnx.from_flat_state(flat))
    return model
