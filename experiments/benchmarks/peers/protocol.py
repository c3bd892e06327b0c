"""What the peers' scripts share: the prompts, and how a worker is told to run and says how long it took."""

import json
import sys
import time

import numpy as np

VOCAB, LAYERS = 2048, 4
PROMPTS, SAMPLES, SIZE, STEPS = 4, 4, 64, 200  # of a GRPO step; more steps than anybody asks for


def prompt_ids(batch, size):
    """The prompts of tiny_qwen3.prompt_ids."""
    ids = np.random.default_rng(0).integers(3, VOCAB, (batch, size))
    ids[:, 0] = 1
    return ids


def serve(run, ready):
    """Prints ``ready``, then runs once for every line of standard input."""
    print(json.dumps(ready), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)


def paced(rewards, ready):
    """A reward function that waits for the word to go on; a trainer calls it once a step.

    From "go" to the next call is one whole step: the update of this batch, then the sampling of the next. Two steps go
    by untimed. ``rewards`` takes the trainer's keywords and checks that the batch is what is timed.
    """
    calls, started = 0, None

    def reward(**batch):
        nonlocal calls, started
        calls += 1
        values = rewards(**batch)
        if calls == 3:
            print(json.dumps(ready), flush=True)
        elif calls > 3:
            print(json.dumps({"seconds": time.perf_counter() - started}), flush=True)
        if calls >= 3 and not sys.stdin.readline():
            sys.exit(0)
        started = time.perf_counter()
        return values

    return reward
