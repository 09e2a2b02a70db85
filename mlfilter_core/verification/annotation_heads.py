"""Whether annotated files were scored with the heads that lie in the same output folder."""

from collections import Counter
from collections.abc import Iterator

from mlfilter_core.config.training import HEADS_DIR
from mlfilter_core.errors import HeadError
from mlfilter_core.heads.checkpoint_files import head_digests
from mlfilter_core.training.train_request import SUFFIX
from mlfilter_core.verification.discrepancies import Place
from mlfilter_core.verification.output_kinds import VerifyRequest
from mlfilter_core.wording import plural


class UsedHeads:
    """The heads of annotated files, added up file by file."""

    def __init__(self, request: VerifyRequest) -> None:
        """Takes the request of the verification."""
        self._output_dir = request.output_dir
        self._used: Counter[tuple[str, str]] = Counter()

    def add(self, place: Place) -> None:
        """Adds an annotated file."""
        self._used.update(place.settings.get("heads", {}).items())

    def problems(self) -> Iterator[str]:
        """Yields the heads of the folder that are not those that gave the scores of their names."""
        for name in sorted({name for name, _ in self._used}):
            head = f"{HEADS_DIR}/{name}{SUFFIX}"
            try:
                trained = head_digests({name: str(self._output_dir / head)})[name]
            except HeadError:  # not trained here, or reported by the check of the head
                continue
            n_others = sum(n for (other, sha256), n in self._used.items() if other == name and sha256 != trained)
            if n_others:
                yield f"{plural(n_others, 'file')} scored with another version of {head}; annotate again"
