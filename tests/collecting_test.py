"""What the host does with a step's rollout: groups of equal rewards are asked again, and only they."""

import jax.numpy as jnp
import numpy as np
import pytest

from configs import dapo
from entropy_rl.types import FRESH, Rollout
from experiments.building import build, make_run_recipe
from experiments.collecting import Collector

PROMPTS, SAMPLES, RESPONSE = 8, 4, 48


class Sampler:
    """A sampler whose group p has one right response from its ``needed[p]``-th time on; earlier ones are all wrong."""

    def __init__(self, parts, problems, needed):
        self.parts, self.problems, self.needed, self.asked = parts, problems, needed, []

    def __call__(self, params, prompts, key, running):
        del params, key, running
        active = np.ones(PROMPTS, bool) if prompts.active is None else np.asarray(prompts.active)
        rounds = np.asarray(prompts.round) // PROMPTS
        self.asked.append(active)
        size = prompts.tokens.shape[1]
        tokens = np.zeros((PROMPTS * SAMPLES, size + RESPONSE), np.int32)
        mask = np.zeros(tokens.shape, bool)
        start = np.repeat(np.asarray(prompts.length), SAMPLES)
        for row in np.flatnonzero(np.repeat(active, SAMPLES)):
            group, place = divmod(int(row), SAMPLES)
            is_right = place == 0 and rounds[group] >= self.needed[group]
            text = self.problems[group].solution if is_right else f"{place}#?"
            ids = [*self.parts.tokenizer.encode(text), self.parts.tokenizer.eos_id]
            tokens[row, start[row] : start[row] + len(ids)] = ids
            mask[row, start[row] : start[row] + len(ids)] = True
        zeros = jnp.zeros(tokens.shape, jnp.float32)
        return Rollout(
            tokens=jnp.asarray(tokens), prompt_length=jnp.asarray(start), length=jnp.asarray(start + mask.sum(1)),
            response_mask=jnp.asarray(mask), sampler_log_probs=zeros, raw_log_probs=zeros, entropy=zeros,
            stopped=jnp.ones(len(tokens), bool), context=jnp.zeros(len(tokens), jnp.int32),
        )  # fmt: skip


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    return build(dapo.get_config("tiny"), str(tmp_path_factory.mktemp("collecting")))


@pytest.mark.parametrize("rounds", [0, 1, 3, 10])
def test_groups_of_equal_rewards_are_sampled_again(parts, rounds):
    config = parts.config.copy_and_resolve_references().unlock()
    config.recipe.options.resample_rounds = rounds
    recipe = make_run_recipe(config, parts.tokenizer)
    problems = parts.problems("train")[:PROMPTS]
    needed = [0, 1, 2, 0, 9, 3, 99, 99]
    sampler = Sampler(parts, problems, needed)
    collector = Collector(parts, recipe, sampler)
    asked = collector.ask(problems, step=0, epoch=0)
    rollout, tokens, _ = collector.collect(None, asked, None, None)
    assert len(sampler.asked) == 1 + rounds  # the last two groups never get a right response
    for number, active in enumerate(sampler.asked):
        np.testing.assert_array_equal(active, np.array(needed) >= number if number else True)
    correct = np.asarray(rollout.correct).reshape(PROMPTS, SAMPLES)
    np.testing.assert_array_equal(correct[:, 0], np.array(needed) <= rounds)
    assert not correct[:, 1:].any()
    assert np.all(np.asarray(rollout.origin) == FRESH)
    texts = [parts.tokenizer.decode(row[keep].tolist()) for row, keep in
             zip(np.asarray(rollout.tokens), np.asarray(rollout.response_mask), strict=True)]  # fmt: skip
    assert texts[0] == problems[0].solution
    assert texts[1] == "1#?"
    wrong = 4  # ids of "p#?" and the end
    right = sum(len(problems[p].solution) + 1 for p in range(PROMPTS) if needed[p] <= rounds)
    asked_groups = sum(int(np.sum(active)) for active in sampler.asked)
    solved = sum(n <= rounds for n in needed)
    assert tokens == right + wrong * (asked_groups * SAMPLES - solved)
