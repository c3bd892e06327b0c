"""Tokenizers: characters for generated tasks, SentencePiece for text. All answer to ``Tokenizer``."""

import os
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import sentencepiece


@runtime_checkable
class Tokenizer(Protocol):
    """Text to ids and back; ``eos_id`` ends a demonstration, any of ``stop_ids`` a response."""

    @property
    def vocab_size(self) -> int:
        """Number of ids."""
        ...

    @property
    def eos_id(self) -> int:
        """The end mark."""
        ...

    @property
    def stop_ids(self) -> tuple[int, ...]:
        """The end marks."""
        ...

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``, without start or end marks."""
        ...

    def prompt_ids(self, text: str) -> list[int]:
        """Ids of ``text`` as a prompt: with the start mark, and in a conversation where the tokenizer makes one."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; start, end and padding marks give nothing."""
        ...

    def piece(self, token: int) -> str:
        """What one id shows as in a transcript."""
        ...


class CharTokenizer:
    """One id per character of an alphabet; ids 0, 1, 2 are padding, start and end."""

    bos_id, eos_id, stop_ids = 1, 2, (2,)

    def __init__(self, alphabet: str):
        if len(set(alphabet)) != len(alphabet) or not alphabet:
            raise ValueError(f"an alphabet needs distinct characters, got {alphabet!r}")
        self._characters = alphabet
        self._ids = {character: i + 3 for i, character in enumerate(alphabet)}
        self.vocab_size = len(alphabet) + 3

    def encode(self, text: str) -> list[int]:
        """Ids of the characters; ValueError names one outside the alphabet."""
        try:
            return [self._ids[character] for character in text]
        except KeyError as error:
            raise ValueError(f"character {error.args[0]!r} is not in the alphabet {self._characters!r}") from None

    def prompt_ids(self, text: str) -> list[int]:
        """The start mark, then the characters' ids."""
        return [self.bos_id, *self.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """Characters of the ids; other ids give nothing."""
        return "".join(self._characters[i - 3] for i in ids if 3 <= i < self.vocab_size)

    def piece(self, token: int) -> str:
        """The character, or the mark's name."""
        return self._characters[token - 3] if token >= 3 else ("<pad>", "<s>", "</s>")[token]


class SentencePieceTokenizer:
    """Any SentencePiece ``.model``; it must define a start and an end piece."""

    def __init__(self, path: str | os.PathLike):
        if not os.path.isfile(path):
            raise ValueError(f"no SentencePiece model at {path}; train one with experiments.train_tokenizer")
        try:
            self._model = sentencepiece.SentencePieceProcessor(model_file=os.fspath(path))
        except (RuntimeError, OSError) as error:
            raise ValueError(f"{path} is no SentencePiece model: {error}") from None
        self.vocab_size = self._model.get_piece_size()
        self.bos_id, self.eos_id = self._model.bos_id(), self._model.eos_id()
        self.stop_ids = (self.eos_id,)
        if min(self.bos_id, self.eos_id) < 0:
            raise ValueError(f"{path} has no start or no end piece; train one with bos_id and eos_id set")

    def encode(self, text: str) -> list[int]:
        """Ids of ``text``."""
        return self._model.encode(text)

    def prompt_ids(self, text: str) -> list[int]:
        """The start piece, then the ids of ``text``."""
        return [self.bos_id, *self.encode(text)]

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ``ids``; control pieces give nothing."""
        return self._model.decode([int(i) for i in ids if i < self.vocab_size])

    def piece(self, token: int) -> str:
        """The piece, with its blanks as blanks."""
        return self._model.id_to_piece(token).replace("\u2581", " ")


def train_sentencepiece(texts, path: str | os.PathLike, *, vocab_size: int, seed: int = 0) -> SentencePieceTokenizer:
    """Trains a byte-fallback BPE vocabulary on an iterable of texts and writes ``path`` (which ends in ".model").

    Newlines and runs of spaces are kept as they are and digits are split, so that text round-trips exactly.

    Raises:
        ValueError: where ``path`` has another ending or the corpus cannot fill the vocabulary.
    """
    path = os.fspath(path)
    if not path.endswith(".model"):
        raise ValueError(f"a SentencePiece model's path ends in .model, got {path}")
    os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
    sentencepiece.set_random_generator_seed(seed)
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_prefix=path.removesuffix(".model"),
            vocab_size=vocab_size,
            model_type="bpe",
            byte_fallback=True,
            split_digits=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            add_dummy_prefix=False,
            allow_whitespace_only_pieces=True,
            user_defined_symbols=["\n"],
            character_coverage=0.9995,
            max_sentence_length=1 << 20,
            pad_id=3,
            num_threads=2,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).rpartition("] ")[2]
        raise ValueError(
            f"SentencePiece could not train {vocab_size} pieces (vocab_size) on this corpus: {reason}"
        ) from None
    return SentencePieceTokenizer(path)
