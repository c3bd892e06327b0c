"""Everything a run needs to go on, exactly: Orbax checkpoints, asynchronous, the latest few and the best few kept."""

import math
import os
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies


def _by_path(tree: Any) -> dict[str, Any]:
    """Leaves by path: stages keep tuples and nothing at all in places, which a checkpoint does not tell apart."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


class Checkpointer:
    """Checkpoints of one run, one directory per step.

    A checkpoint holds the train state (parameters, optimizer, counters), the states of a recipe's stages, ``meta``, a
    JSON dict with everything small (seed, data position, cumulative counts), and each process's own arrays (a replay
    buffer). It appears under its step only when it is whole.

    Args:
        directory: made where missing.
        keep: how many of the latest to keep.
        keep_best: how many of the best to keep besides, by the metric ``best_metric`` given to ``save``.
        best_metric: a key of the metrics, larger is better.
    """

    def __init__(self, directory: str | os.PathLike, *, keep: int = 2, keep_best: int = 1, best_metric: str = "score"):
        def score(metrics: dict[str, float]) -> float:
            return metrics.get(best_metric, -math.inf)

        kept: list[Any] = [policies.LatestN(max(keep, 1))]
        if keep_best:
            kept.append(policies.BestN(get_metric_fn=score, n=keep_best))
        options = ocp.CheckpointManagerOptions(
            best_fn=score,  # without it Orbax does not write metrics, and a restart would forget which is best
            preservation_policy=policies.AnyPreservationPolicy(kept),
            enable_async_checkpointing=True,
            cleanup_tmp_directories=True,
        )
        self._best_metric = best_metric
        self._directory = os.path.abspath(directory)
        self._manager = ocp.CheckpointManager(epath.Path(self._directory), options=options)

    def latest_step(self) -> int | None:
        """The newest whole checkpoint's step, None where there is none."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Steps of all whole checkpoints, ascending."""
        return sorted(self._manager.all_steps())

    def best_step(self) -> int | None:
        """The step of largest ``best_metric`` among kept checkpoints that have one."""
        scores = {}
        for step in self.steps():
            metrics = self._manager.metrics(step)
            if metrics and self._best_metric in metrics:
                scores[step] = metrics[self._best_metric]
        return max(scores, key=lambda step: (scores[step], step)) if scores else None

    def save(
        self,
        step: int,
        state: Any,
        meta: dict[str, Any],
        metrics: dict[str, float] | None = None,
        *,
        stages: Any = None,
        own: dict[str, np.ndarray] | None = None,
    ) -> None:
        """Starts saving everything at ``step``; returns once the arrays have been copied.

        ``stages`` is any tree of arrays, ``own`` this process's arrays by name.
        """
        # The next update donates these buffers; on CPU a copy to the host may be no more than a reference to them.
        state = jax.tree.map(lambda x: x.copy(), state)
        items = dict(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        if jax.tree.leaves(stages):
            items["stages"] = ocp.args.StandardSave(_by_path(jax.tree.map(lambda x: x.copy(), stages)))
        if own is not None:
            self._save_own(step, own)
        self._manager.save(step, args=ocp.args.Composite(**items), metrics=metrics or {}, force=True)

    def _own_path(self, step: int) -> str:
        return os.path.join(f"{self._directory}_own", f"{step:08d}.process{jax.process_index()}.npz")

    def _save_own(self, step: int, own: dict[str, np.ndarray]) -> None:
        """Writes this process's arrays beside the checkpoints, whole or not at all, and drops those of gone steps."""
        path = self._own_path(step)
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with open(path + ".tmp", "wb") as file:
            np.savez(file, **own)  # type: ignore[arg-type]
        os.replace(path + ".tmp", path)
        self.wait()  # so that the steps listed are whole, and those removed are gone
        kept = {self._own_path(other) for other in [*self.steps(), step]}
        for name in os.listdir(os.path.dirname(path)):
            other = os.path.join(os.path.dirname(path), name)
            if name.endswith(f".process{jax.process_index()}.npz") and other not in kept:
                os.remove(other)

    def restore_own(self, step: int | None = None) -> dict[str, np.ndarray]:
        """What ``save`` was given as ``own``.

        Raises:
            ValueError: where this process has none, for instance because the run had other processes.
        """
        step = self.latest_step() if step is None else step
        path = self._own_path(step or 0)
        if not os.path.exists(path):
            raise ValueError(f"{path} is missing; resume with as many processes as the run had")
        with np.load(path, allow_pickle=False) as file:
            return dict(file)

    def restore_stages(self, template: Any, step: int | None = None) -> Any:
        """The ``stages`` of ``step`` (default the latest), like ``template``; ValueError where they do not fit."""
        if not jax.tree.leaves(template):
            return template
        flat = _by_path(jax.tree.map(ocp.utils.to_shape_dtype_struct, template))
        items = ocp.args.Composite(stages=ocp.args.StandardRestore(flat))
        restored = self._restore(step, items)["stages"]
        paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_flatten_with_path(template)[0]]
        return jax.tree.unflatten(jax.tree.structure(template), [restored[path] for path in paths])

    def restore(self, template: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """(state, meta) of ``step`` (default the latest), with the shapes, dtypes and shardings of ``template``.

        Raises:
            ValueError: where there is no checkpoint, or it does not fit the template.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore())
        restored = self._restore(step, items)
        return restored["state"], restored["meta"]

    def _restore(self, step: int | None, items: Any) -> Any:
        step = self.latest_step() if step is None else step
        if step is None:
            raise ValueError(f"no checkpoint in {self._manager.directory}")
        try:
            return self._manager.restore(step, args=items)
        except (KeyError, TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"the checkpoint of step {step} in {self._manager.directory} does not fit this model: {reason}"
            ) from error

    def wait(self) -> None:
        """Returns when the last save is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and frees the background threads."""
        self._manager.wait_until_finished()
        self._manager.close()
