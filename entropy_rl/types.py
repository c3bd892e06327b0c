"""The pytrees that run down the line: prompts, rollouts and the learner's state.

Axis letters: P prompts, G samples per prompt, B = P*G rows (prompt-major), T tokens of a row (prompt and
response), S tokens of a prompt. Index t of every [B, T] array describes ``tokens[:, t]`` given
``tokens[:, :t]``; index 0 is always masked. Padding is what the masks and lengths say, never a token id.
"""

from typing import Any

from flax import struct

# Fields are annotated `Any` because the same containers also hold shardings, specs and shapes inside JAX.


class PromptBatch(struct.PyTreeNode):
    """Prompts of one step.

    Attributes:
        tokens: int32 [P, S], right-padded.
        length: int32 [P], tokens of each prompt, at least 1.
        ids: int32 [P], the prompt's id in its data set; part of the row's random stream.
        context: int32 [P], 0 for the plain prompt, other values for prompts derived from it.
        round: int32 [P], how often this prompt was sampled before within the step, earlier copies in it included.
    """

    tokens: Any
    length: Any
    ids: Any
    context: Any
    round: Any


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
        old_log_probs: f32 [B, T] nats, the trainer's, before any update on this batch.
        old_entropy: f32 [B, T] nats, the trainer's, before any update on this batch.
        ref_log_probs: f32 [B, T] nats, of the frozen reference policy.
        rewards: f32 [B].
        advantages: f32 [B, T].
        loss_mask: bool [B, T], the response tokens that enter the loss.
    """

    tokens: Any
    prompt_length: Any
    length: Any
    response_mask: Any
    sampler_log_probs: Any
    raw_log_probs: Any
    entropy: Any
    stopped: Any
    old_log_probs: Any = None
    old_entropy: Any = None
    ref_log_probs: Any = None
    rewards: Any = None
    advantages: Any = None
    loss_mask: Any = None


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
