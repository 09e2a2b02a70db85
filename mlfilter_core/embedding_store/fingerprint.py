"""What tells the embeddings of one encoder from those of another: the contract between embeddings and heads.

A fingerprint is a mapping of `FIELDS`. It may lack some, where a file does not say; only what both sides say is
compared. The precision of the forward pass is no part of it: a head does not notice it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlfilter_core.embedding_store.layout import Provenance
from mlfilter_core.errors import ConfigError
from mlfilter_core.wording import DIGEST_CHARACTERS, shown

FIELDS = ("weights_sha256", "tokenizer_sha256", "pooling", "prompt", "max_length", "is_normalized")
NAMES = ("model", "revision")  # for people; the same encoder may lie elsewhere

Fingerprint = Mapping[str, Any]


def fingerprint(provenance: Provenance | None) -> Fingerprint:
    """Returns the fingerprint of the encoder of a file of embeddings; empty where another tool wrote the file."""
    if provenance is None:
        return {}
    said = {**provenance.request, **provenance.encoder}  # what the model made of it wins over what was asked for
    return {name: said[name] for name in (*NAMES, *FIELDS) if name in said}


def differences(one: Fingerprint, other: Fingerprint) -> list[str]:
    """Returns the fields that both state, and state differently."""
    return [name for name in FIELDS if name in one and name in other and one[name] != other[name]]


def describe_differences(one: Fingerprint, other: Fingerprint) -> str:
    """Returns them with both values: `max_length (512 and 256), prompt ('' and 'query: ')`."""
    return ", ".join(f"{name} ({shown(one[name])} and {shown(other[name])})" for name in differences(one, other))


def name_of(encoder: Fingerprint) -> str:
    """Returns what a person calls an encoder."""
    name = encoder.get("model") or f"an encoder with weights {shown(encoder.get('weights_sha256'))}"
    return f"{name} at {encoder['revision'][:DIGEST_CHARACTERS]}" if encoder.get("revision") else str(name)


class OneEncoder:
    """Sees to it that files of embeddings are all of one encoder, as far as they say.

    Attributes:
        fingerprint: Of the first file that says one; empty before.
    """

    def __init__(self) -> None:
        self.fingerprint: Fingerprint = {}
        self._first = Path()

    def check(self, path: Path, made_by: Fingerprint) -> None:
        """Takes a file.

        Raises:
            ConfigError: It is of another encoder than those before.
        """
        if not self.fingerprint:
            self._first, self.fingerprint = path, made_by
        if differences(self.fingerprint, made_by):
            raise ConfigError(
                f"{self._first} and {path} were made by different encoders, {name_of(self.fingerprint)} and "
                f"{name_of(made_by)}: they differ in {describe_differences(self.fingerprint, made_by)}. Scores of both "
                "would not compare; set params.glob_pattern to the files of one of them"
            )
