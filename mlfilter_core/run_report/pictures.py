"""Pictures of a flow's latest run and its outputs, as images for pages such as the Prefect UI's."""

import base64
from collections.abc import Mapping
from pathlib import Path

from mlfilter_core.job_kinds import kind_of_flow, load_entry_point
from mlfilter_core.run_report.facts import HeadFacts, OutputFacts
from mlfilter_core.run_report.report_figures import (
    draw_clusters,
    draw_lengths,
    draw_score,
    draw_throughput,
    draw_time,
    is_worth_drawing,
    standalone,
)

XML = "<?xml"  # begins a picture that is complete
MAX_PICTURE_BYTES = 300_000  # a page stays small enough to send
MAX_CLUSTERS = 20  # bars
MAX_SCORES = 4  # histograms; a picture takes some 20 kB, and the UI loads all of them with the text


def pictures_of(facts: OutputFacts, flow: str) -> Mapping[str, str]:
    """Returns `data:` addresses of images, by their titles.

    Args:
        facts: Facts of the output folder.
        flow: `embed`, `annotate`, ...
    """
    drawn: dict[str, str] = {}
    run = facts.last_run(flow)
    if run is not None and run.has_speed and run.rates is not None and run.documents and is_worth_drawing(run.rates):
        drawn["Documents per second"] = draw_throughput(run.rates, "documents")
    if run is not None and run.waited_s:
        drawn["Where the time went: busy (filled), waiting (hatched)"] = draw_time(run)
    kind = kind_of_flow(flow)
    if kind is not None and kind.flow == flow and kind.pictures is not None:
        drawn |= load_entry_point(kind.pictures)(facts)
    return {title: address_of(svg if svg.startswith(XML) else standalone(svg)) for title, svg in drawn.items()}


def address_of(svg: str) -> str:
    """Returns a picture as a `data:` address."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def picture_of_head(head: HeadFacts, output_dir: str) -> str | None:
    """Returns the picture of a head's training as SVG; None if it is missing or large."""
    path = Path(output_dir, head.picture)
    try:
        return path.read_text() if path.stat().st_size <= MAX_PICTURE_BYTES else None
    except (OSError, ValueError):
        return None


def pictures_of_heads(facts: OutputFacts) -> Mapping[str, str]:
    """Returns the trainings of the first heads, as SVG by the heads' names."""
    drawn = {head.name: picture_of_head(head, facts.output_dir) for head in facts.trained[:MAX_SCORES]}
    return {name: svg for name, svg in drawn.items() if svg is not None}


def pictures_of_limits(facts: OutputFacts) -> Mapping[str, str]:
    """Returns the histograms of the scores that a filter used, with its limits, as SVG by the scores' names."""
    if facts.scores is None or facts.filtered is None or not facts.scores.n:
        return {}
    limits = {name: facts.filtered.limits_of(name) for name in facts.scores.names}
    used = [(i, name) for i, name in enumerate(facts.scores.names) if limits[name]][:MAX_SCORES]
    return {
        f"{name}, with limits{_sample(facts, 'scores')}": draw_score(
            facts.scores, i, is_small=False, limits=limits[name]
        )
        for i, name in used
    }


def pictures_of_clusters(facts: OutputFacts) -> Mapping[str, str]:
    """Returns the sizes of the largest clusters, as SVG by its title."""
    if facts.clustered is None or not facts.clustered.largest:
        return {}
    largest = facts.clustered.largest[:MAX_CLUSTERS]
    names, documents = [cluster.name for cluster in largest], [cluster.documents for cluster in largest]
    return {"Largest clusters": draw_clusters(names, documents)}


def summary_of(facts: OutputFacts, flow: str) -> str:
    """Returns Markdown about the outputs of a flow; empty where there is nothing to say."""
    kind = kind_of_flow(flow)
    if kind is None or kind.flow != flow or kind.markdown is None:
        return ""
    return str(load_entry_point(kind.markdown)(facts))


def pictures_of_embeddings(facts: OutputFacts) -> Mapping[str, str]:
    """Returns the histogram of the documents' lengths, as SVG by its title."""
    if not facts.document_tokens.n:
        return {}
    title = f"Tokens per document{_sample(facts, 'document_tokens')}"
    return {title: draw_lengths(facts.document_tokens, facts.n_truncated, facts.max_length)}


def pictures_of_annotations(facts: OutputFacts) -> Mapping[str, str]:
    """Returns the histograms of the first scores, as SVG by the scores' names."""
    if facts.scores is None or not facts.scores.n:
        return {}
    names = facts.scores.names[:MAX_SCORES]
    of = _sample(facts, "scores")
    return {f"{name}{of}": draw_score(facts.scores, i, is_small=False) for i, name in enumerate(names)}


def _sample(facts: OutputFacts, name: str) -> str:
    return f", from {facts.samples[name]}" if name in facts.samples else ""
