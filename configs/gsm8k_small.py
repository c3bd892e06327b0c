"""Real GSM8K from nothing, on a CPU: vocabulary, pretraining on the training solutions, then GRPO on the answers.

    python -m experiments.train --config=configs/gsm8k_small.py --workdir=runs/gsm8k_small

Reads the published files (downloaded, or from $ENTROPY_RL_DATA/gsm8k, or --config.task.options.directory=DIR). A
policy this small solves very little; what it shows is the whole line on real text. The numbers it reached and the
time it took are in docs/results.md.
"""

from configs.common import base_config


def get_config(arg: str = ""):
    """The full small run; ``:tiny`` is a minute's version of it for tests."""
    config = base_config()
    config.task.name = "gsm8k"
    config.task.options = dict(directory="", template="{problem}\n")
    config.tokenizer.vocab_size = 2048

    config.model.num_layers = 4
    config.model.embed_dim = 256
    config.model.mlp_dim = 704
    config.model.num_heads = 4
    config.model.num_kv_heads = 2
    config.model.head_dim = 64
    config.model.tied_embeddings = True

    config.pretrain.steps = 300
    config.pretrain.batch_size = 32
    config.pretrain.max_length = 256
    config.pretrain.learn_prompt = True
    config.pretrain.warmup_steps = 30
    config.pretrain.learning_rate = 1.5e-3
    config.pretrain.weight_decay = 0.1

    config.steps = 30
    config.batch.prompts, config.batch.samples = 16, 8
    config.sampling.max_prompt, config.sampling.max_response = 128, 160
    config.sampling.slots_per_device = 64
    config.optimizer.learning_rate = 5e-5
    config.eval.problems, config.eval.samples, config.eval.batch = 256, 4, 64
    config.log.rollouts_every = 10
    if arg == "tiny":
        config.tokenizer.vocab_size = 512
        config.model.num_layers, config.model.embed_dim, config.model.mlp_dim = 1, 32, 64
        config.pretrain.steps, config.pretrain.batch_size, config.pretrain.warmup_steps = 4, 8, 1
        config.pretrain.max_length = 128
        config.steps = 2
        config.batch.prompts, config.batch.samples = 8, 2
        config.sampling.max_response, config.sampling.slots_per_device = 32, 16
        config.optimizer.warmup_steps = 1
        config.eval.problems, config.eval.samples, config.eval.batch = 16, 2, 16
        config.log.rollouts_every = 1
    elif arg:
        raise ValueError(f"gsm8k_small has no size {arg!r}; it has 'tiny' or none")
    return config.lock()
