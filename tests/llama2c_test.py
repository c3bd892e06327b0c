"""Trained weights: the first proof that model, rotary convention, cache and sampler are right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl.learner import make_score
from entropy_rl.model import Transformer, head_weight, load_llama2c
from entropy_rl.model.llama2c import load_llama2c_tokenizer
from entropy_rl.rollout import sample
from entropy_rl.types import PromptBatch
from tests.transformer_test import numpy_forward

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


def test_sampler_and_trainer_are_as_near_to_float64_as_numpy_in_float32(data_dir):
    """Trained weights multiply rounding errors: no float32 forward pass is within 1e-5 of the exact log-probs here."""
    config, params = load_llama2c(data_dir / "weights" / "stories260K" / "stories260K.bin")
    model, count = Transformer(config), 4
    ids = jnp.arange(count)
    prompts = PromptBatch(tokens=0 * ids[:, None] + 1, length=0 * ids + 1, ids=ids, context=0 * ids, round=0 * ids)
    rollout = sample(model, params, prompts, jax.random.key(0), max_response=150)
    trainer = np.asarray(make_score(model, max_response=150, temperature=1.0)(params, rollout)[0])
    weight, layout = head_weight(config, params)
    weight = np.asarray(weight if layout == "DV" else weight.T)

    def log_probs(row, dtype):
        logits = numpy_forward(config, params, row, dtype)[:-1] @ weight.astype(dtype)
        top = logits.max(-1, keepdims=True)
        logits -= top + np.log(np.sum(np.exp(logits - top), -1, keepdims=True))
        return np.take_along_axis(logits, row[1:, None], -1)[:, 0]

    distance = {"numpy": 0.0, "sampler": 0.0, "trainer": 0.0}
    for i, row in enumerate(np.asarray(rollout.tokens)):
        size = int(rollout.length[i])
        exact = log_probs(row[:size], np.float64)
        others = log_probs(row[:size], np.float32), rollout.raw_log_probs[i, 1:size], trainer[i, 1:size]
        for name, values in zip(distance, others, strict=True):
            distance[name] = max(distance[name], float(np.abs(values - exact).max()))
    assert 1e-6 < distance["numpy"] < 1e-4
    assert distance["sampler"] <= 2 * distance["numpy"], distance
    assert distance["trainer"] <= 2 * distance["numpy"], distance
    gap = np.abs(np.asarray(rollout.raw_log_probs) - trainer)[np.asarray(rollout.response_mask)].max()
    assert gap <= 2 * distance["numpy"], (gap, distance)


@pytest.mark.parametrize("size", [3, 28, 1000])
def test_truncated_file_is_refused(data_dir, tmp_path, size):
    whole = (data_dir / "weights" / "stories260K" / "stories260K.bin").read_bytes()
    (tmp_path / "cut.bin").write_bytes(whole[:size])
    with pytest.raises(ValueError, match=r"no llama2\.c checkpoint"):
        load_llama2c(tmp_path / "cut.bin")
