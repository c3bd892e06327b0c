"""Directories of Hugging Face format: the same logits as transformers, and the same bytes back."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl.model import RopeScaling, Transformer, TransformerConfig, head_weight, load_hf, read_hf_config, save_hf
from entropy_rl.model.families import FAMILIES, config_from_hf, config_to_hf
from entropy_rl.parallel.mesh import make_mesh, param_shardings, replicated
from entropy_rl.rollout import sample
from tests.helpers import prompt_batch

pytest.importorskip("safetensors")
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 32}  # fmt: skip


def random_hf(family: str, seed: int) -> dict:
    """A tiny config.json, its shape drawn by the seed."""
    rng = np.random.default_rng([seed, list(FAMILIES).index(family)])
    kv_heads = int(rng.integers(1, 4))
    heads = kv_heads * int(rng.integers(1, 4))
    size = int(rng.choice([4, 8, 16]))
    hf = {
        "model_type": family,
        "architectures": [FAMILIES[family]],
        "vocab_size": int(rng.integers(50, 120)),
        "num_hidden_layers": int(rng.integers(1, 4)),
        "hidden_size": heads * size,
        "intermediate_size": int(rng.integers(10, 90)),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": float(rng.choice([1e-5, 1e-6])),
        "rope_theta": float(rng.choice([1e4, 1e6])),
        "tie_word_embeddings": seed % 2 == 0,
        "hidden_act": "silu",
        "max_position_embeddings": 512,
        "torch_dtype": "float32",
    }
    if family in ("llama", "qwen3") and rng.integers(2):  # heads that do not fill the width
        hf |= {"head_dim": size + 2}
    elif family == "qwen3":
        hf |= {"head_dim": size}
    if family == "mistral":
        hf |= {"sliding_window": None}
    if family == "llama":
        choices = [None, {"rope_type": "linear", "factor": 2.0}, LLAMA3]
        hf |= {"rope_scaling": choices[int(rng.integers(3))]}
    return hf


def some_config(**changes) -> TransformerConfig:
    config = TransformerConfig(
        vocab_size=64, num_layers=2, embed_dim=16, mlp_dim=24, num_heads=4, num_kv_heads=2, head_dim=4, norm_eps=1e-5
    )
    return dataclasses.replace(config, **changes)


def params_of(config, seed=0):
    """Random everywhere, biases and norms too."""
    shapes = jax.eval_shape(Transformer(config).init_params, jax.random.key(0))
    leaves, tree = jax.tree.flatten(shapes)
    rng = np.random.default_rng(seed)
    return jax.tree.unflatten(tree, [jnp.asarray(rng.normal(0, 0.3, x.shape), x.dtype) for x in leaves])


CONFIGS = {
    "llama": some_config(),
    "llama3": some_config(rope_scaling=RopeScaling("llama3", 8.0, 1.0, 4.0, 32), tied_embeddings=True),
    "qwen2": some_config(qkv_bias=True, tied_embeddings=True),
    "qwen3": some_config(qk_norm=True, head_dim=6),
    "bf16": some_config(dtype="bfloat16", param_dtype="bfloat16"),
}


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("max_file_bytes", [1 << 30, 3000])
def test_round_trip_is_exact(name, max_file_bytes, tmp_path):
    config, params = CONFIGS[name], params_of(CONFIGS[name])
    save_hf(config, params, tmp_path / "a", max_file_bytes=max_file_bytes)
    got_config, got = load_hf(tmp_path / "a")
    assert got_config == config
    assert (len(list((tmp_path / "a").glob("*.safetensors"))) > 1) == (max_file_bytes == 3000)
    assert jax.tree.structure(got) == jax.tree.structure(params)
    jax.tree.map(np.testing.assert_array_equal, got, params)
    save_hf(got_config, got, tmp_path / "b", like=tmp_path / "a")
    assert json.loads((tmp_path / "a/config.json").read_text()) == json.loads((tmp_path / "b/config.json").read_text())


@pytest.mark.parametrize("layout", [dict(fsdp=4, tensor=2), dict(fsdp=2, tensor=2), dict(data=8)])
def test_shards_are_those_of_the_whole(layout, tmp_path):
    config = some_config(qkv_bias=True)
    params = params_of(config)
    save_hf(config, params, tmp_path)
    mesh = make_mesh(**layout)

    def sharding(model):
        shapes = jax.eval_shape(model.init_params, jax.random.key(0))
        return param_shardings(mesh, model.logical_axes(), shapes)

    _, got = load_hf(tmp_path, sharding=sharding)
    assert jax.tree.map(lambda x: x.sharding, got) == sharding(Transformer(config))
    jax.tree.map(np.testing.assert_array_equal, got, params)
    _, whole = load_hf(tmp_path, sharding=replicated(mesh))
    assert all(x.sharding == replicated(mesh) for x in jax.tree.leaves(whole))
    jax.tree.map(np.testing.assert_array_equal, whole, params)


def test_dtype(tmp_path):
    config = some_config()
    params = params_of(config)
    save_hf(config, params, tmp_path)
    got_config, got = load_hf(tmp_path, dtype="bfloat16")
    assert got_config.dtype == got_config.param_dtype == "bfloat16"
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b.astype(jnp.bfloat16)), got, params)


@pytest.mark.parametrize("name", [n for n in CONFIGS if n != "bf16"])
def test_configs_round_trip(name):
    assert config_from_hf(config_to_hf(CONFIGS[name])) == CONFIGS[name]


def written(tmp_path, **changes):
    config = some_config()
    tmp_path = tmp_path / "model"
    save_hf(config, params_of(config), tmp_path)
    hf = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(hf))
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "gemma2"}, "model type 'gemma2' is not one of llama, mistral, qwen2, qwen3"),
        ({"attention_bias": True}, "attention_bias: true, which is not supported"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope scaling 'yarn' is not one of default, linear"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"hidden_size": 32}, r"embed_tokens.weight has shape \[64, 16\], its config.json asks for \[64, 32\]"),
        ({"num_hidden_layers": 3}, r"lacks model.layers.2.input_layernorm.weight, .* and 5 more"),
        ({"num_hidden_layers": 1}, r"holds model.layers.1.input_layernorm.weight, .*does not have"),
        ({"model_type": "qwen2"}, "lacks model.layers.0.self_attn.k_proj.bias"),
        ({"model_type": "mistral", "sliding_window": 16}, "sliding window of 16 tokens is not supported"),
        ({"num_attention_heads": None}, "config.json has no num_attention_heads"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 8.0}}, "is not as its model type has it: KeyError"),
        ({"rope_parameters": {"partial_rotary_factor": 0.5}}, "rotary positions on a part of the head"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
    ],
)
def test_what_does_not_fit_is_named(changes, message, tmp_path):
    directory = written(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        load_hf(directory)


def test_other_formats_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no config\.json in"):
        load_hf(tmp_path)
    tmp_path = written(tmp_path)
    weights = tmp_path / "model.safetensors"
    raw = weights.read_bytes()
    weights.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        load_hf(tmp_path)
    weights.rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"pickled weights \(pytorch_model\.bin\), which can run code"):
        load_hf(tmp_path)
    (tmp_path / "pytorch_model.bin").unlink()
    with pytest.raises(ValueError, match=r"has neither model\.safetensors nor"):
        load_hf(tmp_path)


def test_saving_refuses_what_would_mislead(tmp_path):
    tmp_path = written(tmp_path)
    config = some_config()
    with pytest.raises(ValueError, match="is not empty"):
        save_hf(config, params_of(config), tmp_path)
    with pytest.raises(ValueError, match="is not that of"):
        save_hf(some_config(rope_theta=5.0), params_of(config), tmp_path / "new", like=tmp_path)
    with pytest.raises(ValueError, match="logit_soft_cap"):
        save_hf(some_config(logit_soft_cap=1.0), params_of(config), tmp_path / "new")


def test_later_names_of_rope_and_dtype(tmp_path):
    """As transformers 5 writes them; null where a field has its default."""
    later = {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}, "dtype": "bfloat16",
             "rope_theta": None, "partial_rotary_factor": None, "max_position_embeddings": None}  # fmt: skip
    config = read_hf_config(written(tmp_path, **later))
    assert config.rope_theta == 5e5
    assert config.rope_scaling == RopeScaling("linear", 2.0)
    assert config.dtype == "bfloat16"


def test_f16_and_what_is_no_float(tmp_path):
    from safetensors.numpy import load_file, save_file

    directory = written(tmp_path, torch_dtype="float16")
    tensors = load_file(directory / "model.safetensors")
    halves = {name: x.astype(np.float16) for name, x in tensors.items()}
    save_file(halves | {"model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(2)}, directory / "model.safetensors")
    config, params = load_hf(directory)
    assert config.param_dtype == "float32"
    want = halves["model.layers.1.mlp.up_proj.weight"].astype(np.float32).T
    np.testing.assert_array_equal(params["params"]["layers"]["up"]["kernel"][1], want)
    save_file({name: x.astype(np.int8) for name, x in tensors.items()}, directory / "model.safetensors")
    with pytest.raises(ValueError, match="is stored as I8, not as F32, BF16 or F16"):
        load_hf(directory)


def test_a_head_beside_tied_embeddings(tmp_path):
    from safetensors.numpy import load_file, save_file

    config = some_config(tied_embeddings=True)
    params = params_of(config)
    save_hf(config, params, tmp_path / "a")
    tensors = load_file(tmp_path / "a" / "model.safetensors")
    embedding = tensors["model.embed_tokens.weight"]
    save_file(tensors | {"lm_head.weight": embedding.copy()}, tmp_path / "a" / "model.safetensors")
    jax.tree.map(np.testing.assert_array_equal, load_hf(tmp_path / "a")[1], params)
    save_file(tensors | {"lm_head.weight": embedding + 1}, tmp_path / "a" / "model.safetensors")
    with pytest.raises(ValueError, match="stores another lm_head"):
        load_hf(tmp_path / "a")


# --- transformers as the oracle.


def logits_of(config, params, tokens):
    model = Transformer(config)
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden, _ = model.apply(params, tokens, positions)
    weight, layout = head_weight(config, params)
    return jnp.einsum({"DV": "BTD,DV->BTV", "VD": "BTD,VD->BTV"}[layout], hidden, weight)


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("seed", range(4))
def test_same_logits_and_greedy_text_as_transformers(family, seed, tmp_path):
    """Logits to 1e-4 of values of size 1 to 10, f32 on both sides; 64 greedy tokens through the cache are equal."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    hf = random_hf(family, seed)
    (tmp_path / "config.json").write_text(json.dumps(hf))
    torch.manual_seed(seed)
    theirs = transformers.AutoModelForCausalLM.from_config(transformers.AutoConfig.from_pretrained(tmp_path))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.3)
    theirs.eval().save_pretrained(tmp_path / "theirs")
    config, params = load_hf(tmp_path / "theirs")
    tokens = np.random.default_rng(seed).integers(0, hf["vocab_size"], (3, 70))
    with torch.no_grad():
        want = theirs(torch.tensor(tokens)).logits.numpy()
    got = logits_of(config, params, jnp.asarray(tokens, jnp.int32))
    np.testing.assert_allclose(got, want, atol=1e-4, rtol=1e-5)

    prompts = prompt_batch(2, 9, hf["vocab_size"])
    rollout = sample(Transformer(config), params, prompts, jax.random.key(0), max_response=64, temperature=0.0)
    for row in range(2):
        size = int(prompts.length[row])
        start = torch.tensor(np.asarray(prompts.tokens)[row : row + 1, :size])
        options = dict(max_new_tokens=64, do_sample=False, eos_token_id=None, pad_token_id=0)
        with torch.no_grad():
            text = theirs.generate(start, attention_mask=torch.ones_like(start), **options)[0].numpy()
        np.testing.assert_array_equal(np.asarray(rollout.tokens)[row, : size + 64], text)

    save_hf(config, params, tmp_path / "ours", like=tmp_path / "theirs", max_file_bytes=4000)
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert type(again) is type(theirs)
    with torch.no_grad():
        np.testing.assert_array_equal(again(torch.tensor(tokens)).logits.numpy(), want)
    before, after = theirs.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    save_hf(config, params, tmp_path / "plain")  # without a directory to go by: the closest family
    plain = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "plain").eval()
    with torch.no_grad():
        np.testing.assert_allclose(plain(torch.tensor(tokens)).logits.numpy(), want, atol=1e-5)


def test_read_config_alone(tmp_path):
    assert read_hf_config(written(tmp_path)) == some_config()
