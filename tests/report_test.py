"""Metrics files, curves and transcripts."""

import gzip
import json
import pathlib

import pytest

from entropy_rl.metrics import MetricsWriter, is_wall_clock, read_metrics
from entropy_rl.report import group_runs, plot_curves, write_transcripts


def make_run(directory, seed=0, steps=5, name="r"):
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"seed": seed, "name": name}))
    writer = MetricsWriter(str(directory))
    for step in range(1, steps + 1):
        writer.write(step, {"reward": 0.1 * step + seed, "trainer_entropy": 1 / step, "eval_mean@8": 0.5})
    writer.close()
    return str(directory)


def test_metrics_are_cut_at_the_checkpoint(tmp_path):
    run = make_run(tmp_path / "a")
    writer = MetricsWriter(run, resume_step=3)
    writer.write(4, {"reward": float("nan"), "seconds": 1.0})
    writer.close()
    records = read_metrics(tmp_path / "a" / "metrics.jsonl")
    assert [r["step"] for r in records] == [1, 2, 3, 4]
    assert records[3]["reward"] is None
    with open(tmp_path / "a" / "metrics.jsonl", "a") as file:
        file.write('{"step": 5, "rew')  # a crash in the middle of a line
    assert len(read_metrics(tmp_path / "a" / "metrics.jsonl")) == 4
    MetricsWriter(run).close()
    assert read_metrics(tmp_path / "a" / "metrics.jsonl") == []
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_wall_clock_names():
    assert is_wall_clock("verify_seconds")
    assert is_wall_clock("tokens_per_second")
    assert not is_wall_clock("reward")


def test_seeds_are_grouped(tmp_path):
    runs = [make_run(tmp_path / "a", seed=0), make_run(tmp_path / "b", seed=1), make_run(tmp_path / "c", name="other")]
    groups = group_runs(runs)
    assert list(groups.values()) == [runs[:2], runs[2:]]
    assert "2 seeds" in next(iter(groups))


def test_curves(tmp_path):
    runs = [make_run(tmp_path / "a", seed=0), make_run(tmp_path / "b", seed=1), make_run(tmp_path / "c", name="other")]
    path = plot_curves(runs, str(tmp_path / "curves.png"))
    assert pathlib.Path(path).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    with pytest.raises(ValueError, match="no run"):
        plot_curves([str(tmp_path)], str(tmp_path / "x.png"))
    (tmp_path / "empty").mkdir()
    MetricsWriter(str(tmp_path / "empty")).close()
    with pytest.raises(ValueError, match="nothing to draw"):
        plot_curves([str(tmp_path / "empty")], str(tmp_path / "x.png"))


def test_transcripts(tmp_path):
    directory = tmp_path / "rollouts"
    directory.mkdir()
    assert write_transcripts(str(tmp_path), str(tmp_path / "t.html")) is None
    record = {
        "step": 3,
        "problem": 1,
        "sample": 0,
        "prompt": "<b>1+1?</b>",
        "answer": "2",
        "reward": 1.0,
        "tokens": [5, 6, 2],
        "pieces": ["<script>", "2", "</s>"],
        "entropy": [0.1, 1.5, 0.0],
        "raw_log_probs": [-0.1, -1.0, 0.0],
    }
    with gzip.open(directory / "step_000003.jsonl.gz", "wt") as file:
        file.write(json.dumps(record) + "\n")
    page = pathlib.Path(write_transcripts(str(tmp_path), str(tmp_path / "t.html"))).read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;" in page
    assert "&lt;b&gt;1+1?&lt;/b&gt;" in page
    assert "reward 1" in page
    assert "entropy 1.500 nats" in page
    assert "http" not in page  # self-contained
