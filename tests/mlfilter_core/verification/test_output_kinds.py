from pathlib import Path

import pytest

from mlfilter_core.job_kinds import kinds
from mlfilter_core.verification.output_kinds import VerifyRequest, output_kinds
from mlfilter_core.verification.verify import find_outputs, verify
from tests.mlfilter_core.toy_kind import register_toys
from tests.mlfilter_core.verification.conftest import Outputs


def test_every_kind_is_asked_in_the_order_of_the_table() -> None:
    assert list(output_kinds()) == [kind.flow for kind in kinds()]


def test_outputs_of_a_kind_that_another_package_brings_are_verified(
    outputs: Outputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    register_toys(monkeypatch)
    file, _ = outputs.embed("a/x.jsonl", [{"text": "one"}])
    outputs.annotate(file)
    toys = outputs.folder / "toys"
    for name, content in (("a/x.toy", "doll"), ("y.toy", "a toy"), ("readme.txt", "")):
        (toys / name).parent.mkdir(parents=True, exist_ok=True)
        (toys / name).write_text(content)
    found = verify(VerifyRequest(outputs.folder), 1)
    assert {check.path: check.problems for check in found.wrong} == {
        "toys/a/x.toy": ("is no toy, and lies beside embeddings/a/x.h5, annotated_data/a/x.jsonl; play again",)
    }
    assert found.summary().startswith("1 files of embeddings, 1 annotated files, 2 toys: 1 not right\n")


def test_a_later_kind_takes_files_that_look_like_embeddings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Embeddings may lie in any folder."""
    register_toys(monkeypatch)
    monkeypatch.setattr("mlfilter_core.verification.embedding_files.EMBEDDING_SUFFIXES", (".h5", ".toy"))
    for name in ("toys/x.toy", "other/x.toy"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).touch()
    found = find_outputs(tmp_path).outputs
    assert {flow: [output.path for output in own] for flow, own in found.items()} == {
        "embed": ["other/x.toy"],
        **{"train_head": [], "annotate": [], "cluster": [], "deduplicate": [], "filter": []},
        "play": ["toys/x.toy"],
    }
