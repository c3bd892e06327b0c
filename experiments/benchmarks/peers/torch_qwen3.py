"""Transformers' Qwen3 with weights handed over as .npz; runs in the peer's environment, imports nothing of ours."""

import numpy as np
import torch
from protocol import LAYERS, VOCAB
from transformers import Qwen3Config, Qwen3ForCausalLM

NAMES = {
    "query/kernel": "self_attn.q_proj",
    "key/kernel": "self_attn.k_proj",
    "value/kernel": "self_attn.v_proj",
    "out/kernel": "self_attn.o_proj",
    "query_norm/scale": "self_attn.q_norm",
    "key_norm/scale": "self_attn.k_norm",
    "gate/kernel": "mlp.gate_proj",
    "up/kernel": "mlp.up_proj",
    "down/kernel": "mlp.down_proj",
    "attention_norm/scale": "input_layernorm",
    "mlp_norm/scale": "post_attention_layernorm",
}
CONTRACTED = {"out/kernel": 2}  # axes that are summed over; one elsewhere


def load(path):
    """A Qwen3 with our weights, in float32; every parameter must be found."""
    arrays = np.load(path)
    config = Qwen3Config(
        vocab_size=VOCAB, hidden_size=256, intermediate_size=768, num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, rope_theta=1e6, rms_norm_eps=1e-6, tie_word_embeddings=True,
        eos_token_id=None, bos_token_id=None, pad_token_id=None,
    )  # fmt: skip
    model = Qwen3ForCausalLM(config).float()
    state = {"model.embed_tokens.weight": arrays["embed/embedding"], "model.norm.weight": arrays["final_norm/scale"]}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    for name, theirs in NAMES.items():
        for i in range(LAYERS):
            value = arrays[f"layers/{name}"][i]
            if value.ndim > 1:
                axes = CONTRACTED.get(name, 1)
                value = value.reshape(int(np.prod(value.shape[:axes])), -1).T
            state[f"model.layers.{i}.{theirs}.weight"] = value
    model.load_state_dict({name: torch.tensor(np.ascontiguousarray(value)) for name, value in state.items()})
    return model
