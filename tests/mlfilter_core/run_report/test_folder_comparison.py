import json
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from mlfilter_core.errors import ConfigError, SourceError
from mlfilter_core.run_report.folder_comparison import compare
from mlfilter_core.run_report.paired_scores import pair_scores
from tests.mlfilter_core.run_report.conftest import WriteOutputs
from tests.output_folders import documents, head

FILES = {"a.jsonl": documents("a", 40), "b/c.jsonl": documents("c", 23)}
NAME = "score_education"


def scores(output_dir: Path) -> dict[str, float]:
    paths = [path for path in output_dir.glob("annotated_data/**/*.jsonl") if ".provenance" not in path.parts]
    records = [json.loads(line) for path in paths for line in path.read_text().splitlines()]
    return {record["document_id"]: record[NAME] for record in records}


def test_agreement_is_that_of_the_same_documents(write_outputs: WriteOutputs) -> None:
    one = write_outputs(FILES, (head("education", 1), head("old", 3)), "one")
    fewer = {"a.jsonl": documents("a", 40)[::-1], "b/c.jsonl": documents("c", 20), "d.jsonl": documents("d", 4)}
    other = write_outputs(fewer, (head("education", 2), head("new", 3)), "other")
    found = compare(one, other, (1.0,))
    (row,) = found.agreements
    theirs = scores(other)
    pairs = np.array([(score, theirs[name]) for name, score in scores(one).items() if name in theirs])
    assert (row.documents, found.paired_files, found.without_partner) == (60, 2, 3)
    assert row.pearson == pytest.approx(np.corrcoef(pairs.T)[0, 1], abs=1e-6)
    assert row.spearman == pytest.approx(stats.spearmanr(pairs).statistic, abs=1e-6)
    assert row.mean_difference == pytest.approx((pairs[:, 1] - pairs[:, 0]).mean(), abs=1e-6)
    assert row.agreement["1.0"] == pytest.approx(((pairs[:, 0] >= 1) == (pairs[:, 1] >= 1)).mean())
    assert row.kept["1.0"] == pytest.approx(tuple((pairs >= 1).mean(axis=0)))
    best = [set(np.argsort(-pairs[:, side])[:18]) for side in (0, 1)]
    assert row.top["0.3"] == pytest.approx(len(best[0] & best[1]) / 18)
    assert found.only_in == (["score_old"], ["score_new"])


def test_shifts_are_those_of_all_documents(write_outputs: WriteOutputs) -> None:
    one = write_outputs(FILES, (head("education", 1),), "one")
    other = write_outputs({"z.jsonl": documents("z", 9)}, (head("education", 1),), "other")
    found = compare(one, other)
    (shift,) = found.shifts
    values = [np.array(list(scores(side).values())) for side in (one, other)]
    assert shift.documents == (63, 9)
    assert shift.means == pytest.approx([side.mean() for side in values], rel=1e-5)
    assert shift.deviations == pytest.approx([side.std() for side in values], rel=1e-5)
    assert shift.quantiles["0.5"] == pytest.approx([np.median(side) for side in values], abs=0.2)
    assert found.agreements == []  # no file has the same name
    assert found.sides[0].speeds["embed"]["documents/s"] == pytest.approx(63 / 60)
    assert found.sides[0].speeds["embed"]["documents/s, a worker"] == pytest.approx(63 / 16)


def test_equal_scores_have_no_correlation(write_outputs: WriteOutputs) -> None:
    one = write_outputs(FILES, (head("education", 1, scale=0.0),), "one")
    other = write_outputs(FILES, (head("education", 1),), "other")
    (row,) = compare(one, other).agreements
    assert (row.pearson, row.spearman) == (None, None)
    assert row.documents == 63


def test_embeddings_alone_compare_in_counts(write_outputs: WriteOutputs) -> None:
    one, other = write_outputs(FILES, output="one"), write_outputs(FILES, output="other")
    found = compare(one, other)
    assert found.sides[0].counts == found.sides[1].counts
    assert found.shifts == found.agreements == []


def test_hidden_files_are_not_compared(write_outputs: WriteOutputs) -> None:
    one, other = (write_outputs(FILES, (head("education", 1),), output) for output in ("one", "other"))
    for folder in (one, other):
        (folder / "annotated_data" / "._a.jsonl").write_bytes(b"what macOS leaves beside a copied file")
    assert compare(one, other).paired_files == 2


def test_documents_of_one_id_are_joined_in_their_order(write_outputs: WriteOutputs) -> None:
    files = {"a.jsonl": [{"id": "same", "text": word} for word in ("one", "two words", "three more words")]}
    one, other = (write_outputs(files, (head("education", 1),), output) for output in ("one", "other"))
    found = pair_scores(one, other, [NAME])
    np.testing.assert_array_equal(found.one, found.other)
    assert len(found.one) == len(np.unique(found.one)) == 3


def test_after_enough_documents_files_are_left_out(write_outputs: WriteOutputs) -> None:
    one, other = (write_outputs(FILES, (head("education", 1),), output) for output in ("one", "other"))
    found = pair_scores(one, other, [NAME], max_documents=10)
    assert (found.n_files, found.n_left_out, len(found.one)) == (1, 1, 40)


def test_a_broken_annotated_file_is_named(write_outputs: WriteOutputs) -> None:
    one, other = (write_outputs(FILES, (head("education", 1),), output) for output in ("one", "other"))
    (other / "annotated_data" / "a.jsonl").write_bytes(b"[1]\n")
    with pytest.raises(SourceError, match=r"a\.jsonl:1: no annotated record"):
        compare(one, other)


def test_a_folder_without_outputs_is_refused(write_outputs: WriteOutputs, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to report in"):
        compare(write_outputs(FILES), tmp_path / "nothing")
