"""The duplicates of a corpus, joined to the rows of its files of embeddings."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from mlfilter_core.config.deduplication import SUMMARY_FILE
from mlfilter_core.embedding_store.clusters_of_rows import ValuesOf
from mlfilter_core.embedding_store.duplicate_file import COSINE, DUPLICATE_OF, SUFFIX, open_duplicates
from mlfilter_core.embedding_store.reader import EmbeddingFile
from mlfilter_core.embedding_store.stated_parquet import check_made_from, reading
from mlfilter_core.errors import ConfigError, DuplicateFileError
from mlfilter_core.files.task_files import TaskFile

KEPT = ""  # what a document that is kept is a duplicate of
KEPT_COSINE, SAME_TEXT_COSINE = np.float32(0), 1.0


@dataclass(frozen=True)
class CorpusDuplicates:
    """The duplicates of a corpus, as a deduplication job wrote them.

    Attributes:
        folder: Folder of the files of duplicates.
        sha256: Digest of the duplicates of the corpus.
    """

    folder: Path
    sha256: str

    def provenance(self) -> dict[str, Any]:
        """Returns what the duplicates of the same embeddings depend on."""
        return {"groups_sha256": self.sha256}

    def values(self, file: TaskFile, embeddings: EmbeddingFile, keys: Iterable[str]) -> dict[str, ValuesOf]:
        """Returns functions from rows to `duplicate_of` or `cosine`, by key; reads all duplicates of the file.

        Args:
            file: The file of embeddings.
            embeddings: The same, open.
            keys: Keys of the result.

        Raises:
            DuplicateFileError: The file of duplicates is missing, broken, or belongs to other embeddings or to another
                search for duplicates.
        """
        path = file.output(self.folder, SUFFIX)

        def error(what: str) -> DuplicateFileError:
            return DuplicateFileError(f"{path} {what}; deduplicate again")

        try:
            with reading("is no file of duplicates, or is broken", error):
                opened, made = open_duplicates(path)
                with opened:
                    table = opened.read([DUPLICATE_OF, COSINE])
                is_duplicate = table[DUPLICATE_OF].is_valid().to_numpy()
                duplicate_of = table[DUPLICATE_OF].fill_null(KEPT)
                cosines = np.where(is_duplicate, table[COSINE].fill_null(SAME_TEXT_COSINE).to_numpy(), KEPT_COSINE)
        except FileNotFoundError:
            raise DuplicateFileError(
                f"there is no {path}, the duplicates of {embeddings.path}; deduplicate again"
            ) from None
        if made["request"].get("groups_sha256") != self.sha256:
            raise error(f"is of other duplicates than {self.folder.with_name(SUMMARY_FILE)}")
        check_made_from(made, embeddings, error)
        if len(table) != embeddings.n_rows:
            raise error(f"has {len(table)} rows, and {embeddings.path} {embeddings.n_rows}")
        functions: Mapping[str, ValuesOf] = {
            DUPLICATE_OF: lambda rows: duplicate_of[rows].to_pylist(),
            COSINE: lambda rows: cosines[rows],
        }
        return {key: functions[key] for key in keys}


def find_duplicates(folder: Path) -> CorpusDuplicates:
    """Returns the duplicates of a folder.

    Raises:
        ConfigError: The summary of the job, which lies beside the folder, is missing or broken.
    """
    summary = folder.with_name(SUMMARY_FILE)
    try:
        return CorpusDuplicates(folder, str(orjson.loads(summary.read_bytes())["sha256"]))
    except FileNotFoundError:
        raise ConfigError(
            f"--duplicates: there is no {summary}; give the folder duplicates in the output_dir of a deduplication job"
        ) from None
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"--duplicates: {summary} is broken; deduplicate again") from error
