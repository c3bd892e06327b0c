"""Interleaved timing of workers in processes of their own: A B A B ..., so that a machine's drift hits both alike.

A worker is a program that prints one JSON line when it has compiled and warmed up, then for every line "go" on its
standard input runs once and prints a JSON line with "seconds"; it ends when its input does.
"""

import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any


class Worker:
    """A running worker process."""

    def __init__(self, command: list[str]):
        # Relative to this module's own checkout, whatever the peer's environment is.
        env = os.environ | {"JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", "cpu"), "PYTHONUNBUFFERED": "1"}
        self._command = command
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env, bufsize=1
        )
        self.ready = self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"worker ended with status {self._process.wait()}: {' '.join(self._command)}")

    def go(self) -> float:
        """Seconds of one run."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        return float(self._read()["seconds"])

    def close(self) -> None:
        """Ends the process."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.kill()
        self._process.wait()


def serve(run: Callable[[], Any], ready: dict[str, Any], *, own: bool = False) -> None:
    """The worker's side: prints ``ready``, then runs once for every "go".

    ``own`` code must have compiled all it needs by then: the worker ends with an error where a timed run compiles.
    """
    if own:
        import jax

        jax.monitoring.register_event_duration_secs_listener(_refuse_compilation)
    print(json.dumps(ready), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


def _refuse_compilation(event: str, duration_secs: float, **_: Any) -> None:
    if event.endswith("backend_compile_duration"):
        sys.exit(f"error: a timed run compiled a program ({duration_secs:.2f} s): its shapes or constants change")


def interleaved(workers: dict[str, Worker], repeats: int) -> dict[str, list[float]]:
    """Seconds of every run, each worker in turn ``repeats`` times."""
    seconds: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(repeats):
        for name, worker in workers.items():
            seconds[name].append(worker.go())
    return seconds


def print_table(seconds: dict[str, list[float]], tokens: int, title: str) -> None:
    """Median and minimum seconds, tokens/s, and each worker's time over the first's (above 1: the first is faster)."""
    ours = next(iter(seconds))
    print(f"\n{title}")
    print(f"{'':<14}{'median s':>10}{'min s':>10}{'tokens/s':>12}{'time / ours':>14}")
    for name, values in seconds.items():
        ratio = statistics.median(b / a for a, b in zip(seconds[ours], values, strict=True))
        median = statistics.median(values)
        print(f"{name:<14}{median:>10.4f}{min(values):>10.4f}{tokens / median:>12,.0f}{ratio:>13.2f}x")


def describe_machine(argv: list[str]) -> None:
    """Prints the command and what it runs on."""
    import jax

    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            cpu = next((line.partition(":")[2].strip() for line in file if line.startswith("model name")), cpu)
    print("command:", "python -m", " ".join(argv))
    print(f"machine: {cpu}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, {jax.devices()[0].device_kind}")
    print(f"versions: Python {platform.python_version()}, JAX {jax.__version__}")
