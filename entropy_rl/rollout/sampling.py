"""Prefill and decode in one jitted program.

Prompts are prefilled once into a store; a decode slot owns only its response, whose cache entry 0 is the prompt's
last token. Every step feeds each slot's last token and draws the next. A slot whose row has ended takes the next row
of the queue there and then: two integers change, nothing is copied, nothing prefilled. Decoding always runs the same
number of slots, and a row's random stream is its own, so a row's tokens depend neither on its slot nor on its
neighbours nor on the order of rows.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Int

from entropy_rl.model.cache import KVCache, PrefixStore, as_prefix, rewind
from entropy_rl.model.transformer import Transformer, head_weight
from entropy_rl.parallel.mesh import gathered_over_tensor
from entropy_rl.rollout.drawing import check_sampling_options, draw
from entropy_rl.types import PromptBatch, Rollout
from pallas_kernels import token_stats

PREFILL_ROWS = 8


class _Responses(struct.PyTreeNode):
    """What has been sampled, per row [B, max_response]."""

    tokens: Any
    sampler_log_probs: Any
    raw_log_probs: Any
    entropy: Any


class _Decode(struct.PyTreeNode):
    """State of the decode loop; arrays are per slot where not said otherwise.

    Attributes:
        cache: ``length`` is also the number of tokens the slot's row has sampled.
        row: the row being sampled, B where the slot is idle.
        token: the token to feed next.
        draws: draws of this row so far; erased ones would count too.
        next_row: int32 [], head of the queue.
        responses, length [B], stopped [B]: results.
    """

    cache: KVCache
    row: Any
    token: Any
    draws: Any
    next_row: Any
    responses: _Responses
    length: Any
    stopped: Any


def prefill(model: Transformer, params: Any, prompts: PromptBatch, *, rows: int) -> PrefixStore:
    """Keys and values of every prompt without its last token, ``rows`` prompts at a time.

    The number of rows a matrix product sees is always ``rows``, however many prompts there are, so that a prompt's
    keys do not depend on how many others came along.
    """
    count, size = prompts.tokens.shape
    slots = max(size - 1, 1)
    padding = -count % rows
    tokens = jnp.pad(prompts.tokens[:, :slots], ((0, padding), (0, 0))).reshape(-1, rows, slots)
    positions = jnp.broadcast_to(jnp.arange(slots), (rows, slots))

    def chunk(tokens):
        cache = model.apply(params, tokens, positions, model.empty_cache(rows, slots))[1]
        return cache.keys, cache.values

    def by_prompt(array):  # [chunks, L, rows, K, S, H] -> [L, P, K, S, H]
        array = jnp.moveaxis(array, 0, 1)
        return array.reshape(array.shape[0], -1, *array.shape[3:])[:, :count]

    keys, values = lax.map(chunk, tokens)
    return as_prefix(KVCache(by_prompt(keys), by_prompt(values), prompts.length - 1))


def row_keys(key: Any, prompts: PromptBatch, samples_per_prompt: int) -> Any:
    """One key per row [B]: ``key`` folded with prompt id, context, round and sample."""

    samples = jnp.arange(samples_per_prompt)

    def fold(prompt_id, context, round_, sample):
        folded = key
        for value in (prompt_id, context, round_, sample):
            folded = jax.random.fold_in(folded, value)
        return folded

    over_samples = jax.vmap(fold, (None, None, None, 0))
    keys = jax.vmap(over_samples, (0, 0, 0, None))(prompts.ids, prompts.context, prompts.round, samples)
    return keys.reshape(-1)


def _start_rows(state: _Decode, row, starting, last_token, samples_per_prompt) -> _Decode:
    """Gives the slots in ``starting`` the rows in ``row`` (B where the queue is empty)."""
    prompt = jnp.minimum(row // samples_per_prompt, last_token.shape[0] - 1)
    cache = rewind(state.cache, jnp.where(starting, 0, state.cache.length))
    cache = cache.replace(prefix_index=jnp.where(starting, prompt, cache.prefix_index))
    return state.replace(
        cache=cache,
        row=jnp.where(starting, row, state.row),
        token=jnp.where(starting, last_token[prompt], state.token),
        draws=jnp.where(starting, 0, state.draws),
    )


def _local_sample(
    model, params, prompts, key, response_limit, *, samples_per_prompt, max_response, stop_tokens, slots, **options
) -> Rollout:
    """The whole of sampling on one device's prompts; see ``sample``."""
    temperature = options["temperature"]
    num_rows = prompts.tokens.shape[0] * samples_per_prompt
    keys = row_keys(key, prompts, samples_per_prompt)
    last_token = jnp.take_along_axis(prompts.tokens, prompts.length[:, None] - 1, axis=1)[:, 0]
    weight, layout = head_weight(model.config, params)
    head = {"DV": "RD,DV->RV", "VD": "RD,VD->RV"}[layout]

    def step(state: _Decode) -> _Decode:
        prompt_length = jnp.take(prompts.length, state.cache.prefix_index)
        fed = state.cache.length
        position = prompt_length - 1 + fed
        hidden, cache = model.apply(params, state.token[:, None], position[:, None], state.cache)
        logits = jnp.einsum(head, hidden[:, 0], weight, preferred_element_type=jnp.float32)
        logits = gathered_over_tensor(logits)
        if model.config.logit_soft_cap is not None:
            logits = model.config.logit_soft_cap * jnp.tanh(logits / model.config.logit_soft_cap)
        row = state.row
        live = row < num_rows
        draw_keys = jax.vmap(jax.random.fold_in)(keys[jnp.minimum(row, num_rows - 1)], state.draws)
        token, log_prob = draw(draw_keys, logits, **options)
        stats = token_stats(logits, token, temperature=temperature or 1.0)
        new = _Responses(token, log_prob, stats.log_probs, stats.entropy)
        responses = jax.tree.map(lambda out, x: out.at[row, fed].set(x, mode="drop"), state.responses, new)
        is_stop = jnp.any(token[:, None] == jnp.asarray(stop_tokens, jnp.int32)[None], axis=-1)
        done = live & (is_stop | (fed + 1 >= response_limit[jnp.minimum(row, num_rows - 1)]))
        finished = jnp.where(done, row, num_rows)
        state = state.replace(
            cache=cache,
            token=token,
            draws=state.draws + 1,
            responses=responses,
            length=state.length.at[finished].set(fed + 1, mode="drop"),
            stopped=state.stopped.at[finished].set(is_stop, mode="drop"),
        )
        following = jnp.minimum(state.next_row + jnp.cumsum(done) - 1, num_rows)
        state = state.replace(next_row=state.next_row + jnp.sum(done))
        idle = jnp.where(live & ~done, cache.length, 0)
        state = state.replace(cache=rewind(state.cache, idle))
        return _start_rows(state, following, done, last_token, samples_per_prompt)

    cache = model.empty_cache(slots, max_response)
    cache = cache.replace(
        prefix=prefill(model, params, prompts, rows=min(slots, PREFILL_ROWS)),
        prefix_index=jnp.zeros(slots, jnp.int32),
    )
    empty = jnp.zeros((num_rows, max_response), jnp.float32)
    zeros = jnp.zeros(slots, jnp.int32)
    state = _Decode(
        cache=cache,
        row=zeros,
        token=zeros,
        draws=zeros,
        next_row=jnp.int32(min(slots, num_rows)),
        responses=_Responses(empty.astype(jnp.int32), empty, empty, empty),
        length=jnp.zeros(num_rows, jnp.int32),
        stopped=jnp.zeros(num_rows, bool),
    )
    first = jnp.minimum(jnp.arange(slots), num_rows)
    state = _start_rows(state, first, jnp.ones(slots, bool), last_token, samples_per_prompt)
    state = lax.while_loop(lambda s: jnp.any(s.row < num_rows), step, state)
    return _as_rollout(prompts, state, samples_per_prompt)


def _as_rollout(prompts: PromptBatch, state: _Decode, samples_per_prompt: int) -> Rollout:
    """Places each response behind its prompt."""
    prompt_tokens = jnp.repeat(prompts.tokens, samples_per_prompt, axis=0)
    prompt_length = jnp.repeat(prompts.length, samples_per_prompt, axis=0)
    prompt_size, max_response = prompt_tokens.shape[1], state.responses.tokens.shape[1]
    at = jnp.arange(prompt_size + max_response)[None] - prompt_length[:, None]
    mask = (at >= 0) & (at < state.length[:, None])
    place = lambda x: jnp.where(mask, jnp.take_along_axis(x, jnp.clip(at, 0, max_response - 1), 1), 0)  # noqa: E731
    responses = jax.tree.map(place, state.responses)
    padded = jnp.pad(prompt_tokens, ((0, 0), (0, max_response)))
    return Rollout(
        tokens=jnp.where(at < 0, padded, responses.tokens),
        prompt_length=prompt_length,
        length=prompt_length + state.length,
        response_mask=mask,
        sampler_log_probs=responses.sampler_log_probs,
        raw_log_probs=responses.raw_log_probs,
        entropy=responses.entropy,
        stopped=state.stopped,
    )


@functools.partial(jax.jit, static_argnums=0, static_argnames=(
    "samples_per_prompt", "max_response", "temperature", "top_k", "top_p", "min_p", "stop_tokens", "slots",
))  # fmt: skip
def _jitted_sample(model, params, prompts, key, response_limit, **options):
    return _local_sample(model, params, prompts, key, response_limit, **options)


def sample(
    model: Transformer,
    params: Any,
    prompts: PromptBatch,
    key: Any,
    *,
    samples_per_prompt: int = 1,
    max_response: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float = 1.0,
    min_p: float = 0.0,
    stop_tokens: tuple[int, ...] = (),
    slots: int | None = None,
    response_limit: Int[Array, "B"] | None = None,
) -> Rollout:
    """Samples ``samples_per_prompt`` responses to every prompt, prompt-major, on one device.

    Args:
        model: its config fixes compute dtype and soft-cap.
        params: the policy's variables.
        prompts: P prompts, right-padded; ids, context and round enter the random streams.
        key: the step's key. A row's stream is ``key`` folded with prompt id, context, round, sample and draw.
        samples_per_prompt: G.
        max_response: tokens a response may have, the stop token included.
        temperature: 0 takes the most likely token (``raw_log_probs`` and ``entropy`` are then those at 1).
        top_k, top_p, min_p: truncation; see ``truncate``.
        stop_tokens: ids that end a response; the stop token belongs to it.
        slots: rows decoded at once; default B. At equal slots, tokens and log-probs of a row are bit-identical
            whatever the batch around it; at other slot counts matrix products may round differently (about 1e-6).
        response_limit: int32 [B], a row's own limit, at most ``max_response``.

    Returns:
        Rollout with T = S + max_response; all f32 fields are 0 where ``response_mask`` is false.

    Raises:
        ValueError: for options out of range.
    """
    check_sampling_options(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    rows = prompts.tokens.shape[0] * samples_per_prompt
    if min(rows, max_response) < 1:
        raise ValueError(f"nothing to sample: {rows} rows of at most {max_response} tokens")
    if slots is not None and slots < 1:
        raise ValueError(f"slots={slots} must be at least 1")
    if response_limit is not None and response_limit.shape != (rows,):
        raise ValueError(f"response_limit has shape {response_limit.shape}, there are {rows} rows")
    if response_limit is None:
        response_limit = jnp.full(rows, max_response, jnp.int32)
    return _jitted_sample(
        model,
        params,
        prompts,
        key,
        jnp.clip(response_limit, 1, max_response),
        samples_per_prompt=samples_per_prompt,
        max_response=max_response,
        temperature=float(temperature),
        top_k=top_k,
        top_p=float(top_p),
        min_p=float(min_p),
        stop_tokens=tuple(stop_tokens),
        slots=rows if slots is None else slots,
    )
