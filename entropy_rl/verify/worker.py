"""A worker of ``pool``: compares pairs of answers, one JSON line in, one out, under limits of memory, time and files.

Run as ``python -m entropy_rl.verify.worker MEMORY_MB``. It ends when its input does.
"""

import contextlib
import json
import os
import resource
import signal
import sys
import time


class OutOfTime(BaseException):
    """Not an Exception: the libraries under test catch those."""


def _limit(memory_mb: int) -> None:
    """Nothing written into files, no children, bounded memory; what a system does not know is left out."""
    for what, amount in (
        (resource.RLIMIT_AS, memory_mb << 20),
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
    ):
        with contextlib.suppress(ValueError, OSError):
            resource.setrlimit(what, (amount, amount))


def _ring(signum, frame):
    raise OutOfTime


def main() -> None:
    """Answers requests until there are none; argv[1] is the memory limit in MiB."""
    output = os.fdopen(os.dup(1), "w")
    quiet = os.open(os.devnull, os.O_RDWR)
    for stream in (1, 2):
        os.dup2(quiet, stream)  # whatever a library prints goes nowhere

    def reply(**fields: object) -> None:
        output.write(json.dumps(fields) + "\n")
        output.flush()

    try:
        import logging

        from entropy_rl.verify.algebra import Symbolic
        from entropy_rl.verify.equivalence import Comparison
        from entropy_rl.verify.structure import Undecided

        logging.disable(logging.CRITICAL)
        comparison = Comparison(Symbolic())
        comparison.equal("\\frac{x}{2}", "0.5 x")  # what is imported or built at the first use
        _limit(int(sys.argv[1]))
        sys.set_int_max_str_digits(10_000)
    except Exception as error:
        reply(failed=f"{type(error).__name__}: {error}")
        return
    signal.signal(signal.SIGALRM, _ring)
    reply(ready=True)
    for line in sys.stdin:
        request = json.loads(line)
        seconds = request["seconds"]
        # If the parent is gone and C code does not come back, the kernel ends this process.
        used = time.process_time()
        hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
        resource.setrlimit(resource.RLIMIT_CPU, (int(used + seconds) + 5, hard))
        try:
            signal.setitimer(signal.ITIMER_REAL, seconds)
            try:
                answer: dict[str, object] = {"equal": comparison.equal(request["gold"], request["answer"])}
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
        except OutOfTime:
            answer = {"failed": "timeout"}
        except MemoryError:
            answer = {"failed": "memory"}
        except (Undecided, RecursionError):
            answer = {"equal": False}
        except Exception as error:  # a library's fault on hostile text is the answer's fault
            answer = {"equal": False, "error": type(error).__name__}
        reply(**answer, serial=request["serial"])
        if answer.get("failed") == "memory":
            return


if __name__ == "__main__":
    main()
