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
from mlfilter_core.run_report.facts import FileFacts, OutputFacts, RunFacts
from mlfilter_core.run_report.report_figures import (
    MAX_NUMBERED_SCORES,
    draw_correlations,
    draw_lengths,
    draw_score,
    draw_throughput,
    draw_time,
    strongest_pairs,
)
from mlfilter_core.tallies.score_statistics import ScoreStatistics
from mlfilter_core.wording import count, duration, number, plural, rough_number, share, size

TEMPLATE = "page.html"
# Limits of what is shown; the table of files and report.json contain everything.
MAX_FAILED, MAX_SLOWEST, MAX_RUNS, MAX_PAIRS = 50, 10, 30, 20
MAX_ENCODERS = 3  # settings of the encoder that differ between workers
FEW_SCORES = 2  # up to this number of scores, plots have full size
ENCODER_FIELDS = (
    *("model", "revision", "weights_sha256", "tokenizer_sha256", "dim", "pooling", "is_normalized", "prompt"),
    *("max_length", "chunks", "model_dtype", "embedding_dtype", "attention", "is_compiled", "device"),
)
DIGEST_CHARACTERS = 16
# Columns of the table of files: fields of `FileFacts`, and whether they are numbers.
COLUMNS: Mapping[str, bool] = {
    **{"file": False, "flow": False, "status": False},
    **dict.fromkeys(("documents", "rejected", "truncated", "tokens", "seconds", "documents_per_s", "started"), True),
    **{"worker": False, "reason": False},
}


def render(facts: OutputFacts) -> str:
    """Returns the page. Pictures are not escaped again: matplotlib has escaped their text."""
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
        **{"number": number, "share": share, "plural": plural, "when": when, "digest": _digest},
        "words": lambda name: name.replace("_", " "),
    }
    flows = _flows(facts)
    jobs = [next(run for run in facts.runs if run.flow == flow) for flow in flows if not _is_round(flow, flows)]
    return environment.get_template(TEMPLATE).render(
        facts=facts,
        MAX_ENCODERS=MAX_ENCODERS,
        totals=facts.totals,
        title=Path(facts.output_dir).name,
        speeds=[speed for flow in flows if (speed := _speed(facts.last_run(flow))) is not None],
        lengths=_lengths(facts),
        rejected_most=max((reject.count for reject in facts.rejects), default=1),
        scores=_scores(facts.scores),
        failed=[file for file in facts.files if file.status == "failed"][:MAX_FAILED],
        n_failed=sum(file.status == "failed" for file in facts.files),
        slowest=sorted((file for file in facts.files if file.seconds), key=lambda file: -file.seconds)[:MAX_SLOWEST],
        runs=facts.runs[:MAX_RUNS],
        encoder=[(name, _fact(name, facts.encoder[name])) for name in ENCODER_FIELDS if facts.encoder.get(name)],
        jobs=[run for run in jobs if run.job],
        versions=next((run.versions for run in facts.runs if run.versions), {}),
        table=_table(facts.files),
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


def _is_round(flow: str, flows: Sequence[str]) -> bool:
    """Returns whether a flow is a round of another flow in the report, which has the same job."""
    kind = kind_of_flow(flow)
    return kind is not None and kind.flow != flow and kind.flow in flows


def _fact(name: str, value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{part} {n}" for part, n in sorted(value.items()))
    return _digest(value) if name.endswith("sha256") else str(value)


def _digest(sha256: str) -> str:
    return f"{sha256[:DIGEST_CHARACTERS]}…"


def _speed(run: RunFacts | None) -> Mapping[str, Any] | None:
    """Returns the speed of a flow's latest run; None where it is unknown or means nothing."""
    if run is None or not run.has_speed or run.rates is None or not run.workers:
        return None
    worker_s = run.busy_worker_s
    return {
        "run": run,
        "documents": Markup(draw_throughput(run.rates, "documents")) if run.documents else None,
        "tokens": Markup(draw_throughput(run.rates, "tokens")) if run.rates.tokens else None,
        "time": Markup(draw_time(run)),
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
        "figure": Markup(draw_lengths(tokens, facts.totals.truncated, facts.max_length)),
        # A bin may reach beyond the maximum; no document does.
        "median": min(tokens.quantile(0.5), facts.max_length or math.inf),
        "p90": min(tokens.quantile(0.9), facts.max_length or math.inf),
    }


def _scores(statistics: ScoreStatistics | None) -> Mapping[str, Any] | None:
    if statistics is None or not statistics.n or not statistics.names:
        return None
    k = len(statistics.names)
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
        "figures": [Markup(draw_score(statistics, i, k > FEW_SCORES)) for i in range(k)],
        "is_many": k > FEW_SCORES,
        "constant": [row["name"] for row in rows if row["maximum"] == row["minimum"]],
        "correlations": Markup(draw_correlations(statistics)) if k > 1 else None,
        "pairs": strongest_pairs(statistics, MAX_PAIRS) if k > MAX_NUMBERED_SCORES else [],
    }


def _table(files: Sequence[FileFacts]) -> Markup:
    """Returns the table of files as JSON for a script element."""
    rows = [[_cell(getattr(file, name)) for name in COLUMNS] for file in files]
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
