"""Scoring and updating: forward passes over responses, gradients over microbatches, the optimizer step."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import lax

from entropy_rl.distributions import kl_estimate
from entropy_rl.masked import masked_mean, masked_sum
from entropy_rl.methods.e3rl import attention_mass, segment_ids
from entropy_rl.model.transformer import MAX_READOUT, Readout, Transformer, head_weight
from entropy_rl.objectives.losses import reduction_weights
from entropy_rl.objectives.recipe import Recipe, StepContext, TokenLoss, run_stages
from entropy_rl.parallel.mesh import replicated
from entropy_rl.types import ERASED, FRESH, Rollout, TrainState
from pallas_kernels import SharedPrompt

_NOT_DECAYED = ("scale", "bias", "embedding")


def make_optimizer(
    learning_rate: optax.ScalarOrSchedule,
    *,
    b1: float = 0.9,
    b2: float = 0.999,
    epsilon: float = 1e-8,
    weight_decay: float = 0.0,
    max_grad_norm: float | None = 1.0,
) -> optax.GradientTransformation:
    """AdamW behind a clip of the global norm; norms' scales, biases and embeddings are not decayed."""

    def decayed(params):
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in _NOT_DECAYED, params)

    adamw = optax.adamw(learning_rate, b1=b1, b2=b2, eps=epsilon, weight_decay=weight_decay, mask=decayed)
    return adamw if max_grad_norm is None else optax.chain(optax.clip_by_global_norm(max_grad_norm), adamw)


def init_state(params: Any, optimizer: optax.GradientTransformation) -> TrainState:
    """A state at update 0."""
    updates, skipped, in_a_row = (jnp.zeros((), jnp.int32) for _ in range(3))  # three buffers: the state is donated
    return TrainState(params, optimizer.init(params), updates, skipped, in_a_row)


def _before_responses(model: Transformer, params: Any, rollout: Rollout, *, max_response: int, longest: int) -> Any:
    """[B, longest, D]: the hidden state that predicts each of the ``longest`` places behind each row's prompt."""
    tokens = rollout.tokens[:, : rollout.tokens.shape[1] - max_response + longest]
    positions = jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape)
    hidden = model.apply(params, tokens, positions)[0]
    return jax.vmap(lambda x, at: lax.dynamic_slice_in_dim(x, at - 1, longest))(hidden, rollout.prompt_length)


def _before_grouped(
    model: Transformer, params: Any, rollout: Rollout, responses: Any, *, max_response: int, group_size: int
) -> Any:
    """The same for ``responses`` [B, longest] where every ``group_size`` rows share a prompt, read once for all."""
    batch, longest = responses.shape
    size, groups = rollout.tokens.shape[1] - max_response, batch // group_size
    length = rollout.prompt_length[::group_size]
    behind = length[:, None, None] + jnp.arange(longest)[None, None]
    places = (
        jnp.broadcast_to(jnp.arange(size), (groups, size)),
        jnp.broadcast_to(behind, (groups, group_size, longest)).reshape(groups, -1),
    )
    tokens = jnp.concatenate([rollout.tokens[::group_size, :size], responses.reshape(groups, -1)], axis=1)
    shared = SharedPrompt(length, size, group_size)
    hidden = model.apply(params, tokens, jnp.concatenate(places, axis=1), prompt=shared)[0]
    last = jnp.take_along_axis(hidden, length[:, None, None] - 1, axis=1)
    inside = hidden[:, size:].reshape(groups, group_size, longest, -1)
    first = jnp.broadcast_to(last[:, None], (groups, group_size, *last.shape[1:]))
    return jnp.concatenate([first, inside[:, :, :-1]], axis=2).reshape(batch, longest, -1)


def response_stats(
    model: Transformer, params: Any, rollout: Rollout, *, max_response: int, temperature: float, chunk_size: int = 4096,
    longest: int | None = None, group_size: int = 1,
) -> tuple[Any, Any]:  # fmt: skip
    """The trainer's log-probs and entropy of every sampled token, f32 [B, T] nats, 0 elsewhere.

    Only the ``longest`` positions behind each prompt go through the head, in vocabulary chunks.

    Args:
        model: the policy network.
        params: its variables.
        rollout: ``tokens``, ``prompt_length`` and ``response_mask`` are read.
        max_response: tokens a response may have; ``prompt_length + max_response <= T`` must hold in every row.
        temperature: the sampler's; 0 (greedy sampling) counts as 1.
        chunk_size: vocabulary columns held at once.
        longest: tokens that no response of these rows exceeds; None: ``max_response``.
        group_size: rows next to each other that have the same prompt; where more than one, it is read once for them.
    """
    batch, size = rollout.tokens.shape
    longest = max_response if longest is None else longest
    targets = jax.vmap(lambda x, at: lax.dynamic_slice_in_dim(x, at, longest))(rollout.tokens, rollout.prompt_length)
    if group_size == 1:
        before = _before_responses(model, params, rollout, max_response=max_response, longest=longest)
    else:
        before = _before_grouped(model, params, rollout, targets, max_response=max_response, group_size=group_size)
    weight, layout = head_weight(model.config, params)
    stats = model.kernels.linear_token_stats(
        before.reshape(-1, before.shape[-1]),
        weight,
        targets.reshape(-1),
        temperature=temperature or 1.0,
        soft_cap=model.config.logit_soft_cap,
        weight_layout=layout,
        chunk_size=chunk_size,
    )

    def place(values):
        blank = jnp.zeros((batch, size), values.dtype)
        put = jax.vmap(lambda row, x, at: lax.dynamic_update_slice_in_dim(row, x, at, 0))
        return jnp.where(rollout.response_mask, put(blank, values.reshape(batch, -1), rollout.prompt_length), 0.0)

    return place(stats.log_probs), place(stats.entropy)


def answer_attention(
    model: Transformer, params: Any, rollout: Rollout, *, layer: int, segment_length: int,
    delimiters: tuple[int, ...], num_segments: int,
) -> Any:  # fmt: skip
    """f32 [B, N]: the attention that each response's final answer pays to its segments; see ``attention_mass``.

    The queries are the answer's tokens, ``answer_start`` to ``answer_end``, at most 64; where a row has none, those of
    its last segment. The answer's own segment is that of its first token.
    """
    batch, size = rollout.tokens.shape
    mask = rollout.response_mask
    ids = segment_ids(rollout.tokens, mask, segment_length=segment_length, delimiters=delimiters)
    column = jnp.arange(size)[None]
    last = jnp.max(jnp.where(mask, ids, 0), axis=1)
    last_start = jnp.min(jnp.where(mask & (ids == last[:, None]), column, size - 1), axis=1)
    has_answer = rollout.answer_end > rollout.answer_start
    start = jnp.where(has_answer, rollout.answer_start, last_start)
    end = jnp.where(has_answer, rollout.answer_end, rollout.length)
    queries = jnp.minimum(start[:, None] + jnp.arange(min(MAX_READOUT, size))[None], size - 1)
    is_query = (start[:, None] + jnp.arange(min(MAX_READOUT, size))[None]) < end[:, None]
    own = jnp.take_along_axis(ids, jnp.minimum(start, size - 1)[:, None], axis=1)[:, 0]
    positions = jnp.broadcast_to(column, (batch, size))
    attention: Any = model.apply(params, rollout.tokens, positions, readout=Readout(queries, layer))[-1]
    return attention_mass(attention, is_query, ids, mask, own, num_segments)


def split_rows(tree: Any, num_pieces: int, group_size: int = 1) -> Any:
    """[B, ...] -> [num_pieces, B / num_pieces, ...]; piece i takes groups i, i + num_pieces, ..., some of each device.

    A group is ``group_size`` rows next to each other, which stay so.
    """

    def split(x):
        groups = x.shape[0] // (num_pieces * group_size)
        x = jnp.swapaxes(x.reshape(groups, num_pieces, group_size, *x.shape[1:]), 0, 1)
        return x.reshape(num_pieces, groups * group_size, *x.shape[3:])

    return jax.tree.map(split, tree)


def join_rows(tree: Any, group_size: int = 1) -> Any:
    """Undoes ``split_rows``."""

    def join(x):
        x = x.reshape(x.shape[0], -1, group_size, *x.shape[2:])
        return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[3:])

    return jax.tree.map(join, tree)


def _taken(tree: Any, rows: Any) -> Any:
    return jax.tree.map(lambda x: jnp.take(x, rows, axis=0), tree)


def _by_length(rollout: Rollout, num_pieces: int, group_size: int) -> Any:
    """int32 [B]: an order in which each piece of ``split_rows`` has groups of similar length, the first the shortest;
    a group's length is that of its longest response."""
    longest = jnp.max((rollout.length - rollout.prompt_length).reshape(-1, group_size), axis=1)
    ranked = jnp.argsort(longest, stable=True).reshape(num_pieces, -1).T.reshape(-1)
    return (ranked[:, None] * group_size + jnp.arange(group_size)[None]).reshape(-1)


def _lengths(max_response: int, num_buckets: int) -> tuple[int, ...]:
    """The response lengths that programs are made for: so many, evenly spaced, the last one ``max_response``."""
    return tuple(sorted({-(-max_response * i // num_buckets) for i in range(1, num_buckets + 1)}))


def _at_length(lengths: tuple[int, ...], rollout: Rollout, run: Callable[[int], Any]) -> Any:
    """``run(longest)`` with the smallest of ``lengths`` that holds every response of these rows."""
    longest = jnp.max(rollout.length - rollout.prompt_length)
    index = jnp.sum(longest > jnp.asarray(lengths[:-1], longest.dtype))
    return lax.switch(index, [functools.partial(run, length) for length in lengths])


def make_score(
    model: Transformer, *, max_response: int, temperature: float, num_microbatches: int = 1, num_buckets: int = 1,
    chunk_size: int = 4096, group_size: int = 1,
) -> Callable[[Any, Rollout], tuple[Any, Any]]:  # fmt: skip
    """A compiled ``(params, rollout) -> (log_probs, entropy)`` of the trainer, in microbatches, without gradient.

    With several buckets, microbatches are of rows of similar length and cost what their longest response does, rounded
    up to one of ``num_buckets`` lengths. With ``group_size``, so many rows next to each other have the same prompt,
    which is read once for all of them; microbatches are then of whole groups.
    """
    lengths = _lengths(max_response, num_buckets)

    def score(params, rollout):
        def piece(part):
            stats = functools.partial(response_stats, model, params, part, max_response=max_response)
            options = dict(temperature=temperature, chunk_size=chunk_size, group_size=group_size)
            return _at_length(lengths, part, lambda longest: stats(longest=longest, **options))

        rows = _bare(rollout)
        if num_buckets == 1:
            return join_rows(lax.map(piece, split_rows(rows, num_microbatches, group_size)), group_size)
        order = _by_length(rows, num_microbatches, group_size)
        found = lax.map(piece, split_rows(_taken(rows, order), num_microbatches, group_size))
        return _taken(join_rows(found, group_size), jnp.argsort(order))

    return jax.jit(score)


def _bare(rollout: Rollout) -> Rollout:
    """What a forward pass reads."""
    names = ("tokens", "prompt_length", "length", "response_mask", "answer_start", "answer_end")
    return Rollout(*(None,) * 8).replace(**{name: getattr(rollout, name) for name in names})


def make_answer_attention(
    model: Transformer, *, num_microbatches: int = 1, **options: Any
) -> Callable[[Any, Rollout], Any]:
    """A compiled ``(params, rollout) -> attention_mass [B, N]``, in microbatches; options of ``answer_attention``."""

    def attention(params, rollout):
        piece = lambda part: answer_attention(model, params, part, **options)  # noqa: E731
        return join_rows(lax.map(piece, split_rows(_bare(rollout), num_microbatches)))

    return jax.jit(attention)


def make_loss(
    model: Transformer,
    token_loss: TokenLoss,
    *,
    max_response: int,
    temperature: float,
    chunk_size: int = 4096,
    group_size: int = 1,
) -> Callable[..., tuple[Any, dict[str, Any]]]:
    """``(params, rollout, weights [B, T], longest) -> (sum of weighted token losses, sums of token metrics)``."""

    def loss(params, rollout, weights, longest):
        log_probs, entropy = response_stats(
            model, params, rollout, max_response=max_response, temperature=temperature, chunk_size=chunk_size,
            longest=longest, group_size=group_size,
        )  # fmt: skip
        values, metrics = token_loss(log_probs, entropy, rollout)
        metrics = metrics | {"entropy": entropy}
        if rollout.old_log_probs is not None:
            metrics["kl_old"] = kl_estimate(log_probs, rollout.old_log_probs)
        sums = {name: masked_sum(lax.stop_gradient(x), rollout.loss_mask) for name, x in metrics.items()}
        return masked_sum(values * weights, rollout.loss_mask), sums

    return loss


def make_update(
    model: Transformer,
    optimizer: optax.GradientTransformation,
    token_loss: TokenLoss,
    *,
    reduction: str,
    max_response: int,
    temperature: float,
    num_microbatches: int = 1,
    num_buckets: int = 1,
    chunk_size: int = 4096,
    group_size: int = 1,
    state_shardings: Any = None,
) -> Callable[[TrainState, Rollout, Any], tuple[TrainState, dict[str, Any]]]:
    """A compiled ``(state, rollout, rows) -> (state, metrics)``: one optimizer step on the chosen rows.

    The gradient is accumulated over ``num_microbatches`` pieces in f32; the weights of tokens are fixed before the
    split, so the result does not depend on their number (to about 1e-6). With several buckets, pieces are of rows of
    similar length, as in ``make_score``; ``group_size`` too is as there, and ``rows`` then name whole groups. Where the
    gradient's norm or the loss is not finite the step changes neither parameters nor optimizer and is counted.
    ``state`` is donated.
    """
    lengths = _lengths(max_response, num_buckets)
    loss = make_loss(
        model, token_loss, max_response=max_response, temperature=temperature, chunk_size=chunk_size,
        group_size=group_size,
    )  # fmt: skip

    def token_weights(batch):
        """Erased attempts are beside the others: they change no weight, and their tokens weigh as the mean one does."""
        reduce = functools.partial(reduction_weights, reduction=reduction, max_response=max_response)
        if batch.origin is None:
            return reduce(batch.loss_mask)
        erased = batch.loss_mask & (batch.origin == ERASED)[:, None]
        weights = reduce(batch.loss_mask & ~erased)
        mean = jnp.sum(weights) / jnp.maximum(jnp.sum(batch.loss_mask & ~erased), 1)
        return jnp.where(erased, mean, weights)

    def accumulate(params, batch):
        if num_buckets > 1:
            batch = _taken(batch, _by_length(batch, num_microbatches, group_size))
        weights = token_weights(batch)
        at_length = jax.value_and_grad(loss, has_aux=True)

        def gradient(params, part, part_weights):
            return _at_length(lengths, part, lambda longest: at_length(params, part, part_weights, longest))

        if num_microbatches == 1:  # without an accumulator, which is as large as the parameters
            (value, sums), grads = gradient(params, batch, weights)
            return value, sums, jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)), grads)

        def one(total, piece):
            (value, sums), grads = gradient(params, *piece)
            add = lambda a, b: a + b.astype(a.dtype)  # noqa: E731
            return jax.tree.map(add, total, (value, sums, grads)), None

        pieces = split_rows((batch, weights), num_microbatches, group_size)
        shapes = jax.eval_shape(lambda piece: gradient(params, *piece), jax.tree.map(lambda x: x[0], pieces))
        (value, sums), _ = shapes
        zeros = lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, jnp.float32))  # noqa: E731
        total = jax.tree.map(zeros, (value, sums, params))
        return lax.scan(one, total, pieces)[0]

    def update(state, rollout, rows):
        batch = _taken(rollout, rows)
        value, sums, grads = accumulate(state.params, batch)
        tokens = jnp.maximum(jnp.sum(batch.loss_mask), 1)
        norm = optax.tree.norm(grads)
        finite = jnp.isfinite(norm) & jnp.isfinite(value)
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
        # In the old dtype: f32 gradients turn bf16 moments into f32 ones, which a checkpoint's template would not have.
        # A minibatch with nothing in its loss changes nothing: momentum and decay would go on without it.
        applied = finite & jnp.any(batch.loss_mask)
        keep = lambda new, old: jnp.where(applied, new.astype(old.dtype), old)  # noqa: E731
        skipped = 1 - finite.astype(jnp.int32)
        state = TrainState(
            params=jax.tree.map(keep, params, state.params),
            opt_state=jax.tree.map(keep, opt_state, state.opt_state),
            updates=state.updates + 1,
            skipped=state.skipped + skipped,
            skipped_in_a_row=jnp.where(finite, 0, state.skipped_in_a_row + 1),
        )
        metrics = {name: x / tokens for name, x in sums.items()}
        streak = state.skipped_in_a_row
        return state, metrics | {"loss": value, "grad_norm": norm, "skipped": skipped, "skipped_in_a_row": streak}

    out = None if state_shardings is None else (state_shardings, None)
    return jax.jit(update, donate_argnums=0, out_shardings=out)


def scored(rollout: Rollout, old_log_probs: Any, old_entropy: Any, *, mask_truncated: bool) -> Rollout:
    """With the trainer's statistics and ``loss_mask``: all tokens, or only those of responses a stop token ended.

    Rows that were not sampled in this step get the trainer's log-probs for the sampler's: what drew them is gone.
    """
    is_fresh = (rollout.origin == FRESH)[:, None]
    return rollout.replace(
        old_log_probs=old_log_probs,
        old_entropy=old_entropy,
        sampler_log_probs=jnp.where(is_fresh, rollout.sampler_log_probs, old_log_probs),
        raw_log_probs=jnp.where(is_fresh, rollout.raw_log_probs, old_log_probs),
        loss_mask=rollout.response_mask & (rollout.stopped[:, None] | (not mask_truncated)),
    )


def make_prepare(recipe: Recipe, mesh: Any, *, group_size: int, max_response: int) -> Callable[..., Any]:
    """A compiled ``(rollout, states, step, key) -> (rollout, states, metrics)``: the recipe's stages in order."""

    def prepare(rollout, states, step, key):
        context = StepContext(step=step, key=key, group_size=group_size, max_response=max_response)
        return run_stages(recipe, rollout, states, context)

    return jax.jit(prepare, out_shardings=(None, replicated(mesh), None))


def rollout_metrics(rollout: Rollout, group_size: int) -> dict[str, Any]:
    """Scalars of the rows sampled in one step: rewards, lengths, entropy and the gap between sampler and trainer.

    ``accuracy`` is that of plain prompts; where others were derived from them, ``derived_accuracy`` is theirs.
    """
    is_fresh = rollout.origin == FRESH
    is_plain = is_fresh if rollout.context is None else is_fresh & (rollout.context == 0)
    correct = rollout.correct.astype(jnp.float32)
    mask = rollout.response_mask & is_fresh[:, None]
    groups = is_fresh.reshape(-1, group_size)
    rewards = rollout.rewards.reshape(-1, group_size)
    largest = jnp.max(jnp.where(groups, rewards, -jnp.inf), axis=1)
    smallest = jnp.min(jnp.where(groups, rewards, jnp.inf), axis=1)
    gap = jnp.abs(rollout.old_log_probs - rollout.raw_log_probs)
    return {
        "reward": masked_mean(rollout.rewards, is_fresh),
        "accuracy": masked_mean(correct, is_plain),
        "derived_accuracy": masked_mean(correct, is_fresh & ~is_plain),
        "equal_groups": masked_mean((largest == smallest).astype(jnp.float32), jnp.any(groups, axis=1)),
        "response_length": masked_mean(jnp.sum(mask, axis=1).astype(jnp.float32), is_fresh),
        "truncated": masked_mean(1.0 - rollout.stopped.astype(jnp.float32), is_fresh),
        "sampler_entropy": masked_mean(rollout.entropy, mask),
        "trainer_entropy": masked_mean(rollout.old_entropy, mask),
        "log_prob_gap_mean": masked_mean(gap, mask),
        "log_prob_gap_max": jnp.max(jnp.where(mask, gap, 0.0)),
    }
