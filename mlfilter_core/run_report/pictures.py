"""Pictures of a flow's latest run and its outputs, as images for pages such as the Prefect UI's."""

import base64
from collections.abc import Mapping

from mlfilter_core.job_kinds import kind_of_flow, load_entry_point
from mlfilter_core.run_report.facts import OutputFacts
from mlfilter_core.run_report.report_figures import draw_lengths, draw_score, draw_throughput, draw_time, standalone

MAX_SCORES = 4  # histograms; a picture takes some 20 kB, and the UI loads all of them with the text


def pictures_of(facts: OutputFacts, flow: str) -> Mapping[str, str]:
    """Returns `data:` addresses of images, by their titles.

    Args:
        facts: Facts of the output folder.
        flow: `embed`, `annotate`, ...
    """
    drawn: dict[str, str] = {}
    run = facts.last_run(flow)
    if run is not None and run.rates is not None and run.documents:
        drawn["Documents per second"] = draw_throughput(run.rates, "documents")
        drawn["Where the time went: busy (filled), waiting (hatched)"] = draw_time(run)
    kind = kind_of_flow(flow)
    if kind is not None and kind.flow == flow and kind.pictures is not None:
        drawn |= load_entry_point(kind.pictures)(facts)
    return {
        title: f"data:image/svg+xml;base64,{base64.b64encode(standalone(svg).encode()).decode()}"
        for title, svg in drawn.items()
    }


def pictures_of_embeddings(facts: OutputFacts) -> Mapping[str, str]:
    """Returns the histogram of the documents' lengths, as SVG by its title."""
    if not facts.document_tokens.n:
        return {}
    return {"Tokens per document": draw_lengths(facts.document_tokens, facts.totals.truncated, facts.max_length)}


def pictures_of_annotations(facts: OutputFacts) -> Mapping[str, str]:
    """Returns the histograms of the first scores, as SVG by the scores' names."""
    if facts.scores is None or not facts.scores.n:
        return {}
    names = facts.scores.names[:MAX_SCORES]
    return {name: draw_score(facts.scores, i, is_small=False) for i, name in enumerate(names)}
