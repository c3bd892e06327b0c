"""One step of the line: how its rows are dealt, and what changes nothing but the work."""

import jax
import numpy as np
import pytest

from configs import quickstart
from experiments.building import build, check_rows, make_run_optimizer, make_run_recipe, random_params, sharded_state
from experiments.line import Line, minibatches


@pytest.mark.parametrize(("rows", "count", "group_size"), [(24, 1, 1), (24, 3, 1), (24, 2, 4), (24, 1, 6), (40, 5, 10)])
def test_every_row_once(rows, count, group_size):
    dealt = np.asarray(minibatches(jax.random.key(0), rows, count, group_size))
    assert sorted(dealt.reshape(-1).tolist()) == list(range(rows))
    assert dealt.reshape(-1).tolist() != list(range(rows))
    if group_size > 1:
        parts = dealt.reshape(count, rows // group_size, group_size // count)
        np.testing.assert_array_equal(parts // group_size, np.arange(rows // group_size)[None, :, None] + 0 * parts)


@pytest.fixture(scope="module")
def stepped(tmp_path_factory):
    """changes of the config -> what one step of the tiny quickstart made, its minibatches one whole batch."""
    made = {}

    def step(**changes):
        if (key := tuple(sorted(changes.items()))) in made:
            return made[key]
        config = quickstart.get_config("tiny")
        config.batch.minibatches = 1
        config.update_from_flattened_dict({f"batch.{name}": value for name, value in changes.items()})
        parts = build(config, str(tmp_path_factory.mktemp("line")))
        recipe, (optimizer, _) = make_run_recipe(config, parts.tokenizer), make_run_optimizer(config)
        check_rows(config, recipe, parts.mesh)
        line = Line(parts, recipe, optimizer)
        state = sharded_state(parts, random_params(parts), optimizer)
        problems = parts.problems("train")[: config.batch.prompts]
        made[key] = line.step(state, recipe.init_states(), problems, number=0, epoch=0, key=jax.random.key(0))
        return made[key]

    return step


def test_no_step_compiles_after_the_second(tmp_path):
    config = quickstart.get_config("tiny")
    parts = build(config, str(tmp_path))
    recipe, (optimizer, _) = make_run_recipe(config, parts.tokenizer), make_run_optimizer(config)
    line, stages = Line(parts, recipe, optimizer), recipe.init_states()
    state, problems = sharded_state(parts, random_params(parts), optimizer), parts.problems("train")
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, duration, **_: compiled.append(event) if event.endswith("backend_compile_duration") else None
    )
    counts = []
    for number in range(4):
        chosen = problems[number * config.batch.prompts : (number + 1) * config.batch.prompts]
        made = line.step(state, stages, chosen, number=number, epoch=0, key=jax.random.key(number))
        state, stages = made.state, made.stages
        counts.append(len(compiled))
    assert counts[0] > 0
    assert counts[1] == counts[3]


@pytest.mark.parametrize("changes", [dict(share_prompts=True), dict(old_stats="sampler")], ids=str)
def test_what_saves_work_changes_no_result(stepped, changes):
    plain, other = stepped(share_prompts=False), stepped(**{"share_prompts": False} | changes)
    np.testing.assert_array_equal(plain.rollout.tokens, other.rollout.tokens)
    np.testing.assert_allclose(plain.rollout.old_log_probs, other.rollout.old_log_probs, atol=1e-5)
    np.testing.assert_allclose(plain.rollout.old_entropy, other.rollout.old_entropy, atol=1e-5)
    for name in ("loss", "grad_norm", "entropy", "trainer_entropy"):
        np.testing.assert_allclose(plain.values[name], other.values[name], rtol=1e-4, atol=1e-6, err_msg=name)
    assert ("log_prob_gap_max" in other.values) == ("share_prompts" in changes)
