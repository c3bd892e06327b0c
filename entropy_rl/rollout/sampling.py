"""Prefill and decode in one jitted program.

Prompts are prefilled once, without their last token. A decode slot starts with a copy of its prompt's keys and values;
every step feeds each slot's last token and draws the next. A slot whose row has ended takes the next row of the queue
there and then, inside the loop. Decoding always runs the same number of slots, and a row's random stream is its own, so
a row's tokens depend neither on its slot nor on its neighbours nor on the order of rows.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax
from jaxtyping import Array, Int

from entropy_rl.methods.e3rl import Erasing, RunningUncertainty
from entropy_rl.model.cache import KVCache, copy_rows, rewind
from entropy_rl.model.transformer import Transformer, decoding_params, head_weight
from entropy_rl.parallel.mesh import gathered_over_tensor
from entropy_rl.rollout.drawing import check_sampling_options, draw, uniforms
from entropy_rl.rollout.erasing import init_erasing, observe, record_draw, restart
from entropy_rl.types import PromptBatch, Rollout

PREFILL_ROWS = 8
STARTED_AT_ONCE = 2


class _Responses(struct.PyTreeNode):
    """What has been sampled, per row [B, max_response]."""

    tokens: Any
    sampler_log_probs: Any
    raw_log_probs: Any
    entropy: Any


class _Decode(struct.PyTreeNode):
    """State of the decode loop; arrays are per slot where not said otherwise.

    Attributes:
        cache: of prompt and response, but for the token to feed next.
        row: the row being sampled, B where the slot is idle.
        token: the token to feed next.
        draws: draws of this row so far; erased ones would count too.
        next_row: int32 [], head of the queue.
        responses, length [B], stopped [B]: results.
        erasing: an ``EraseState``, or None.
    """

    cache: KVCache
    row: Any
    token: Any
    draws: Any
    next_row: Any
    responses: _Responses
    length: Any
    stopped: Any
    erasing: Any


def prefill(model: Transformer, params: Any, prompts: PromptBatch, *, rows: int) -> KVCache:
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
        return model.apply(params, tokens, positions, keep=True)[1].layers

    layers = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:count], lax.map(chunk, tokens))
    return KVCache(layers, prompts.length - 1)


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


def _start_rows(state: _Decode, row, starting, prefilled: KVCache, last_token, samples_per_prompt) -> _Decode:
    """Gives the slots in ``starting`` the rows in ``row`` (B where the queue is empty)."""
    slots = row.shape[0]
    prompt = jnp.minimum(row // samples_per_prompt, last_token.shape[0] - 1)
    count = jnp.sum(starting)

    def copy(i, cache):
        order = jnp.argsort(~starting, stable=True)
        place = i * STARTED_AT_ONCE + jnp.arange(STARTED_AT_ONCE)
        slot = order[jnp.minimum(place, slots - 1)]
        return copy_rows(cache, jnp.where(place < count, slot, slots), prefilled, prompt[slot])

    return state.replace(
        cache=lax.fori_loop(0, (count + STARTED_AT_ONCE - 1) // STARTED_AT_ONCE, copy, state.cache),
        row=jnp.where(starting, row, state.row),
        token=jnp.where(starting, last_token[prompt], state.token),
        draws=jnp.where(starting, 0, state.draws),
        erasing=None if state.erasing is None else restart(state.erasing, starting),
    )


def _queue(prompts: PromptBatch, samples_per_prompt: int):
    """(number of rows to sample, place in the queue -> row); places past the end give B."""
    num_rows = prompts.tokens.shape[0] * samples_per_prompt
    if prompts.active is None:
        return num_rows, lambda place: jnp.minimum(place, num_rows)
    active = jnp.repeat(prompts.active, samples_per_prompt)
    order = jnp.argsort(~active, stable=True)
    count = jnp.sum(active)
    return count, lambda place: jnp.where(place < count, order[jnp.minimum(place, num_rows - 1)], num_rows)


def _make_logits(model, params):
    """state -> (logits [slots, V] of the next token, the cache with the last token fed)."""
    weight, layout = head_weight(model.config, params)
    head = {"DV": "RD,DV->RV", "VD": "RD,VD->RV"}[layout]
    soft_cap = model.config.logit_soft_cap

    def logits(state: _Decode):
        hidden, cache = model.apply(params, state.token[:, None], state.cache.length[:, None], state.cache)
        values = jnp.einsum(head, hidden[:, 0], weight, preferred_element_type=jnp.float32)
        values = gathered_over_tensor(values)
        return (values if soft_cap is None else soft_cap * jnp.tanh(values / soft_cap)), cache

    return logits


def _noise(keys, max_response: int):
    """(row, draw) -> its uniforms; made before the loop for as many draws as a row has where nothing is erased."""
    draws = jnp.arange(max_response)
    made = jax.vmap(lambda key: uniforms(jnp.broadcast_to(key, max_response), draws))(keys)

    def noise(row, draw):
        late = jnp.any(draw >= max_response)
        return lax.cond(late, lambda: uniforms(keys[row], draw), lambda: made[row, jnp.minimum(draw, max_response - 1)])

    return noise


def _local_sample(
    model, params, prompts, key, response_limit, running, *,
    samples_per_prompt, max_response, stop_tokens, slots, erasing, **options,
) -> Rollout:  # fmt: skip
    """The whole of sampling on one device's prompts; see ``sample``."""
    num_rows = prompts.tokens.shape[0] * samples_per_prompt
    noise = _noise(row_keys(key, prompts, samples_per_prompt), max_response)
    last_token = jnp.take_along_axis(prompts.tokens, prompts.length[:, None] - 1, axis=1)[:, 0]
    params = decoding_params(model.config, params)
    prefilled = prefill(model, params, prompts, rows=min(slots, PREFILL_ROWS))
    next_logits = _make_logits(model, params)
    queued, row_at = _queue(prompts, samples_per_prompt)

    def watch(state: _Decode, prompt, fed, token, stats, is_stop, live):
        """(state, slots that erase, length they go back to, the token to feed there)."""
        row = state.row
        recorded = record_draw(state.erasing, row, state.draws, fed, token, stats.log_probs, stats.entropy)
        sign, scores = (-1, "raw_log_probs") if erasing.score == "surprisal" else (1, "entropy")
        past = getattr(state.responses, scores)[jnp.minimum(row, num_rows - 1), jnp.maximum(fed - erasing.window, 0)]
        watched, erase, start = observe(
            erasing, running, recorded, row=row, prompt=prompt, fed=fed, token=token, left_window=sign * past,
            score=-stats.log_probs if erasing.score == "surprisal" else stats.entropy, is_stop=is_stop, live=live,
        )  # fmt: skip
        before = state.responses.tokens[jnp.minimum(row, num_rows - 1), jnp.maximum(start - 1, 0)]
        return state.replace(erasing=watched), erase, start, jnp.where(start > 0, before, last_token[prompt])

    def step(state: _Decode) -> _Decode:
        row, live = state.row, state.row < num_rows
        at = jnp.minimum(row, num_rows - 1)
        prompt = at // samples_per_prompt
        fed_prompt = prompts.length[prompt] - 1
        fed = jnp.where(live, state.cache.length - fed_prompt, 0)  # tokens the row has sampled
        logits, cache = next_logits(state)
        token, log_prob, stats = draw(noise(at, state.draws), logits, **options)
        new = _Responses(token, log_prob, stats.log_probs, stats.entropy)
        responses = jax.tree.map(lambda out, x: out.at[row, fed].set(x, mode="drop"), state.responses, new)
        state = state.replace(responses=responses)
        is_stop = jnp.any(token[:, None] == jnp.asarray(stop_tokens, jnp.int32)[None], axis=-1)
        # A token is never negative, which the compiler cannot know: without any dependence on what was drawn the next
        # rows could start while the cache is still being read, and a layer of it would be copied at every step.
        length, done = fed + 1, live & (is_stop | (fed + 1 >= response_limit[at]) | (token < 0))
        if erasing is not None:
            state, erase, start, before = watch(state, prompt, fed, token, stats, is_stop, live)
            done, length, token = done & ~erase, jnp.where(erase, start, length), jnp.where(erase, before, token)
        finished = jnp.where(done, row, num_rows)
        following = row_at(state.next_row + jnp.cumsum(done) - 1)
        state = state.replace(
            cache=rewind(cache, jnp.where(live & ~done, fed_prompt + length, 0)),
            token=token,
            draws=state.draws + 1,
            length=state.length.at[finished].set(length, mode="drop"),
            stopped=state.stopped.at[finished].set(is_stop, mode="drop"),
            next_row=state.next_row + jnp.sum(done),
        )
        return _start_rows(state, following, done, prefilled, last_token, samples_per_prompt)

    empty = jnp.zeros((num_rows, max_response), jnp.float32)
    zeros = jnp.zeros(slots, jnp.int32)
    sizes = dict(prompts=prompts.tokens.shape[0], rows=num_rows, slots=slots, max_response=max_response)
    state = _Decode(
        cache=model.empty_cache(slots, prompts.tokens.shape[1] - 1 + max_response),
        row=zeros,
        token=zeros,
        draws=zeros,
        next_row=jnp.minimum(jnp.int32(slots), queued).astype(jnp.int32),
        responses=_Responses(empty.astype(jnp.int32), empty, empty, empty),
        length=jnp.zeros(num_rows, jnp.int32),
        stopped=jnp.zeros(num_rows, bool),
        erasing=None if erasing is None else init_erasing(erasing, **sizes),
    )
    first = row_at(jnp.arange(slots)), jnp.ones(slots, bool)
    state = _start_rows(state, *first, prefilled, last_token, samples_per_prompt)
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
        context=jnp.repeat(prompts.context, samples_per_prompt),
        segments=None if state.erasing is None else state.erasing.segments,
    )


@functools.partial(jax.jit, static_argnums=0, static_argnames=(
    "samples_per_prompt", "max_response", "temperature", "top_k", "top_p", "min_p", "stop_tokens", "slots", "erasing",
))  # fmt: skip
def _jitted_sample(model, params, prompts, key, response_limit, running, **options):
    return _local_sample(model, params, prompts, key, response_limit, running, **options)


def effective_erasing(
    erasing: Erasing | None, running: RunningUncertainty | None, max_response: int
) -> tuple[Erasing | None, RunningUncertainty | None]:
    """(None, None) where nothing could be erased; else the options, and empty statistics where none are given.

    Raises:
        ValueError: for statistics of another number of segments.
    """
    if erasing is None or erasing.is_off:
        return None, None
    count = erasing.num_segments(max_response)
    running = RunningUncertainty.empty(count) if running is None else running
    if running.weight.shape != (count,):
        raise ValueError(f"the erasing statistics are of {running.weight.shape[0]} segments, a response has {count}")
    return erasing, running


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
    erasing: Erasing | None = None,
    running: RunningUncertainty | None = None,
) -> Rollout:
    """Samples ``samples_per_prompt`` responses to every prompt, prompt-major, on one device.

    Args:
        model: its config fixes compute dtype and soft-cap.
        params: the policy's variables, or ``decoding_params`` of them.
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
        erasing: which segments to erase and sample again while generating; None, or one that can erase nothing, is the
            plain sampler.
        running: statistics of earlier rollouts, as erasing goes by; without any, its "running" baseline erases nothing.

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
    erasing, running = effective_erasing(erasing, running, max_response)
    if erasing is not None and not temperature:
        raise ValueError("erasing at temperature 0 would draw the same segment again; use a positive temperature")
    return _jitted_sample(
        model,
        params,
        prompts,
        key,
        jnp.clip(response_limit, 1, max_response),
        running,
        samples_per_prompt=samples_per_prompt,
        max_response=max_response,
        temperature=float(temperature),
        top_k=top_k,
        top_p=float(top_p),
        min_p=float(min_p),
        stop_tokens=tuple(stop_tokens),
        slots=rows if slots is None else slots,
        erasing=erasing,
    )
