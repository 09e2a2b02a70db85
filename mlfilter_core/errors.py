"""The exception tree: what an error means for the rest of the run.

A `JobError` would meet every other file as well, so the run stops. A `FileError` concerns one file,
the others go on. Every other exception, an `OSError` of a shared file system above all, may heal
when the file is tried again.
"""


class MlfilterError(Exception):
    """An expected failure. Its message says what is wrong, where, and how to mend it."""


class JobError(MlfilterError):
    """The job cannot run as it is configured; no file of it would fare better."""


class ConfigError(JobError):
    """A configuration names an unknown field, a value out of range, or a folder that is not there."""


class EncoderError(JobError):
    """The encoder cannot be loaded or used as the job asks."""


class HeadError(JobError):
    """A head's checkpoint cannot be loaded, or does not fit the embeddings."""


class FileError(MlfilterError):
    """One file cannot be finished as it stands; trying again would not help."""


class SourceError(FileError):
    """A source file is unreadable, broken, changed, or holds too many bad lines."""


class EmbeddingFileError(FileError):
    """An HDF5 file is not a file of embeddings, or lacks what is asked of it."""


class AnnotationError(FileError):
    """An annotated file cannot be written without losing or inventing something."""


class TrainingError(FileError):
    """A head cannot be trained on the labels that there are."""


class OutputConflictError(FileError):
    """A finished output stands in the way, made from another source or by another request."""


def in_one_line(error: BaseException) -> str:
    """Returns what another library says is wrong, short enough for a message of ours."""
    return " ".join(str(error).split())[:300] or type(error).__name__
