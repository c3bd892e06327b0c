"""One program, every process: start-up and the rows each process holds."""

import os
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding


def initialize() -> None:
    """Joins the processes of a run, before any array is made.

    On TPU pods and under SLURM or Kubernetes JAX finds the others; elsewhere it reads JAX_COORDINATOR_ADDRESS
    (host:port), JAX_NUM_PROCESSES and JAX_PROCESS_ID from the environment.
    """
    count, index = os.environ.get("JAX_NUM_PROCESSES"), os.environ.get("JAX_PROCESS_ID")
    jax.distributed.initialize(
        num_processes=None if count is None else int(count), process_id=None if index is None else int(index)
    )


def is_main() -> bool:
    """Whether this process writes logs, metrics and reports."""
    return jax.process_index() == 0


def to_global(local: Any, sharding: NamedSharding) -> Any:
    """Global arrays from each process's own rows, in the order of processes."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), local)


def local_rows(array: jax.Array) -> np.ndarray:
    """This process's rows of a row-sharded array, in order, each once."""
    if jax.process_count() == 1:
        return np.asarray(array)
    pieces = {(shard.index[0].start or 0): shard.data for shard in array.addressable_shards}
    return np.concatenate([np.asarray(pieces[start]) for start in sorted(pieces)])


def gather_rows(local: np.ndarray) -> np.ndarray:
    """All processes' rows, in the order of processes, on every process."""
    if jax.process_count() == 1:
        return local
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(local, tiled=True))
