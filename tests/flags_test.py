"""Two processes on one machine join and train as one program."""

import os

import pytest

from tests import runs


@pytest.mark.slow
def test_two_processes_join(tmp_path, compilation_cache, monkeypatch):
    """Both processes end well, and exactly one run is written."""
    environment = runs.environment
    processes = []
    for index in ("0", "1"):
        extra = {"JAX_COORDINATOR_ADDRESS": f"localhost:{20000 + os.getpid() % 20000}", "JAX_NUM_PROCESSES": "2"}
        extra["JAX_PROCESS_ID"] = index
        monkeypatch.setattr(runs, "environment", lambda *a, extra=extra: environment(*a) | extra)
        arguments = ("--config=configs/quickstart.py:tiny", "--multihost", f"--workdir={tmp_path}/r")
        processes.append(runs.start("train", *arguments, cache=compilation_cache))
    outputs = [process.communicate(timeout=400)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], outputs
    steps = [r["step"] for r in runs.steady_metrics(tmp_path / "r") if "reward" in r]
    assert steps == [1, 2, 3]
