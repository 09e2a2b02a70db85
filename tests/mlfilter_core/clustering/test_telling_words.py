import pytest

from mlfilter_core.clustering.telling_words import TellingWords, names_from, words_of


def test_words_that_a_cluster_alone_has_come_before_those_that_all_have() -> None:
    telling = TellingWords(2)
    for i in range(20):
        telling.add(0, f"the oven and the bread of the baker {i}")
        telling.add(1, f"the mast and the anchor of the sailor {i}")
    words = telling.words()
    assert set(words[0][:3]) == {"oven", "bread", "baker"}
    assert set(words[1][:3]) == {"mast", "anchor", "sailor"}


def test_a_word_of_one_document_names_no_cluster() -> None:
    telling = TellingWords(1)
    telling.add(0, "zyx " * 100 + "bread")
    telling.add(0, "bread")
    assert telling.words() == [["bread"]]


def test_the_words_of_a_language_do_not_name_its_clusters() -> None:
    telling = TellingWords(4)
    for i in range(20):
        telling.add(0, f"die und der ofen {i}")
        telling.add(1, f"die und der anker {i}")
        telling.add(2, f"the and of pawn {i}")
        telling.add(3, f"the and of rook {i}")
    assert [words[0] for words in telling.words()] == ["ofen", "anker", "pawn", "rook"]


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
