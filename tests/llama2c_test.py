"""Trained weights: the first proof that model, rotary convention, cache and sampler are right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl.model import Transformer, load_llama2c
from entropy_rl.model.llama2c import load_llama2c_tokenizer
from entropy_rl.rollout import sample
from entropy_rl.types import PromptBatch

KNOWN = (
    "Once upon a time, there was a little girl named Lily. She loved to play outside in the park. One day, she saw a "
    "big, red ball. She wanted to play with it, but it was too high.\nLily's mom said, \"Lily, let's go to the park.\" "
    "Lily was sad and didn't know what to do. She said, \"I want to play with your ball, but"
)


def test_known_greedy_text(data_dir):
    directory = data_dir / "weights" / "stories260K"
    config, params = load_llama2c(directory / "stories260K.bin")
    pieces = load_llama2c_tokenizer(directory / "tok512.bin", config.vocab_size)
    one = jnp.ones(1, jnp.int32)
    prompts = PromptBatch(tokens=one[None], length=one, ids=one, context=0 * one, round=0 * one)
    rollout = sample(Transformer(config), params, prompts, jax.random.key(0), max_response=130, temperature=0.0)
    tokens = np.asarray(rollout.tokens)[0, 1:]
    assert len(tokens) >= 100
    text = b"".join(pieces[t] for t in tokens).decode().replace("<0x0A>", "\n")
    assert text.lstrip().startswith(KNOWN)


@pytest.mark.parametrize("size", [3, 28, 1000])
def test_truncated_file_is_refused(data_dir, tmp_path, size):
    whole = (data_dir / "weights" / "stories260K" / "stories260K.bin").read_bytes()
    (tmp_path / "cut.bin").write_bytes(whole[:size])
    with pytest.raises(ValueError, match=r"no llama2\.c checkpoint"):
        load_llama2c(tmp_path / "cut.bin")
