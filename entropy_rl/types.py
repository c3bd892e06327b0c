"""The pytrees that run down the line: prompts, rollouts and the learner's state.

Axis letters: P prompts, G samples per prompt, B = P*G rows (prompt-major), T tokens of a row (prompt and
response), S tokens of a prompt. Index t of every [B, T] array describes ``tokens[:, t]`` given
``tokens[:, :t]``; index 0 is always masked. Padding is what the masks and lengths say, never a token id.
"""

from typing import Any

import jax.numpy as jnp
from flax import struct

# Where a row of a rollout comes from.
FRESH, REPLAYED, ERASED, ABSENT = range(4)

# Fields are annotated `Any` because the same containers also hold shardings, specs and shapes inside JAX.


class PromptBatch(struct.PyTreeNode):
    """Prompts of one step.

    Attributes:
        tokens: int32 [P, S], right-padded.
        length: int32 [P], tokens of each prompt, at least 1.
        ids: int32 [P], the prompt's id in its data set; part of the row's random stream.
        context: int32 [P], 0 for the plain prompt, other values for prompts derived from it.
        round: int32 [P], how often this prompt was sampled before within the step, earlier copies in it included.
        active: bool [P], false for places without a prompt, which are not sampled; None for all true.
    """

    tokens: Any
    length: Any
    ids: Any
    context: Any
    round: Any
    active: Any = None


class Segments(struct.PyTreeNode):
    """What erasing did to each segment of a response, [B, N]; 0 for an index of which a row has no segment.

    Attributes:
        count: int32 [B], segments that were scored.
        uncertainty: f32, U of the accepted attempt, nats.
        first_uncertainty: f32, U of the first attempt.
        first_level: f32, B of the first attempt.
        threshold: f32, Theta the accepted attempt was held against; 0 where there was no estimate yet.
        erasures: int32, attempts erased before it.
        draws: int32 [B], tokens drawn, erased ones included.
        drawn_tokens: int32 [B, D], every token in the order drawn, as far as D reaches.
        drawn_position: int32 [B, D], its position in the response; it falls back where a segment was erased.
        drawn_log_probs, drawn_entropy: f32 [B, D] nats, as ``raw_log_probs`` and ``entropy``.
    """

    count: Any
    uncertainty: Any
    first_uncertainty: Any
    first_level: Any
    threshold: Any
    erasures: Any
    draws: Any
    drawn_tokens: Any
    drawn_position: Any
    drawn_log_probs: Any
    drawn_entropy: Any


class Rollout(struct.PyTreeNode):
    """Responses of one step, prompt-major; each stage returns it with fields added.

    Attributes:
        tokens: int32 [B, T], prompt then response, right-padded.
        prompt_length: int32 [B], tokens of the prompt.
        length: int32 [B], tokens of prompt and response together.
        response_mask: bool [B, T], true on sampled tokens, the stop token included.
        sampler_log_probs: f32 [B, T] nats, as drawn: after temperature and truncation.
        raw_log_probs: f32 [B, T] nats, after temperature, before truncation.
        entropy: f32 [B, T] nats, of the distribution of ``raw_log_probs``.
        stopped: bool [B], true where a stop token ended the row, false where the length limit cut it.
        context: int32 [B], 0 for a response to a plain prompt, other values for one derived from it; None for all 0.
        old_log_probs: f32 [B, T] nats, the trainer's, before any update on this batch; a run may take the sampler's.
        old_entropy: f32 [B, T] nats, likewise.
        ref_log_probs: f32 [B, T] nats, of the frozen reference policy.
        rewards: f32 [B].
        correct: bool [B], the verifier's own verdict, whatever the rewards were made of.
        origin: int32 [B], FRESH, REPLAYED, ERASED or ABSENT (a place of its group without a response).
        outcome_advantages: f32 [B], of the whole response.
        advantages: f32 [B, T].
        loss_mask: bool [B, T], the response tokens that enter the loss.
        weights: f32 [B, T] by name, factors of the terms of a token loss; see ``objectives.recipes``.
        segments: what erasing did, where it was on.
        answer_start, answer_end: int32 [B], index of the final answer's first token and of the one behind its last;
            equal where there is none.
        attention_mass: f32 [B, N], what the answer's tokens pay to each segment.
    """

    tokens: Any
    prompt_length: Any
    length: Any
    response_mask: Any
    sampler_log_probs: Any
    raw_log_probs: Any
    entropy: Any
    stopped: Any
    context: Any = None
    old_log_probs: Any = None
    old_entropy: Any = None
    ref_log_probs: Any = None
    rewards: Any = None
    correct: Any = None
    origin: Any = None
    outcome_advantages: Any = None
    advantages: Any = None
    loss_mask: Any = None
    weights: Any = struct.field(default_factory=dict)
    segments: Any = None
    answer_start: Any = None
    answer_end: Any = None
    attention_mass: Any = None

    def for_update(self) -> "Rollout":
        """Without what no token loss reads."""
        return self.replace(context=None, segments=None, answer_start=None, answer_end=None, attention_mass=None)

    def fresh(self) -> "Rollout":
        """With every row marked as sampled in this step."""
        return self.replace(origin=jnp.full(self.tokens.shape[0], FRESH, jnp.int32))


class TrainState(struct.PyTreeNode):
    """What an update changes.

    Attributes:
        params: the policy's variables, as ``Transformer.init`` made them.
        opt_state: the optax state.
        updates: int32 [], updates applied or skipped so far.
        skipped: int32 [], updates skipped so far for a non-finite gradient.
        skipped_in_a_row: int32 [], of those, how many since the last applied one.
    """

    params: Any
    opt_state: Any
    updates: Any
    skipped: Any
    skipped_in_a_row: Any
