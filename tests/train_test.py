"""Whole runs through the command line: what they leave, how they go on, what they refuse."""

import json
import random

import numpy as np
import pytest

from configs import quickstart, sent
from experiments import train
from tests import runs

TINY = "--config=configs/quickstart.py:tiny"
OPTIONS = (
    TINY,
    "--config.batch.minibatches=2",
    "--config.batch.epochs=2",
    "--config.log.rollouts_every=1",
    "--config.pretrain.steps=40",
    "--config.pretrain.checkpoint_every=20",
)
# The run that several tests look at: whole here, killed there.
FIVE_STEPS = (*OPTIONS, "--config.steps=5", "--config.checkpoint.every=2", "--config.eval.every=4")


@pytest.fixture(scope="module")
def finished(tmp_path_factory, compilation_cache):
    workdir = tmp_path_factory.mktemp("run") / "r"
    output = runs.run("train", *FIVE_STEPS, f"--workdir={workdir}", cache=compilation_cache)
    return workdir, output


def test_a_run_leaves_everything(finished):
    workdir, output = finished
    summary = json.loads((workdir / "summary.json").read_text())
    for name in ("accuracy_before", "accuracy_after", "entropy_first", "entropy_last", "sampled_tokens", "seconds"):
        assert isinstance(summary[name], int | float), name
    assert summary["steps"] == 5
    assert len(summary["config_hash"]) == 16
    records = runs.steady_metrics(workdir)
    steps = [r for r in records if "reward" in r]
    assert [r["step"] for r in steps] == [1, 2, 3, 4, 5]
    assert [r["step"] for r in records if "eval_greedy" in r] == [0, 4, 5]
    wanted = (
        "reward accuracy sampler_entropy trainer_entropy response_length truncated equal_groups clip_fraction_low "
        "clip_fraction_high kl_old log_prob_gap_mean log_prob_gap_max grad_norm skipped learning_rate"
    )
    assert set(wanted.split()) <= set(steps[0])
    assert all(0 <= r["log_prob_gap_max"] < 1e-4 for r in steps)
    assert sum(len(r["tokens"]) for rows in runs.rollouts(workdir).values() for r in rows) == summary["sampled_tokens"]
    assert "mean@2" in output
    assert list((workdir / "tensorboard").iterdir())
    for rows in runs.rollouts(workdir).values():
        for r in rows:
            assert len(r["pieces"]) == len(r["tokens"]) == len(r["entropy"]) == len(r["raw_log_probs"])
            right = "".join(p for p in r["pieces"] if not p.startswith("<")).rpartition("#")[1:] == ("#", r["answer"])
            assert r["reward"] == float(right)


def test_finished_run_is_not_run_again(finished, compilation_cache):
    workdir, _ = finished
    before = (workdir / "metrics.jsonl").read_bytes()
    output = runs.run("train", *FIVE_STEPS, f"--workdir={workdir}", cache=compilation_cache)
    assert (workdir / "metrics.jsonl").read_bytes() == before
    assert "mean@2" in output


def test_changed_config_is_refused(finished, compilation_cache):
    workdir, _ = finished
    output = runs.run("train", TINY, f"--workdir={workdir}", "--config.seed=9", cache=compilation_cache, expect=2)
    assert "seed: 0 -> 9" in output
    assert "--allow_config_change" in output
    assert "Traceback" not in output


def test_evaluate_and_report(finished, compilation_cache):
    workdir, _ = finished
    for step in ("best", "base"):
        output = runs.run(
            "evaluate", f"--workdir={workdir}", f"--step={step}", "--num_samples=4", cache=compilation_cache
        )
        assert "pass@4" in output
    records = [json.loads(line) for line in (workdir / "evaluations.jsonl").read_text().splitlines()]
    assert [r["step"] for r in records][:2] == [5, 0]
    assert all(low <= mean <= high for mean, low, high in (r["mean@4"] for r in records))
    output = runs.run("evaluate", f"--workdir={workdir}", "--step=77", cache=compilation_cache, expect=2)
    assert "not base, best, latest" in output
    output = runs.run("report", f"--workdir={workdir}", cache=compilation_cache)
    assert (workdir / "curves.png").stat().st_size > 10_000
    assert "Transcripts of r" in (workdir / "transcripts.html").read_text()
    output = runs.run("report", f"--workdir={workdir}/nothing", cache=compilation_cache, expect=2)
    assert "no run" in output


@pytest.mark.parametrize(
    ("argument", "words"),
    [
        ("--config.optimizer.learning_rat=1", "learning_rat"),
        ("--config=configs/none.py", "none.py"),
        ("--config=configs/quickstart.py:huge", "no size 'huge'"),
        ("--config.eval.top_p=2.0", "top_p=2.0 is outside"),
        ("--config.e3rl.kappa=3.0", "--config.e3rl.kappa has no effect: add e3rl to config.methods"),
    ],
)
def test_wrong_command_line_is_one_sentence(tmp_path, compilation_cache, argument, words):
    output = runs.run("train", TINY, f"--workdir={tmp_path}/r", argument, cache=compilation_cache, expect=2)
    assert words in output
    assert "Traceback" not in output
    assert len([line for line in output.splitlines() if line.strip()]) == 1, output


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("batch.microbatches", 0, "must be at least 1"),
        ("batch.minibatches", 3, "do not divide into 3 minibatches"),
        ("batch.samples", 5, "5 rows do not divide into 2 minibatches"),
        ("batch.microbatches", 2, "8 prompts do not divide into 2 microbatches over 8 data shards"),
        ("batch.old_stats", "both", "'both' is not one of trainer, sampler, auto"),
        ("mesh.tensor", 3, "needs 6 devices, there are 8"),
        ("task.name", "sudoku", "'sudoku' is not one of chains"),
        ("task.options.modulus", 1, "modulus >= 2"),
        ("recipe.name", "ppo", "'ppo' is not one of grpo"),
        ("recipe.options.reduction", "median", "'median' is not one of"),
        ("model.num_kv_heads", 3, "multiple of num_kv_heads"),
        ("model.dtype", "float13", "float13"),
        ("sampling.top_p", 0.0, "top_p=0.0 is outside"),
        ("sampling.temperature", 0.0, "temperature must be positive"),
        ("sampling.max_prompt", 4, "raise config.sampling.max_prompt"),
        ("optimizer.schedule", "wave", "'wave' is not one of"),
        ("base", "/nowhere", "holds no checkpoints"),
        ("reward", "nothing", "module:name"),
        ("reward", "json:nothing", "has no 'nothing'"),
        ("tokenizer.path", "/nowhere.model", "no tokenizer at"),
        ("tokenizer.chat", True, "need a config.tokenizer.path"),
        ("model.vocab_size", 5, "below the tokenizer's 20 ids"),
        ("optimizer.max_grad_norm", -1.0, "max_grad_norm=-1.0 is out of range"),
        ("optimizer.learning_rate", float("nan"), "learning_rate=nan is out of range"),
        ("batch.samples", 1, "leaves nothing to compare"),
        ("curriculum.max_accuracy", -1.0, "must lie in [0, 1]"),
    ],
)
def test_wrong_config_is_one_sentence(tmp_path, capsys, key, value, words):
    config = quickstart.get_config("tiny")
    config.update_from_flattened_dict({key: value})
    with pytest.raises(SystemExit) as stop:
        train.train(config, str(tmp_path / "r"))
    assert stop.value.code == 2
    output = capsys.readouterr().err.strip()
    assert words in output
    assert output.startswith("error: ")
    assert "\n" not in output
    assert not (tmp_path / "r" / "base").exists()  # nothing was computed


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sent.stages": 9}, "sent.stages=9 is more than the run's 3 steps"),
        ({"sent.stages": 3, "curriculum.problems": 2}, "2 ranked problems cannot be split"),
        ({"curriculum.path": "README.md"}, "README.md is no file of semantic entropies"),
    ],
)
def test_a_curriculum_that_cannot_be_is_refused_first(tmp_path, capsys, changes, words):
    config = sent.get_config("tiny")
    config.update_from_flattened_dict(changes)
    with pytest.raises(SystemExit) as stop:
        train.train(config, str(tmp_path / "r"))
    assert stop.value.code == 2
    assert words in capsys.readouterr().err
    assert not list((tmp_path / "r").glob("*"))


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A module of the user's, importable by the runs."""
    (tmp_path / "mine.py").write_text(
        "from entropy_rl.data.tasks import Chains\n"
        "def task(operators):\n    return Chains(min_steps=1, max_steps=1, operators=operators)\n"
        "def reward(problem, response):\n    return 0.25 * len(response)\n"
        "def broken(problem, response):\n    return float('nan')\n"
    )
    environment = runs.environment
    path = {"PYTHONPATH": f"{runs.ROOT}:{tmp_path}"}
    monkeypatch.setattr(runs, "environment", lambda *a: environment(*a) | path)
    return tmp_path


@pytest.mark.slow
def test_non_finite_steps_stop_the_run_and_leave_their_data(own_module, compilation_cache):
    workdir = own_module / "r"
    options = ("--config.optimizer.learning_rate=1e38", "--config.reward=mine:reward", "--config.eval.every=0")
    more = ("--config.steps=9", "--config.optimizer.max_skipped_in_a_row=3", f"--workdir={workdir}")
    output = runs.run("train", TINY, *options, *more, cache=compilation_cache, expect=1)
    assert "updates in a row had a gradient that is not finite" in output
    assert "Traceback" not in output
    (path,) = workdir.glob("nonfinite_step_*.npz")
    assert np.load(path)["tokens"].shape[0] == 32
    skipped = [r["skipped_updates"] for r in runs.steady_metrics(workdir) if "reward" in r]
    assert skipped[-1] >= 3


@pytest.mark.slow
def test_reward_that_is_no_number_is_named(own_module, compilation_cache):
    options = ("--config.reward=mine:broken", f"--workdir={own_module}/r")
    output = runs.run("train", TINY, *options, cache=compilation_cache, expect=1)
    assert "error: the reward of problem" in output
    assert "Traceback" not in output


@pytest.mark.slow
def test_profile_leaves_a_trace(tmp_path, compilation_cache):
    runs.run("train", TINY, "--config.profile=True", f"--workdir={tmp_path}/r", cache=compilation_cache)
    assert list((tmp_path / "r" / "profile").rglob("*.xplane.pb"))


@pytest.mark.slow
def test_own_task_and_reward(own_module, compilation_cache):
    (own_module / "config.py").write_text(
        "from configs import quickstart\n"
        "def get_config():\n"
        "    config = quickstart.get_config('tiny')\n"
        "    with config.unlocked():\n"
        "        config.task.name = 'mine:task'\n"
        "        config.task.options = dict(operators='+')\n"
        "        config.reward = 'mine:reward'\n"
        "        config.steps = 1\n"
        "        config.eval.every = 0\n"
        "    return config\n"
    )
    workdir = own_module / "r"
    runs.run("train", f"--config={own_module}/config.py", f"--workdir={workdir}", cache=compilation_cache)
    record = next(r for r in runs.steady_metrics(workdir) if "reward" in r)
    assert record["reward"] > 1
    assert record["accuracy"] <= 1


def assert_same_run(a, b):
    """Parameters, optimizer, metrics and sampled tokens, bit for bit."""
    step_a, state_a = runs.final_state(a)
    step_b, state_b = runs.final_state(b)
    assert step_a == step_b
    assert state_a.keys() == state_b.keys()
    for name in state_a:
        np.testing.assert_array_equal(state_a[name], state_b[name], err_msg=name)
    assert runs.steady_metrics(a) == runs.steady_metrics(b)
    assert runs.rollouts(a) == runs.rollouts(b)


def test_killed_run_ends_as_if_it_were_not(finished, tmp_path, compilation_cache):
    killed = tmp_path / "r"
    process = runs.start("train", *FIVE_STEPS, f"--workdir={killed}", cache=compilation_cache)
    runs.kill_after(process, killed / "metrics.jsonl", lines=4, delay=0.0)
    runs.run("train", *FIVE_STEPS, f"--workdir={killed}", cache=compilation_cache)
    assert_same_run(finished[0], killed)


@pytest.mark.slow
def test_run_killed_three_times_ends_as_if_it_were_not(tmp_path, compilation_cache):
    options = (*OPTIONS, "--config.steps=30", "--config.checkpoint.every=3", "--config.eval.every=10")
    whole, killed = tmp_path / "whole" / "r", tmp_path / "killed" / "r"
    runs.run("train", *options, f"--workdir={whole}", cache=compilation_cache)
    moments = random.Random()  # really random: every moment must do
    seed = moments.randrange(10**9)
    print("seed of the moments:", seed)
    moments.seed(seed)
    for low, high in ((1, 9), (10, 19), (20, 29)):
        process = runs.start("train", *options, f"--workdir={killed}", cache=compilation_cache)
        runs.kill_after(process, killed / "metrics.jsonl", moments.randint(low, high), delay=0.3 * moments.random())
    runs.run("train", *options, f"--workdir={killed}", cache=compilation_cache)
    assert_same_run(whole, killed)


@pytest.mark.slow
def test_mesh_of_eight_devices_trains_as_one(tmp_path, compilation_cache):
    """2 x 2 x 2 devices: the same tokens, parameters within 0.02 * learning rate * steps."""
    options = (
        TINY,
        "--config.steps=5",
        "--config.log.rollouts_every=1",
        "--config.eval.every=0",
        "--config.pretrain.steps=40",
    )
    one, eight = tmp_path / "one" / "r", tmp_path / "eight" / "r"
    runs.run("train", *options, f"--workdir={one}", cache=compilation_cache)
    base = f"--config.base={one}/base"  # the same start; pretraining would differ by rounding too
    mesh = ("--config.mesh.fsdp=2", "--config.mesh.tensor=2")
    runs.run("train", *options, base, *mesh, f"--workdir={eight}", cache=compilation_cache, devices=8)
    tokens = lambda workdir: {name: [r["tokens"] for r in rows] for name, rows in runs.rollouts(workdir).items()}
    assert tokens(one) == tokens(eight)
    (_, a), (_, b) = runs.final_state(one), runs.final_state(eight)
    learning_rate, steps = 2e-4, 5
    moved = 0.0
    start = runs.final_state(one / "base")[1]
    for name in (n for n in a if "params" in n):
        assert np.max(np.abs(a[name] - b[name])) <= 0.02 * learning_rate * steps, name
        moved = max(moved, np.max(np.abs(a[name] - start[name])))
    assert moved > learning_rate  # it did train
