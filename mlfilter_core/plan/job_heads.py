"""The heads of a job: whether they load and fit the embeddings, and facts about them."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from mlfilter_core.config.annotation import Scoring
from mlfilter_core.plan.findings import Findings
from mlfilter_core.plan.plan import Section

if TYPE_CHECKING:
    from mlfilter_core.heads.head import Head


def find_heads(scoring: Scoring, findings: Findings) -> list["Head"]:
    """Returns the heads that load, on the CPU; notes the others."""
    from mlfilter_core.heads.checkpoint_formats import load_head

    heads = []
    for name, checkpoint in scoring.regression_head_checkpoints.items():
        with findings.noting():
            heads.append(load_head(name, checkpoint))
    return heads


def check_heads(
    heads: Sequence["Head"], scoring: Scoring, made_by: Mapping[str, Any], dim: int, where: str, findings: Findings
) -> None:
    """Notes the heads that do not fit some embeddings.

    Args:
        heads: The heads that load.
        scoring: Whether heads of another encoder are allowed.
        made_by: Fingerprint of the encoder of the embeddings.
        dim: Width of the embeddings.
        where: The embeddings, in messages.
        findings: Receives a problem for each head that does not fit, a warning where another encoder is allowed.
    """
    from mlfilter_core.heads.head import check_heads_fit, find_mismatched_heads

    for head in heads:
        with findings.noting():
            check_heads_fit([head], dim, where)
            mismatched = find_mismatched_heads([head], made_by, where, scoring.allow_mismatched_head)
            for name, differences in mismatched.items():
                findings.add_warning(f"head {name} was trained on other embeddings: {differences}")


def heads_section(heads: Sequence["Head"]) -> Section:
    """Returns the facts about the heads."""
    facts = {
        head.name: {
            "dim": head.dim,
            "layers": len(head.widths) - 1,
            "outputs": head.n_outputs,
            "task": head.task,
            "states_its_encoder": bool(head.encoder),
            **({"assumed": list(head.assumptions)} if head.assumptions else {}),
        }
        for head in heads
    }
    assumed = [("", f"{head.name}: assumed: {'; '.join(head.assumptions)}") for head in heads if head.assumptions]
    return Section("heads", facts, [("heads", ", ".join(map(_described, heads))), *assumed])


def _described(head: "Head") -> str:
    """Returns `education (384-1000-1, regression)`."""
    widths = "-".join(map(str, head.widths))
    return f"{head.name} ({widths}, {head.task}{'' if head.encoder else ', encoder unknown'})"
