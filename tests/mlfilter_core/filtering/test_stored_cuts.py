import math
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from mlfilter_core.config.filtering import Selection
from mlfilter_core.filtering.cuts import Cuts, find_cuts
from mlfilter_core.filtering.stored_cuts import CUTS_NAME, cuts_found_once
from mlfilter_core.filtering.survey import Survey
from tests.mlfilter_core.filtering.conftest import survey_of

SURVEYS = [
    survey_of({"q": [1.5, -2, math.nan], "r": [3, 1, 2]}, [5, 6, 7], ["de", "en", ""], stem="a"),
    survey_of({"q": [0.1, 7, 2], "r": [3, 3, 3]}, [5, 6, 7], ["de", "de", "en"], stem="b"),
]
SELECTION = Selection.model_validate(
    {"scores": {"q": {"percentile": 40}, "r": {"best_tokens": 12}}, "per": "language", "at_least": 1}
)


@pytest.fixture
def surveys(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / name for name in ("a.npz", "b.npz")]
    for path in paths:
        path.write_bytes(b"x")
    return paths


class Finder:
    """Finds cuts, and counts how often."""

    def __init__(self, selection: Selection = SELECTION) -> None:
        self.selection, self.times = selection, 0

    def __call__(self) -> Cuts:
        self.times += 1
        return find_cuts(self.selection, self._surveys)

    def _surveys(self) -> Iterator[Survey]:
        return iter(SURVEYS)


def test_cuts_are_found_once_and_mean_the_same_when_they_are_read(tmp_path: Path, surveys: list[Path]) -> None:
    find = Finder()
    found = cuts_found_once(tmp_path, SELECTION, surveys, find)
    again = cuts_found_once(tmp_path, SELECTION, surveys, find)
    assert find.times == 1
    assert again == found
    assert [again.kept(survey).tolist() for survey in SURVEYS] == [found.kept(survey).tolist() for survey in SURVEYS]
    limits = orjson.loads((tmp_path / CUTS_NAME).read_bytes())["limits"]
    assert limits == [each.describe() for each in found.of_scores]
    assert limits[0] == "q: percentile 40 of 5 documents, which is '': nothing, de: 1.5 and above, en: -2 and above"


def test_another_selection_or_corpus_has_other_cuts(tmp_path: Path, surveys: list[Path]) -> None:
    cuts_found_once(tmp_path, SELECTION, surveys, Finder())
    other = Selection.model_validate({"scores": {"q": {"percentile": 0}}})
    find = Finder(other)
    assert cuts_found_once(tmp_path, other, surveys, find) == find_cuts(other, lambda: SURVEYS)
    assert find.times == 1
    cuts_found_once(tmp_path, other, surveys[:1], find)
    assert find.times == 2
    surveys[0].write_bytes(b"longer")
    cuts_found_once(tmp_path, other, surveys[:1], find)
    assert find.times == 3


@pytest.mark.parametrize("content", [b"{broken", b"[]", b"{}"])
def test_a_broken_file_is_found_anew(content: bytes, tmp_path: Path, surveys: list[Path]) -> None:
    (tmp_path / CUTS_NAME).write_bytes(content)
    find = Finder()
    cuts_found_once(tmp_path, SELECTION, surveys, find)
    cuts_found_once(tmp_path, SELECTION, surveys, find)
    assert find.times == 1
