"""One mesh with axes ``data``, ``fsdp``, ``tensor``, and the map from logical axis names to it.

Rows of a batch are split over ``data`` and ``fsdp``; parameters over ``fsdp`` and ``tensor`` for the update and over
``tensor`` alone for sampling, to which they are moved once per step.
"""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

ROW_AXES = ("data", "fsdp")

# Logical axis of a parameter -> mesh axis. What is not named here is not split.
_UPDATE_RULES = {"embed": "fsdp", "vocab": "tensor", "mlp": "tensor", "heads": "tensor", "kv_heads": "tensor"}
_SAMPLING_RULES = {name: axis for name, axis in _UPDATE_RULES.items() if axis == "tensor"}


def make_mesh(*, data: int = -1, fsdp: int = 1, tensor: int = 1, devices: Any = None) -> Mesh:
    """A mesh of ``data x fsdp x tensor`` devices; ``data=-1`` takes what the others leave.

    Raises:
        ValueError: where the sizes do not multiply to the number of devices.
    """
    devices = list(jax.devices() if devices is None else devices)
    count = len(devices)
    if min(fsdp, tensor) < 1 or (data < 1 and data != -1):
        raise ValueError(f"mesh axes must be positive (data may be -1), got data={data} fsdp={fsdp} tensor={tensor}")
    if data == -1:
        data = max(count // (fsdp * tensor), 1)
    if data * fsdp * tensor != count:
        raise ValueError(
            f"a mesh of data={data} x fsdp={fsdp} x tensor={tensor} needs {data * fsdp * tensor} devices, "
            f"there are {count}; change config.mesh"
        )
    grid = np.asarray(devices).reshape(data, fsdp, tensor)
    return Mesh(grid, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


def row_shards(mesh: Mesh) -> int:
    """Into how many pieces the rows of a batch are split."""
    return mesh.shape["data"] * mesh.shape["fsdp"]


def row_sharding(mesh: Mesh) -> NamedSharding:
    """Rows (the leading axis) over ``data`` and ``fsdp``."""
    return NamedSharding(mesh, PartitionSpec(ROW_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """The same array on every device."""
    return NamedSharding(mesh, PartitionSpec())


def _shardings(mesh, axes, shapes, rules):
    def one(spec, shape):
        names = [rules.get(name) for name in tuple(spec)]
        names += [None] * (len(shape.shape) - len(names))
        for axis, (name, size) in enumerate(zip(names, shape.shape, strict=True)):
            if name is not None and size % mesh.shape[name]:
                raise ValueError(
                    f"parameter axis {tuple(spec)[axis]!r} of size {size} does not divide over mesh axis "
                    f"{name}={mesh.shape[name]}; change config.mesh or the model's sizes"
                )
        return NamedSharding(mesh, PartitionSpec(*names))

    return jax.tree.map(one, axes, shapes, is_leaf=lambda x: isinstance(x, PartitionSpec))


def param_shardings(mesh: Mesh, axes: Any, shapes: Any) -> Any:
    """Shardings for the update: a tree like ``axes`` (``Transformer.logical_axes``) and ``shapes``.

    Raises:
        ValueError: where an axis does not divide over its mesh axis.
    """
    return _shardings(mesh, axes, shapes, _UPDATE_RULES)


def sampling_shardings(mesh: Mesh, axes: Any, shapes: Any) -> Any:
    """Shardings for sampling: split over ``tensor`` only, so that each data shard decodes without the others."""
    return _shardings(mesh, axes, shapes, _SAMPLING_RULES)


def gathered_over_tensor(x: jax.Array) -> jax.Array:
    """Inside a sharded sampler: ``x`` whole on every device of the ``tensor`` axis; elsewhere ``x`` itself.

    Data shards decode without waiting for each other, so only collectives within a ``tensor`` group may stand in the
    loop. Drawing from logits split over the vocabulary would add one over all devices, and they would wait forever.
    """
    if jax.sharding.get_abstract_mesh().shape.get("tensor", 1) == 1:
        return x
    return jax.lax.with_sharding_constraint(x, PartitionSpec())
