import tracemalloc
from collections.abc import Iterable

import numpy as np
import pytest

from mlfilter_core.clustering.telling_words import TellingWords, names_from, words_of


def words_of_clusters(*clusters: Iterable[str]) -> list[list[str]]:
    telling = TellingWords()
    for texts in clusters:
        telling.add(texts)
    return telling.words()


def test_words_that_a_cluster_alone_has_come_before_those_that_all_have() -> None:
    words = words_of_clusters(
        [f"the oven and the bread of the baker {i}" for i in range(20)],
        [f"the mast and the anchor of the sailor {i}" for i in range(20)],
    )
    assert set(words[0][:3]) == {"oven", "bread", "baker"}
    assert set(words[1][:3]) == {"mast", "anchor", "sailor"}


def test_a_word_of_one_document_names_no_cluster() -> None:
    assert words_of_clusters(["zyx " * 100 + "bread", "bread"]) == [["bread"]]


def test_a_word_that_is_more_frequent_in_any_other_cluster_comes_later() -> None:
    clusters = [["bread oven"] * 10, ["bread mast"] * 9 + ["mast"], ["bread pawn"] * 10]
    for order in ([0, 1, 2], [2, 1, 0], [1, 0, 2]):
        words = dict(zip(order, words_of_clusters(*(clusters[i] for i in order)), strict=True))
        assert words == {0: ["oven", "bread"], 1: ["mast", "bread"], 2: ["pawn", "bread"]}


def test_a_run_of_letters_that_is_no_word_names_no_cluster() -> None:
    assert words_of_clusters([f"{'x' * 81} {'y' * 80}"] * 2) == [["y" * 80]]


def test_the_words_of_a_language_do_not_name_its_clusters() -> None:
    topics = ["die und der ofen", "die und der anker", "the and of pawn", "the and of rook"]
    words = words_of_clusters(*([f"{topic} {i}" for i in range(20)] for topic in topics))
    assert [some[0] for some in words] == ["ofen", "anker", "pawn", "rook"]


def test_the_words_of_a_cluster_take_little_memory() -> None:
    numbers = np.random.default_rng(0)
    vocabulary = np.array([f"word{''.join(chr(97 + int(c)) for c in str(i))}" for i in range(50_000)])
    frequencies = 1 / np.arange(1, len(vocabulary) + 1)  # Zipf's law
    drawn = numbers.choice(vocabulary, (40, 50, 100), p=frequencies / frequencies.sum())
    telling = TellingWords()
    tracemalloc.start()
    for cluster in drawn:
        telling.add(" ".join(text) for text in cluster)
    n_bytes = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert n_bytes / len(drawn) < 60_000


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Straße, ÄPFEL und 3 x_1", ["straße", "äpfel", "und"]),
        ("数学と科学", ["数学", "学と", "と科", "科学"]),
        ("Привет мир", ["привет", "мир"]),
        ("नमस्ते", ["नमस्ते"]),
        ("مرحبا", ["مرحبا"]),
        ("ภาษาไทย", ["ภา", "าษ", "ษา", "าไ", "ไท", "ทย"]),
        ("한국어 문서", ["한국어", "문서"]),
        ("GPT模型", ["gpt", "模型"]),
        ("", []),
    ],
)
def test_words_of_any_script(text: str, words: list[str]) -> None:
    assert list(words_of(text)) == words


def test_each_cluster_has_a_name_of_its_own() -> None:
    names = names_from([["a", "b", "c", "d"], ["a", "b", "c", "e"], ["x"], []])
    assert names == ["a, b, c (0)", "a, b, c (1)", "x", "cluster 3"]
