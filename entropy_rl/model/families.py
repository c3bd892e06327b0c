"""Published model families: their ``config.json`` to a ``TransformerConfig`` and back."""

from typing import Any

from entropy_rl.model.transformer import RopeScaling, TransformerConfig

# Model type -> the class that transformers builds for it.
FAMILIES = {
    "llama": "LlamaForCausalLM",
    "mistral": "MistralForCausalLM",
    "qwen2": "Qwen2ForCausalLM",
    "qwen3": "Qwen3ForCausalLM",
}
_SIZES = {
    "vocab_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "embed_dim": "hidden_size",
    "mlp_dim": "intermediate_size",
    "num_heads": "num_attention_heads",
}
DTYPES = {"float32": "float32", "bfloat16": "bfloat16", "float16": "float32"}  # ours: f16 is computed with in f32


def _refuse(what: str) -> None:
    raise ValueError(f"this model's config.json has {what}, which is not supported")


def _rope(hf: dict[str, Any]) -> tuple[float, RopeScaling | None]:
    """(theta, scaling), of ``rope_theta`` and ``rope_scaling``, or of the later ``rope_parameters``."""
    options = hf.get("rope_parameters") or hf.get("rope_scaling") or {}
    theta = float(options.get("rope_theta") or hf.get("rope_theta") or 10_000.0)
    kind = options.get("rope_type") or options.get("type") or "default"
    if 1.0 not in (part := {hf.get("partial_rotary_factor"), options.get("partial_rotary_factor")}) and part != {None}:
        _refuse("rotary positions on a part of the head only (partial_rotary_factor)")
    if kind == "default":
        return theta, None
    if kind == "linear":
        return theta, RopeScaling("linear", float(options["factor"]))
    if kind == "llama3":
        return theta, RopeScaling(
            kind="llama3",
            factor=float(options["factor"]),
            low_frequency_factor=float(options["low_freq_factor"]),
            high_frequency_factor=float(options["high_freq_factor"]),
            original_max_positions=int(options["original_max_position_embeddings"]),
        )
    raise ValueError(f"rope scaling {kind!r} is not one of default, linear, llama3")


def config_from_hf(hf: dict[str, Any]) -> TransformerConfig:
    """The config that a parsed ``config.json`` describes; parameters and compute in its stored dtype.

    Qwen2 and 2.5, Qwen3, Llama 2 and 3, Mistral, and what was made from them (DeepSeek-R1-Distill).

    Raises:
        ValueError: for a model type or an option that is not supported, by name, or a missing size.
    """
    try:
        return _config_from_hf(hf)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"config.json is not as its model type has it: {type(error).__name__} {error}") from None


def _config_from_hf(hf: dict[str, Any]) -> TransformerConfig:
    family = hf.get("model_type")
    if family not in FAMILIES:
        raise ValueError(f"model type {family!r} is not one of {', '.join(FAMILIES)}")
    if hf.get("quantization_config"):
        _refuse("quantization_config (weights that are not float32, bfloat16 or float16)")
    if missing := [name for name in _SIZES.values() if not hf.get(name)]:
        raise ValueError(f"config.json has no {', '.join(missing)}")
    sizes: dict[str, Any] = {ours: int(hf[theirs]) for ours, theirs in _SIZES.items()}
    if (hf.get("hidden_act") or "silu") != "silu":
        _refuse(f"hidden_act={hf['hidden_act']!r}")
    for option in ("attention_bias", "mlp_bias"):
        if hf.get(option):
            _refuse(f"{option}: true")
    window = hf.get("sliding_window") if hf.get("use_sliding_window", family == "mistral") else None
    if window and window < (hf.get("max_position_embeddings") or window + 1):
        raise ValueError(
            f"attention over a sliding window of {window} tokens is not supported; where your sequences are no longer "
            f"than that, set sliding_window to null in config.json"
        )
    heads = sizes["num_heads"]
    default = 128 if family == "qwen3" else sizes["embed_dim"] // heads
    theta, scaling = _rope(hf)
    stored = hf.get("dtype") or hf.get("torch_dtype") or "float32"
    if stored not in DTYPES:
        _refuse(f"dtype {stored!r}")
    return TransformerConfig(
        **sizes,
        num_kv_heads=int(hf.get("num_key_value_heads") or heads),
        head_dim=int(hf.get("head_dim") or default),
        rope_theta=theta,
        rope_scaling=scaling,
        norm_eps=float(hf.get("rms_norm_eps") or 1e-6),
        qkv_bias=family == "qwen2",
        qk_norm=family == "qwen3",
        tied_embeddings=bool(hf.get("tie_word_embeddings", False)),
        dtype=DTYPES[stored],
        param_dtype=DTYPES[stored],
    )


def config_to_hf(config: TransformerConfig) -> dict[str, Any]:
    """A ``config.json`` for ``config``: Qwen3 with qk_norm, Qwen2 with qkv_bias, else Llama.

    Raises:
        ValueError: for options no family has.
    """
    if config.qkv_bias and config.qk_norm:
        raise ValueError("no supported family has both qkv_bias and qk_norm")
    if config.logit_soft_cap is not None:
        raise ValueError("no supported family has logit_soft_cap")
    family = "qwen3" if config.qk_norm else "qwen2" if config.qkv_bias else "llama"
    if family == "qwen2" and config.head_dim * config.num_heads != config.embed_dim:
        raise ValueError("Qwen2 has head_dim = embed_dim / num_heads, and no supported family has qkv_bias without")
    hf: dict[str, Any] = {
        "architectures": [FAMILIES[family]],
        "model_type": family,
        **{theirs: getattr(config, ours) for ours, theirs in _SIZES.items()},
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "max_position_embeddings": 32_768,
        "rms_norm_eps": config.norm_eps,
        "rope_theta": config.rope_theta,
        "rope_scaling": None,
        "tie_word_embeddings": config.tied_embeddings,
        "torch_dtype": config.param_dtype,
    }
    scaling = config.rope_scaling
    if scaling is not None:
        hf["rope_scaling"] = {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling is not None and scaling.kind == "llama3":
        hf["rope_scaling"] |= {
            "low_freq_factor": scaling.low_frequency_factor,
            "high_freq_factor": scaling.high_frequency_factor,
            "original_max_position_embeddings": scaling.original_max_positions,
        }
    return hf
