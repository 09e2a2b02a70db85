"""Which heads of a job load, and what each that does not says."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from mlfilter_core.config.annotation import Scoring
from mlfilter_core.plan.findings import Findings
from mlfilter_core.plan.plan import Section

if TYPE_CHECKING:
    from mlfilter_core.heads.head import Head


def find_heads(scoring: Scoring, findings: Findings) -> list["Head"]:
    """Loads the heads onto the processor, and goes on after one that does not load."""
    from mlfilter_core.heads.checkpoint_formats import load_head

    heads = []
    for name, checkpoint in scoring.regression_head_checkpoints.items():
        with findings.noting():
            heads.append(load_head(name, checkpoint))
    return heads


def heads_section(heads: Sequence["Head"]) -> Section:
    """Returns what the heads are."""
    facts = {
        head.name: {
            "dim": head.dim,
            "layers": len(head.weights),
            "outputs": head.n_outputs,
            "task": head.task,
            "states_its_encoder": bool(head.encoder),
        }
        for head in heads
    }
    return Section("heads", facts, [("heads", ", ".join(map(_described, heads)) or "none loads")])


def _described(head: "Head") -> str:
    """Returns `education (384-1000-1, regression)`."""
    widths = "-".join(str(width) for width in (head.dim, *(weight.shape[0] for weight in head.weights)))
    return f"{head.name} ({widths}, {head.task}{'' if head.encoder else ', of an encoder that it does not name'})"
