"""The pictures of one flow's latest run, for pages that show images and nothing else, such as the Prefect UI's."""

import base64
from collections.abc import Mapping

from mlfilter_core.run_report.facts import OutputFacts
from mlfilter_core.run_report.figures import draw_lengths, draw_score, draw_throughput, draw_time, standalone

MAX_SCORES = 4  # histograms; a picture takes some 20 kB, and the UI loads all of them with the text


def pictures_of(facts: OutputFacts, flow: str) -> Mapping[str, str]:
    """Returns what stands in a `data:` address of an image, by what it shows.

    Args:
        facts: Of the output folder.
        flow: `embed`, `annotate`, ...
    """
    drawn: dict[str, str] = {}
    run = facts.last_run(flow)
    if run is not None and run.rates is not None and run.documents:
        drawn["Documents a second"] = draw_throughput(run.rates, "documents")
        drawn["Where the time went: at work (filled), waiting (hatched)"] = draw_time(run)
    if flow == "embed" and facts.document_tokens.n:
        drawn["Tokens of documents"] = draw_lengths(facts.document_tokens, facts.totals.truncated, facts.max_length)
    if flow == "annotate" and facts.scores is not None and facts.scores.n:
        for i, name in enumerate(facts.scores.names[:MAX_SCORES]):
            drawn[name] = draw_score(facts.scores, i, is_small=False)
    return {
        title: f"data:image/svg+xml;base64,{base64.b64encode(standalone(svg).encode()).decode()}"
        for title, svg in drawn.items()
    }
