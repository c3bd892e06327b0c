"""Times Tunix's GRPO step; see experiments/benchmarks/grpo_step.py and protocol.paced."""

import argparse

import optax
import tunix
from grain import python as grain
from protocol import PROMPTS, SAMPLES, SIZE, STEPS, paced
from tunix.rl import rl_cluster as rc
from tunix.rl.grpo import grpo_learner as gl
from tunix.rl.rollout import base_rollout
from tunix_common import Ids, load, make_mesh, texts

parser = argparse.ArgumentParser()
parser.add_argument("--weights")
args = parser.parse_args()


def rewards(completions, **_):
    assert len(completions) == PROMPTS * SAMPLES
    return [float(sum(map(int, text.split())) % 7) for text in completions]


mesh = make_mesh()
with mesh:
    actor, reference = load(args.weights), load(args.weights)
    cluster = getattr(rc, "RLEngine", None) or rc.RLCluster
    config = rc.ClusterConfig(
        role_to_mesh={rc.Role.ACTOR: mesh, rc.Role.REFERENCE: mesh, rc.Role.ROLLOUT: mesh},
        rollout_engine="vanilla",
        offload_to_cpu=False,
        training_config=rc.RLTrainingConfig(
            actor_optimizer=optax.adamw(1e-6),
            eval_every_n_steps=10 * STEPS,
            max_steps=STEPS,
            mini_batch_size=PROMPTS,
            train_micro_batch_size=PROMPTS,
        ),
        rollout_config=base_rollout.RolloutConfig(
            max_tokens_to_generate=SIZE,
            max_prompt_length=SIZE,
            kv_cache_size=2 * SIZE + 8,
            temperature=1.0,
            top_p=1.0,
            return_logprobs=True,
        ),
    )
    engine = cluster(actor=actor, reference=reference, tokenizer=Ids(), cluster_config=config)
    learner = gl.GRPOLearner(
        rl_cluster=engine,
        algo_config=gl.GRPOConfig(num_generations=SAMPLES, num_iterations=1, beta=0.04),
        reward_fns=paced(rewards, {"versions": f"Tunix {tunix.__version__}"}),
    )
    data = grain.MapDataset.source(texts(PROMPTS, SIZE) * STEPS).batch(PROMPTS)
    learner.train(data.map(lambda batch: {"prompts": batch, "answer": batch}))
