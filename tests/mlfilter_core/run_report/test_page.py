import json
import re
from dataclasses import replace
from html.parser import HTMLParser

from mlfilter_core.run_report.collect import collect
from mlfilter_core.run_report.facts import FileFacts
from mlfilter_core.run_report.file_overview import MAX_TABLE_ROWS
from mlfilter_core.run_report.page import render
from mlfilter_core.work.run_log import JOB
from tests.mlfilter_core.run_report.conftest import WriteOutputs
from tests.output_folders import STARTED, documents, head, write_run

HOSTILE = "<script>alert('$x$')</script>&--><!--"


class Elements(HTMLParser):
    """Collects the elements of a page, and checks that each is closed."""

    VOID = ("meta", "link", "input", "br", "use", "path", "rect", "stop")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, text: str) -> None:
        if "script" not in self.open and "style" not in self.open:
            self.text += text


def read(page: str) -> Elements:
    elements = Elements(page)
    assert elements.open == []
    return elements


def test_the_page_says_what_came_out(write_outputs: WriteOutputs) -> None:
    files = {"a.jsonl": [*documents("a", 20), b"no json"], "b.jsonl": documents("b", 11)}
    page = render(collect(write_outputs(files, (head("education", 1), head("toxicity", 2)))))
    said = re.sub(r"\s+", " ", read(page).text)
    assert "32 lines = 31 documents + 1 rejected + 0 blank every line is accounted for" in said
    for part in ("Speed", "Documents", "Scores", "Correlation of scores", "Files", "Runs", "How it was made"):
        assert part in said
    assert "not json: examples" in said and "encoding waited least: it is the bottleneck" in said
    assert "score_education" in said and "Pearson's correlation" in said
    # Speed and time of embedding, lengths, scores, correlations; a scoring of 1.5 seconds has no picture of its speed.
    assert page.count("<svg") == 3 + 1 + 2 + 1


def test_the_page_needs_nothing_from_elsewhere(write_outputs: WriteOutputs) -> None:
    page = render(collect(write_outputs({"a.jsonl": documents("a", 5)}, (head("h", 1),))))
    for tag, attributes in read(page).found:
        for name in ("src", "href", "xlink:href", "action", "data"):
            value = attributes.get(name)
            assert value is None or value.startswith(("#", "data:")), (tag, value)
    assert "url(http" not in page and "@import" not in page
    assert "default-src 'none'" in page


def test_markup_in_names_stays_text(write_outputs: WriteOutputs) -> None:
    line = HOSTILE.encode()
    output_dir = write_outputs({"a.jsonl": [*documents("a", 5), line]}, (head(HOSTILE, 1), head("b", 2)))
    facts = collect(output_dir)
    failed = FileFacts(HOSTILE, "embed", HOSTILE, "failed", reason=HOSTILE, worker=HOSTILE)
    page = render(replace(facts, notices=[HOSTILE], files=[*facts.files, failed], output_dir=f"/x/{HOSTILE}"))
    elements = read(page)
    assert sum(tag == "script" for tag, _ in elements.found) == 2
    assert "alert('$x$')" in elements.text  # as text, including dollar signs
    assert not re.search(r"<script>alert", page)
    table = re.search(r'id="rows">(.*?)</script>', page, re.DOTALL)
    assert table is not None
    assert json.loads(table[1])["rows"][-1][0] == HOSTILE


def test_scores_that_are_all_equal_are_said_to_be(write_outputs: WriteOutputs) -> None:
    heads = (head("same", 1, scale=0.0), head("other", 2))
    said = read(render(collect(write_outputs({"a.jsonl": documents("a", 12)}, heads)))).text
    assert "All documents have the same score_same." in said
    assert "A constant score has none." in said


def test_one_document_is_enough(write_outputs: WriteOutputs) -> None:
    facts = collect(write_outputs({"a.jsonl": documents("a", 1)}, (head("education", 1), head("toxicity", 2))))
    page = read(render(facts))
    assert facts.totals.documents == 1
    assert "1 lines = 1 documents + 0 rejected + 0 blank" in re.sub(r"\s+", " ", page.text)


def test_a_corpus_of_no_documents_is_a_page_too(write_outputs: WriteOutputs) -> None:
    page = read(render(collect(write_outputs({"a.jsonl": [b"", b"no json"]}, (head("education", 1),)))))
    assert "2 lines = 0 documents + 1 rejected + 1 blank" in re.sub(r"\s+", " ", page.text)


def test_fifty_heads_have_a_plot_each_and_the_strongest_pairs(write_outputs: WriteOutputs) -> None:
    heads = [head(f"head-{i}", i) for i in range(49)] + [head("head-0-again", 0)]
    facts = collect(write_outputs({"a.jsonl": documents("a", 30)}, heads))
    page = render(facts)
    elements = read(page)
    assert page.count('aria-label="histogram of score_head-') == 50
    rows = re.sub(r"\s+", " ", elements.text.partition("Strongest correlations")[2])
    assert "score_head-0score_head-0-again1.00" in rows[:60]
    assert len(page) < 3_000_000


def test_a_run_that_goes_on_and_has_no_annotated_files_says_so(write_outputs: WriteOutputs) -> None:
    said = read(render(collect(write_outputs({"a.jsonl": documents("a", 3)}, has_end=False)))).text
    assert "embed-one was killed" in said and "there are no annotated files yet" in said


def test_flows_stand_in_the_order_of_a_pipeline_and_rounds_share_the_job_of_their_flow(
    write_outputs: WriteOutputs,
) -> None:
    output_dir = write_outputs({"a.jsonl": documents("a", 3)}, (head("education", 1),))
    done = {"file": "a", "status": "surveyed", "documents": 3, "started": STARTED, "seconds": 5.0, "worker": "w"}
    for i, flow in enumerate(("zoom", "filter", "survey", "train_head")):
        write_run(output_dir / "logs" / f"{flow}-one", flow, [done], after_s=3000 + i)
        (output_dir / "logs" / f"{flow}-one" / JOB).write_text("params: {}")
    page = render(collect(output_dir))
    speeds = page.partition('id="speed"')[2].partition("</table>")[0]
    assert re.findall(r'scope="row">([\w ]+)<', speeds) == ["Embedding", "Training", "Scoring", "Filtering", "zoom"]
    assert re.findall(r"<h3>([\w ]+)</h3>\s*<pre", page) == ["Training", "Filtering", "zoom"]  # jobs
    assert "survey" not in read(page).text


def test_the_page_of_many_files_stays_small_and_shows_those_that_tell_something(write_outputs: WriteOutputs) -> None:
    facts = collect(write_outputs({"a.jsonl": documents("a", 3)}, ()))
    n = 3 * MAX_TABLE_ROWS
    files = [
        FileFacts(f"CC-MAIN-2024-10/{i:06}-of-{n}.jsonl", "embed", "run", "embedded", 20, 0, 0, 580, 1.0 + i / n)
        for i in range(n)
    ]
    files[7] = replace(files[7], status="failed", reason="no text")
    files[8] = replace(files[8], rejected=3)
    page = render(replace(facts, files=files))
    assert len(page.encode()) < 5_000_000
    text = re.sub(r"\s+", " ", read(page).text)
    assert f"The table has {MAX_TABLE_ROWS:,} of {n:,} files" in text
    rows = json.loads(re.findall(r'<script type="application/json" id="rows">(.*?)</script>', page)[0])["rows"]
    names = [row[0] for row in rows]
    assert len(names) == MAX_TABLE_ROWS
    assert names[:2] == [files[7].file, files[8].file]
    assert names[2:] == [file.file for file in files[-MAX_TABLE_ROWS + 2 :]], "the slowest"
