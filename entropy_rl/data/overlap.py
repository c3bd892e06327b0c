"""Which texts share a run of words with others: contamination of training problems by test problems."""

import collections
import re
from collections.abc import Iterable

WORDS = 13
_ALONE = "[\\u3040-\\u30ff\\u3400-\\u9fff\\uac00-\\ud7af]"  # characters of scripts without spaces
_WORD = re.compile(rf"{_ALONE}|\w+?(?={_ALONE})|\w+|[-+*/^=<>]")
_SHORT = 6  # words: a text of fewer is only found again as a whole


def _ngrams(text: str, size: int) -> set[tuple[str, ...]]:
    words = _WORD.findall(text.lower())
    return {tuple(words[i : i + size]) for i in range(len(words) - size + 1)}


class Overlap:
    """Finds texts that share runs of ``size`` words with one of the given texts, punctuation and case aside.

    The 13-gram rule of Brown et al. 2020 (https://arxiv.org/abs/2005.14165, appendix C), but a single run is not
    enough: "m/n, where m and n are relatively prime positive integers. Find m+n" stands in many AIME problems. A given
    text of fewer words than ``size`` counts as a whole: it is found in texts of up to twice its length, one of fewer
    than six only in itself. Signs of arithmetic are words, and so are single characters of Chinese or Japanese.

    Args:
        texts: those to be found again, test problems say.
        size: words in a row.
        min_share: of a given text's runs that another one must have.
    """

    def __init__(self, texts: Iterable[str], size: int = WORDS, min_share: float = 0.4):
        self._size, self._min_share = size, min_share
        self._where: dict[tuple[str, ...], list[int]] = {}
        self._needed: dict[int, float] = {}
        self._short: dict[int, dict[tuple[str, ...], list[int]]] = {}
        for index, text in enumerate(texts):
            words = tuple(_WORD.findall(text.lower()))
            if len(words) >= size:
                grams = _ngrams(text, size)
                self._needed[index] = min_share * len(grams)
                for gram in grams:
                    self._where.setdefault(gram, []).append(index)
            elif words:
                self._short.setdefault(len(words), {}).setdefault(words, []).append(index)

    def matches(self, text: str) -> list[int]:
        """Indices of the given texts that ``text`` overlaps with, ascending."""
        shared = collections.Counter(i for gram in _ngrams(text, self._size) for i in self._where.get(gram, ()))
        found = {index for index, count in shared.items() if count >= self._needed[index]}
        length = len(_WORD.findall(text.lower()))
        for size, wholes in self._short.items():
            if length <= (2 * size if size >= _SHORT else size):
                found.update(index for gram in _ngrams(text, size) for index in wholes.get(gram, ()))
        return sorted(found)
