"""Sampling over a mesh: every data shard runs the whole decode loop on its own prompts, without the others."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec

from entropy_rl.methods.e3rl import Erasing, RunningUncertainty
from entropy_rl.model.transformer import Transformer
from entropy_rl.parallel.mesh import ROW_AXES, row_sharding, row_shards
from entropy_rl.rollout.drawing import check_sampling_options
from entropy_rl.rollout.sampling import _local_sample, effective_erasing
from entropy_rl.types import PromptBatch, Rollout


def make_sampler(
    model: Transformer,
    mesh: Mesh,
    *,
    samples_per_prompt: int,
    max_response: int,
    slots_per_device: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    stop_tokens: tuple[int, ...] = (),
    erasing: Erasing | None = None,
) -> Callable[..., Rollout]:
    """A compiled ``(params, prompts, key, running=None) -> Rollout``, its rows split over ``data`` and ``fsdp``.

    ``params``, as they are or better those of ``decoding_params``, are split over ``tensor`` only
    (``sampling_shardings``). Groups are prompt-major, so none spans two
    shards. ``slots_per_device`` rows are decoded at once on each shard; at equal slots a row's tokens and log-probs
    are bit-identical on any number of data shards. ``running`` are the statistics that ``erasing`` goes by. Other
    arguments as in ``sample``.

    Raises:
        ValueError: for options out of range, or, when called, for prompts that do not divide over the shards.
    """
    check_sampling_options(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    if min(samples_per_prompt, max_response, slots_per_device) < 1:
        raise ValueError("samples_per_prompt, max_response and slots_per_device must be at least 1")
    shards = row_shards(mesh)
    used = effective_erasing(erasing, None, max_response)[0]
    compiled = _compiled(
        model, mesh, samples_per_prompt=samples_per_prompt, max_response=max_response, slots=slots_per_device,
        temperature=float(temperature), top_k=top_k, top_p=float(top_p), min_p=float(min_p),
        stop_tokens=tuple(stop_tokens), erasing=used,
    )  # fmt: skip

    def sampler(params: Any, prompts: PromptBatch, key: Any, running: RunningUncertainty | None = None) -> Rollout:
        if prompts.tokens.shape[0] % shards:
            raise ValueError(
                f"{prompts.tokens.shape[0]} prompts do not divide over {shards} data shards; "
                "make prompts_per_step a multiple of data x fsdp"
            )
        running = effective_erasing(used, running, max_response)[1]
        return compiled(params, jax.device_put(prompts, row_sharding(mesh)), key, running)

    return sampler


@functools.lru_cache(maxsize=16)
def _compiled(model: Transformer, mesh: Mesh, *, samples_per_prompt: int, max_response: int, **options: Any) -> Any:
    """The jitted loop; samplers with the same options, of training and of evaluation, share it and what it compiled."""

    def local(params, prompts, key, running):
        limit = jnp.full(prompts.tokens.shape[0] * samples_per_prompt, max_response, jnp.int32)
        return _local_sample(
            model, params, prompts, key, limit, running, samples_per_prompt=samples_per_prompt,
            max_response=max_response, **options,
        )  # fmt: skip

    rows, whole = PartitionSpec(ROW_AXES), PartitionSpec()
    sharded = jax.shard_map(
        local,
        mesh=mesh,
        in_specs=(whole, rows, whole, whole),
        out_specs=rows,
        axis_names=set(ROW_AXES),
        check_vma=False,
    )
    return jax.jit(sharded, out_shardings=row_sharding(mesh))
