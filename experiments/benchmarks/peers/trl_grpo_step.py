"""Times TRL's GRPO step; see experiments/benchmarks/grpo_step.py.

One training call runs many steps; the reward function, called once a step, waits there for the word to go on. From
"go" to the next call of it is one whole step: the update of this batch, then the sampling of the next.
"""

import argparse
import json
import sys
import tempfile
import time

import datasets
import tokenizers
import transformers
import trl
from torch_qwen3 import VOCAB, load, prompt_ids

PROMPTS, SAMPLES, SIZE, STEPS = 4, 4, 64, 200

parser = argparse.ArgumentParser()
parser.add_argument("--weights")
args = parser.parse_args()
calls, started = 0, None


def reward(completion_ids, **_):
    global calls, started
    calls += 1
    assert len(completion_ids) == PROMPTS * SAMPLES
    assert all(len(ids) == SIZE for ids in completion_ids)
    if calls == 3:
        print(json.dumps({"versions": f"TRL {trl.__version__}"}), flush=True)
    elif calls > 3:
        print(json.dumps({"seconds": time.perf_counter() - started}), flush=True)
    if calls >= 3 and not sys.stdin.readline():
        sys.exit(0)
    started = time.perf_counter()
    return [float(sum(ids) % 7) for ids in completion_ids]


def words():
    """A tokenizer whose text is ids between blanks; its end mark is suppressed while sampling."""
    model = tokenizers.models.WordLevel({str(i): i for i in range(VOCAB)}, unk_token="0")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="0", eos_token="2", padding_side="left"
    )


with tempfile.TemporaryDirectory() as directory:
    load(args.weights).save_pretrained(directory)
    texts = [" ".join(map(str, row)) for row in prompt_ids(PROMPTS, SIZE)]
    trainer = trl.GRPOTrainer(
        model=directory,
        processing_class=words(),
        reward_funcs=reward,
        train_dataset=datasets.Dataset.from_dict({"prompt": texts * STEPS}),
        args=trl.GRPOConfig(
            output_dir=directory, use_cpu=True, bf16=False, gradient_checkpointing=False, max_steps=STEPS,
            per_device_train_batch_size=PROMPTS * SAMPLES, gradient_accumulation_steps=1, steps_per_generation=1,
            num_generations=SAMPLES, max_completion_length=SIZE, generation_kwargs={"min_new_tokens": SIZE},
            beta=0.04, learning_rate=1e-6, loss_type="grpo", shuffle_dataset=False, report_to="none",
            save_strategy="no", logging_strategy="no", disable_tqdm=True, model_init_kwargs={"dtype": "float32"},
        ),
    )  # fmt: skip
    trainer.train()
