"""The fingerprint of an encoder: the contract between embeddings and heads.

A fingerprint is a mapping of `FIELDS`. A file may lack some of them; only fields that both sides have are compared. The
precision of the forward pass is not part of it, because heads do not depend on it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mlfilter_core.embedding_store.layout import Provenance
from mlfilter_core.errors import ConfigError
from mlfilter_core.wording import DIGEST_CHARACTERS, shown

FIELDS = ("weights_sha256", "tokenizer_sha256", "pooling", "prompt", "max_length", "is_normalized", "add_eos")
NAMES = ("model", "revision")  # for messages; the same encoder may be in another place
# Division of documents, where there is one. A head scores any chunks; the files of one job must have the same.
CHUNKS = "chunks"

Fingerprint = Mapping[str, Any]


def fingerprint(provenance: Provenance | None) -> Fingerprint:
    """Returns the fingerprint of the encoder of a file of embeddings; empty where another tool wrote the file."""
    if provenance is None:
        return {}
    # Facts of the loaded model override the request. add_eos is stated only where it is true.
    said = {"add_eos": False, **provenance.request, **provenance.encoder}
    return {name: said[name] for name in (*NAMES, *FIELDS, CHUNKS) if name in said}


def differences(one: Fingerprint, other: Fingerprint) -> list[str]:
    """Returns the fields that both have, with different values."""
    return [name for name in FIELDS if name in one and name in other and one[name] != other[name]]


def describe_differences(one: Fingerprint, other: Fingerprint) -> str:
    """Returns the differing fields with both values: `max_length (512 and 256), prompt ('' and 'query: ')`."""
    return _described(differences(one, other), one, other)


def name_of(encoder: Fingerprint) -> str:
    """Returns the name of an encoder for messages."""
    name = encoder.get("model") or f"an encoder with weights {shown(encoder.get('weights_sha256'))}"
    return f"{name} at {encoder['revision'][:DIGEST_CHARACTERS]}" if encoder.get("revision") else str(name)


class OneEncoder:
    """Checks that all files of embeddings that state an encoder state the same one.

    Attributes:
        fingerprint: Fingerprint of the first file that has one; empty before.
    """

    def __init__(self) -> None:
        self.fingerprint: Fingerprint = {}
        self._first = Path()

    def check(self, path: Path, made_by: Fingerprint) -> None:
        """Checks one more file.

        Raises:
            ConfigError: It is from another encoder than the previous files.
        """
        if not self.fingerprint:
            self._first, self.fingerprint = path, made_by
        differing = differences(self.fingerprint, made_by)
        if made_by and self.fingerprint.get(CHUNKS) != made_by.get(CHUNKS):
            differing.append(CHUNKS)
        if differing:
            raise ConfigError(
                f"{self._first} and {path} were made by different encoders, {name_of(self.fingerprint)} and "
                f"{name_of(made_by)}: they differ in {_described(differing, self.fingerprint, made_by)}. They are "
                "not comparable, nor are their scores; set glob_pattern to the files of one encoder"
            )


def _described(fields: Sequence[str], one: Fingerprint, other: Fingerprint) -> str:
    return ", ".join(f"{name} ({shown(one.get(name))} and {shown(other.get(name))})" for name in fields)
