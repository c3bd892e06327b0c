"""Memory of the fused head, forward and backward, compiled ahead of time for TPU chips: no TPU is needed.

    pip install -e '.[tpu]'
    python -m experiments.benchmarks.head --widths=1024,2560,4096 --vocabs=32000,151936

For each chip and shape: temporaries of the gradient of sum(log-prob + entropy) in hidden states and W, in bf16, by the
compiler's own ``memory_analysis``. "xla" goes by vocabulary chunks, "pallas_tpu" is the Mosaic forward with the same
backward, "unfused" holds all logits. What does not fit a chip is reported as the compiler's refusal. It says nothing
about speed.
"""

import os
import re
import sys
import time

os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # the compiler is wanted, not a machine's TPU
os.environ["ALLOW_MULTIPLE_LIBTPU_LOAD"] = "1"  # and it may serve several processes

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags, logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from experiments.benchmarks import interleave
from pallas_kernels import linear_token_stats

CHIPS = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2"}
FORMS = {"xla": ("xla", 2048), "xla, chunks of 4096": ("xla", 4096), "pallas_tpu": ("pallas_tpu", 2048),
         "unfused": ("reference", 0)}  # fmt: skip


def device(chip: str):
    """A chip of that kind, as the compiler knows it."""
    from jax.experimental import topologies

    return topologies.get_topology_desc(CHIPS[chip], platform="tpu").devices[0]


def compiled(
    chip: str, form: str, *, rows: int, width: int, vocab: int, layout: str = "DV", forward_only: bool = False
):
    """The program for one chip; raises what the compiler raises."""
    implementation, chunk = FORMS[form]
    sharding = NamedSharding(Mesh(np.array([device(chip)]), ("x",)), PartitionSpec())

    def shape(dims, dtype):
        return jax.ShapeDtypeStruct(dims, dtype, sharding=sharding)

    def stats(h, w, y):
        return linear_token_stats(
            h, w, y, weight_layout=layout, chunk_size=chunk or 4096, implementation=implementation, chip=chip
        )

    def loss(h, w, y):
        found = stats(h, w, y)
        return jnp.sum(found.log_probs + found.entropy)

    program = jax.jit(stats if forward_only else jax.grad(loss, (0, 1)))
    weight = (width, vocab) if layout == "DV" else (vocab, width)
    arguments = shape((rows, width), jnp.bfloat16), shape(weight, jnp.bfloat16), shape((rows,), jnp.int32)
    return program.lower(*arguments).compile()


def refusal(error: Exception) -> str:
    """The compiler's reason in a few words."""
    found = re.search(r"Used ([0-9.]+[GM]) of ([0-9.]+[GM])", str(error))
    return f"does not compile: {f'needs {found[1]} of {found[2]}' if found else str(error)[:50]}"


def main(argv) -> None:
    """Runs the module."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {' '.join(argv[1:])}")
    logging.set_verbosity(logging.ERROR)
    f = flags.FLAGS
    interleave.describe_machine(["experiments.benchmarks.head", *sys.argv[1:]])
    print(f"rows {f.rows}, bf16, forward and backward; temporaries in GiB")
    print(f"{'chip':<6}{'D':>6}{'V':>8}  {'form':<22}{'GiB':>8}{'compiled in':>13}")
    for chip in f.chips:
        for width in map(int, f.widths):
            for vocab in map(int, f.vocabs):
                for form in f.forms:
                    start = time.perf_counter()
                    try:
                        analysis = compiled(chip, form, rows=f.rows, width=width, vocab=vocab).memory_analysis()
                        result = f"{analysis.temp_size_in_bytes / 2**30:>8.2f}"
                    except Exception as error:  # the compiler's own error types are not public
                        result = "  " + refusal(error)
                    print(
                        f"{chip:<6}{width:>6}{vocab:>8}  {form:<22}{result}{time.perf_counter() - start:>11.0f} s",
                        flush=True,
                    )


if __name__ == "__main__":
    flags.DEFINE_list("chips", list(CHIPS), "Of v5e, v5p, v6e.")
    flags.DEFINE_list("widths", ["2560"], "D.")
    flags.DEFINE_list("vocabs", ["151936"], "V.")
    flags.DEFINE_list("forms", list(FORMS), f"Of {', '.join(FORMS)}.")
    flags.DEFINE_integer("rows", 32_768, "R.", lower_bound=1)
    app.run(main)
