"""Host memory while a Hugging Face directory is loaded onto a mesh, beside the size of its parameters.

    python -m experiments.benchmarks.loading

Writes a random Qwen2 of 1.5 billion parameters once (3 GB, bf16), loads it in a process of its own onto eight host
devices, and samples that process's anonymous memory. A host device's memory is the host's: the parameters themselves
are in the figure once, whatever is above them is the loader's.
"""

import json
import os
import subprocess
import sys
import threading
import time

import jax
import ml_dtypes
import numpy as np
from absl import app, flags

from entropy_rl.model import Transformer, TransformerConfig, load_hf, save_hf
from experiments.benchmarks import interleave

SIZES = dict(vocab_size=151_936, num_layers=28, embed_dim=1536, mlp_dim=8960, num_heads=12, num_kv_heads=2,
             head_dim=128, rope_theta=1e6, qkv_bias=True, tied_embeddings=True)  # fmt: skip


def _anonymous_bytes() -> int:
    with open("/proc/self/status") as file:
        line = next(line for line in file if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def _write(directory: str) -> None:
    """Random parameters, written once."""
    if os.path.isfile(os.path.join(directory, "config.json")):
        return
    config = TransformerConfig(**SIZES, dtype="bfloat16", param_dtype="bfloat16")  # type: ignore[arg-type]
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(Transformer(config).init_params, jax.random.key(0))

    def fill(shape):  # layer by layer: normal draws come in f32
        whole = np.empty(shape.shape, ml_dtypes.bfloat16)
        for row in whole if whole.ndim > 2 else [whole]:
            row[...] = rng.standard_normal(row.shape, np.float32) * 0.02
        return whole

    save_hf(config, jax.tree.map(fill, shapes), directory)


def _load(directory: str, dtype: str | None) -> None:
    """In a process of its own: loads, and prints sizes as JSON."""
    from entropy_rl.parallel.mesh import make_mesh, param_shardings

    mesh, peak, is_done = make_mesh(fsdp=len(jax.devices())), [0], threading.Event()

    def sharding(model):
        return param_shardings(mesh, model.logical_axes(), jax.eval_shape(model.init_params, jax.random.key(0)))

    def watch():
        while not is_done.wait(0.005):
            peak[0] = max(peak[0], _anonymous_bytes())

    before, start = _anonymous_bytes(), time.perf_counter()
    threading.Thread(target=watch, daemon=True).start()
    _, params = load_hf(directory, sharding=sharding, dtype=dtype)
    jax.block_until_ready(params)
    seconds = time.perf_counter() - start
    is_done.set()
    size = sum(x.nbytes for x in jax.tree.leaves(params))
    print(json.dumps({"before": before, "peak": peak[0], "size": size, "seconds": seconds}))


def main(argv) -> None:
    """Runs the benchmark."""
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {' '.join(argv[1:])}")
    f = flags.FLAGS
    if f.load_only:
        _load(f.directory, f.dtype)
        return
    _write(f.directory)
    interleave.describe_machine(["experiments.benchmarks.loading", *sys.argv[1:]])
    env = dict(os.environ, XLA_FLAGS="--xla_force_host_platform_device_count=8", JAX_PLATFORMS="cpu")
    command = [sys.executable, "-m", "experiments.benchmarks.loading", "--load_only", f"--directory={f.directory}"]
    found = json.loads(subprocess.check_output([*command, f"--dtype={f.dtype}"], env=env).splitlines()[-1])
    risen = found["peak"] - found["before"]
    print(
        f"\nparameters {found['size'] / 2**30:.2f} GiB in {f.dtype}, over 8 devices; loaded in {found['seconds']:.0f} s"
    )
    print(f"rise of anonymous memory at its peak {risen / 2**30:.2f} GiB: {risen / found['size']:.2f} x the parameters")
    print(f"whole process at its peak {found['peak'] / 2**30:.2f} GiB: {found['peak'] / found['size']:.2f} x")


if __name__ == "__main__":
    flags.DEFINE_string("directory", "runs/benchmarks/qwen2_1_5b", "Where the model is, or is to be written.")
    flags.DEFINE_enum("dtype", "bfloat16", ["float32", "bfloat16"], "Of the loaded parameters.")
    flags.DEFINE_bool("load_only", False, "Load and print sizes as JSON; what the other process does.")
    app.run(main)
