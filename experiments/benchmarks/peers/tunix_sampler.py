"""Times Tunix's vanilla sampler; see experiments/benchmarks/sampler.py."""

import argparse

import jax
import numpy as np
import tunix
from protocol import serve
from tunix.generate import sampler as sampler_lib
from tunix_common import Ids, load, make_mesh, texts

parser = argparse.ArgumentParser()
parser.add_argument("--weights")
for name in ("--batch", "--max_prompt", "--max_response"):
    parser.add_argument(name, type=int)
args = parser.parse_args()

with make_mesh():
    model = load(args.weights)
    cache = sampler_lib.CacheConfig(
        cache_size=args.max_prompt + args.max_response + 8, num_layers=4, num_kv_heads=2, head_dim=64
    )
    sampler = sampler_lib.Sampler(model, Ids(), cache)
    prompts = texts(args.batch, args.max_prompt)

    def run(seed, **options):
        output = sampler(
            prompts,
            max_generation_steps=args.max_response,
            max_prompt_length=args.max_prompt,
            seed=seed,
            return_logprobs=True,
            **options,
        )
        tokens = [np.asarray(row).tolist() for row in output.tokens]
        assert all(len(row) == args.max_response for row in tokens)
        return tokens

    greedy = run(0, temperature=0.0)
    seeds = iter(range(1 << 30))
    once = lambda: run(next(seeds), temperature=1.0, top_p=1.0)  # noqa: E731
    once()
    serve(once, {"greedy": greedy, "versions": f"Tunix {tunix.__version__}, JAX {jax.__version__}"})
