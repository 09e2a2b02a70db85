"""The exception tree: what an error means for the rest of the run.

A `JobError` would occur for every file, so the run stops. A `FileError` concerns one file, so the run continues with
the other files. Any other exception, such as an `OSError` of a shared file system, may be temporary, so the file is
tried again.
"""


class MlfilterError(Exception):
    """An expected failure. Its message says what is wrong, where, and how to fix it."""


class JobError(MlfilterError):
    """The job cannot run as it is configured; every file would fail."""


class ConfigError(JobError):
    """A configuration names an unknown field, a value out of range, or a missing folder."""


class EncoderError(JobError):
    """The encoder cannot be loaded or used as the job asks."""


class HeadError(JobError):
    """A head's checkpoint cannot be loaded, or does not fit the embeddings."""


class StoreError(JobError):
    """A store, such as S3, refuses the credentials or the access that a job needs."""


class FileError(MlfilterError):
    """One file cannot be finished; another attempt would fail as well."""


class SourceError(FileError):
    """A source file is unreadable, broken, changed, or has too many bad lines."""


class EmbeddingFileError(FileError):
    """An HDF5 file is not a file of embeddings, or lacks requested content."""


class ClusterFileError(FileError):
    """A file of clusters is broken, or belongs to other embeddings."""


class DuplicateFileError(FileError):
    """A file of duplicates is missing, broken, or belongs to other embeddings."""


class AnnotationError(FileError):
    """An annotated file cannot be written without losing or inventing values."""


class TrainingError(FileError):
    """A head cannot be trained on the given labels."""


class OutputConflictError(FileError):
    """An existing output was made from another source or by another request."""


class OtherRequestError(OutputConflictError):
    """An existing output was made with other settings than those of the job."""


class OtherSettingsError(JobError):
    """Finished outputs of a job were made with other settings; new ones beside them would not be comparable."""

    MOST_COUNTED = 1000  # then the others are not looked at: each has to be opened

    def __init__(self, n_others: int, n_files: int, first: OtherRequestError) -> None:
        least = "at least " if n_others == self.MOST_COUNTED else ""
        super().__init__(
            f"{least}{n_others} of {n_files} files are finished with other settings, and nothing was done. {first}"
        )


def in_one_line(error: BaseException) -> str:
    """Returns the message of another library's error in one line, cut to 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__
