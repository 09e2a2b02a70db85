"""The facts of a report as one HTML file that needs nothing else."""

import json
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from mlfilter_core.run_report.facts import TRAINING, FileFacts, OutputFacts
from mlfilter_core.run_report.figures import (
    MAX_NUMBERED_SCORES,
    draw_correlations,
    draw_lengths,
    draw_score,
    draw_throughput,
    draw_time,
    strongest_pairs,
)
from mlfilter_core.tallies.score_statistics import ScoreStatistics

TEMPLATE = "page.html"
# What is shown of many; the table of files and report.json have all.
MAX_FAILED, MAX_SLOWEST, MAX_RUNS, MAX_PAIRS = 50, 10, 30, 20
MAX_ENCODERS = 3  # ways to compute that workers may differ in
FEW_SCORES = 2  # have plots of full size
ENCODER_FIELDS = (
    *("model", "revision", "weights_sha256", "tokenizer_sha256", "dim", "pooling", "is_normalized", "prompt"),
    *("max_length", "model_dtype", "embedding_dtype", "attention", "is_compiled", "device"),
)
DIGEST_CHARACTERS = 16
# Of the table of files: a field of `FileFacts`, and whether it is a number.
COLUMNS: Mapping[str, bool] = {
    **{"file": False, "flow": False, "status": False},
    **dict.fromkeys(("documents", "rejected", "truncated", "tokens", "seconds", "documents_per_s", "started"), True),
    **{"worker": False, "reason": False},
}


def render(facts: OutputFacts) -> str:
    """Returns the page."""
    folder = Path(__file__).parent
    environment = Environment(
        loader=FileSystemLoader(folder),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        **{"count": count, "short": short, "seconds": duration, "when": when, "number": number, "share": share},
        **{"hours": hours, "of": n_of, "digest": _digest},
        "words": lambda name: name.replace("_", " "),
    }
    return environment.get_template(TEMPLATE).render(
        facts=facts,
        MAX_ENCODERS=MAX_ENCODERS,
        totals=facts.totals,
        title=Path(facts.output_dir).name,
        speeds=[speed for flow in _flows(facts) if (speed := _speed(facts, flow)) is not None],
        lengths=_lengths(facts),
        rejected_most=max((reject.count for reject in facts.rejects), default=1),
        scores=_scores(facts.scores),
        failed=[file for file in facts.files if file.status == "failed"][:MAX_FAILED],
        n_failed=sum(file.status == "failed" for file in facts.files),
        slowest=sorted((file for file in facts.files if file.seconds), key=lambda file: -file.seconds)[:MAX_SLOWEST],
        runs=facts.runs[:MAX_RUNS],
        encoder=[(name, _fact(name, facts.encoder[name])) for name in ENCODER_FIELDS if facts.encoder.get(name)],
        jobs=[run for flow in _job_flows(facts) if (run := next(run for run in facts.runs if run.flow == flow)).job],
        versions=next((run.versions for run in facts.runs if run.versions), {}),
        table=_table(facts.files),
    )


def count(value: float) -> str:
    """Returns a whole number as `1,234`."""
    return f"{value:,.0f}"


def short(value: float) -> str:
    """Returns a large number so that it reads at a glance: `1,234`, `12.3 M`, `4.56 B`."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(value) >= 0.9995 * size:  # is rounded up to it
            return f"{value / size:.3g} {letter}"
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def number(value: float) -> str:
    """Returns a score."""
    return "-" if math.isnan(value) else f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def share(part: float, whole: float) -> str:
    """Returns a part as per cent of a whole: `3.2 %`; few of many are not none."""
    if not whole:
        return "-"
    if 0 < part / whole < 0.0005:
        return "< 0.1 %"
    return f"{part / whole:.1%}".replace("%", " %")


def duration(seconds: float) -> str:
    """Returns a time for people: `45.3 s`, `12 min 3 s`, `3 h 12 min`, `2 d 4 h`."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    minutes, hours = whole // 60, whole // 3600
    if minutes < 60:
        return f"{minutes} min {whole % 60} s"
    return f"{hours} h {minutes % 60} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def hours(seconds: float) -> str:
    """Returns a sum of times: hours, or less than one in minutes and seconds."""
    return duration(seconds) if seconds < 3600 else f"{short(seconds / 3600)} h"


def n_of(n: int, thing: str) -> str:
    """Returns `1 file`, `1,234 files`."""
    return f"{n:,} {thing}" if n == 1 else f"{n:,} {thing}s"


def when(seconds: float | None) -> str:
    """Returns a moment in UTC."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(seconds)) if seconds else "-"


def _flows(facts: OutputFacts) -> list[str]:
    """Returns the flows in the order of the data's way, others after them."""
    known = ("embed", TRAINING, "annotate")
    flows = {run.flow for run in facts.runs}
    return [flow for flow in known if flow in flows] + sorted(flows - set(known))


def _job_flows(facts: OutputFacts) -> list[str]:
    """Returns the flows whose jobs are shown: a survey is the first step of a filter's."""
    flows = _flows(facts)
    return [flow for flow in flows if flow != "survey" or "filter" not in flows]


def _fact(name: str, value: Any) -> str:
    return _digest(value) if name.endswith("sha256") else str(value)


def _digest(sha256: str) -> str:
    return f"{sha256[:DIGEST_CHARACTERS]}…"


def _speed(facts: OutputFacts, flow: str) -> Mapping[str, Any] | None:
    """Returns what is said of how fast the latest run of a flow was; None where it finished nothing that says."""
    run = facts.last_run(flow) if flow != TRAINING else None
    if run is None or run.rates is None or not run.workers:
        return None
    worker_s = run.busy_worker_s
    return {
        "run": run,
        "documents": _svg(draw_throughput(run.rates, "documents")) if run.documents else None,
        "tokens": _svg(draw_throughput(run.rates, "tokens")) if run.rates.tokens else None,
        "time": _svg(draw_time(run)),
        "limit": min(run.waited_s, key=lambda stage: run.waited_s[stage]) if run.waited_s else None,
        "documents_per_s": run.documents / run.seconds if run.seconds else 0.0,
        "tokens_per_s": run.tokens / run.seconds if run.seconds else 0.0,
        "documents_per_worker_s": run.documents / worker_s if worker_s else 0.0,
        "tokens_per_worker_s": run.tokens / worker_s if worker_s else 0.0,
        "between_s": max(0.0, run.held_worker_s - worker_s),
    }


def _lengths(facts: OutputFacts) -> Mapping[str, Any] | None:
    tokens = facts.document_tokens
    if not tokens.n:
        return None
    return {
        "figure": _svg(draw_lengths(tokens, facts.totals.truncated, facts.max_length)),
        # No document has more than that, though its bin does.
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
        "figures": [_svg(draw_score(statistics, i, k > FEW_SCORES)) for i in range(k)],
        "is_many": k > FEW_SCORES,
        "constant": [row["name"] for row in rows if row["maximum"] == row["minimum"]],
        "correlations": _svg(draw_correlations(statistics)) if k > 1 else None,
        "pairs": strongest_pairs(statistics, MAX_PAIRS) if k > MAX_NUMBERED_SCORES else [],
    }


def _table(files: Sequence[FileFacts]) -> Markup:
    """Returns the table of files as JSON that can stand in a script element."""
    rows = [[_cell(getattr(file, name)) for name in COLUMNS] for file in files]
    table = {"columns": list(COLUMNS), "numbers": list(COLUMNS.values()), "rows": rows}
    written = json.dumps(table, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    # Nothing in it can end the element, or begin a comment.
    for letter, escaped in (("<", "\\u003c"), (">", "\\u003e"), ("&", "\\u0026")):
        written = written.replace(letter, escaped)
    return Markup(written)


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return round(value, 3) if math.isfinite(value) else None
    return value


def _svg(figure: str) -> Markup:
    return Markup(figure)  # matplotlib has escaped what is written in it
