import json
from pathlib import Path

import pytest

from mlfilter_core.errors import AnnotationError, SourceError
from mlfilter_core.filtering.filter_file import filter_file
from tests.mlfilter_core.filtering.conftest import Filter, annotate, document, surveyed


def test_sources_must_be_those_that_were_embedded(parameters: Filter, annotated: Path) -> None:
    params = parameters()
    files, request = surveyed(params)
    source = annotated / "corpus" / "y.jsonl"
    source.write_text(source.read_text().replace("ba", "be"))
    with pytest.raises(SourceError, match=r"y.jsonl changed since .*y.h5 was made from it"):
        filter_file(files[1], request)
    assert not (params.filtered_dir / "y.jsonl").exists()
    source.unlink()
    with pytest.raises(SourceError, match=r"set params.source_dir to the folder of the sources"):
        filter_file(files[1], request)


def test_a_document_that_has_a_score_of_that_name_is_an_error(
    parameters: Filter, annotated: Path, tiny_model: Path
) -> None:
    """The annotation did not write source documents, so it did not notice."""
    (annotated / "corpus" / "z.jsonl").write_text(json.dumps({**document("z", 1), "score_fun": 3}))
    annotate(annotated, tiny_model)
    files, request = surveyed(parameters(keep={"scores": {"good": {"threshold": -1e6}}}))
    with pytest.raises(
        AnnotationError, match=r'z.jsonl: the source documents already have a key "score_fun"; annotate'
    ):
        filter_file(files[2], request)


def test_documents_are_the_bytes_of_the_source_with_the_scores_added(
    parameters: Filter, annotated: Path, tiny_model: Path
) -> None:
    text = b'"language":"de", "text":"caf\\u00e9 \\/ ba"'
    lines = [
        b'\xef\xbb\xbf{ "n" : 1.0,' + text + b', "big": 123456789012345678901234567890, "n": 1e5 }\r',
        b'\t{"z": {"b": [0.10, -0], "b": null}, ' + text + b'} ',
    ]  # fmt: skip
    (annotated / "corpus" / "z.jsonl").write_bytes(b"\n\n".join(lines))
    annotate(annotated, tiny_model)
    params = parameters(keep={"scores": {"good": {"threshold": -1e6}}})
    files, request = surveyed(params)
    filter_file(files[2], request)
    scores = [line.split(b',"score_')[1:] for line in files[2].path.read_bytes().splitlines()]
    expected = [
        b'{"n" : 1.0,' + text + b', "big": 123456789012345678901234567890, "n": 1e5',
        b'{"z": {"b": [0.10, -0], "b": null}, ' + text,
    ]
    assert (params.filtered_dir / "z.jsonl").read_bytes().splitlines() == [
        b',"score_'.join([document, *of_document]) for document, of_document in zip(expected, scores, strict=True)
    ]
