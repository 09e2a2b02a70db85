"""The files of a head's checkpoint, local or from the hub, and their digest.

Knows nothing about torch: a flow needs only the digest if all of its files are finished.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from mlfilter_core.errors import HeadError, in_one_line
from mlfilter_core.files.hub import HubError, from_hub
from mlfilter_core.files.identity import cached_sha256

FOLDER_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
INDEX_SUFFIX = ".index.json"  # of a file that names the shards: model.safetensors.index.json
SHARDS = ("model-*-of-*.safetensors", "pytorch_model-*-of-*.bin")
FOLDER_CONFIG = "config.json"
SIDECAR_SUFFIX = ".json"  # the sidecar of quality.pt is quality.pt.json
# owner/name, then a revision, a file, or both: Jackal-AI/JQL-Edu-Heads@main/checkpoints/edu.ckpt
HUB_ID = re.compile(r"(?P<repository>\w[\w.-]*/[\w.-]+)(@(?P<revision>[^/]+))?(/(?P<file>.+))?", re.ASCII)


@dataclass(frozen=True)
class HeadFiles:
    """The files of one head, on this machine.

    Attributes:
        weights: File of the tensors, or the index of several.
        facts: JSON that describes them: `config.json` of a folder, or the sidecar of a file; None if there is none.
        is_folder: Whether the checkpoint is a folder.
        shards: Files of the tensors where `weights` is an index; empty otherwise.
    """

    weights: Path
    facts: Path | None
    is_folder: bool = field(default=False, compare=False)
    shards: tuple[Path, ...] = ()

    @property
    def place_of_facts(self) -> Path:
        """File that describes the weights, or would."""
        return self.weights.with_name(FOLDER_CONFIG if self.is_folder else f"{self.weights.name}{SIDECAR_SUFFIX}")

    @property
    def sha256(self) -> str:
        """Digest of the weights, and of the shards and the facts if there are any."""
        others = (*self.shards, *([self.facts] if self.facts is not None else []))
        digests = [cached_sha256(path) for path in (self.weights, *others)]
        return hashlib.sha256(" ".join(digests).encode()).hexdigest() if others else digests[0]


def find_head(name: str, checkpoint: str | Path) -> HeadFiles:
    """Returns the files of a head, downloaded from the hub if they are not local.

    Args:
        name: The head's name in the job.
        checkpoint: A file, with or without a sidecar `<file>.json`; a folder with `model.safetensors` or
            `pytorch_model.bin`, whole or in shards; or such a file or folder on the hub,
            `<owner>/<name>[@<revision>][/<file>]`.

    Raises:
        HeadError: The checkpoint does not exist, or lacks a shard.
    """
    path = Path(checkpoint).expanduser()
    hub_id = HUB_ID.fullmatch(str(checkpoint))
    if not path.exists() and hub_id and not Path(path.parts[0]).is_dir():
        path = _fetch(name, str(checkpoint), hub_id)
    if path.is_dir():
        return _in_folder(name, path)
    if not path.is_file():
        raise HeadError(
            f"head {name}: the checkpoint {path} does not exist; fix the path, or run `ml_filter train-head` first, "
            "which writes heads"
        )
    sidecar = path.with_name(f"{path.name}{SIDECAR_SUFFIX}")
    return HeadFiles(path, sidecar if sidecar.is_file() else None, shards=_shards(name, path))


def head_digests(checkpoints: Mapping[str, str]) -> dict[str, str]:
    """Returns the digest of each head's files, by the head's name.

    Raises:
        HeadError: A checkpoint does not exist, or is not readable.
    """
    return {name: _digest(name, checkpoint) for name, checkpoint in checkpoints.items()}


def _in_folder(name: str, folder: Path) -> HeadFiles:
    files = [f"{file}{suffix}" for file in FOLDER_WEIGHTS for suffix in ("", INDEX_SUFFIX)]
    weights = next((folder / file for file in files if (folder / file).is_file()), None)
    if weights is None:
        raise HeadError(
            f"head {name}: the folder {folder} has no {' and no '.join(FOLDER_WEIGHTS)}; give the folder or the file "
            "with the weights"
        )
    config = folder / FOLDER_CONFIG
    return HeadFiles(weights, config if config.is_file() else None, True, _shards(name, weights))


def _shards(name: str, index: Path) -> tuple[Path, ...]:
    """Returns the files that an index names; none for a file that is no index."""
    if not index.name.endswith(INDEX_SUFFIX):
        return ()
    try:
        files = sorted(set(read_weight_map(index).values()))
    except (OSError, ValueError, RecursionError) as error:
        raise HeadError(f"head {name}: {index} cannot be read ({in_one_line(error)}); download it again") from error
    for file in files:
        if not index.with_name(file).is_file():
            raise HeadError(
                f"head {name}: {index.with_name(file)} is missing, which {index.name} names; download it again"
            )
    return tuple(index.with_name(file) for file in files)


def read_weight_map(index: Path) -> dict[str, str]:
    """Returns the file of each tensor, as an index names it: a file in the folder of the index.

    Raises:
        OSError: The index cannot be read.
        ValueError: It is no index, or names what is no file in its folder.
    """
    content = json.loads(index.read_text(encoding="utf-8"))
    files = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(files, dict) or not files:
        raise ValueError("it has no weight_map")
    for file in files.values():
        if not isinstance(file, str) or not re.fullmatch(r"[\w.-]+\.(safetensors|bin)", file, re.ASCII):
            raise ValueError(f"it names {str(file)[:100]!r}, which is no file of weights in its folder")
    return files


def _digest(name: str, checkpoint: str) -> str:
    files = find_head(name, checkpoint)
    try:
        return files.sha256
    except OSError as error:
        raise HeadError(
            f"head {name}: {error.filename} cannot be read ({error.strerror}); fix its permissions"
        ) from error


def _fetch(name: str, checkpoint: str, hub_id: re.Match[str]) -> Path:
    from huggingface_hub import hf_hub_download, snapshot_download

    repository, revision, file = hub_id["repository"], hub_id["revision"], hub_id["file"]
    try:
        if file is not None:
            return from_hub(hf_hub_download, repository, file, revision=revision)
        wanted = [FOLDER_CONFIG, *FOLDER_WEIGHTS, *(f"{file}{INDEX_SUFFIX}" for file in FOLDER_WEIGHTS), *SHARDS]
        return from_hub(snapshot_download, repository, revision=revision, allow_patterns=wanted)
    except HubError as error:
        raise HeadError(
            f"head {name}: {checkpoint} is neither a local checkpoint nor available from the hub: {error}"
        ) from error
