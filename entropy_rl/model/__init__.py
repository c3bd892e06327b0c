"""The policy: a pure transformer, its rewindable cache, its tokenizers and where weights come from."""

from entropy_rl.model.cache import KVCache, init_cache, rewind
from entropy_rl.model.families import FAMILIES
from entropy_rl.model.hf_weights import is_hf_directory, load_hf, read_hf_config, save_hf
from entropy_rl.model.llama2c import load_llama2c
from entropy_rl.model.transformer import (
    Readout,
    RopeScaling,
    Transformer,
    TransformerConfig,
    decoding_params,
    head_weight,
)

__all__ = [
    "FAMILIES",
    "KVCache",
    "Readout",
    "RopeScaling",
    "Transformer",
    "TransformerConfig",
    "decoding_params",
    "head_weight",
    "init_cache",
    "is_hf_directory",
    "load_hf",
    "load_llama2c",
    "read_hf_config",
    "rewind",
    "save_hf",
]
