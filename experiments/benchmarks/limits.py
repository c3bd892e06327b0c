"""What this machine allows a sampler of the benchmark's model: its matrix products alone, and reading keys and values.

    python -m experiments.benchmarks.limits

Products: one token of every row through all layers' weights and the head, nothing else; weights in arrays of their own,
and sliced from a stack in the loop. Reading: one query per row over a window too large for the caches, keys with slots
innermost ("KHS", as our cache has them) and before the head's width ("KSH", as values lie).
"""

import statistics
import sys
import time

import jax
import jax.numpy as jnp
from absl import app, flags
from jax import lax

from experiments.benchmarks import interleave, tiny_qwen3


def seconds_each(step, start, *operands, steps: int, repeats: int) -> float:
    """Median seconds of ``step(state, *operands)``, run ``steps`` times in one program."""
    run = jax.jit(lambda state, *rest: lax.fori_loop(0, steps, lambda i, state: step(state, *rest), state))
    jax.block_until_ready(run(start, *operands))
    taken = []
    for _ in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(run(start, *operands))
        taken.append((time.perf_counter() - begin) / steps)
    return statistics.median(taken)


def weights(key) -> list[jax.Array]:
    """Every matrix of a layer, [L, in, out]."""
    s = tiny_qwen3.SIZES
    width, mlp = s["embed_dim"], s["mlp_dim"]
    heads, kv = s["num_heads"] * s["head_dim"], s["num_kv_heads"] * s["head_dim"]
    shapes = [(width, heads), (width, kv), (width, kv), (heads, width), (width, mlp), (width, mlp), (mlp, width)]
    return [jax.random.normal(key, (s["num_layers"], *shape)) * shape[0] ** -0.5 for shape in shapes]


def through(x, layer):
    """``x`` through a layer's products; what attention and the nonlinearity would do is left out."""
    query, key, value, out, gate, up, down = layer
    x = x + (x @ query + jnp.sum(x @ key) + jnp.sum(x @ value)) @ out
    return (x + ((x @ gate) * (x @ up)) @ down) * 1e-3


def product_seconds(rows: int, stacked: bool, repeats: int) -> tuple[float, float]:
    """(seconds a token, FLOPs a token)."""
    stack = weights(jax.random.key(0))
    count, width = stack[0].shape[0], stack[0].shape[1]
    head = jax.random.normal(jax.random.key(1), (width, tiny_qwen3.SIZES["vocab_size"]))
    x = jnp.ones((rows, width))

    def step(x, head, layers):
        if stacked:
            x = lax.scan(lambda x, layer: (through(x, layer), None), x, layers)[0]
        else:
            for layer in layers:
                x = through(x, layer)
        return x + jnp.max(x @ head)

    layers = stack if stacked else [[w[i] for w in stack] for i in range(count)]
    flops = 2 * rows * (sum(w.size for w in stack) + head.size)
    return seconds_each(step, x, head, layers, steps=100, repeats=repeats), flops


def read_rate(equation: str, shape: tuple[int, ...], repeats: int) -> float:
    """Bytes a second of ``equation`` (query, array -> scores) over several arrays of that shape."""
    arrays = [jnp.ones(shape) for _ in range(8)]
    query = jnp.ones((*shape[:2], 2, tiny_qwen3.SIZES["head_dim"]))

    def step(query, *arrays):
        return query + 1e-9 * sum(jnp.max(jnp.einsum(equation, query, array)) for array in arrays)

    return sum(a.nbytes for a in arrays) / seconds_each(step, query, *arrays, steps=5, repeats=repeats)


def main(argv) -> None:
    """Runs the benchmark."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {' '.join(argv[1:])}")
    f = flags.FLAGS
    interleave.describe_machine(["experiments.benchmarks.limits", *sys.argv[1:]])
    print("\nmatrix products of one token of every row")
    for rows in map(int, f.rows):
        for stacked in (False, True):
            taken, flops = product_seconds(rows, stacked, f.repeats)
            name = "from a stack" if stacked else "own arrays"
            print(f"{rows:>5} rows, {name:<13}{1e3 * taken:>8.3f} ms{flops / taken / 1e9:>8.0f} GFLOP/s")
    heads, size, slots = tiny_qwen3.SIZES["num_kv_heads"], tiny_qwen3.SIZES["head_dim"], f.slots
    batch = int(f.rows[-1])
    print(f"\nreading the keys of {batch} rows of {slots} slots, eight arrays in turn")
    for name, equation, shape in (
        ("KHS", "BKQH,BKHS->BKQS", (batch, heads, size, slots)),
        ("KSH", "BKQH,BKSH->BKQS", (batch, heads, slots, size)),
    ):
        print(f"{name:>5}{read_rate(equation, shape, f.repeats) / 1e9:>8.1f} GB/s")


if __name__ == "__main__":
    flags.DEFINE_list("rows", ["8", "16", "64"], "Rows decoded at once.")
    flags.DEFINE_integer("slots", 256, "Slots of a row.", lower_bound=1)
    flags.DEFINE_integer("repeats", 9, "Runs of each.", lower_bound=1)
    app.run(main)
