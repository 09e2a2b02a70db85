"""The facts of a report as one self-contained HTML page."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mlfilter_core.job_kinds import kind_of_flow, kinds
from mlfilter_core.run_report.facts import FileFacts, FilterFacts, HeadFacts, LimitExample, OutputFacts, RunFacts
from mlfilter_core.run_report.file_overview import FileOverview, is_round, overview_of
from mlfilter_core.run_report.pictures import address_of, picture_of_head
from mlfilter_core.run_report.report_figures import (
    MAX_NUMBERED_SCORES,
    draw_correlations,
    draw_lengths,
    draw_score,
    draw_throughput,
    draw_time,
    is_worth_drawing,
    strongest_pairs,
)
from mlfilter_core.tallies.score_statistics import ScoreStatistics
from mlfilter_core.wording import count, duration, number, plural, rough_number, rough_share, share, shortened, size

TEMPLATE = "page.html"
# Limits of what is shown; report.json contains all.
MAX_RUNS, MAX_PAIRS, MAX_KEPT_GROUPS = 30, 20, 40
MAX_HEAD_PICTURES = 6
SUMMARY_CHARACTERS = 80  # of a document, before it is opened
MAX_ENCODERS = 3  # settings of the encoder that differ between workers
FEW_SCORES = 2  # up to this number of scores, plots have full size
ENCODER_FIELDS = (
    *("model", "revision", "weights_sha256", "tokenizer_sha256", "dim", "pooling", "is_normalized", "prompt"),
    *("max_length", "chunks", "model_dtype", "embedding_dtype", "attention", "is_compiled", "device"),
)
DIGEST_CHARACTERS = 16
METRICS = ("spearman", "pearson", "mae", "r2", "accuracy", "macro_f1", "roc_auc")  # first, as far as heads have them
# Columns of the table of files: fields of `FileFacts`, and whether they are numbers.
COLUMNS: Mapping[str, bool] = {
    **{"file": False, "flow": False, "status": False},
    **dict.fromkeys(("documents", "kept", "rejected", "truncated", "tokens", "seconds", "documents_per_s"), True),
    "started": True,
    **{"worker": False, "reason": False},
}


def render(facts: OutputFacts, overview: FileOverview | None = None) -> str:
    """Returns the page. Pictures are not escaped again: matplotlib has escaped their text.

    Args:
        facts: Facts of the output folder.
        overview: Overview of its files, if it is known.
    """
    overview = overview or overview_of(facts.files)
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        **{"count": count, "rough": rough_number, "size": size, "seconds": duration, "hours": hours},
        **{"number": number, "share": share, "rough_share": rough_share, "plural": plural},
        **{"when": when, "digest": _digest},
        "shortened": shortened,
        "title": _title,
        "words": lambda name: name.replace("_", " "),
    }
    flows = [flow for flow in _flows(facts) if not is_round(flow)]
    jobs = [next(run for run in facts.runs if run.flow == flow) for flow in flows]
    runs = [run for run in facts.runs if not is_round(run.flow) or run.state != "finished"]
    last_runs = [run for flow in flows if (run := facts.last_run(flow)) is not None]
    return environment.get_template(TEMPLATE).render(
        facts=facts,
        MAX_ENCODERS=MAX_ENCODERS,
        totals=facts.totals,
        title=Path(facts.output_dir).name,
        last_runs=last_runs,
        speeds=[speed for run in last_runs if (speed := _speed(run)) is not None],
        trained=[_head(head, facts.output_dir, i) for i, head in enumerate(facts.trained)],
        metrics=_metrics(facts.trained),
        filtered=_filtered(facts, overview),
        clustered=facts.clustered if facts.clustered and facts.clustered.clusters else None,
        deduplicated=facts.deduplicated,
        SUMMARY_CHARACTERS=SUMMARY_CHARACTERS,
        lengths=_lengths(facts),
        rejected_most=max((reject.count for reject in facts.rejects), default=1),
        scores=_scores(facts.scores, facts.filtered),
        overview=overview,
        runs=runs[:MAX_RUNS],
        n_runs=len(runs),
        encoder=[(name, _fact(name, facts.encoder[name])) for name in ENCODER_FIELDS if facts.encoder.get(name)],
        jobs=[run for run in jobs if run.job],
        versions=next((run.versions for run in facts.runs if run.versions), {}),
        table=_table(overview.shown),
    )


def hours(seconds: float) -> str:
    """Returns a sum of times in hours; less than one hour in minutes and seconds."""
    return duration(seconds) if seconds < 3600 else f"{number(seconds / 3600)} h"


def when(seconds: float | None) -> str:
    """Returns a time in UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds)) if seconds else "-"


def _flows(facts: OutputFacts) -> list[str]:
    """Returns the flows in the order in which a pipeline runs them, unknown ones last."""
    known = [flow for kind in kinds() for flow in (*kind.rounds, kind.flow)]
    flows = {run.flow for run in facts.runs}
    return [flow for flow in known if flow in flows] + sorted(flows - set(known))


def _title(flow: str) -> str:
    """Returns the name of a flow for people."""
    kind = kind_of_flow(flow)
    return kind.title if kind is not None and kind.title else flow.replace("_", " ")


def _fact(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{part} {n}" for part, n in sorted(value.items()))
    return _digest(value) if name.endswith("sha256") else str(value)


def _digest(sha256: str) -> str:
    return f"{sha256[:DIGEST_CHARACTERS]}…"


def _speed(run: RunFacts) -> Mapping[str, Any] | None:
    """Returns the speed of a flow's latest run; None where it is unknown. Short runs have no pictures."""
    if not run.workers:
        return None
    worker_s = run.busy_worker_s
    rates = run.rates if run.has_speed and run.rates is not None and is_worth_drawing(run.rates) else None
    return {
        "run": run,
        "documents": Markup(draw_throughput(rates, "documents")) if rates and run.documents else None,
        "tokens": Markup(draw_throughput(rates, "tokens")) if rates and rates.tokens else None,
        "time": Markup(draw_time(run)) if run.waited_s else None,
        **{
            f"{unit}_per_{of}": n / seconds if seconds else 0.0
            for unit, n in (("documents", run.documents), ("tokens", run.tokens))
            for of, seconds in (("s", run.seconds), ("worker_s", worker_s))
        },
        "between_s": max(0.0, run.held_worker_s - worker_s),
    }


def _lengths(facts: OutputFacts) -> Mapping[str, Any] | None:
    tokens = facts.document_tokens
    if not tokens.n:
        return None
    return {
        "figure": Markup(draw_lengths(tokens, facts.n_truncated, facts.max_length)),
        # A bin may reach beyond the maximum; no document does.
        "median": min(tokens.quantile(0.5), facts.max_length or math.inf),
        "p90": min(tokens.quantile(0.9), facts.max_length or math.inf),
    }


def _head(head: HeadFacts, output_dir: str, place: int) -> Mapping[str, Any]:
    """Returns a head with its picture, as an address, for the first heads."""
    svg = picture_of_head(head, output_dir) if place < MAX_HEAD_PICTURES else None
    return {**vars(head), "address": address_of(svg) if svg is not None else ""}


def _metrics(heads: Sequence[HeadFacts]) -> list[str]:
    """Returns the metrics of the table of heads: of whole heads, not of single targets."""
    found = dict.fromkeys(name for head in heads for name in head.metrics if "." not in name)
    return sorted(found, key=lambda name: (METRICS.index(name) if name in METRICS else len(METRICS), name))


def _filtered(facts: OutputFacts, overview: FileOverview) -> Mapping[str, Any] | None:
    filtered = facts.filtered
    if filtered is None:
        return None
    return {
        "facts": filtered,
        "groups": list(filtered.by_group.items())[:MAX_KEPT_GROUPS],
        "most": overview.most_kept,
        "least": overview.least_kept,
        "examples": [
            {
                "score": score,
                "group": group,
                **{str(reaches): _side(facts, score, group, reaches) for reaches in (0, 1)},
            }
            for score, group in dict.fromkeys((each.score, each.group) for each in filtered.examples)
        ],
    }


def _side(facts: OutputFacts, score: str, group: str, reaches: int) -> list[LimitExample]:
    """Returns the examples on one side of a limit, the nearest first."""
    assert facts.filtered is not None
    found = [
        each
        for each in facts.filtered.examples
        if (each.score, each.group, each.reaches) == (score, group, bool(reaches))
    ]
    return found if reaches else found[::-1]


def _scores(statistics: ScoreStatistics | None, filtered: FilterFacts | None) -> Mapping[str, Any] | None:
    if statistics is None or not statistics.n or not statistics.names:
        return None
    k = len(statistics.names)
    limits = [filtered.limits_of(name) if filtered else [] for name in statistics.names]
    rows = [
        {
            "name": name,
            "mean": statistics.means[i],
            "deviation": deviation,
            "minimum": statistics.minima[i],
            "maximum": statistics.maxima[i],
            **{f"p{p}": statistics.histograms[i].quantile(p / 100) for p in (10, 50, 90)},
        }
        for i, (name, deviation) in enumerate(zip(statistics.names, statistics.deviations(), strict=True))
    ]
    return {
        "n": statistics.n,
        "rows": rows,
        "figures": [Markup(draw_score(statistics, i, k > FEW_SCORES, limits[i])) for i in range(k)],
        "has_limits": any(limits),
        "is_many": k > FEW_SCORES,
        "constant": [row["name"] for row in rows if row["maximum"] == row["minimum"]],
        "correlations": Markup(draw_correlations(statistics)) if k > 1 else None,
        "pairs": strongest_pairs(statistics, MAX_PAIRS) if k > MAX_NUMBERED_SCORES else [],
    }


def _table(files: Sequence[FileFacts]) -> Markup:
    """Returns the table of files as JSON for a script element."""
    rows = [[_title(file.flow) if name == "flow" else _cell(getattr(file, name)) for name in COLUMNS] for file in files]
    table = {"columns": list(COLUMNS), "numbers": list(COLUMNS.values()), "rows": rows}
    written = json.dumps(table, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Without these letters, no value can end the element or begin a comment.
    for letter, escaped in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        written = written.replace(letter, escaped)
    return Markup(written)


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3) if math.isfinite(value) else None
    return value
