"""Running the experiment modules as a user does, in processes of their own."""

import gzip
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np

from entropy_rl.metrics import is_wall_clock, read_metrics

ROOT = pathlib.Path(__file__).resolve().parents[1]


def environment(devices: int, cache: str) -> dict[str, str]:
    env = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    env |= {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": cache, "PYTHONPATH": str(ROOT)}
    env |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5"}
    if devices > 1:
        env["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"
    return env


def start(module: str, *arguments: str, cache: str, devices: int = 1) -> subprocess.Popen:
    command = [sys.executable, "-m", f"experiments.{module}", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=environment(devices, cache), **pipes)


def run(module: str, *arguments: str, cache: str, devices: int = 1, expect: int = 0) -> str:
    process = start(module, *arguments, cache=cache, devices=devices)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == expect, output
    return output


def kill_after(process: subprocess.Popen, metrics: pathlib.Path, lines: int, delay: float) -> None:
    """SIGKILL ``delay`` seconds after the metrics file has ``lines`` lines; fails where the run ends before."""
    while not metrics.exists() or len(read_metrics(metrics)) < lines:
        assert process.poll() is None, process.communicate()[0]
        time.sleep(0.01)
    time.sleep(delay)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL, "the run ended before it could be killed"


def steady_metrics(workdir: pathlib.Path) -> list[dict]:
    """Metrics without what depends on the clock."""
    return [{k: v for k, v in r.items() if not is_wall_clock(k)} for r in read_metrics(workdir / "metrics.jsonl")]


def rollouts(workdir: pathlib.Path) -> dict[str, list[dict]]:
    """All saved rollouts by file name."""
    found = {}
    for path in sorted((workdir / "rollouts").glob("*.jsonl.gz")):
        with gzip.open(path, "rt") as file:
            found[path.name] = [json.loads(line) for line in file]
    return found


def final_state(workdir: pathlib.Path):
    """The last checkpoint's arrays by name, and its metadata."""
    import jax
    import orbax.checkpoint as ocp

    directory = workdir / "checkpoints"
    step = max(int(p.name) for p in directory.iterdir() if p.name.isdigit())
    tree = ocp.StandardCheckpointer().restore(directory / str(step) / "state")
    flat = jax.tree_util.tree_flatten_with_path(tree)[0]
    found = {jax.tree_util.keystr(path): np.asarray(value) for path, value in flat}
    if (directory / str(step) / "stages").exists():
        stages = ocp.StandardCheckpointer().restore(directory / str(step) / "stages")
        found |= {f"stages{name}": np.asarray(value) for name, value in stages.items()}
    for path in workdir.glob(f"checkpoints_own/{step:08d}.*.npz"):
        with np.load(path) as file:
            found |= {f"own/{name}": value for name, value in file.items()}
    return step, found
