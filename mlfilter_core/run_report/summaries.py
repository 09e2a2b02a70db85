"""What the outputs of jobs amount to, as Markdown for the summaries of the Prefect UI."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

from mlfilter_core.run_report.facts import FilterFacts, LimitExample, OutputFacts
from mlfilter_core.wording import count, natural_order, number, plural, share, shortened

MAX_ROWS, MAX_CLUSTERS, MAX_GROUPS = 40, 20, 10
N_CHARACTERS = 200


def summary_of_heads(facts: OutputFacts) -> str:
    """Returns the metrics of each head on its held-out documents."""
    names = list(dict.fromkeys(name for head in facts.trained for name in head.metrics if "." not in name))
    rows = [
        [head.name, *(number(head.metrics.get(name)) for name in names), count(head.trained_on), count(head.held_out)]
        for head in facts.trained[:MAX_ROWS]
    ]
    if not rows:
        return ""
    return _table("Metrics on held-out documents", ["head", *names, "trained on", "held out"], rows)


def summary_of_filter(facts: OutputFacts) -> str:
    """Returns the limits, what was kept, and documents near the limits."""
    filtered = facts.filtered
    if filtered is None:
        return ""
    parts = [_table("Limits", ["score", "asked for", "limit", "reach it", "share"], list(_limits(filtered)))]
    parts += map(escaped, filtered.notes)
    if len(filtered.by_group) > 1:
        names = [filtered.per or "", "documents", "kept", "share", "of tokens", "tokens kept"]
        names += [f"mean {name}" for name in filtered.asked]
        groups = [
            [*_kept(group, counts), *(number(means.get(group)) for means in filtered.mean_scores.values())]
            for group, counts in list(filtered.by_group.items())[:MAX_ROWS]
        ]
        parts.append(_table(f"Kept by {filtered.per}", names, groups))
        if len(groups) < len(filtered.by_group):
            parts.append(f"The {len(groups)} largest of {len(filtered.by_group):,}; `report.json` has all.")
    for (score, group), examples in groupby(filtered.examples, key=lambda each: (each.score, each.group)):
        parts.append(_near(score, group, list(examples)))
    return "\n\n".join(parts)


def summary_of_clusters(facts: OutputFacts) -> str:
    """Returns the largest clusters, and how many documents are in none."""
    clustered = facts.clustered
    if clustered is None or not clustered.clusters:
        return ""
    rows = [
        [
            *(each.name, count(each.documents), share(each.documents, clustered.listed)),
            number(each.mean_distance),
        ]
        for each in clustered.largest[:MAX_CLUSTERS]
    ]
    title = f"Largest of {plural(clustered.clusters, 'cluster')}"
    parts = [_table(title, ["cluster", "documents", "share", "mean distance"], rows)]
    if clustered.no_direction:
        parts.append(
            f"{plural(clustered.no_direction, 'document')} in no cluster: an embedding of zeros has no direction."
        )
    return "\n\n".join(parts)


def summary_of_duplicates(facts: OutputFacts) -> str:
    """Returns what is kept, and the largest groups with two of their texts side by side."""
    found = facts.deduplicated
    if found is None:
        return ""
    names = ["documents", "kept", "share", "of tokens", "duplicates", "groups", "threshold", "pairs found"]
    shares = [share(found.kept, found.documents), share(found.kept_tokens, found.tokens)]
    row = [count(found.documents), count(found.kept), *shares, count(found.duplicates)]
    row += [count(found.groups), str(found.threshold), found.pairs_found or "-"] if found.summarized else ["-"] * 3
    parts = [_table("Duplicates", names, [row])]
    rows = [_group(group) for group in found.largest[:MAX_GROUPS]]
    if rows:
        title = f"Largest of {plural(found.groups, 'group')}"
        parts.append(_table(title, ["documents", "kept", "least similar duplicate", "cosine"], rows))
    return "\n\n".join(parts)


def escaped(text: str) -> str:
    """Returns text in one line that Markdown shows as it is."""
    for letter in "\\`*_[]<>!|#":
        text = text.replace(letter, f"\\{letter}")
    return " ".join(text.split())


def _limits(filtered: FilterFacts) -> Iterator[list[str]]:
    for name, asked in filtered.asked.items():
        limits = filtered.limits_as_text[name]
        groups = sorted(list(filtered.by_group or limits)[:MAX_ROWS], key=natural_order)  # the largest
        shown = "; ".join(
            f"{group or 'without the key'}: {limits[group]}" if filtered.per else limits[group]
            for group in groups
            if group in limits
        )
        shown += f"; and those of {n:,} more" if (n := len(limits) - MAX_ROWS) > 0 else ""
        reached = filtered.reached[name]
        yield [name, asked, shown, count(reached), share(reached, filtered.counts["documents"])]


def _kept(group: str, counts: Mapping[str, int]) -> list[str]:
    shares = [share(counts["kept"], counts["documents"]), share(counts["kept_tokens"], counts["tokens"])]
    shares.append(count(counts["kept_tokens"]) if counts["tokens"] else "-")
    return [group or "without the key", count(counts["documents"]), count(counts["kept"]), *shares]


def _group(group: Mapping[str, Any]) -> list[str]:
    kept, least = group["shown"][:2]
    texts = [shortened(each["text"] or each["document_id"], N_CHARACTERS) for each in (kept, least)]
    return [count(group["documents"]), *texts, "same text" if least["cosine"] is None else f"{least['cosine']:.4f}"]


def _near(score: str, group: str, examples: Sequence[LimitExample]) -> str:
    lines = [f"## Near the limit of {escaped(score)}{f', {escaped(group)}' if group else ''}", ""]
    for each in sorted(examples, key=lambda each: -each.value):
        side = "above" if each.reaches else "below"
        lines.append(f"- {side}, **{each.value:.4g}**, {escaped(each.id)}: {escaped(each.text[:N_CHARACTERS])}")
    return "\n".join(lines)


def _table(title: str, names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [list(names), ["---"] * len(names), *([escaped(cell) for cell in row] for row in rows)]
    return "\n".join([f"## {title}", "", *(f"| {' | '.join(line)} |" for line in lines)])
