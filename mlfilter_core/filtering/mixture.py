"""The division of a number of tokens among groups by their weights."""

from collections.abc import Iterator, Mapping, Sequence
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
        named = [f"{_shown(group)} ({tokens[group]:,} of {shares[group]:,})" for group in _largest_first(short)]
        yield (
            f"{plural(len(short), 'group')} with fewer tokens than the share, kept whole, {sum(short.values()):,} "
            f"tokens short in all: {_first(named)}"
        )
    absent = {group: share for group, share in shares.items() if group not in tokens}
    if absent:
        named = [f"{_shown(group)} (0 of {share:,})" for group, share in _largest_first(absent).items()]
        yield (
            f"{plural(len(absent), 'group')} with a weight but no document, {sum(absent.values()):,} tokens short in "
            f"all: {_first(named)}"
        )
    without = {group: n for group, n in documents.items() if group not in shares}
    if without:
        named = [f"{_shown(group)} ({plural(n, 'document')})" for group, n in _largest_first(without).items()]
        n_documents = plural(sum(without.values()), "document")
        yield f"{plural(len(without), 'group')} without a weight, no tokens for {n_documents}: {_first(named)}"


def _largest_first(counts: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(counts.items(), key=lambda item: (-item[1], natural_order(item[0]))))


def _first(named: Sequence[str]) -> str:
    more = f", and {n:,} more" if (n := len(named) - MAX_NAMED_GROUPS) > 0 else ""
    return ", ".join(named[:MAX_NAMED_GROUPS]) + more


def _shown(group: str) -> str:
    return group or "without the key"
