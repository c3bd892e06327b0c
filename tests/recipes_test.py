"""Every baseline against a NumPy float64 oracle of its whole loss, and the methods on top of them."""

import itertools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from entropy_rl.masked import fraction_of
from entropy_rl.methods.e3rl import RunningUncertainty
from entropy_rl.objectives import METHODS, RECIPES, RunFacts, StepContext, add_methods, make_recipe, run_stages
from entropy_rl.objectives.advantages import leave_one_out_advantages, outcome_sign_advantages, overlong_penalty
from entropy_rl.objectives.losses import reduction_weights
from entropy_rl.objectives.recipes import default_options
from entropy_rl.types import ABSENT, ERASED, FRESH, REPLAYED, Segments
from tests.helpers import random_rollout

P, G, PROMPT, RESPONSE = 3, 4, 4, 9
ROWS = P * G
FACTS = RunFacts(num_steps=100, max_response=RESPONSE, encode=lambda text: [ord(c) for c in text])
LENIENT = {"clip_low": 0.2, "clip_high": 0.2}


def batch(seed=0, rewards=None):
    rng = np.random.default_rng(seed)
    rollout = random_rollout(ROWS, PROMPT, RESPONSE, vocab=20, seed=seed).fresh()
    mask = np.asarray(rollout.response_mask)
    old = np.where(mask, -rng.gamma(1.0, 0.8, mask.shape), 0).astype(np.float32)
    correct = rng.random(ROWS) < 0.5 if rewards is None else np.asarray(rewards) >= 1
    rollout = rollout.replace(
        old_log_probs=jnp.asarray(old), ref_log_probs=jnp.asarray(old + np.where(mask, 0.1, 0).astype(np.float32)),
        rewards=jnp.asarray(correct.astype(np.float32) if rewards is None else np.asarray(rewards, np.float32)),
        correct=jnp.asarray(correct), loss_mask=rollout.response_mask,
        answer_start=rollout.length - 1, answer_end=rollout.length,
    )  # fmt: skip
    noise = rng.normal(0, 0.15, mask.shape)
    return rollout, np.where(mask, old + noise, 0).astype(np.float32)


def context(step=0):
    return StepContext(step=jnp.int32(step), key=jax.random.key(3), group_size=G, max_response=RESPONSE)


def prepared(recipe, rollout, states=None, step=0):
    states = recipe.init_states() if states is None else states
    return jax.jit(lambda r, s, c: run_stages(recipe, r, s, c))(rollout, states, context(step))


def loss_and_gradient(recipe, rollout, log_probs):
    def loss(log_probs, entropy):
        values, _ = recipe.token_loss(log_probs, entropy, rollout)
        weights = reduction_weights(rollout.loss_mask, reduction=recipe.reduction, max_response=RESPONSE)
        return jnp.sum(jnp.where(rollout.loss_mask, values * weights, 0))

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(jnp.asarray(log_probs), rollout.old_entropy)


def oracle(name, rollout, log_probs):
    """The loss of recipe ``name`` at its defaults (but where said), in float64, token by token."""
    as64 = lambda x: np.asarray(x, np.float64)
    lp, old, h, rewards = as64(log_probs), as64(rollout.old_log_probs), as64(rollout.old_entropy), as64(rollout.rewards)
    mask, correct = np.asarray(rollout.loss_mask), np.asarray(rollout.correct)
    groups = rewards.reshape(P, G)
    a = (groups - groups.mean(1, keepdims=True)) / (groups.std(1, ddof=1, keepdims=True) + 1e-6)
    if name == "dr_grpo":
        a = groups - groups.mean(1, keepdims=True)
    if name == "rloo":
        a = np.array([[r[i] - np.delete(r, i).mean() for i in range(G)] for r in groups])
    a = np.where(correct, 0.1, -1.0) if name == "w_reinforce" else a.reshape(-1)
    total, n = 0.0, mask.sum()
    rows, columns = np.nonzero(mask)
    cov = (old[mask] - old[mask].mean()) * (a[rows] - a[rows].mean())
    by_cov = set(np.argsort(-cov, kind="stable")[: int(0.2 * n)]) if name == "kl_cov" else set()
    by_entropy = set(np.argsort(-h[mask], kind="stable")[: int(np.ceil(0.2 * n))])
    entropy = h[mask].mean()
    for k, (i, t) in enumerate(zip(rows, columns, strict=True)):
        ratio = np.exp(lp[i, t] - old[i, t])
        low, high = {"dapo": (0.2, 0.28), "gspo": (3e-4, 4e-4)}.get(name, (0.2, 0.2))
        if name == "gspo":
            ratio = np.exp((lp[i] - old[i])[mask[i]].mean())
        value = -min(ratio * a[i], np.clip(ratio, 1 - low, 1 + high) * a[i])
        if name == "cispo":
            value = -min(ratio, 1.1) * a[i] * lp[i, t]
        if name in ("rloo", "w_reinforce"):
            value = -a[i] * lp[i, t]
        if name == "kl_cov":
            value = -ratio * a[i] + (abs(lp[i, t] - old[i, t]) if k in by_cov else 0.0)
        if name == "top_entropy" and k not in by_entropy:
            value = 0.0
        if name == "entropy_bonus":
            value -= 3e-3 * h[i, t]
        if name == "adaptive_entropy":
            value -= 1e-4 * h[i, t]
        if name == "entropic":
            value *= 1 + (entropy - 0.2) * np.sign(a[i])
        if name in ("dapo", "cispo", "rloo", "w_reinforce", "kl_cov", "top_entropy"):
            weight = 1 / n
        elif name == "dr_grpo":
            weight = 1 / (ROWS * RESPONSE)
        else:
            weight = 1 / (mask[i].sum() * mask.any(1).sum())
        total += weight * value
    return total


CHANGES = {
    "cispo": {"max_ratio": 1.1},
    "kl_cov": {"fraction": 0.2},
    "adaptive_entropy": {"target": 9.0},
}


@pytest.mark.parametrize("name", sorted(set(RECIPES) - {"clip_cov"}))
def test_loss_against_numpy(name):
    rollout, log_probs = batch(1)
    recipe = make_recipe(name, **CHANGES.get(name, {}))
    ready, _, metrics = prepared(recipe, rollout)
    loss, gradients = loss_and_gradient(recipe, ready, log_probs)
    want = oracle(name, rollout, log_probs)
    np.testing.assert_allclose(loss, want, atol=1e-6, rtol=2e-6)
    # The gradient by central differences of the oracle, on a few tokens.
    rows, columns = np.nonzero(np.asarray(rollout.loss_mask))
    if name != "gspo" and name != "cispo":  # these stop gradients that differences would see
        for k in range(0, len(rows), 7):
            shift = np.zeros(log_probs.shape)
            shift[rows[k], columns[k]] = 1e-6
            up, down = (oracle(name, rollout, log_probs.astype(np.float64) + s * shift) for s in (1, -1))
            np.testing.assert_allclose(gradients[0][rows[k], columns[k]], (up - down) / 2e-6, atol=2e-6)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(metrics))


def test_gspo_and_cispo_gradients_by_hand():
    rollout, log_probs = batch(1)
    mask, a = np.asarray(rollout.loss_mask), None
    lp, old = np.asarray(log_probs, np.float64), np.asarray(rollout.old_log_probs, np.float64)
    rows, columns = np.nonzero(mask)
    for name in ("gspo", "cispo"):
        recipe = make_recipe(name, **CHANGES.get(name, {}))
        ready, _, _ = prepared(recipe, rollout)
        a = np.asarray(ready.outcome_advantages, np.float64)
        gradient = np.asarray(loss_and_gradient(recipe, ready, log_probs)[1][0])
        for i, t in list(zip(rows, columns, strict=True))[::5]:
            if name == "gspo":
                s = np.exp((lp[i] - old[i])[mask[i]].mean())
                is_clipped = (a[i] > 0 and s > 1 + 4e-4) or (a[i] < 0 and s < 1 - 3e-4)
                want = 0.0 if is_clipped else -a[i] * s / (mask[i].sum() * mask.any(1).sum())
            else:
                want = -min(np.exp(lp[i, t] - old[i, t]), 1.1) * a[i] / mask.sum()
            np.testing.assert_allclose(gradient[i, t], want, atol=1e-6)


def test_clip_cov_drops_a_few_tokens_of_its_range():
    rollout, _ = batch(2)
    recipe = make_recipe("clip_cov", fraction=0.05, lower=0.1, upper=5.0)
    ready, _, metrics = prepared(recipe, rollout)
    mask = np.asarray(rollout.loss_mask)
    dropped = mask & (np.asarray(ready.weights["policy"]) == 0)
    assert dropped.sum() == int(0.05 * mask.sum())
    old, adv = np.asarray(ready.old_log_probs, np.float64), np.asarray(ready.advantages, np.float64)
    cov = (old - old[mask].mean()) * (adv - adv[mask].mean())
    assert np.all((cov[dropped] > 0.1 - 1e-6) & (cov[dropped] < 5 + 1e-6))
    np.testing.assert_allclose(metrics["covariance_dropped"], dropped.sum() / mask.sum(), rtol=1e-6)
    none, _, _ = prepared(make_recipe("clip_cov", lower=90.0, upper=99.0), rollout)
    assert np.all(np.asarray(none.weights["policy"]) == 1)


def test_advantages_by_hand():
    rewards = jnp.array([[1.0, 0.0, 0.5, 9.0]])
    mask = jnp.array([[True, True, True, False]])
    np.testing.assert_allclose(leave_one_out_advantages(rewards, mask), [[0.75, -0.75, 0.0, 0.0]], atol=1e-6)
    np.testing.assert_array_equal(leave_one_out_advantages(jnp.ones((1, 1))), [[0.0]])
    np.testing.assert_allclose(outcome_sign_advantages(jnp.array([[True, False]])), [[0.1, -1.0]], rtol=1e-6)
    # L_max 10, buffer 4: 0 up to 6, -.5 at 8, -1 from 10 on
    np.testing.assert_allclose(
        overlong_penalty(jnp.array([3.0, 6.0, 8.0, 10.0, 12.0]), max_length=10, buffer=4), [0, 0, -0.5, -1, -1]
    )
    with pytest.raises(ValueError, match="buffer of 0 tokens"):
        overlong_penalty(jnp.ones(1), max_length=10, buffer=0)


def test_controlled_coefficients_follow_entropy():
    rollout, _ = batch(3)
    entropy = float(np.asarray(rollout.old_entropy)[np.asarray(rollout.response_mask)].mean())
    up = make_recipe("adaptive_entropy", target=entropy + 1, increment=1e-3, max_coef=1.5e-3)
    states = up.init_states()
    for want in (1e-3, 1.5e-3, 1.5e-3):
        ready, states, _ = prepared(up, rollout, states)
        np.testing.assert_allclose(ready.weights["entropy"], want, rtol=1e-6)
    down = make_recipe("adaptive_entropy", target=entropy - 1 if entropy > 1 else 0.0, start=2e-3)
    ready, states, _ = prepared(down, rollout)
    assert not np.any(ready.weights["entropy"])  # only applied below the target
    np.testing.assert_allclose(states["adaptive_entropy"], 1.9e-3, rtol=1e-5)
    pid = make_recipe("entropic", target=0.1)
    _, states, first = prepared(pid, rollout)
    _, _, second = prepared(pid, rollout, states)
    np.testing.assert_allclose(first["entropic_alpha"], entropy - 0.1, rtol=1e-4)
    np.testing.assert_allclose(second["entropic_alpha"], 1.01 * (entropy - 0.1), rtol=1e-4)


def test_rows_that_are_not_there_count_for_nothing():
    rollout, _log_probs = batch(4)
    origin = np.zeros(ROWS, np.int32)
    origin[[3, 7]] = ABSENT
    absent = origin == ABSENT
    spoilt = rollout.replace(
        origin=jnp.asarray(origin), rewards=jnp.where(absent, 1e6, rollout.rewards),
        response_mask=rollout.response_mask & ~absent[:, None], loss_mask=rollout.loss_mask & ~absent[:, None],
    )  # fmt: skip
    ready, _, _ = prepared(make_recipe("grpo"), spoilt)
    got = np.asarray(ready.outcome_advantages)
    assert np.all(got[absent] == 0)
    first = np.asarray(rollout.rewards[:3], np.float64)
    np.testing.assert_allclose(got[:3], (first - first.mean()) / (first.std(ddof=1) + 1e-6), atol=1e-5)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("kl_cov", {"clip_low": 0.1}),
        ("grpo", {"max_ratio": 3.0}),
        ("grpo", {"success": 1.0}),
        ("rloo", {"advantage_scale": 2.0}),
        ("w_reinforce", {"overlong_buffer": 2}),
        ("grpo", {"importance_ceiling": 3.0}),
    ],
)
def test_options_without_effect_are_refused(name, options):
    with pytest.raises(ValueError, match="has no effect with"):
        make_recipe(name, **options)


@pytest.mark.parametrize(
    ("fraction", "count"), [(0.8, 1_000_001), (0.8, 20_000_003), (2e-4, 4_194_303), (0.7, 10), (1 / 3, 9)]
)
def test_fractions_of_counts_are_exact(fraction, count):
    exact = Fraction(fraction).limit_denominator(46340) * count
    assert int(fraction_of(fraction, count)) == math.floor(exact)
    assert int(fraction_of(fraction, count, up=True)) == math.ceil(exact)


# ----- Methods.

ZERO = {
    "entrocraft": {"band": "off"},
    "e3rl": {"kappa": float("inf"), "credit": "uniform"},
    "sent": {"stages": 1, "beta_low": 0.0, "beta_high": 0.0},
    "r3": {"replays": 0, "reflections": 0, "max_reward": 0.0, "length_bonus": 0.0},
}
ON = {
    "entrocraft": {"band": "constant", "low": (5.0, 5.0), "high": (6.0, 6.0)},
    "e3rl": {"erased_loss": "negative", "erased_weight": 0.5},
    "sent": {"high_covariance_fraction": 0.1},
    "r3": {},
}


def with_method_fields(recipe, rollout):
    """What sampler, host and trainer add for the methods that are on."""
    if recipe.readout is not None:
        mass = jax.random.uniform(jax.random.key(0), (ROWS, recipe.readout.num_segments))
        rollout = rollout.replace(attention_mass=mass)
    if recipe.erasing is not None:
        count = recipe.erasing.num_segments(RESPONSE)
        table = jax.random.uniform(jax.random.key(1), (ROWS, count))
        ints = jnp.full(ROWS, 2, jnp.int32)
        rollout = rollout.replace(
            segments=Segments(ints, table, table, table, table, 0 * table.astype(jnp.int32), 5 * ints,
                              *(jnp.zeros((ROWS, 0)) for _ in range(4))),
            origin=rollout.origin.at[5].set(ERASED).at[6].set(REPLAYED),
        )  # fmt: skip
    return rollout


@pytest.mark.parametrize("name", list(METHODS))
def test_a_method_at_zero_is_grpo_bit_for_bit(name):
    rollout, log_probs = batch(5)
    base = make_recipe("grpo", kl_coef=0.01)
    recipe = add_methods(base, FACTS, {name: ZERO[name]})
    assert recipe.erasing is None
    assert recipe.replay is None
    assert recipe.curriculum_stages == 1
    want, got = (prepared(r, rollout)[0] for r in (base, recipe))
    for a, b in zip(jax.tree.leaves(want), jax.tree.leaves(got), strict=True):
        np.testing.assert_array_equal(a, b)
    for a, b in zip(*(jax.tree.leaves(loss_and_gradient(r, want, log_probs)) for r in (base, recipe)), strict=True):
        np.testing.assert_array_equal(a, b)


SUBSETS = [c for size in (1, 2, 3, 4) for c in itertools.combinations(METHODS, size)]


@pytest.mark.parametrize("names", SUBSETS, ids="+".join)
def test_any_subset_goes_through(names):
    rollout, log_probs = batch(6, rewards=[0, 0, 0, 0, 1, 0, 1, 0, 1, 1, 1, 1])
    recipe = add_methods(make_recipe("grpo"), FACTS, {name: ON[name] for name in names})
    ready, states, metrics = prepared(recipe, with_method_fields(recipe, rollout))
    loss, gradients = loss_and_gradient(recipe, ready, log_probs)
    assert np.isfinite(loss)
    assert all(np.all(np.isfinite(g)) for g in gradients)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((states, metrics)))
    rows = np.asarray(ready.loss_mask).any(axis=1)
    if "entrocraft" in names:  # entropy is below the band: only failures are kept
        assert np.all(np.asarray(ready.outcome_advantages)[rows] <= 0)
    if "r3" in names:
        assert 0 < float(jnp.max(ready.rewards[:4])) <= 0.5  # the all-failed group is ranked
    if "sent" in names:
        assert "kl_ref" in ready.weights
        assert recipe.needs_reference
        assert recipe.curriculum_stages == 2
    if "e3rl" in names:
        erased = np.asarray(ready.advantages)[5][np.asarray(ready.loss_mask)[5]]
        assert np.all(erased < 0)
        assert isinstance(states["erasing"], RunningUncertainty)
        assert np.any(states["erasing"].weight > 0)


def test_a_failure_never_outranks_a_success():
    """A replayed success in an all-failed group, whatever the failures' rewards were before."""
    rollout, _ = batch(6, rewards=[0.8, 0.8, 0.8, 1, 1, 0, 1, 0, 1, 1, 1, 1])
    rollout = rollout.replace(origin=rollout.origin.at[3].set(REPLAYED), stopped=rollout.stopped.at[3].set(True))
    recipe = add_methods(make_recipe("dapo", overlong_buffer=3), FACTS, {"r3": {"length_bonus": 0.0}})
    ready, _, _ = prepared(recipe, rollout)
    assert float(jnp.max(ready.rewards[:3])) <= 0.5 < float(ready.rewards[3]) == 1.0
    with pytest.raises(ValueError, match="do not read"):
        add_methods(make_recipe("w_reinforce"), FACTS, {"r3": {}})


def test_erased_attempts_are_beside_the_batch():
    """They get a fixed negative advantage and change nothing of the others; rejection reaches them."""
    rollout, log_probs = batch(12)
    recipe = add_methods(make_recipe("kl_cov", fraction=0.2), FACTS, {"e3rl": ON["e3rl"] | {"credit": "uniform"}})
    plain = make_recipe("kl_cov", fraction=0.2)
    with_erased = with_method_fields(recipe, rollout)
    with_erased = with_erased.replace(origin=with_erased.origin.at[6].set(FRESH))
    gone = with_erased.replace(
        segments=None, origin=with_erased.origin.at[5].set(ABSENT), loss_mask=rollout.loss_mask.at[5].set(False)
    )
    ready, want = prepared(recipe, with_erased)[0], prepared(plain, gone)[0]
    others = np.arange(ROWS) != 5
    for name in ("advantages", "loss_mask"):
        np.testing.assert_array_equal(getattr(ready, name)[others], getattr(want, name)[others])
    np.testing.assert_array_equal(ready.weights["kl_old"][others], want.weights["kl_old"][others])
    erased = np.asarray(ready.loss_mask)[5]
    np.testing.assert_allclose(np.asarray(ready.advantages)[5][erased], -0.5)
    assert float(ready.outcome_advantages[5]) == -0.5
    gradient = np.asarray(loss_and_gradient(recipe, ready, log_probs)[1][0])
    assert np.all(gradient[5][erased] > 0)  # pushed down


BAND = {"band": "constant", "low": (5.0, 5.0), "high": (6.0, 6.0)}


@pytest.mark.parametrize(
    "options",
    [
        {"select": "predicted", "full_at": 20.0},
        {"select": "sign"},
        {"select": "controlled"},
        {"select": "controlled_rejection", "max_gain": 90.0},
    ],
)
def test_erased_attempts_are_beside_the_band(options):
    """Whatever Entrocraft does to the others it does without them, and a biased one keeps what it shares."""
    recipe_of = lambda methods: add_methods(make_recipe("grpo"), FACTS, methods)
    erasing = {"e3rl": ON["e3rl"] | {"credit": "uniform"}}
    both, alone = recipe_of(erasing | {"entrocraft": BAND | options}), recipe_of({"entrocraft": BAND | options})
    others, changed = np.arange(ROWS) != 5, 0
    for seed in range(6):
        rollout, _ = batch(seed)
        rollout = with_method_fields(both, rollout)
        gone = rollout.replace(
            segments=None, origin=rollout.origin.at[5].set(ABSENT), loss_mask=rollout.loss_mask.at[5].set(False)
        )
        ready, want = prepared(both, rollout)[0], prepared(alone, gone)[0]
        for name in ("advantages", "loss_mask"):
            np.testing.assert_array_equal(getattr(ready, name)[others], getattr(want, name)[others])
        plain = prepared(make_recipe("grpo"), gone)[0]
        changed += not np.array_equal(want.advantages, plain.advantages)
        changed += not np.array_equal(want.loss_mask, plain.loss_mask)
        erased = np.asarray(rollout.loss_mask)[5]
        np.testing.assert_array_equal(np.asarray(ready.advantages)[5][erased], -0.5)
    assert changed


def test_token_kl_of_sent_is_where_its_weights_are():
    """The loss is GRPO's plus beta_t k3 per token, in float64; outside T_low it has no gradient of the KL."""
    rollout, log_probs = batch(4)
    base = make_recipe("grpo")
    recipe = add_methods(base, FACTS, {"sent": {"high_covariance_fraction": 0.3}})
    ready, plain = prepared(recipe, rollout)[0], prepared(base, rollout)[0]
    (value, (gradient, _)), (want, (plain_gradient, _)) = (
        loss_and_gradient(r, x, log_probs) for r, x in ((recipe, ready), (base, plain))
    )
    mask, weight = np.asarray(ready.loss_mask), np.asarray(ready.weights["kl_ref"], np.float64)
    assert set(np.unique(weight[mask]).round(6)) == {0.0, 0.05, 0.2}
    share = mask / np.maximum(mask.sum(1, keepdims=True), 1) / mask.any(1).sum()
    gap = np.asarray(ready.ref_log_probs, np.float64) - np.asarray(log_probs, np.float64)
    k3 = np.exp(gap) - 1 - gap
    np.testing.assert_allclose(float(value), float(want) + np.sum(share * weight * k3), rtol=1e-5)
    np.testing.assert_allclose(gradient, plain_gradient + share * weight * (1 - np.exp(gap)), atol=1e-6)
    low = np.asarray(ready.weights["kl_ref"]) > 0
    np.testing.assert_array_equal(np.asarray(gradient)[~low], np.asarray(plain_gradient)[~low])


def test_a_replayed_success_gives_a_failed_group_signal():
    """(R - mu) / (alpha sigma + lambda) over the mixed group, in float64; without it the group has none."""
    rewards = np.zeros(ROWS, np.float32)
    rewards[3] = 1.0
    rollout, _ = batch(6, rewards=rewards)
    rollout = rollout.replace(origin=rollout.origin.at[3].set(REPLAYED))
    recipe = make_recipe("grpo", advantage_scale=0.5, advantage_epsilon=0.1)
    got = np.asarray(prepared(recipe, rollout)[0].outcome_advantages)
    group = rewards[:G].astype(np.float64)
    want = (group - group.mean()) / (0.5 * group.std(ddof=1) + 0.1)
    np.testing.assert_allclose(got[:G], want, rtol=1e-6)
    np.testing.assert_array_equal(got[G:], 0)  # all failed, nothing replayed
    alone = rollout.replace(origin=rollout.origin.at[3].set(ABSENT))
    np.testing.assert_array_equal(prepared(recipe, alone)[0].outcome_advantages, 0)


def test_a_penalty_for_length_comes_on_top_of_a_rank():
    rollout, _ = batch(9, rewards=np.zeros(ROWS))
    options = {"overlong_buffer": RESPONSE - 1}
    ranked, punished = make_recipe("grpo"), make_recipe("grpo", **options)
    both = add_methods(punished, FACTS, {"r3": {"max_reward": 0.5}})
    rank = prepared(add_methods(ranked, FACTS, {"r3": {"max_reward": 0.5}}), rollout)[0].rewards
    penalty = prepared(punished, rollout)[0].rewards
    assert np.any(np.asarray(rank) > 0)
    assert np.any(np.asarray(penalty) < 0)
    np.testing.assert_allclose(prepared(both, rollout)[0].rewards, rank + penalty, atol=1e-6)


@pytest.mark.parametrize(
    ("method", "options", "words"),
    [
        ("entrocraft", BAND | {"select": "sign", "proportional": 3.0}, "entrocraft proportional=3.0 has no effect"),
        ("entrocraft", BAND | {"select": "controlled", "margin": 0.1}, "entrocraft margin=0.1 has no effect"),
        ("entrocraft", BAND | {"margin": math.nan}, "entrocraft margin=nan must be finite"),
        ("entrocraft", {"band": math.sqrt}, "entrocraft band is no jnp function step"),
        ("entrocraft", {"band": lambda step: (jnp.zeros(2), step)}, "not two numbers"),
        ("e3rl", {"credit": "uniform", "credit_layer": 1}, "e3rl credit_layer=1 has no effect"),
        ("e3rl", {"erased_weight": 0.3}, "e3rl erased_weight=0.3 has no effect"),
        ("e3rl", {"min_attempts": 3}, "e3rl min_attempts=3 has no effect"),
        ("e3rl", {"growth": math.nan}, "e3rl growth=nan must be finite"),
        ("e3rl", {"weights": (math.nan, 0.2, 0.2)}, "must be finite"),
        ("e3rl", {"kappa": -1.0}, "kappa=-1.0 must be a number of at least 0"),
        ("sent", {"coefficient": 0.3}, "sent coefficient=0.3 has no effect"),
        ("r3", {"max_reward": 0.0, "top_fraction": 0.5}, "r3 top_fraction=0.5 has no effect"),
        ("r3", {"reflection_threshold": 0.2}, "r3 reflection_threshold=0.2 has no effect"),
    ],
)
def test_options_that_cannot_be_meant_are_refused(method, options, words):
    with pytest.raises(ValueError, match=words):
        add_methods(make_recipe("grpo"), FACTS, {method: options})


def test_numbers_that_are_none_are_refused():
    for name in ("kl_coef", "clip_high", "advantage_epsilon"):
        with pytest.raises(ValueError, match=f"{name}=nan must be finite"):
            make_recipe("grpo", **{name: math.nan})


def entrocraft(rollout, entropy_of_band, **options):
    low = high = entropy_of_band
    recipe = add_methods(
        make_recipe("grpo"),
        FACTS,
        {"entrocraft": {"band": "constant", "low": (low, low), "high": (high, high)} | options},
    )
    return recipe, *prepared(recipe, rollout)


def test_entrocraft_in_band_is_the_base_bit_for_bit():
    rollout, _log_probs = batch(7)
    plain, _, _ = prepared(make_recipe("grpo"), rollout)
    for select in ("sign", "predicted"):
        options = {"low": (0.0, 0.0), "high": (99.0, 99.0), "select": select}
        _, ready, _, metrics = entrocraft(rollout, 0.0, **options)
        np.testing.assert_array_equal(ready.loss_mask, plain.loss_mask)
        np.testing.assert_array_equal(ready.advantages, plain.advantages)
        assert float(metrics["band_side"]) == 0


def test_entrocraft_rejects_by_rule():
    rollout, _ = batch(7)
    for select in ("sign", "predicted"):
        _, ready, _, metrics = entrocraft(rollout, 0.0, select=select)  # H is above: m = 1
        a, kept = np.asarray(ready.outcome_advantages), np.asarray(ready.loss_mask).any(1)
        surplus = np.where(rollout.response_mask, rollout.old_log_probs + rollout.old_entropy, 0).sum(1)
        want = a >= 0 if select == "sign" else (-a * surplus <= 1e-6)
        np.testing.assert_array_equal(kept, want & np.asarray(rollout.response_mask).any(1))
        np.testing.assert_allclose(metrics["rejected"], 1 - kept.mean(), atol=1e-6)


def test_everything_rejected_is_a_loss_of_zero():
    rollout, log_probs = batch(8)
    nothing = rollout.replace(loss_mask=rollout.loss_mask & False)
    recipe, ready, _, metrics = entrocraft(nothing, 0.0)
    loss, gradients = loss_and_gradient(recipe, ready, log_probs)
    assert float(loss) == 0
    assert not np.any(gradients[0])
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(metrics))


def test_reward_sign_variant_counts_rejected_rows():
    rollout, _ = batch(9)
    _, ready, _, _ = entrocraft(rollout, 99.0, variant="reward_sign")  # H is below: only failures push
    np.testing.assert_array_equal(ready.loss_mask, rollout.loss_mask)
    correct = np.asarray(rollout.correct)
    per_row = np.where(correct, 0.0, -1.0)
    np.testing.assert_array_equal(ready.advantages, np.where(rollout.response_mask, per_row[:, None], 0))


def test_controllers_push_towards_the_band():
    rollout, _ = batch(10)
    plain, _, _ = prepared(make_recipe("grpo"), rollout)
    surplus = np.where(rollout.response_mask, rollout.old_log_probs + rollout.old_entropy, 0)
    for middle, sign in ((99.0, 1), (0.0, -1)):
        _, ready, states, metrics = entrocraft(rollout, middle, select="controlled", max_gain=0.5, feedforward=0.0)
        assert float(metrics["band_gain"]) == sign * 0.5
        added = np.asarray(ready.advantages) - np.asarray(plain.advantages)
        np.testing.assert_allclose(added, -sign * 0.5 * surplus, atol=1e-6)
        _, ready, _, metrics = entrocraft(rollout, middle, select="controlled_rejection", max_gain=0.5)
        kept = np.asarray(ready.loss_mask).any(1)
        change = -(np.asarray(plain.advantages) * surplus).sum(1)
        assert np.all(sign * change[kept] >= -1e-6)
        assert np.any(~kept)
    assert np.isfinite(states["entrocraft"].integral)


def test_feedforward_makes_a_batch_neutral():
    rollout, _ = batch(10)
    _, ready, _, metrics = entrocraft(rollout, 99.0, select="controlled", max_gain=99.0, proportional=0.0, integral=0.0)
    g = np.where(rollout.response_mask, rollout.old_log_probs + rollout.old_entropy, 0).astype(np.float64)
    weights = np.asarray(reduction_weights(rollout.loss_mask, reduction="sequence_mean"), np.float64)
    plain = np.asarray(prepared(make_recipe("grpo"), rollout)[0].advantages, np.float64)
    np.testing.assert_allclose(
        metrics["band_neutral_gain"], (weights * plain * g).sum() / (weights * g * g).sum(), rtol=1e-4
    )
    assert abs((weights * np.asarray(ready.advantages) * g).sum()) < 1e-5 < abs((weights * plain * g).sum())


def test_sent_released_variant_has_its_own_terms():
    rollout, log_probs = batch(11)
    base = make_recipe("grpo", policy_loss="unclipped")
    options = {"sent": {"variant": "released", "high_covariance_fraction": 0.2}}
    with pytest.raises(ValueError, match="has no clip"):
        add_methods(make_recipe("grpo"), FACTS, options)
    recipe = add_methods(base, FACTS, options)
    ready, _, _ = prepared(recipe, rollout)
    loss = float(loss_and_gradient(recipe, ready, log_probs)[0])
    as64 = lambda x: np.asarray(x, np.float64)
    lp, old, ref, mask = (
        as64(log_probs),
        as64(ready.old_log_probs),
        as64(ready.ref_log_probs),
        np.asarray(ready.loss_mask),
    )
    d = ref - lp
    tokens = -np.exp(lp - old) * as64(ready.advantages) + as64(ready.weights["kl_old"]) * abs(lp - old)
    tokens += 1e-3 * (np.exp(d) - 1 - d)
    want = np.mean([tokens[i][mask[i]].mean() for i in range(ROWS) if mask[i].any()])
    np.testing.assert_allclose(loss, want, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("entrocraft", {"select": "dice"}, "entrocraft select 'dice' is not one of"),
        ("entrocraft", {"variant": "reward_sign", "select": "predicted"}, "has its own rule"),
        ("entrocraft", {"band": "spiral"}, "entropy band 'spiral'"),
        ("e3rl", {"delimiters": ("ab",)}, "is 2 tokens of this tokenizer"),
        ("e3rl", {"credit": "luck"}, "e3rl credit 'luck'"),
        ("sent", {"beta_low": -1.0}, "must not be negative"),
        ("sent", {"low_entropy_fraction": 1.5}, r"must lie in \[0, 1\]"),
        ("r3", {"reflection_template": "{problem}"}, "no place for"),
        ("r3", {"depth": 1}, "no option 'depth'; it has replays"),
        ("r3", {"max_reward": 1.0}, r"max_reward in \[0, 1\)"),
        ("r4", {}, "method 'r4' is not one of"),
    ],
)
def test_wrong_method_options(name, options, message):
    with pytest.raises(ValueError, match=message):
        add_methods(make_recipe("grpo"), FACTS, {name: options})


def test_every_recipe_has_grpos_options():
    assert all(set(default_options("grpo")) <= set(default_options(name)) for name in RECIPES)


def test_fresh_is_what_it_says():
    assert np.all(np.asarray(batch(0)[0].origin) == FRESH)
