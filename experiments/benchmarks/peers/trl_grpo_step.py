"""Times TRL's GRPO step; see experiments/benchmarks/grpo_step.py and protocol.paced."""

import argparse
import tempfile

import datasets
import tokenizers
import transformers
import trl
from protocol import PROMPTS, SAMPLES, SIZE, STEPS, VOCAB, paced, prompt_ids
from torch_qwen3 import load

parser = argparse.ArgumentParser()
parser.add_argument("--weights")
args = parser.parse_args()


def rewards(completion_ids, **_):
    assert [len(ids) for ids in completion_ids] == [SIZE] * PROMPTS * SAMPLES
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
        reward_funcs=paced(rewards, {"versions": f"TRL {trl.__version__}"}),
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
