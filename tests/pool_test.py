"""Workers: killed, hanging, out of memory or interrupted, every pair gets its own verdict."""

import os
import signal
import threading
import time

import pytest

from entropy_rl.verify.pool import WorkerPool, _Worker

RIGHT = [(f"x+{i}", f"{i}+x") for i in range(20)]
WRONG = [(f"x+{i}", f"{i + 1}+x") for i in range(20)]
MIXED = [pair for both in zip(RIGHT, WRONG, strict=True) for pair in both]
HANGS = ("3", "\\int_0^1 x^{x} \\sin(x^{9}) \\exp(x^{3}) \\, dx")


@pytest.fixture(scope="module")
def pool():
    with WorkerPool(2, timeout=3.0) as pool:
        yield pool


def test_verdicts_are_each_pairs_own(pool):
    assert pool.compare(MIXED) == [True, False] * 20
    assert pool.compare([]) == []


def test_killed_workers_cost_no_verdict(pool):
    pool.compare(MIXED[:2])
    for worker in pool._workers:  # idle
        os.kill(worker.process.pid, signal.SIGKILL)
    assert pool.compare(MIXED) == [True, False] * 20

    def kill_some():  # at work
        for _ in range(3):
            time.sleep(0.1)
            for worker in list(pool._workers)[:1]:
                worker.process.kill()

    killer = threading.Thread(target=kill_some)
    killer.start()
    verdicts = pool.compare(MIXED * 10)
    killer.join()
    # A pair whose worker was killed twice is open, never another pair's verdict.
    assert all(got in (want, None) for got, want in zip(verdicts, [True, False] * 200, strict=True))
    assert verdicts.count(None) <= 1


def test_deadline(pool):
    start = time.monotonic()
    quick = WorkerPool(1, timeout=0.5)
    with quick:
        assert quick.compare([*RIGHT[:1], HANGS, *RIGHT[1:2]]) == [True, False, True]
        assert quick.counts["timeout"] == 1
    assert time.monotonic() - start < 60  # with two starts on a busy machine


def test_a_worker_that_ignores_its_own_alarm_is_killed(monkeypatch):
    """SIGSTOP: neither its alarm nor SIGTERM reach it."""
    with WorkerPool(1, timeout=0.5) as pool:
        assert pool.compare(RIGHT[:1]) == [True]
        stopped = pool._workers[0].process.pid
        os.kill(stopped, signal.SIGSTOP)
        assert pool.compare(RIGHT[1:3]) == [False, True]
        assert pool.counts["timeout"] == 1
        assert pool._workers[0].process.pid != stopped


def test_interrupted_call_leaves_no_reply_behind(pool, monkeypatch):
    """An interrupt right after a pair was handed over: the next call's verdicts are not off by one."""
    send = _Worker.send
    hits = []

    def interrupted(self, task, pair, seconds):
        sent = send(self, task, pair, seconds)
        if not hits:
            hits.append(True)
            raise KeyboardInterrupt
        return sent

    monkeypatch.setattr(_Worker, "send", interrupted)
    with pytest.raises(KeyboardInterrupt):
        pool.compare(RIGHT[:1])
    assert pool.compare(MIXED) == [True, False] * 20


def test_threads_wait_for_each_other(pool):
    results = [None] * 4

    def work(index):
        results[index] = pool.compare(MIXED[index : index + 10])

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    want = [True, False] * 20
    assert results == [want[index : index + 10] for index in range(4)]


def test_memory_limit():
    with WorkerPool(1, timeout=20.0, memory_mb=400) as pool:
        verdicts = pool.compare([("7", "\\sum_{k=1}^{900} 10^{k^{2}}"), *RIGHT[1:2]])
        assert verdicts == [False, True]


def test_workers_that_cannot_start_say_so(monkeypatch):
    monkeypatch.setattr("sys.executable", "/bin/false")
    with WorkerPool(1, timeout=1.0) as pool, pytest.raises(RuntimeError, match="workers cannot be started"):
        pool.compare(RIGHT[:1])


def test_workers_end_with_the_pool():
    with WorkerPool(2, timeout=3.0) as pool:
        pool.compare(MIXED[:6])
        processes = [worker.process for worker in pool._workers]
        assert len(processes) == 2
    assert all(process.poll() is not None for process in processes)
    assert pool.compare(RIGHT[:1]) == [True]  # and start again
    pool.close()
