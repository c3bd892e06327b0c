"""Every default, with its unit. Other config files start from ``base_config`` and change what differs."""

from typing import Any

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from entropy_rl.objectives.methods import METHODS, method_defaults
from entropy_rl.objectives.recipes import default_options


def use_recipe(config: ConfigDict, name: str, **changes: Any) -> None:
    """Names the recipe and gives ``config.recipe.options`` its options, with ``changes`` of their defaults."""
    config.recipe = ConfigDict()
    config.recipe.name = name
    defaults = default_options(name)
    config.recipe.options = ConfigDict({k: placeholder(float) if v is None else v for k, v in defaults.items()})
    config.recipe.options.update(changes)


def base_config() -> ConfigDict:
    """All keys of a run. Values here are the embedded default's."""
    config = ConfigDict()
    config.seed = 0  # of parameters, data order and sampling
    config.steps = 120  # rollout batches of the whole run
    config.stop_at_tokens = 0  # end earlier, once so many tokens have been drawn, erased ones included; 0: never
    config.reward = ""  # "module:function" of (problem, response) -> float; "" uses the task's own

    config.task = ConfigDict()
    config.task.name = "chains"  # chains, countdown, gsm8k, math, files, or "module:factory"
    config.task.options = ConfigDict()  # keyword arguments of the task

    config.tokenizer = ConfigDict()
    config.tokenizer.path = ""  # a SentencePiece .model, a tokenizer.json, or a directory of either kind; "":
    # characters, or train one where the task has text
    config.tokenizer.vocab_size = 2048  # pieces of a vocabulary trained here
    config.tokenizer.chat = False  # put prompts into the tokenizer's chat template, as a user's message
    config.tokenizer.system = ""  # system message of that chat; "": the template's own

    config.model = ConfigDict()
    config.model.vocab_size = placeholder(int)  # ids the model has; None: the tokenizer's
    config.model.num_layers = 3
    config.model.embed_dim = 96
    config.model.mlp_dim = 256
    config.model.num_heads = 4
    config.model.num_kv_heads = 2
    config.model.head_dim = 24
    config.model.rope_theta = 10_000.0
    config.model.rope_scaling = ConfigDict()
    config.model.rope_scaling.kind = "none"  # none, linear, llama3
    config.model.rope_scaling.factor = 1.0
    config.model.rope_scaling.low_frequency_factor = 1.0
    config.model.rope_scaling.high_frequency_factor = 4.0
    config.model.rope_scaling.original_max_positions = 8192
    config.model.norm_eps = 1e-6
    config.model.qkv_bias = False
    config.model.qk_norm = True
    config.model.tied_embeddings = False
    config.model.logit_soft_cap = placeholder(float)  # None: no cap
    config.model.dtype = "float32"  # of computations: float32 or bfloat16
    config.model.param_dtype = "float32"  # of stored parameters
    config.model.remat = "dots"  # what the backward pass recomputes: none, dots (all but matrix products), full

    # The policy to start from: the workdir of a pretraining run, or a Hugging Face directory; "": pretrain first, under
    # WORKDIR/base.
    config.base = ""
    config.pretrain = ConfigDict()
    config.pretrain.steps = 320  # 0: start from random parameters
    config.pretrain.batch_size = 128  # demonstrations
    config.pretrain.learning_rate = 2e-3
    config.pretrain.warmup_steps = 20
    config.pretrain.weight_decay = 0.0
    config.pretrain.max_length = 56  # tokens of prompt and demonstration, longer ones are cut
    config.pretrain.learn_prompt = False  # also model the prompt's tokens
    config.pretrain.microbatches = 1
    config.pretrain.checkpoint_every = 160  # steps

    config.sampling = ConfigDict()
    config.sampling.max_prompt = 16  # tokens, start mark included
    config.sampling.max_response = 48  # tokens, stop mark included
    config.sampling.temperature = 1.0
    config.sampling.top_k = placeholder(int)  # None: all tokens
    config.sampling.top_p = 1.0
    config.sampling.min_p = 0.0
    config.sampling.slots_per_device = 64  # rows decoded at once

    config.batch = ConfigDict()
    config.batch.prompts = 32  # per step, over all devices
    config.batch.samples = 8  # responses per prompt
    config.batch.minibatches = 2  # optimizer steps per pass over the rollout batch
    config.batch.epochs = 1  # passes over the rollout batch
    config.batch.microbatches = 1  # pieces a minibatch's gradient is accumulated over
    # Lengths the update is compiled for. With more than one, microbatches are of rows of similar length, and each costs
    # what its longest response does, rounded up to one of so many even steps of max_response.
    config.batch.length_buckets = 1
    # Read a prompt once for all of its responses in a minibatch, which then has an equal part of every group. It saves
    # most where prompts are long beside responses, and nothing where that part is one row.
    config.batch.share_prompts = False
    # The old policy's log-probs and entropy: of the "trainer", computed anew, or those the "sampler" drew with, which
    # saves a forward pass and is the same to about 1e-5 in float32; "auto" does so in float32 where no row is added.
    config.batch.old_stats = "trainer"
    config.batch.mask_truncated = False  # leave responses cut by the length limit out of the loss

    # Options and their meaning: entropy_rl/objectives/recipes.py; every recipe has GRPO's, and may have its own.
    use_recipe(config, "grpo")

    # Methods on top of the recipe, by commas, any subset of: r3, e3rl, sent, entrocraft. Options of each, with their
    # meaning and units: entropy_rl/objectives/methods/.
    config.methods = ""
    for method in METHODS:
        config[method] = ConfigDict(method_defaults(method))

    config.curriculum = ConfigDict()
    config.curriculum.path = ""  # semantic entropies by experiments.rank_prompts; "": rank first, under WORKDIR/ranking
    config.curriculum.problems = 2048  # training problems to rank, the first ones of the split
    config.curriculum.samples = 8  # responses per problem
    config.curriculum.max_accuracy = 1.0  # below 1: train only on ranked problems the base solves at most so often
    config.curriculum.weighting = "counts"  # of responses in a cluster: counts, or log_prob (length-normalised)

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 2e-4
    config.optimizer.schedule = "constant"  # constant, linear, cosine
    config.optimizer.warmup_steps = 4  # optimizer steps
    config.optimizer.b1 = 0.9
    config.optimizer.b2 = 0.95
    config.optimizer.epsilon = 1e-8
    config.optimizer.weight_decay = 0.0
    config.optimizer.max_grad_norm = 1.0  # global norm
    config.optimizer.max_skipped_in_a_row = 5  # stop after so many non-finite gradients in a row

    config.mesh = ConfigDict()
    config.mesh.data = -1  # -1: all devices that are left
    config.mesh.fsdp = 1
    config.mesh.tensor = 1

    config.eval = ConfigDict()
    config.eval.every = 0  # steps; 0: only before and after
    config.eval.problems = 512  # of the test split
    config.eval.samples = 8  # per problem, at the temperature below
    config.eval.temperature = 1.0
    config.eval.top_k = placeholder(int)
    config.eval.top_p = 1.0
    config.eval.min_p = 0.0
    config.eval.batch = 128  # prompts sampled at once

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 20  # steps
    config.checkpoint.keep = 2  # latest
    config.checkpoint.keep_best = 1  # by mean@k on held-out problems

    config.log = ConfigDict()
    config.log.every = 10  # steps between lines where there is no terminal
    config.log.tensorboard = True
    config.log.wandb_project = ""  # needs the "wandb" extra
    config.log.rollouts_every = 0  # steps between saved rollouts, for transcripts; 0: none
    config.log.rollouts_prompts = 8  # prompts saved each time

    config.head_chunk = 4096  # vocabulary columns of the output layer held at once
    config.profile = False  # trace steps 3 to 5 into WORKDIR/profile
    config.debug_nans = False  # stop at the first NaN, slowly
    return config
