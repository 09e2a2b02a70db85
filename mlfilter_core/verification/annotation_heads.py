"""Whether annotated files were scored with the heads that lie in the same output folder."""

from collections import Counter
from collections.abc import Iterator, Sequence

from mlfilter_core.config.training import HEADS_DIR
from mlfilter_core.errors import HeadError
from mlfilter_core.heads.checkpoint_files import head_digests
from mlfilter_core.training.train_request import SUFFIX
from mlfilter_core.verification.discrepancies import Place
from mlfilter_core.verification.output_kinds import VerifyRequest
from mlfilter_core.wording import plural


def check_heads(places: Sequence[Place], request: VerifyRequest) -> Iterator[str]:
    """Yields the heads of the folder that are not those that gave the scores of their names."""
    used: Counter[tuple[str, str]] = Counter(
        (name, sha256) for place in places for name, sha256 in place.settings.get("heads", {}).items()
    )
    for name in sorted({name for name, _ in used}):
        head = f"{HEADS_DIR}/{name}{SUFFIX}"
        try:
            trained = head_digests({name: str(request.output_dir / head)})[name]
        except HeadError:  # not trained here, or reported by the check of the head
            continue
        n_others = sum(n for (other, sha256), n in used.items() if other == name and sha256 != trained)
        if n_others:
            yield f"{plural(n_others, 'file')} scored with another version of {head}; annotate again"
