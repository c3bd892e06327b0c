"""Worker processes that can be killed: every answer gets a verdict by its deadline, whatever it does to the parser.

A worker is a fresh interpreter that imports neither JAX nor the caller's program, with a memory limit and no right to
write files. It stops itself at nine tenths of the deadline; where its code does not come back (a power of a power in
C), it gets SIGTERM at the deadline, SIGKILL a quarter of a second later, and a successor.
"""

import collections
import json
import os
import selectors
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from typing import Literal

_START_SECONDS = 120.0  # to import the parser on a busy machine
_GRACE_SECONDS = 0.25  # from SIGTERM to SIGKILL
_MOST_BYTES = 1 << 16  # of one reply


class _Worker:
    """One process; busy with at most one pair."""

    def __init__(self, memory_mb: int):
        environment = {
            **{k: v for k, v in os.environ.items() if k in ("PATH", "LD_LIBRARY_PATH", "HOME", "LANG", "VIRTUAL_ENV")},
            "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "OMP_NUM_THREADS": "1",
        }
        self.process = subprocess.Popen(
            [sys.executable, "-m", "entropy_rl.verify.worker", str(memory_mb)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment,
            start_new_session=True,  # Ctrl-C is the parent's to handle
        )  # fmt: skip
        self.ready = False
        self.task: int | None = None
        self.deadline = time.monotonic() + _START_SECONDS
        self.terminated = False
        self._bytes = b""
        self._serial = 0

    def send(self, task: int, pair: tuple[str, str], seconds: float) -> bool:
        """Whether the pair could be handed over."""
        self.task, self.deadline = task, time.monotonic() + seconds  # first: from here on the worker is not idle
        self._serial += 1
        request = {"gold": pair[0], "answer": pair[1], "seconds": 0.9 * seconds, "serial": self._serial}
        try:
            os.write(self.process.stdin.fileno(), json.dumps(request).encode() + b"\n")  # type: ignore[union-attr]
        except OSError:
            return False
        return True

    def receive(self) -> dict | None:
        """A whole reply, {} where it is not whole yet, None where the process is gone."""
        try:
            new = os.read(self.process.stdout.fileno(), _MOST_BYTES)  # type: ignore[union-attr]
        except OSError:
            return None
        if not new or len(self._bytes) > _MOST_BYTES:
            return None
        self._bytes += new
        line, end, rest = self._bytes.partition(b"\n")
        if not end:
            return {}
        self._bytes = rest
        try:
            reply = json.loads(line)
        except ValueError:
            return None
        if not isinstance(reply, dict) or reply.get("serial", self._serial) != self._serial:
            return None
        return reply

    def close(self) -> None:
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                stream.close()
        self.process.wait()


class WorkerPool:
    """Compares pairs of answers in worker processes; a context manager.

    Workers start at the first call. Calls from several threads wait for each other.

    Args:
        num_workers: processes.
        timeout: seconds for one pair.
        memory_mb: of a worker's address space.

    Attributes:
        counts: of pairs by what became of them: "algebra", "timeout", "memory", "crash", "unfinished".
    """

    def __init__(self, num_workers: int, *, timeout: float, memory_mb: int = 1024):
        self._size, self._timeout, self._memory_mb = num_workers, timeout, memory_mb
        self._workers: list[_Worker] = []
        self._lock = threading.Lock()
        self._failed_starts = 0
        self.counts: collections.Counter[str] = collections.Counter()

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers; a later call starts new ones."""
        with self._lock:
            for worker in self._workers:
                worker.close()
            self._workers = []

    def __del__(self) -> None:
        for worker in getattr(self, "_workers", []):
            worker.close()

    def _fill(self, wanted: int) -> None:
        while len(self._workers) < wanted:
            try:
                self._workers.append(_Worker(self._memory_mb))
            except OSError as error:  # no memory or no process left: those that run do the work, or it is tried again
                if self._workers:
                    return
                self._failed_start(str(error))
                time.sleep(1.0)

    def _failed_start(self, why: str) -> None:
        self._failed_starts += 1
        if self._failed_starts >= 3:
            raise RuntimeError(
                f"the grader's workers cannot be started ({why}): is there memory, and is math-verify installed?"
            )

    def compare(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        """Whether each (gold, answer), cleaned, is one answer; None for what the machine kept from being decided.

        A pair that runs out of its time or memory is False; one whose worker died is tried once more. The whole call
        takes at most ten deadlines and a twentieth of a second per pair: what is not done then is None, "unfinished".

        Raises:
            RuntimeError: if workers cannot be started at all.
        """
        with self._lock:
            return self._compare(pairs)

    def _compare(self, pairs: Sequence[tuple[str, str]]) -> list[bool | None]:
        verdicts: list[bool | None] = [None] * len(pairs)
        tried: set[int] = set()
        waiting = collections.deque(range(len(pairs)))
        for worker in list(self._workers):  # those that died, or are busy for a call that was interrupted
            if worker.task is not None or worker.process.poll() is not None:
                self._remove(worker)
        done, end = 0, None
        while done < len(pairs):
            self._fill(min(self._size, len(waiting) + sum(worker.task is not None for worker in self._workers)))
            for worker in list(self._workers):
                if worker.ready and worker.task is None and waiting:
                    end = end or time.monotonic() + 10 * self._timeout + 0.05 * len(pairs)
                    if worker.send(waiting[0], pairs[waiting[0]], self._timeout):
                        waiting.popleft()
                    else:
                        self._remove(worker)
            if end is not None and time.monotonic() > end:
                self.counts["unfinished"] += len(waiting)
                done += len(waiting)
                waiting.clear()
            for worker, answered in self._step():
                outcome, task = self._outcome(worker, answered), worker.task
                if task is None or outcome == "open":
                    continue
                worker.task = None
                if worker.terminated and worker in self._workers:  # it answered between its end and the news of it
                    self._remove(worker)
                if outcome is None and task not in tried:
                    tried.add(task)
                    waiting.append(task)
                    continue
                self.counts["crash"] += outcome is None
                verdicts[task], done = outcome, done + 1
        return verdicts

    def _step(self) -> list[tuple[_Worker, bool]]:
        """Waits for replies or a deadline: (worker, whether it replied) of those that did or are overdue."""
        busy = [worker for worker in self._workers if worker.task is not None or not worker.ready]
        with selectors.DefaultSelector() as selector:
            for worker in busy:
                selector.register(worker.process.stdout, selectors.EVENT_READ, worker)  # type: ignore[arg-type]
            wait = max(0.0, min((worker.deadline for worker in busy), default=0.0) - time.monotonic())
            talking = [key.data for key, _ in selector.select(min(wait, 1.0))]
        overdue = [worker for worker in busy if worker not in talking and time.monotonic() > worker.deadline]
        return [(worker, True) for worker in talking] + [(worker, False) for worker in overdue]

    def _outcome(self, worker: _Worker, answered: bool) -> Literal["open"] | bool | None:
        """What became of a worker's pair: a verdict, None where the worker died, or "open"."""
        if not answered and worker.task is not None and not worker.terminated:
            worker.process.terminate()
            worker.terminated, worker.deadline = True, time.monotonic() + _GRACE_SECONDS
            return "open"
        reply = worker.receive() if answered else None
        if reply is None:
            return self._lost(worker)
        if "ready" in reply:
            worker.ready, self._failed_starts = True, 0
            return "open"
        if not worker.ready and "failed" in reply:
            self._remove(worker)
            raise RuntimeError(f"the grader's workers cannot start: {reply['failed']}")
        if "failed" in reply:
            self.counts[reply["failed"]] += 1
            if reply["failed"] == "memory":  # it has ended, lest what it still holds fail its next pair
                self._remove(worker)
            return False
        if "equal" in reply:
            self.counts["algebra"] += 1
            return bool(reply["equal"])
        return "open"

    def _lost(self, worker: _Worker) -> bool | None:
        """Removes a worker that died or had to; False where its pair is to blame."""
        self._remove(worker)
        if worker.task is None:
            self._failed_start("they die while they start")
        elif worker.terminated:
            self.counts["timeout"] += 1
            return False
        return None

    def _remove(self, worker: _Worker) -> None:
        worker.close()
        self._workers.remove(worker)
