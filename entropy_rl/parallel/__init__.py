"""The mesh: where arrays live, and how processes share rows."""

from entropy_rl.parallel.kernels import MeshKernels
from entropy_rl.parallel.mesh import ROW_AXES, make_mesh, param_shardings, replicated, row_sharding, sampling_shardings

__all__ = [
    "ROW_AXES",
    "MeshKernels",
    "make_mesh",
    "param_shardings",
    "replicated",
    "row_sharding",
    "sampling_shardings",
]
