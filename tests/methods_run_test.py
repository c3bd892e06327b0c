"""Whole runs with the methods on: every config's tiny size, and exact resumption of all four."""

import pytest

from tests import runs
from tests.configs_test import RECIPE_CONFIGS
from tests.train_test import assert_same_run

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", RECIPE_CONFIGS)
def test_tiny_size_trains(tmp_path, compilation_cache, name):
    workdir = tmp_path / "r"
    runs.run("train", f"--config=configs/{name}.py:tiny", f"--workdir={workdir}", cache=compilation_cache)
    steps = [r for r in runs.steady_metrics(workdir) if "reward" in r]
    assert [r["step"] for r in steps] == [1, 2, 3]
    assert not any(r["skipped_updates"] for r in steps)
    assert all(value is not None for r in steps for value in r.values())


ALL = (
    "--config=configs/all_four.py:tiny",
    "--config.steps=9",
    "--config.batch.minibatches=2",
    "--config.batch.epochs=2",
    "--config.checkpoint.every=2",
    "--config.eval.every=5",
    "--config.log.rollouts_every=1",
    "--config.pretrain.steps=40",
    "--config.e3rl.erased_loss=negative",
    "--config.e3rl.kappa=0.3",
)


def test_all_four_killed_and_resumed_end_as_if_they_were_not(tmp_path, compilation_cache):
    whole, killed = tmp_path / "whole" / "r", tmp_path / "killed" / "r"
    runs.run("train", *ALL, f"--workdir={whole}", cache=compilation_cache)
    for lines in (4, 8):
        process = runs.start("train", *ALL, f"--workdir={killed}", cache=compilation_cache)
        runs.kill_after(process, killed / "metrics.jsonl", lines=lines, delay=0.1)
    runs.run("train", *ALL, f"--workdir={killed}", cache=compilation_cache)
    assert_same_run(whole, killed)
    state = runs.final_state(whole)[1]
    assert any("entrocraft" in name for name in state)
    assert any("erasing" in name for name in state)
    assert state["own/tokens"].size > 0
    rows = [r for step in runs.rollouts(whole).values() for r in step]
    assert any(r["replayed"] for r in rows)
    assert any(sum(r["erasures"]) for r in rows)
