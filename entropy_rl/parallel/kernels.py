"""The kernels on a mesh: every device runs them on its own rows, heads and part of the vocabulary.

XLA cannot split a kernel by itself, and splits the portable implementations worse than their authors would.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

import pallas_kernels
from entropy_rl.parallel.mesh import ROW_AXES
from pallas_kernels import SharedPrompt, TokenStats
from pallas_kernels.chips import chip_name


@dataclasses.dataclass(frozen=True)
class MeshKernels:
    """``causal_attention``, ``decode_attention`` and ``linear_token_stats`` of ``pallas_kernels`` on ``mesh``.

    Rows are split over ``data`` and ``fsdp``, heads and the vocabulary over ``tensor``. Inside a ``shard_map`` over the
    rows only the axes that are left are split further. Rows that do not divide, a single one to try a model with, are
    read whole by every device. "auto" chooses for the mesh's devices, which may be others than this process has.
    """

    mesh: Mesh

    def _chip(self) -> str:
        return chip_name(self.mesh.devices.flat[0].device_kind)

    def _axes(self, array: Any) -> tuple[tuple[str, ...], str | None]:
        """(axes to split the rows of ``array`` over, axis to split heads over), without those that are split already
        or have one device."""
        inside = jax.sharding.get_abstract_mesh().manual_axes
        left = [a for a in self.mesh.axis_names if self.mesh.shape[a] > 1 and a not in inside]
        rows = tuple(a for a in ROW_AXES if a in left)
        divides = array.shape[0] % math.prod(self.mesh.shape[a] for a in rows) == 0
        return rows if divides else (), "tensor" if "tensor" in left else None

    def _split(self, function: Callable[..., Any], in_specs: Any, out_specs: Any) -> Callable[..., Any]:
        inside = jax.sharding.get_abstract_mesh().manual_axes
        names = {a for a in self.mesh.axis_names if a not in inside}  # a TPU's kernels want all, be they of one device
        if not names:
            return function
        return jax.shard_map(
            function, mesh=None if inside else self.mesh, in_specs=in_specs, out_specs=out_specs, axis_names=names,
            check_vma=False,
        )  # fmt: skip

    def causal_attention(self, query: Any, keys: Any, values: Any, *, prompt: SharedPrompt | None = None) -> Any:
        """See ``pallas_kernels.causal_attention``."""
        rows, heads = self._axes(query)
        split = P(rows, None, heads)
        platform = self.mesh.devices.flat[0].platform

        def run(query, keys, values, prompt):
            return pallas_kernels.causal_attention(query, keys, values, prompt=prompt, platform=platform)

        return self._split(run, (split, split, split, P(rows)), split)(query, keys, values, prompt)

    def decode_attention(self, query: Any, keys: Any, values: Any, length: Any) -> tuple[Any, Any]:
        """See ``pallas_kernels.decode_attention``."""
        rows, heads = self._axes(query)
        split = P(rows, heads)
        specs = (split, split, split, P(rows))
        run = functools.partial(pallas_kernels.decode_attention, chip=self._chip())
        return self._split(run, specs, (split, split))(query, keys, values, length)

    def linear_token_stats(
        self, hidden: Any, weight: Any, targets: Any, *, weight_layout: str = "DV", **options: Any
    ) -> TokenStats:
        """See ``pallas_kernels.linear_token_stats``."""
        rows, vocab = self._axes(hidden)
        run = functools.partial(
            pallas_kernels.linear_token_stats,
            weight_layout=weight_layout,
            vocab_axis=vocab,
            chip=self._chip(),
            **options,
        )
        weights = P(None, vocab) if weight_layout == "DV" else P(vocab)
        return self._split(run, (P(rows), weights, P(rows)), P(rows))(hidden, weight, targets)
