"""Everything a run needs to go on, exactly: Orbax checkpoints, asynchronous, the latest few and the best few kept."""

import math
import os
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from orbax.checkpoint import checkpoint_managers as policies


class Checkpointer:
    """Checkpoints of one run, one directory per step.

    A checkpoint holds the train state (parameters, optimizer, counters) and ``meta``, a JSON dict with everything else
    (seed, data position, cumulative counts). It appears under its step only when it is whole.

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
        self._manager = ocp.CheckpointManager(epath.Path(os.path.abspath(directory)), options=options)

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

    def save(self, step: int, state: Any, meta: dict[str, Any], metrics: dict[str, float] | None = None) -> None:
        """Starts saving ``state`` and ``meta`` at ``step``; returns once the arrays have been copied."""
        # The next update donates these buffers; on CPU a copy to the host may be no more than a reference to them.
        state = jax.tree.map(lambda x: x.copy(), state)
        items = ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
        self._manager.save(step, args=items, metrics=metrics or {}, force=True)

    def restore(self, template: Any, step: int | None = None) -> tuple[Any, dict[str, Any]]:
        """(state, meta) of ``step`` (default the latest), with the shapes, dtypes and shardings of ``template``.

        Raises:
            ValueError: where there is no checkpoint, or it does not fit the template.
        """
        step = self.latest_step() if step is None else step
        if step is None:
            raise ValueError(f"no checkpoint in {self._manager.directory}")
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, template)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore())
        try:
            restored = self._manager.restore(step, args=items)
        except (KeyError, TypeError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(
                f"the checkpoint of step {step} in {self._manager.directory} does not fit this model: {reason}"
            ) from error
        return restored["state"], restored["meta"]

    def wait(self) -> None:
        """Returns when the last save is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits and frees the background threads."""
        self._manager.wait_until_finished()
        self._manager.close()
