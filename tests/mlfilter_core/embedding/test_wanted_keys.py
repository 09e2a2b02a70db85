import logging
from pathlib import Path
from typing import Any

import pytest

from mlfilter_core.config.embedding import EmbeddingPipelineParameters
from mlfilter_core.embedding.wanted_keys import check_wanted_keys, describe_absent, types_by_key, wanted_keys
from mlfilter_core.embedding.work import embed_work
from mlfilter_core.errors import ConfigError
from mlfilter_core.files.task_files import TaskFile
from tests.conftest import WriteLines

RECORDS = [
    {"id": "a", "text": "one", "scores": {"education": 3}, "tags": None},
    {"id": "b", "text": "two", "scores": {"education": 2.5}, "extra": [1]},
]


def params(**fields: Any) -> EmbeddingPipelineParameters:
    return EmbeddingPipelineParameters(input_dir="in", output_dir="out", embedding_model="model", **fields)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"keys_to_index": ["txt"]}, r"params.keys_to_index: none of 2 sampled documents has 'txt' \(did you mean"),
        ({"text_field": "body"}, "params.text_field: none of 2 sampled documents has 'body'"),
        ({"text_field": "text", "id_key": "uid"}, "params.id_key: none of 2 sampled documents has 'uid'"),
        (
            {"text_field": "text", "save_labels": True},
            "params.label_key: none of 2 .* 'label' or 'score' or 'sco",
        ),
        ({"text_field": "text", "save_labels": True, "label_key": ["scores.toxic"]}, "has 'scores.toxic'"),
    ],
)
def test_a_key_that_no_document_has_is_refused_with_those_that_they_have(fields: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=expected) as refused:
        check_wanted_keys(params(**fields), RECORDS)
    assert "they have: id (string), text (string), scores (object), scores.education (number)" in str(refused.value)


def test_all_absent_keys_are_said_at_once() -> None:
    asked = params(text_field="txt", id_key="uid", keys_to_index=["lang"])
    assert len(describe_absent(wanted_keys(asked), RECORDS)) == 3


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"keys_to_index": ["extra"], "text_field": "text"},  # one of them has it
        {"text_field": "text", "save_labels": True, "label_key": "scores.education"},
    ],
)
def test_keys_that_some_documents_have_pass(fields: Any) -> None:
    check_wanted_keys(params(**fields), RECORDS)


def test_without_documents_there_is_nothing_to_tell_by() -> None:
    check_wanted_keys(params(text_field="nothing"), [])


def test_a_job_that_allows_every_line_to_be_rejected_is_only_warned(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        check_wanted_keys(params(text_field="txt", max_rejected_fraction=1), RECORDS)
    assert "has 'txt'" in caplog.text


def test_types_are_counted_by_key() -> None:
    types = types_by_key(RECORDS)
    assert types["scores.education"] == {"number": 2}
    assert types["tags"] == {"null": 1}
    assert types["extra"] == {"array": 1}


def test_the_work_of_a_job_refuses_a_wrong_key_before_an_encoder_is_loaded(
    tmp_path: Path, write_lines: WriteLines, tiny_model: Path
) -> None:
    for name in ("a.jsonl", "b.jsonl.gz", "c.jsonl.zst"):
        write_lines(f"in/{name}", RECORDS)
    write_lines("in/broken.jsonl", [b"{", b"[]", b""])
    files = [TaskFile(path.name, path.name.partition(".")[0], path.parent) for path in (tmp_path / "in").iterdir()]
    asked = EmbeddingPipelineParameters(
        input_dir=tmp_path / "in", output_dir=tmp_path / "out", embedding_model=str(tiny_model), text_field="txt"
    )
    with pytest.raises(ConfigError, match="none of 6 sampled documents has 'txt'"):
        embed_work(asked).prepare(files)
    embed_work(asked.model_copy(update={"text_field": "text"})).prepare(files)
