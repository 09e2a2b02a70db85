import base64
from xml.etree import ElementTree

from mlfilter_core.run_report.collect import collect
from mlfilter_core.run_report.pictures import MAX_SCORES, pictures_of
from tests.mlfilter_core.run_report.conftest import WriteOutputs
from tests.output_folders import documents, head

MAX_BYTES = 60_000  # an artifact is a row of Prefect's database


def test_pictures_stand_alone_and_are_small(write_outputs: WriteOutputs) -> None:
    heads = [head(f"h{i} <&>", i) for i in range(MAX_SCORES + 2)]
    facts = collect(write_outputs({"a.jsonl": documents("a", 30), "b.jsonl": documents("b", 5)}, heads))
    embed, annotate = (pictures_of(facts, flow) for flow in ("embed", "annotate"))
    assert (len(embed), len(annotate)) == (3, MAX_SCORES)
    for address in (*embed.values(), *annotate.values()):
        kind, _, content = address.partition(",")
        assert kind == "data:image/svg+xml;base64"
        assert len(address) < MAX_BYTES
        svg = base64.b64decode(content).decode()
        root = ElementTree.fromstring(svg)
        assert root.tag == "{http://www.w3.org/2000/svg}svg" and float(root.attrib["width"]) > 300
        assert "currentColor" not in svg and "var(--" not in svg


def test_a_flow_that_did_nothing_has_no_pictures(write_outputs: WriteOutputs) -> None:
    facts = collect(write_outputs({"a.jsonl": documents("a", 3)}))
    assert pictures_of(facts, "annotate") == {}
