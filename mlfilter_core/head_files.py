"""Which file a head's checkpoint is.

Knows nothing about torch: a flow whose files are all finished asks for the digest alone.
"""

from collections.abc import Mapping
from pathlib import Path

from mlfilter_core.errors import HeadError
from mlfilter_core.file_identity import file_sha256


def checkpoint_file(name: str, checkpoint: Path) -> Path:
    """Returns the file that holds a head's weights.

    Args:
        name: What the job calls the head.
        checkpoint: That file, or a folder with `model.safetensors`.

    Raises:
        HeadError: There is none.
    """
    path = checkpoint.expanduser()
    path = path / "model.safetensors" if path.is_dir() else path
    if not path.is_file():
        raise HeadError(f"head {name}: the checkpoint {path} does not exist; mend the path")
    return path


def head_digests(checkpoints: Mapping[str, str]) -> dict[str, str]:
    """Returns the digest of each head's checkpoint file, by the head's name.

    Raises:
        HeadError: One does not exist, or is not readable.
    """
    return {name: _digest(name, Path(checkpoint)) for name, checkpoint in checkpoints.items()}


def _digest(name: str, checkpoint: Path) -> str:
    path = checkpoint_file(name, checkpoint)
    try:
        return file_sha256(path)
    except OSError as error:
        raise HeadError(f"head {name}: {path} cannot be read ({error.strerror}); mend its permissions") from error
