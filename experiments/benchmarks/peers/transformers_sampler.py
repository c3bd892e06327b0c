"""Times transformers' ``generate``; see experiments/benchmarks/sampler.py."""

import argparse
import json
import sys
import time

import torch
import transformers
from torch_qwen3 import load, prompt_ids

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
versions = f"transformers {transformers.__version__}, torch {torch.__version__}"
print(json.dumps({"greedy": greedy, "versions": versions}), flush=True)
for seed, _ in enumerate(sys.stdin, 1):
    start = time.perf_counter()
    run(seed, **sampled)
    print(json.dumps({"seconds": time.perf_counter() - start}), flush=True)
