"""Words that tell the texts of a cluster from those of every other cluster.

The weight of a word is p log(p / q), where p is the share of the cluster's texts that have it, and q that share in the
other cluster where it is highest. Words such as "the" are as frequent elsewhere and so have no weight, in any language.
Class-based TF-IDF names the clusters of a small corpus by such words, and so do divergences from the corpus as a whole
where one of its languages has few clusters.
"""

import functools
import math
import re
import sys
import unicodedata
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

N_WORDS, N_IN_NAME = 10, 3
LEAST_TEXTS = 2  # that a word must occur in: one document may repeat its own name a hundred times
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
    """Counts the texts of each cluster that have a word."""

    def __init__(self, n_clusters: int) -> None:
        self._n_texts = [0] * n_clusters
        self._n_with = [Counter[str]() for _ in range(n_clusters)]

    def add(self, cluster: int, text: str) -> None:
        """Adds a text."""
        self._n_texts[cluster] += 1
        self._n_with[cluster].update(set(words_of(text)))

    def words(self) -> list[list[str]]:
        """Returns the words of each cluster, the most telling first; none where it has too few texts."""
        # Share of the texts with a word, and the cluster where it is highest.
        highest: dict[str, tuple[float, int]] = {}
        second: dict[str, float] = {}
        for cluster, n_with in enumerate(self._n_with):
            for word in n_with:
                share = self._share(cluster, word)
                before, of_cluster = highest.get(word, (0.0, cluster))
                if share > before:
                    highest[word] = share, cluster
                if of_cluster != cluster:
                    second[word] = max(second.get(word, 0.0), min(share, before))
        return [self._words_of(cluster, highest, second) for cluster in range(len(self._n_with))]

    def _words_of(
        self, cluster: int, highest: Mapping[str, tuple[float, int]], second: Mapping[str, float]
    ) -> list[str]:
        lowest = self._share(cluster, "")

        def weight(word: str) -> float:
            share, (most, of_cluster) = self._share(cluster, word), highest[word]
            elsewhere = second.get(word, 0.0) if of_cluster == cluster else most
            return share * math.log(share / max(elsewhere, lowest))

        known = [word for word, n in self._n_with[cluster].items() if n >= LEAST_TEXTS]
        return sorted(known, key=lambda word: (-weight(word), word))[:N_WORDS]

    def _share(self, cluster: int, word: str) -> float:
        """Returns the share of a cluster's texts that have a word, with half a text more for one that none has."""
        return (self._n_with[cluster][word] + 0.5) / (self._n_texts[cluster] + 1)


def names_from(words: Sequence[Sequence[str]]) -> list[str]:
    """Returns a name for each cluster, each another one: its first words, more where others have the same."""
    names = [", ".join(some[:N_IN_NAME]) or f"cluster {i}" for i, some in enumerate(words)]
    n_of_name = Counter(names)
    return [name if n_of_name[name] == 1 else f"{name} ({i})" for i, name in enumerate(names)]
