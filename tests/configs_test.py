"""Every config file: it can be read in all its sizes, and its recipe can be made."""

import importlib
import itertools
import pathlib

import jax
import pytest
from ml_collections import ConfigDict

from configs.sizes import MODELS
from entropy_rl.data.tasks import Chains
from entropy_rl.model.tokenizer import CharTokenizer
from entropy_rl.model.transformer import TransformerConfig
from entropy_rl.objectives.methods import METHODS
from entropy_rl.parallel.mesh import make_mesh
from experiments.building import check_rows, make_run_recipe

SHARED = {"__init__", "common", "sizes"}
NAMES = sorted(p.stem for p in pathlib.Path(__file__).parents[1].glob("configs/*.py") if p.stem not in SHARED)
RECIPE_CONFIGS = [name for name in NAMES if name not in ("quickstart", "countdown", "gsm8k_small")]
TOKENIZER = CharTokenizer(Chains().alphabet)


def get(name: str, *size: str) -> ConfigDict:
    return importlib.import_module(f"configs.{name}").get_config(*size)


def test_all_that_are_asked_for_are_there():
    wanted = "grpo dapo dr_grpo gspo cispo rloo clip_cov kl_cov top_entropy entropy_bonus adaptive_entropy w_reinforce "
    wanted += "entropic entrocraft e3rl sent r3 all_four"
    assert set(wanted.split()) == set(RECIPE_CONFIGS)


@pytest.mark.parametrize(("name", "size"), list(itertools.product(RECIPE_CONFIGS, ("", "tiny"))))
def test_embedded_sizes(name, size):
    config = get(name, size)
    assert config.is_locked
    recipe = make_run_recipe(config, TOKENIZER)
    check_rows(config, recipe, make_mesh(devices=jax.devices()[:1]))
    assert (config.steps == 3) == (size == "tiny")


class Bytes:
    """Writes any text."""

    def encode(self, text):
        return list(text.encode())


def test_a_template_that_cannot_be_written_is_refused():
    config = get("r3").unlock()
    config.r3.reflection_template = "{problem} wrong: {failure}"
    with pytest.raises(ValueError, match="is not in the alphabet"):
        make_run_recipe(config, TOKENIZER)
    config.r3.reflection_template = "{problem}{failure}" + "?" * 70
    with pytest.raises(ValueError, match="alone has 70 tokens"):
        make_run_recipe(config, TOKENIZER)


def test_a_layer_or_buffer_that_is_not_there_is_refused():
    config = get("e3rl").unlock()
    config.e3rl.credit_layer = 3
    with pytest.raises(ValueError, match="is not one of the model's 3 layers"):
        make_run_recipe(config, TOKENIZER)
    config = get("grpo").unlock()
    config.recipe.options.overlong_buffer = 100
    with pytest.raises(ValueError, match="overlong_buffer=100 is above max_response=48"):
        make_run_recipe(config, TOKENIZER)


PAPERS = [
    *itertools.product(("grpo", "entrocraft", "e3rl"), ("qwen3_4b", "qwen3_8b")),
    *itertools.product(("sent", "r3"), ("r1_distill_1_5b",)),
]


@pytest.mark.parametrize(("name", "size"), PAPERS)
def test_paper_sizes(name, size):
    config = get(name, size)
    if config.e3rl.delimiters:
        pytest.fail("the papers' segments are of fixed length")
    recipe = make_run_recipe(config, Bytes())
    check_rows(config, recipe, make_mesh(devices=jax.devices()))
    model = TransformerConfig(**(config.model.to_dict() | {"rope_scaling": None}))
    inner = model.num_heads * model.head_dim + 2 * model.num_kv_heads * model.head_dim
    layer = model.embed_dim * (inner + model.num_heads * model.head_dim + 3 * model.mlp_dim)
    total = model.num_layers * layer + (1 if model.tied_embeddings else 2) * model.vocab_size * model.embed_dim
    wanted = {"qwen3_4b": 4.02e9, "qwen3_8b": 8.19e9, "r1_distill_1_5b": 1.78e9}[size]  # as published
    assert total == pytest.approx(wanted, rel=0.01)
    assert set(MODELS) >= {size}


def test_unknown_size_names_those_there_are():
    with pytest.raises(ValueError, match="there are tiny, qwen3_4b, qwen3_8b, or none"):
        get("grpo", "huge")


@pytest.mark.parametrize("names", ["", "e3rl", "sent, r3", ",".join(METHODS)])
def test_any_subset_by_name(names):
    config = get("all_four", "tiny").unlock()
    config.methods = names
    recipe = make_run_recipe(config, TOKENIZER)
    found = {stage.name for stage in recipe.stages}
    assert ("erasing" in found) == ("e3rl" in names)
    assert ("entrocraft" in found) == ("entrocraft" in names)
    assert (recipe.replay is not None) == ("r3" in names)
    assert (recipe.curriculum_stages == 2) == ("sent" in names)


def test_unknown_method_is_named():
    config = get("grpo").unlock()
    config.methods = "e4rl"
    with pytest.raises(ValueError, match=r"'e4rl' of config\.methods is not one of r3, e3rl, sent, entrocraft"):
        make_run_recipe(config, TOKENIZER)


def test_a_band_of_the_users_own(monkeypatch):
    config = get("entrocraft").unlock()
    config.entrocraft.band = "tests.configs_test:own_band"
    recipe = make_run_recipe(config, TOKENIZER)
    assert any(stage.name == "entrocraft" for stage in recipe.stages)
    config.entrocraft.band = "tests.configs_test:no_band"
    with pytest.raises(ValueError, match="has no 'no_band'"):
        make_run_recipe(config, TOKENIZER)


def own_band(step):
    return 0.1 - 1e-4 * step, 0.13 - 1e-4 * step
