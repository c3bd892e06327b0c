"""Benchmarks from a model's directory: every response kept, the same however often it was killed, scored right."""

import itertools
import json

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from entropy_rl.evaluate import majority_at_k
from entropy_rl.model import Transformer, TransformerConfig, save_hf
from experiments.benchmarking import _whole_batches, score, table
from tests import runs

CONFIG = TransformerConfig(
    vocab_size=300, num_layers=2, embed_dim=16, mlp_dim=24, num_heads=4, num_kv_heads=2, head_dim=4, qkv_bias=True
)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2)), min_size=1, max_size=6))
def test_majority_against_drawing_lots(samples):
    """Ties are broken by lot: the expectation over all orders of the tied answers."""
    clusters = np.array([[number for _, number in samples]])
    right = {number: is_right for is_right, number in samples}  # equal answers are equally right
    correct = np.array([[int(right[number]) for number in clusters[0]]])
    counts = {number: int(np.sum(clusters == number)) for number in right}
    winners = [number for number, count in counts.items() if count == max(counts.values())]
    want = np.mean([float(right[number]) for number in winners])
    assert majority_at_k(correct, clusters, len(samples))[0] == pytest.approx(want)
    assert majority_at_k(correct, clusters, 1)[0] == pytest.approx(np.mean(correct))


def test_majority_of_blocks():
    correct, clusters = np.array([[1, 1, 0, 0, 0, 1]]), np.array([[5, 5, 6, 7, 7, 5]])
    assert majority_at_k(correct, clusters, 3)[0] == 0.5  # (5, 5, 6) is right, (7, 7, 5) is not
    assert majority_at_k(correct, clusters, 6)[0] == 1.0
    assert majority_at_k(np.array([[1, 0, 0, 0]]), np.array([[0, -1, -1, -1]]), 4)[0] == 1.0  # no answer, no vote
    assert majority_at_k(np.array([[0, 0]]), np.array([[-1, -1]]), 2)[0] == 0.0
    for k in (0, 7):
        with pytest.raises(ValueError, match="needs 1 <= k <= 6"):
            majority_at_k(correct, clusters, k)


def lines(problems, samples):
    for problem, sample in itertools.product(range(problems), range(samples)):
        line = {"problem": problem, "sample": sample, "correct": int(problem == sample)}
        yield line | {"cluster": sample % 2, "tokens": 3, "stopped": 1}


def test_scores_and_whole_batches(tmp_path):
    path = tmp_path / "a.jsonl"
    texts = [json.dumps(line) + "\n" for line in lines(3, 4)]
    path.write_text("".join(texts))
    found = score(str(path), 4)
    assert found["mean@4"]["mean"] == 0.25
    assert found["pass@2"]["mean"] == 0.5
    assert found["pass@4"]["mean"] == 1.0
    assert found["maj@4"]["mean"] == 0.25  # two tied answers, one of two samples of one of them is right
    assert (found["tokens"], found["truncated"]) == (3.0, 0.0)
    assert _whole_batches(str(path), [0, 1, 2], 4, 2) == 3
    path.write_text("".join(texts[:-1]) + texts[-1][:9])  # killed while writing the last line
    assert _whole_batches(str(path), [0, 1, 2], 4, 2) == 2
    path.write_text("".join(texts[:5] + texts[6:]))  # a line is missing in the middle
    assert _whole_batches(str(path), [0, 1, 2], 4, 1) == 1
    path.write_text("".join(texts[:8]))
    assert path.read_text() == "".join(texts[:8])
    settings = {"model": "m", "num_samples": 4, "temperature": 1.0, "top_p": 1.0, "top_k": None, "min_p": 0.0,
                "max_response": 8, "chat": False, "template": "boxed"}  # fmt: skip
    text = table(settings, {"aime24": {"problems": 3, **found}})
    assert "4 responses a problem, T=1, top_p=1, top_k=all, up to 8 tokens, no chat template, prompt 'boxed'" in text
    assert text.splitlines()[-1].split()[:3] == ["aime24", "3", "25.0"]


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A model with a byte tokenizer, and two benchmarks."""
    pytest.importorskip("tokenizers")
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    path = tmp_path_factory.mktemp("benchmarks") / "model"
    save_hf(CONFIG, Transformer(CONFIG).init_params(jax.random.key(3)), path)
    backend = Tokenizer(
        models.BPE(vocab={c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, merges=[])
    )
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(["</s>"])
    backend.save(str(path / "tokenizer.json"))
    (path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "</s>"}))
    for name, size in (("math500", 13), ("aime24", 5)):
        folder = path.parent / "data" / name
        folder.mkdir(parents=True)
        rows = [{"problem": f"What is {i}, {'ab' * i}?", "answer": str(i)} for i in range(size)]
        (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def arguments(directory, out):
    return [f"--model={directory}", "--benchmarks=math500,aime24", "--num_samples=4", "--max_response=12", "--batch=4",
            "--slots=8", f"--data={directory.parent / 'data'}", f"--out={out}"]  # fmt: skip


@pytest.mark.slow
def test_killed_and_resumed_is_the_same(directory, tmp_path, compilation_cache):
    text = runs.run("evaluate", *arguments(directory, tmp_path / "a"), cache=compilation_cache)
    assert "4 responses a problem, T=1" in text
    assert text.index("math500") < text.index("aime24")
    results = json.loads((tmp_path / "a" / "results.json").read_text())
    assert results["settings"]["max_response"] == 12
    assert results["benchmarks"]["math500"]["problems"] == 13
    assert {"mean@4", "pass@2", "pass@4", "maj@4", "tokens", "truncated"} < set(results["benchmarks"]["aime24"])
    kept = [json.loads(line) for line in (tmp_path / "a" / "math500.jsonl").read_text().splitlines()]
    assert [(line["problem"], line["sample"]) for line in kept] == list(itertools.product(range(13), range(4)))

    process = runs.start("evaluate", *arguments(directory, tmp_path / "b"), cache=compilation_cache)
    partial = tmp_path / "b" / "math500.jsonl"
    while not partial.exists():
        assert process.poll() is None, process.communicate()[0]
    process.kill()
    process.communicate()
    with open(partial, "a") as file:
        file.write('{"problem": 12, "sam')  # a line that was cut off
    runs.run("evaluate", *arguments(directory, tmp_path / "b"), "--benchmarks=math500", cache=compilation_cache)
    runs.run("evaluate", *arguments(directory, tmp_path / "b"), "--benchmarks=aime24", cache=compilation_cache)
    for name in ("math500.jsonl", "aime24.jsonl", "results.json", "settings.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes(), name


@pytest.mark.slow
def test_what_cannot_be_evaluated_is_refused(directory, tmp_path, compilation_cache):
    usual = arguments(directory, tmp_path / "o")
    for change, words in [
        (["--benchmarks=deepmath"], "'deepmath' is a set to train on; benchmarks are gsm8k, math"),
        (["--benchmarks=aime27"], "'aime27' is no set; benchmarks are"),
        (["--benchmarks=aime25"], "no test*.jsonl, .json or .parquet of the set 'aime25'"),
        (["--model="], "either --workdir=RUN or --model=DIRECTORY"),
        (["--out="], "--model needs --out=DIRECTORY"),
        (["--temperature=0"], "use --num_samples=1"),
        ([f"--model={tmp_path}"], "is no Hugging Face directory"),
        (["--benchmarks=,"], "--benchmarks names no set"),
        (["--step=best"], "--step is a run's"),
        (["--temperature=nan"], "--temperature=nan is no temperature"),
        (["--system=be brief", "--nochat"], "has an effect only with config.tokenizer.chat"),
    ]:
        text = runs.run("evaluate", *usual, *change, cache=compilation_cache, expect=2)
        assert words in text, text
    (tmp_path / "o").mkdir(exist_ok=True)
    (tmp_path / "o" / "math500.jsonl").write_text("{}\n")
    assert "is there without its settings" in runs.run("evaluate", *usual, cache=compilation_cache, expect=2)
    (tmp_path / "o" / "settings.json").write_text(json.dumps({"num_samples": 8}))
    text = runs.run("evaluate", *usual, cache=compilation_cache, expect=2)
    assert "holds an evaluation with other settings" in text
    assert "num_samples: 8 -> 4" in text
