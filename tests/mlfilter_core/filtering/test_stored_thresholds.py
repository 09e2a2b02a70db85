import math
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from mlfilter_core.config.filtering import Selection
from mlfilter_core.filtering.stored_thresholds import THRESHOLDS_NAME, stored_thresholds
from mlfilter_core.filtering.survey import Survey
from mlfilter_core.filtering.thresholds import Thresholds, find_thresholds
from tests.mlfilter_core.filtering.conftest import survey_of

SURVEYS = [
    survey_of({"q": [1.5, -2, math.nan], "r": [3, 1, 2]}, [5, 6, 7], ["de", "en", ""], stem="a"),
    survey_of({"q": [0.1, 7, 2], "r": [3, 3, 3]}, [5, 6, 7], ["de", "de", "en"], stem="b"),
]
SELECTION = Selection.model_validate(
    {"scores": {"q": {"percentile": 40}, "r": {"best_tokens": 12}}, "per": "language", "at_least": 1}
)


@pytest.fixture
def surveys(tmp_path: Path) -> list[str]:
    paths = [tmp_path / name for name in ("a.npz", "b.npz")]
    for path in paths:
        path.write_bytes(b"x")
    return list(map(str, paths))


class Finder:
    """Finds thresholds, and counts its calls."""

    def __init__(self, selection: Selection = SELECTION) -> None:
        self.selection, self.times = selection, 0

    def __call__(self) -> Thresholds:
        self.times += 1
        return find_thresholds(self.selection, self._surveys)

    def _surveys(self) -> Iterator[Survey]:
        return iter(SURVEYS)


def test_thresholds_are_found_once_and_are_equal_when_read(tmp_path: Path, surveys: list[str]) -> None:
    find = Finder()
    found = stored_thresholds(tmp_path, SELECTION, surveys, find)
    again = stored_thresholds(tmp_path, SELECTION, surveys, find)
    assert find.times == 1
    assert again == found
    assert [again.kept(survey).tolist() for survey in SURVEYS] == [found.kept(survey).tolist() for survey in SURVEYS]
    limits = orjson.loads((tmp_path / THRESHOLDS_NAME).read_bytes())["limits"]
    assert limits == [each.describe() for each in found.of_scores]
    assert limits[0] == "q: percentile 40 of 5 documents, which is '': nothing, de: 1.5 and above, en: -2 and above"


def test_another_selection_or_corpus_has_other_thresholds(tmp_path: Path, surveys: list[str]) -> None:
    stored_thresholds(tmp_path, SELECTION, surveys, Finder())
    other = Selection.model_validate({"scores": {"q": {"percentile": 0}}})
    find = Finder(other)
    assert stored_thresholds(tmp_path, other, surveys, find) == find_thresholds(other, lambda: SURVEYS)
    assert find.times == 1
    stored_thresholds(tmp_path, other, surveys[:1], find)
    assert find.times == 2
    Path(surveys[0]).write_bytes(b"longer")
    stored_thresholds(tmp_path, other, surveys[:1], find)
    assert find.times == 3


def test_shares_and_their_notes_are_stored_and_other_weights_have_others(tmp_path: Path, surveys: list[str]) -> None:
    found = []
    for weights in ({"de": 2, "en": 1}, {"de": 2, "en": 1, "fr": 1}):
        keep = {"scores": {"q": {"best_tokens": 12}}, "per": "language", "weights": weights}
        selection = Selection.model_validate(keep)
        find = Finder(selection)
        found += [stored_thresholds(tmp_path, selection, surveys, find) for _ in range(2)]
        assert find.times == 1
    first, first_again, second, second_again = (each.of_scores[0] for each in found)
    assert (first_again, second_again) == (first, second)
    assert (first.shares, second.shares) == ({"": 0, "de": 8, "en": 4}, {"": 0, "de": 6, "en": 3})
    assert (len(first.notes), len(second.notes)) == (1, 2)  # of documents without the key, and of "fr"


@pytest.mark.parametrize("content", [b"{broken", b"[]", b"{}"])
def test_a_broken_file_is_replaced(content: bytes, tmp_path: Path, surveys: list[str]) -> None:
    (tmp_path / THRESHOLDS_NAME).write_bytes(content)
    find = Finder()
    stored_thresholds(tmp_path, SELECTION, surveys, find)
    stored_thresholds(tmp_path, SELECTION, surveys, find)
    assert find.times == 1
