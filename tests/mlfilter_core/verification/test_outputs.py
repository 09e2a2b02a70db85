from mlfilter_core.verification.output_kinds import Output
from mlfilter_core.verification.outputs import Outputs


def find(path: str) -> Output | None:
    """The output `x.out` has a sidecar `x.out.json`; a sidecar of anything else shows an output of its own."""
    name = path.removesuffix(".json")
    return Output(name, name.removesuffix(".out")) if path.endswith((".out", ".json")) else None


def test_outputs_are_sorted_and_there_once_however_many_files_belong_to_them() -> None:
    outputs = Outputs(find)
    assert [outputs.add(path) for path in ("b.out.json", "b.out", "ä.out", "a.out", "other")] == [True] * 4 + [False]
    outputs.pack()
    expected = [Output("a.out", "a"), Output("b.out", "b"), Output("ä.out", "ä")]
    assert list(outputs) == expected and len(outputs) == 3
    assert (outputs[-1], outputs[::2]) == (expected[2], expected[::2])


def test_an_output_that_another_file_alone_shows_keeps_its_name() -> None:
    outputs = Outputs(find)
    outputs.add("gone.json")
    outputs.pack()
    assert list(outputs) == [Output("gone", "gone")]


def test_there_may_be_none() -> None:
    outputs = Outputs(find)
    outputs.pack()
    assert not outputs and list(outputs) == []
