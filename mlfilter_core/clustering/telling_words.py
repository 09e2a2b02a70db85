"""Words that tell the texts of a cluster from those of every other cluster.

The weight of a word is p log(p / q), where p is the share of the cluster's texts that have it, and q that share in the
other cluster where it is highest; a word that a single text of a cluster has counts as none there. Words such as "the"
are as frequent elsewhere and so have no weight, in any language. Class-based TF-IDF names the clusters of a small
corpus by such words, and so do divergences from the corpus as a whole where one of its languages has few clusters.
"""

import functools
import heapq
import math
import re
import sys
import unicodedata
from array import array
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

N_WORDS, N_IN_NAME = 10, 3
LEAST_TEXTS = 2  # of a cluster that must have a word: one document may repeat its own name a hundred times
LONGEST_WORD = 80  # characters; longer ones are none, such as encoded images. Arbitrary, above compounds of German
# Scripts that are written without spaces: Thai, Lao, Burmese, Khmer, Japanese kana, Chinese characters.
_UNSPACED = "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_PAIR = 2  # characters of a word in them


def words_of(text: str) -> Iterator[str]:
    """Yields the words of a text in lower case; pairs of characters where words are not separated by spaces."""
    for unspaced, word in _words().findall(text.lower()):
        if word:
            yield word
        yield from (unspaced[i : i + _PAIR] for i in range(len(unspaced) - _PAIR + 1))


@functools.cache
def _words() -> re.Pattern[str]:
    """Returns the pattern of a word: letters, and the marks on them, such as vowels in Devanagari."""
    categories = map(unicodedata.category, map(chr, range(sys.maxunicode + 1)))
    marks = "".join(chr(code) for code, category in enumerate(categories) if category in ("Mn", "Mc"))
    return re.compile(f"([{_UNSPACED}]{{2,}})|((?:[^\\W\\d_{_UNSPACED}]|(?![{_UNSPACED}])[{marks}]){{2,}})")


class TellingWords:
    """Finds the words of clusters, which are added one after another.

    Of each cluster it keeps the words that `LEAST_TEXTS` of its texts have: of web pages some 10 kB, a tenth of all.
    """

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}  # of the words
        # Of each word, the share of the texts that have it: in the cluster where it is highest, and in the next one.
        self._highest, self._second = array("d"), array("d")
        self._cluster_of_highest = array("i")
        self._clusters: list[_Words] = []

    def add(self, texts: Iterable[str]) -> None:
        """Adds the next cluster, with all its texts."""
        n_texts, n_with = 0, Counter[str]()
        for text in texts:
            n_texts += 1
            n_with.update({word for word in words_of(text) if len(word) <= LONGEST_WORD})
        words = _Words(n_texts, array("i"), array("i"))
        for word, n in n_with.items():
            if n >= LEAST_TEXTS:
                number = self._numbers.setdefault(word, len(self._numbers))
                words.numbers.append(number)
                words.n_with.append(n)
                self._note(number, words.share(n))
        self._clusters.append(words)

    def words(self) -> list[list[str]]:
        """Returns the words of each cluster, the most telling first; none where it has too few texts."""
        names = list(self._numbers)
        return [self._words_of(cluster, names) for cluster in range(len(self._clusters))]

    def _note(self, number: int, share: float) -> None:
        """Notes the share of a word in the cluster that is being added."""
        if number == len(self._highest):
            self._highest.append(0)
            self._second.append(0)
            self._cluster_of_highest.append(0)
        if share > self._highest[number]:
            self._second[number], self._highest[number] = self._highest[number], share
            self._cluster_of_highest[number] = len(self._clusters)
        else:
            self._second[number] = max(self._second[number], share)

    def _words_of(self, cluster: int, names: Sequence[str]) -> list[str]:
        words = self._clusters[cluster]

        def weight(number: int, n_with: int) -> float:
            is_highest = self._cluster_of_highest[number] == cluster
            elsewhere = (self._second if is_highest else self._highest)[number]
            share = words.share(n_with)
            return share * math.log(share / max(elsewhere, words.share(0)))

        weights = ((-weight(*each), names[each[0]]) for each in zip(words.numbers, words.n_with, strict=True))
        return [name for _, name in heapq.nsmallest(N_WORDS, weights)]


@dataclass(frozen=True)
class _Words:
    """The words of a cluster: number of its texts, numbers of the words, and how many of the texts have each."""

    n_texts: int
    numbers: "array[int]"
    n_with: "array[int]"

    def share(self, n_with: int) -> float:
        """Returns the share of the texts that have a word, with half a text more for a word that none has."""
        return (n_with + 0.5) / (self.n_texts + 1)


def names_from(words: Sequence[Sequence[str]]) -> list[str]:
    """Returns a name for each cluster, each another one: its first words, more where others have the same."""
    names = [", ".join(some[:N_IN_NAME]) or f"cluster {i}" for i, some in enumerate(words)]
    n_of_name = Counter(names)
    return [name if n_of_name[name] == 1 else f"{name} ({i})" for i, name in enumerate(names)]
