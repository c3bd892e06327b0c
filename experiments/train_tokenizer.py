"""Trains a SentencePiece vocabulary on text files or on a task's training problems.

python -m experiments.train_tokenizer --out=runs/gsm8k.model --vocab_size=2048 --text=corpus.txt
python -m experiments.train_tokenizer --out=runs/gsm8k.model --vocab_size=2048 --config=configs/gsm8k_small.py
"""

from absl import app, flags
from ml_collections import config_flags

from entropy_rl.model.tokenizer import train_sentencepiece
from experiments.building import make_task, one_sentence


def corpus(paths: list[str], config):
    """Lines of the files, or prompts and solutions of the config's task."""
    if bool(paths) == (config is not None):
        raise ValueError("name the corpus: either --text files or a --config")
    if paths:
        for path in paths:
            with open(path, encoding="utf-8") as file:
                yield from (line.rstrip("\n") for line in file)
    else:
        task = make_task(config)
        if task.alphabet is not None:
            raise ValueError(f"task {config.task.name!r} uses a character tokenizer; there is nothing to train")
        yield from (problem.prompt + problem.solution for problem in task.problems("train"))


def main(argv) -> None:
    """Runs the module."""
    with one_sentence():
        f = flags.FLAGS
        texts = list(corpus([*f.text, *argv[1:]], f.config))
        tokenizer = train_sentencepiece(texts, f.out, vocab_size=f.vocab_size)
    characters = sum(len(text) for text in texts)
    tokens = sum(len(tokenizer.encode(text)) for text in texts)
    print(f"{f.out}: {tokenizer.vocab_size} pieces, {characters / tokens:.2f} characters per token on its corpus")


if __name__ == "__main__":
    flags.DEFINE_string("out", None, "The .model file to write.", required=True)
    flags.DEFINE_integer("vocab_size", 2048, "Pieces, bytes and marks included.", lower_bound=300)
    flags.DEFINE_multi_string("text", [], "A text file; may be given several times.")
    config_flags.DEFINE_config_file("config", None, "A config whose task's problems are the corpus.")
    app.run(main)
