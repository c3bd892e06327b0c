"""Times transformers' ``generate``; see experiments/benchmarks/sampler.py."""

import argparse
import itertools

import torch
import transformers
from protocol import prompt_ids, serve
from torch_qwen3 import load

parser = argparse.ArgumentParser()
parser.add_argument("--weights")
for name in ("--batch", "--max_prompt", "--max_response"):
    parser.add_argument(name, type=int)
args = parser.parse_args()

model = load(args.weights).eval()
prompts = torch.tensor(prompt_ids(args.batch, args.max_prompt))


@torch.inference_mode()
def run(seed, **options):
    torch.manual_seed(seed)
    length = args.max_response
    tokens = model.generate(
        prompts, attention_mask=torch.ones_like(prompts), max_new_tokens=length, min_new_tokens=length, pad_token_id=0,
        **options,
    )  # fmt: skip
    return tokens[:, args.max_prompt :]


greedy = run(0, do_sample=False).tolist()
sampled = dict(do_sample=True, temperature=1.0, top_k=0, top_p=1.0)
run(0, **sampled)
seeds = itertools.count(1)
versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
serve(lambda: run(next(seeds), **sampled), {"greedy": greedy, "versions": versions})
