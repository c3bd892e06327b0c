"""Checkpoints: exact, kept by age and by score, whole or not there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl import learner
from entropy_rl.checkpoint import Checkpointer
from entropy_rl.parallel import make_mesh, param_shardings
from tests.helpers import tiny_model


@pytest.fixture
def state():
    _, params = tiny_model()
    return learner.init_state(params, learner.make_optimizer(1e-3))


def test_round_trip_is_exact(state, tmp_path):
    checkpointer = Checkpointer(tmp_path / "c")
    assert checkpointer.latest_step() is None
    with pytest.raises(ValueError, match="no checkpoint"):
        checkpointer.restore(state)
    checkpointer.save(3, state.replace(updates=jnp.int32(7)), {"stream": {"position": 12}})
    checkpointer.wait()
    restored, meta = checkpointer.restore(state)
    jax.tree.map(np.testing.assert_array_equal, restored, state.replace(updates=jnp.int32(7)))
    assert jax.tree.map(lambda x: x.dtype, restored) == jax.tree.map(lambda x: x.dtype, state)
    assert meta == {"stream": {"position": 12}}
    checkpointer.close()


def test_latest_and_best_are_kept(state, tmp_path):
    checkpointer = Checkpointer(tmp_path / "c", keep=2, keep_best=1)
    for step, score in enumerate([0.1, 0.9, None, 0.3, None]):
        checkpointer.save(step, state, {}, None if score is None else {"score": score})
    checkpointer.wait()
    assert checkpointer.steps() == [1, 3, 4]
    assert checkpointer.best_step() == 1
    assert checkpointer.latest_step() == 4
    checkpointer.close()


def test_later_updates_do_not_reach_a_checkpoint_being_written(state, tmp_path):
    """The saved buffers are donated to the next step while the writer still works."""
    checkpointer = Checkpointer(tmp_path / "c")
    spoil = jax.jit(lambda s: jax.tree.map(lambda x: x * 0 - 1, s), donate_argnums=0)
    before = jax.tree.map(np.array, state)
    live = jax.tree.map(jnp.copy, state)
    checkpointer.save(1, live, {})
    live = spoil(live)
    jax.block_until_ready(live)
    checkpointer.wait()
    jax.tree.map(np.testing.assert_array_equal, checkpointer.restore(state)[0], before)
    checkpointer.close()


def test_restores_onto_another_mesh(state, tmp_path):
    checkpointer = Checkpointer(tmp_path / "c")
    checkpointer.save(1, state, {})
    checkpointer.wait()
    model, _ = tiny_model()
    mesh = make_mesh(data=2, fsdp=2, tensor=2)
    shardings = param_shardings(mesh, model.logical_axes(), state.params)
    template = state.replace(params=jax.device_put(state.params, shardings))
    restored, _ = checkpointer.restore(template)
    jax.tree.map(np.testing.assert_array_equal, restored.params, state.params)
    assert jax.tree.map(lambda x: x.sharding, restored.params) == shardings
    checkpointer.close()


def test_other_model_is_refused(state, tmp_path):
    checkpointer = Checkpointer(tmp_path / "c")
    checkpointer.save(1, state, {})
    checkpointer.wait()
    _, params = tiny_model(num_layers=2)
    other = learner.init_state(params, learner.make_optimizer(1e-3))
    with pytest.raises(ValueError, match="does not fit this model"):
        checkpointer.restore(other)
    checkpointer.close()


def test_half_written_checkpoint_is_not_there(state, tmp_path):
    checkpointer = Checkpointer(tmp_path / "c")
    checkpointer.save(1, state, {})
    checkpointer.close()
    (tmp_path / "c" / "2.orbax-checkpoint-tmp").mkdir()
    (tmp_path / "c" / "2.orbax-checkpoint-tmp" / "state").mkdir()
    again = Checkpointer(tmp_path / "c")
    assert again.latest_step() == 1
    again.close()
