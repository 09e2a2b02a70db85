from pathlib import Path
from typing import Any

import pytest

from mlfilter_core.errors import OutputConflictError
from mlfilter_core.work.same_request import check_same_request, differing_fields


@pytest.mark.parametrize(
    ("made", "asked", "said"),
    [
        ({"max_length": 512}, {"max_length": 256}, "max_length: 512 in the file, 256 asked for"),
        ({"keys": ["a"]}, {"keys": ("a",)}, ""),
        ({}, {"prompt": None}, ""),
        ({"scales": {}}, {}, "scales: {} in the file, None asked for"),
        ({"cuts": {"": 1}}, {"cuts": {"": 2}}, "cuts: 1 in the file, 2 asked for"),
        ({}, {"prompt": "query: "}, "prompt: None in the file, 'query: ' asked for"),
        ({"scales": {"q": [0, 5]}}, {}, "scales: {'q': [0, 5]} in the file, None asked for"),
        (
            {"heads": {"a": "0" * 64, "b": "1"}, "keep": {"q": {}}},
            {"heads": {"a": "f" * 64, "b": "1"}, "keep": {"q": {"percentile": 50}}},
            "heads.a: 000000000000 in the file, ffffffffffff asked for; keep.q.percentile: None in the file, 50 asked "
            "for",
        ),
        ({"a": "x" * 999}, {"a": "y"}, f"a: '{'x' * 196}... in the file, 'y' asked for"),
        (
            {"cuts": dict.fromkeys(map(str, range(100)), 1)},
            {"cuts": dict.fromkeys(map(str, range(100)), 2)},
            "".join(f"cuts.{i}: 1 in the file, 2 asked for; " for i in range(40)) + "and 60 more",
        ),
    ],
)
def test_each_differing_field_is_named_with_both_values(made: dict[str, Any], asked: dict[str, Any], said: str) -> None:
    assert differing_fields(made, asked) == said


def test_an_output_of_another_request_is_refused_with_what_to_do() -> None:
    with pytest.raises(OutputConflictError) as refused:
        check_same_request(Path("x.h5"), {"n": 1, "model": "a"}, {"n": 2, "model": "b"}, ignored=["model"], field="dir")
    assert str(refused.value) == (
        "x.h5 was made by another request: n: 1 in the file, 2 asked for; use another dir, or set "
        "params.overwrite: true to replace it, or keep its settings"
    )
    check_same_request(Path("x.h5"), {"n": 1, "model": "a"}, {"n": 1, "model": "b"}, ignored=["model"])
