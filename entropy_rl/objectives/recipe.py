"""What a recipe is: pure functions of the whole rollout batch, in a fixed order of places, and a token loss."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from flax import struct

from entropy_rl.masked import masked_mean
from entropy_rl.methods.e3rl import Erasing, segment_ids
from entropy_rl.types import ERASED, FRESH, Rollout

TokenLoss = Callable[[Any, Any, Rollout], tuple[Any, dict[str, Any]]]

# Where a stage stands in the step, first to last.
PLACES = ("reward", "advantage", "credit", "select", "weigh", "observe")


class StepContext(struct.PyTreeNode):
    """What a stage may know besides the rollout.

    Attributes:
        step: int32 [], rollout batches before this one.
        key: the step's key.
        group_size: rows of a prompt's group in the batch, replayed ones included.
        max_response: tokens a response may have.
    """

    step: Any
    key: Any
    group_size: int = struct.field(pytree_node=False)
    max_response: int = struct.field(pytree_node=False)


def _nothing() -> Any:
    return ()


@dataclasses.dataclass(frozen=True)
class Stage:
    """One function of the rollout batch, with state that lasts over steps and is checkpointed.

    Attributes:
        name: unique in a recipe; names its state.
        place: one of ``PLACES``.
        apply: (rollout, state, context) -> (rollout with fields added or changed, new state, metrics by name).
        init: () -> the state before the first step, a tree of arrays.
    """

    name: str
    place: str
    apply: Callable[[Rollout, Any, StepContext], tuple[Rollout, Any, dict[str, Any]]]
    init: Callable[[], Any] = _nothing


@dataclasses.dataclass(frozen=True)
class Replay:
    """What the host does between verification and scoring: stored responses, and prompts that reflect on failures.

    Attributes:
        replays: k, stored responses added to a group without signal; rows kept for them in every group.
        reflections: prompts of a step that may be added to reflect on a stored failure, per process.
        threshold: a prompt is reflected on where its mean historical reward is below this.
        template: text with ``{problem}`` and ``{failure}``.
        max_tokens, per_prompt: bounds of the buffer, per process.
    """

    replays: int = 2
    reflections: int = 0
    threshold: float = 0.5
    template: str = "{problem}{failure}"
    max_tokens: int = 1 << 22
    per_prompt: int = 8


@dataclasses.dataclass(frozen=True)
class Readout:
    """Which attention a stage reads, from the answer's tokens to each segment.

    Attributes:
        layer: whose heads are averaged; negative ones count from the end.
        segment_length, delimiters: how responses are cut; see ``methods.e3rl.segment_ids``.
        num_segments: N.
    """

    layer: int
    segment_length: int
    delimiters: tuple[int, ...]
    num_segments: int


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One algorithm: which function stands at which place. The loop and the learner know no recipe by name.

    Attributes:
        stages: of the rollout batch; one of them sets ``advantages``.
        token_loss: (log_probs [B, T], entropy [B, T], rollout) -> (loss [B, T], per-token metrics by name), given the
            current policy's log-probs and entropy; only entries under ``rollout.loss_mask`` count.
        reduction: how token losses become one number; see ``reduction_weights``.
        needs_reference: whether ``token_loss`` reads ``rollout.ref_log_probs``.
        resample_rounds: how often groups of equal rewards are sampled again within a step, at most.
        erasing: how the sampler erases uncertain segments, or None; its state is that of the stage "erasing".
        readout: the attention from the answer to each segment that a stage reads, or None.
        erased_rows: erased attempts of each response that are carried along as rows of their own.
        replay: what the host adds to a step, or None.
        is_clipped: whether the policy loss clips the ratio.
        reads_rewards: whether the advantages are made of ``rewards``, or of verdicts alone.
        curriculum_stages: stages of prompts by ascending semantic entropy; 1: no curriculum.
    """

    stages: tuple[Stage, ...]
    token_loss: TokenLoss
    reduction: str
    needs_reference: bool = False
    resample_rounds: int = 0
    erasing: Erasing | None = None
    readout: Readout | None = None
    erased_rows: int = 0
    replay: Replay | None = None
    is_clipped: bool = False
    reads_rewards: bool = True
    curriculum_stages: int = 1

    def __post_init__(self):
        names = [stage.name for stage in self.stages]
        if len(set(names)) < len(names):
            raise ValueError(f"two stages of one recipe have the same name, among {', '.join(names)}")

    def with_stage(self, stage: Stage, *, ahead: bool = False, **changes: Any) -> "Recipe":
        """The recipe with one more stage, behind (or ``ahead`` of) those at its place, and ``changes`` of fields."""
        stages = (stage, *self.stages) if ahead else (*self.stages, stage)
        return dataclasses.replace(self, stages=stages, **changes)

    def in_order(self) -> tuple[Stage, ...]:
        """The stages by place."""
        return tuple(sorted(self.stages, key=lambda stage: PLACES.index(stage.place)))

    def init_states(self) -> dict[str, Any]:
        """The states of all stages before the first step."""
        return {stage.name: stage.init() for stage in self.stages}

    def segments_of(self, rollout: Rollout) -> Any:
        """int32 [B, T], the segment of each token, where the recipe cuts responses into segments; else None."""
        cut = self.erasing or self.readout
        if cut is None:
            return None
        return segment_ids(
            rollout.tokens, rollout.response_mask, segment_length=cut.segment_length, delimiters=cut.delimiters
        )

    def rows_per_group(self, samples: int) -> int:
        """Rows a prompt has in a batch: fresh ones, places for replayed ones, and for erased attempts."""
        return samples * (1 + self.erased_rows) + (self.replay.replays if self.replay else 0)


@dataclasses.dataclass(frozen=True)
class RunFacts:
    """What a method may need to know of the run.

    Attributes:
        num_steps: rollout batches.
        max_response: tokens a response may have.
        encode: text -> token ids, for delimiters.
    """

    num_steps: int
    max_response: int
    encode: Callable[[str], Sequence[int]]


def run_stages(
    recipe: Recipe, rollout: Rollout, states: dict[str, Any], context: StepContext
) -> tuple[Rollout, dict[str, Any], dict[str, Any]]:
    """(rollout ready for updates, new states, metrics): every stage in order."""
    states, metrics = dict(states), dict[str, Any]()
    for stage in recipe.in_order():
        rollout, states[stage.name], new = stage.apply(rollout, states[stage.name], context)
        metrics |= new
    return rollout, states, metrics


def stateless(function: Callable[[Rollout, StepContext], tuple[Rollout, dict[str, Any]]]):
    """A stage's ``apply`` from a function without state."""

    @functools.wraps(function)
    def apply(rollout, state, context):
        rollout, metrics = function(rollout, context)
        return rollout, state, metrics

    return apply


def fresh_mask(rollout: Rollout) -> Any:
    """bool [B, T], the response tokens sampled in this step: neither replayed nor erased ones."""
    return rollout.response_mask & (rollout.origin == FRESH)[:, None]


def policy_mask(rollout: Rollout) -> Any:
    """bool [B, T], the tokens of the loss that statistics of a batch are made of: all but erased attempts'."""
    return rollout.loss_mask & (rollout.origin != ERASED)[:, None]


def policy_entropy(rollout: Rollout) -> Any:
    """H, the mean entropy of the policy before the update over the tokens it sampled in this step, nats."""
    return masked_mean(rollout.old_entropy, fresh_mask(rollout))


def multiply_weight(rollout: Rollout, name: str, values: Any) -> Rollout:
    """``rollout`` with its weights ``name`` multiplied by ``values``, f32 broadcastable to [B, T]."""
    old = rollout.weights.get(name, jnp.ones(rollout.tokens.shape, jnp.float32))
    return rollout.replace(weights=rollout.weights | {name: old * values})


def add_weight(rollout: Rollout, name: str, values: Any) -> Rollout:
    """``rollout`` with ``values``, f32 broadcastable to [B, T], added to its weights ``name``."""
    old = rollout.weights.get(name, jnp.zeros(rollout.tokens.shape, jnp.float32))
    return rollout.replace(weights=rollout.weights | {name: old + values})
