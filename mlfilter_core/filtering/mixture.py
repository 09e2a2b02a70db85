"""The division of a number of tokens among groups by their weights."""

from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction

from mlfilter_core.wording import natural_order, plural

MAX_NAMED_GROUPS = 20  # in a note; arbitrary


def shares_of(total: int, weights: Mapping[str, float]) -> dict[str, int]:
    """Returns the tokens of each group: total · weight / sum of the weights, rounded down.

    It is computed in fractions, from the weights as they were written in decimals.
    Example: 100 with the weights a: 2, b: 0.5 and c: 0.5 is a: 66, b: 16, c: 16.

    Args:
        total: Number of tokens.
        weights: At least one is above 0.
    """
    exact = {group: Fraction(str(weight)) for group, weight in weights.items()}
    whole = sum(exact.values())
    return {group: total * weight // whole for group, weight in exact.items()}


def notes_on(shares: Mapping[str, int], tokens: Mapping[str, int], documents: Mapping[str, int]) -> Iterator[str]:
    """Yields what a person should know about a mixture: groups that fall short, are not there, or have no weight.

    Args:
        shares: Tokens of each group with a weight.
        tokens: Tokens of the documents with the score, of each group in the corpus.
        documents: Number of these documents.
    """
    short = {group: shares[group] - own for group, own in tokens.items() if own < shares.get(group, 0)}
    if short:
        yield (
            f"{plural(len(short), 'group')} with fewer tokens than the share, kept whole, {sum(short.values()):,} "
            f"tokens short in all: {_named(short, lambda group: f'{tokens[group]:,} of {shares[group]:,}')}"
        )
    absent = {group: share for group, share in shares.items() if group not in tokens}
    if absent:
        yield (
            f"{plural(len(absent), 'group')} with a weight but no document, {sum(absent.values()):,} tokens short in "
            f"all: {_named(absent, lambda group: f'0 of {shares[group]:,}')}"
        )
    without = {group: n for group, n in documents.items() if group not in shares}
    if without:
        yield (
            f"{plural(len(without), 'group')} without a weight, no tokens for "
            f"{plural(sum(without.values()), 'document')}: "
            f"{_named(without, lambda group: plural(without[group], 'document'))}"
        )


def _named(counts: Mapping[str, int], about: Callable[[str], str]) -> str:
    """Returns the groups with the highest counts, and what is said about each."""
    groups = sorted(counts, key=lambda group: (-counts[group], natural_order(group)))
    named = [f"{group or 'without the key'} ({about(group)})" for group in groups[:MAX_NAMED_GROUPS]]
    more = f", and {n:,} more" if (n := len(groups) - len(named)) > 0 else ""
    return ", ".join(named) + more
