"""The work of an embedding job on each file."""

import functools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from mlfilter_core.annotating.annotate_file import score_columns
from mlfilter_core.annotating.staged_heads import with_staged_heads
from mlfilter_core.annotating.work import annotate_request, heads_of_process, load_heads
from mlfilter_core.config.embedding import EmbeddingJob, EmbeddingPipelineParameters
from mlfilter_core.corpus.first_documents import FirstDocuments, read_first_documents
from mlfilter_core.corpus.source_files import find_sources
from mlfilter_core.embedding.annotate_inline import (
    InlineAnnotation,
    annotate_embedded,
    finished_embedding_and_annotation,
)
from mlfilter_core.embedding.embed_file import embed_file
from mlfilter_core.embedding.embed_parts import embed_in_parts, embed_part, part_outputs, parts_of
from mlfilter_core.embedding.embed_report import EmbedReport
from mlfilter_core.embedding.embed_request import MODEL_NAMES, EmbedRequest, finished_embedding
from mlfilter_core.embedding.encoded_file import EncodedFile
from mlfilter_core.embedding.shared_passes import embed_together
from mlfilter_core.embedding.wanted_keys import check_wanted_keys
from mlfilter_core.encoder.model_files import ModelFiles, code_elsewhere, resolve_model, stated_dim
from mlfilter_core.encoder.settings import Chunks, EncoderSettings
from mlfilter_core.errors import ConfigError, FileError
from mlfilter_core.files.claims import hidden_name
from mlfilter_core.files.disk_space import check_room_for
from mlfilter_core.files.part_files import n_parts_before
from mlfilter_core.files.publishing import COMMITTED_SUFFIX, unless_overwritten
from mlfilter_core.files.task_files import WHOLE, TaskFile, evenly_spaced, shard
from mlfilter_core.work.staged_work import staged, stores_of
from mlfilter_core.work.workload import Work, Workload

if TYPE_CHECKING:
    from mlfilter_core.encoder.encoder import Encoder

# A trial of batch sizes takes three seconds, in which two cores embed about 100 kB of text with a small encoder.
MIN_TRIAL_BYTES = 1 << 20
MOST_SIZES = 10_000  # files whose sizes are looked up to estimate the size of all; a million take 20 s

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbedWork(Work[EmbedReport]):
    """The work of an embedding job on each file.

    Attributes:
        params: Parameters of the job.
        request: Request that they make.
        annotation: Annotation of each embedded file; None without.
        is_small: Whether a trial of batch sizes, or OpenVINO, would take more time than it saves.
        encoded: Rows of the file that is embedded next, where it shared forward passes with others.
    """

    IMPORTS: ClassVar[Sequence[str]] = ("mlfilter_core.encoder.loading",)
    REPORT = EmbedReport

    params: EmbeddingPipelineParameters
    request: EmbedRequest
    annotation: InlineAnnotation | None
    is_small: bool = False
    encoded: EncodedFile | None = None

    @property
    def shares_outputs(self) -> bool:
        return self.annotation is not None  # also made by annotation jobs, which claim the annotated file

    @property
    def divides_all(self) -> bool:
        return self.params.split != "auto"

    def divide(self, file: TaskFile, n_parts: int) -> Sequence[TaskFile]:
        split = self.params.split
        return parts_of(file, self._embeddings(file).path, n_parts if split == "auto" else int(split))

    def made_by(self) -> dict[str, Any]:
        """Returns the settings that change the content of the outputs."""
        request = {name: value for name, value in self.request.provenance().items() if name not in MODEL_NAMES}
        if self.annotation is None:
            return request
        annotation = {**self.annotation.request.provenance(), "keep_embeddings": self.annotation.keep_embeddings}
        return {**request, "annotation": annotation}

    def outputs(self, file: TaskFile) -> Sequence[Path]:
        if file.part != WHOLE:
            return part_outputs(self._embeddings(file).path, file.part)
        outputs = [self._embeddings(file).path, self._rejects(file)]
        if self.annotation is not None:
            outputs += [self.annotation.request.output(file), self.annotation.request.provenance_file(file)]
        return outputs

    def finished(self, file: TaskFile, read_content: bool) -> EmbedReport | None:
        return self._finished(file, self.annotation, read_content)

    def check(self, files: Sequence[TaskFile]) -> None:
        """Checks keys and disk space.

        Raises:
            ConfigError: None of the first documents has a key that the job needs, or the disk is too small.
        """
        first = read_first_documents(files, self.params.max_line_bytes)
        check_wanted_keys(self.params, first.records)
        self._check_room(files, first)

    def prepare(self, files: Sequence[TaskFile]) -> None:
        """Checks keys, disk space and the heads of an inline annotation before the encoder is loaded.

        Warns of code from the model's repository.

        Raises:
            ConfigError: None of the first documents has a key that the job needs, or the disk is too small.
            HeadError: A checkpoint is corrupted, contains code, or was trained on another encoder.
        """
        self.check(files)
        if self.params.trust_remote_code:
            others = ", ".join(code_elsewhere(self.request.model.folder))
            elsewhere = f", and code of {others}, which it refers to" if others else ""
            _log.warning("trust_remote_code: code of %s is run%s", self.params.embedding_model, elsewhere)
        if self.annotation is not None and self.params.annotate_inline is not None:
            from mlfilter_core.heads.head import find_mismatched_heads

            heads = load_heads(self.params.annotate_inline)
            score_columns(heads, self.annotation.request)
            is_allowed = self.annotation.request.allow_mismatched_head
            stated = {} if self.params.pooling is None else {"pooling": self.params.pooling}
            made_by = {
                **self.request.model.provenance(),
                **stated,
            }  # the model's own pooling is known when it is loaded
            find_mismatched_heads(heads, made_by, "what this job embeds", is_allowed)

    def run_all(self, files: Sequence[TaskFile]) -> list[EmbedReport | FileError]:
        """Returns the report of each file, or the error that it has; small files share forward passes."""
        small = [file for file in files if self._is_new(file)]
        outcomes: dict[str, EmbedReport | FileError] = {}
        if len(small) > 1:
            outcomes = embed_together(
                *(small, self.request, self.encoder(), lambda file: self._embeddings(file).path.parent),
                lambda file, encoded: replace(self, encoded=encoded).outcome(file),
            )
        return [outcomes[file.name] if file.name in outcomes else self.outcome(file) for file in files]

    def make(self, file: TaskFile) -> EmbedReport:
        from mlfilter_core.heads.head import check_heads_fit, find_mismatched_heads

        params, request = self.params, self.request
        embeddings, rejects = self._embeddings(file), self._rejects(file)
        encoder = self.encoder()
        if file.part != WHOLE:
            return embed_part(file, embeddings.path, request, encoder)
        was_divided = n_parts_before(embeddings.path) > 0
        embed = embed_in_parts if was_divided else functools.partial(embed_file, encoded=self.encoded)
        if self.annotation is None or params.annotate_inline is None:
            return embed(file, embeddings.path, rejects, request, encoder)
        heads = heads_of_process(params.annotate_inline, self.annotation.request)
        made_by = {**request.provenance(), **encoder.provenance()}
        check_heads_fit(heads, encoder.dim, request.model.model)
        find_mismatched_heads(heads, made_by, str(file.path), self.annotation.request.allow_mismatched_head)
        embedded = self._finished(file, None, read_content=True)
        embedded = embedded or embed(file, embeddings.path, rejects, request, encoder)
        return annotate_embedded(embedded, embeddings, self.annotation, heads)

    def encoder(self) -> "Encoder":
        """Returns the encoder of the job, which is loaded once in a process."""
        params = self.params
        return _encoder(
            *(self.request.model, self.request.encoder, params.device, params.batch_token_limit),
            *(params.torch_compile, not self.is_small, params.openvino and not self.is_small),
        )

    def _is_new(self, file: TaskFile) -> bool:
        """Returns whether nothing of a whole file was embedded before, not even a part of it."""
        output = self._embeddings(file).path
        if file.part != WHOLE or n_parts_before(output) or hidden_name(output, COMMITTED_SUFFIX).exists():
            return False
        try:
            if self.finished(file, read_content=True) is not None:
                return False
            has_own = self.annotation is not None and output.exists()  # embeddings that are not annotated yet
            return not has_own or self._finished(file, None, read_content=True) is None
        except FileError:
            return False

    def _check_room(self, files: Sequence[TaskFile], first: FirstDocuments) -> None:
        """Checks the disk space for the embeddings alone, of half the documents that the bytes on disk suggest."""
        dim = self.params.embedding_dim or stated_dim(self.request.model.folder)
        if dim is None or not first.records or not self.params.keep_embeddings:
            return
        n_documents_per_byte = len(first.records) / first.n_bytes
        row_bytes = dim * np.dtype(self.request.embedding_dtype).itemsize

        def check(n_bytes: float) -> None:
            check_room_for(self.params.output_dir, n_bytes * n_documents_per_byte * row_bytes / 2)

        sampled = evenly_spaced(files, MOST_SIZES)
        try:
            check(self._bytes_to_do(sampled) * len(files) / len(sampled))
        except ConfigError:  # of very many files, large ones may be among the sampled
            check(self._bytes_to_do(files))

    def _bytes_to_do(self, files: Iterable[TaskFile]) -> int:
        return sum(file.size() for file in files if not self._embeddings(file).path.exists())

    def _finished(self, file: TaskFile, annotation: InlineAnnotation | None, read_content: bool) -> EmbedReport | None:
        embeddings = self._embeddings(file)

        def finished() -> EmbedReport | None:
            if annotation is None:
                return finished_embedding(file, embeddings.path, self.request, read_content)
            return finished_embedding_and_annotation(file, embeddings, self.request, annotation, read_content)

        return unless_overwritten(finished, self.params.overwrite)

    def _rejects(self, file: TaskFile) -> Path:
        return file.output(self._folders[1], ".jsonl")

    def _embeddings(self, file: TaskFile) -> TaskFile:
        return TaskFile(f"{file.stem}.h5", file.stem, self._folders[0])

    @functools.cached_property
    def _folders(self) -> tuple[Path, Path]:
        """Folders of the embeddings and of the rejected lines, which are asked for a million times."""
        return self.params.embedding_output_dir, self.params.rejected_output_dir


def embedding_workload(job: EmbeddingJob) -> Workload[EmbedReport]:
    """Returns the workload of an embedding job.

    Raises:
        ConfigError: The corpus is missing, or two of its files would share an output name.
        EncoderError, HeadError: As `embed_work`.
    """
    params = with_staged_heads(job).params
    store = stores_of(job).get("input_dir")
    files = find_sources(
        *(params.input_dir, params.glob_pattern, job.params.output_dir), store.listing() if store else None
    )
    own_files = shard(files, job.local.ranks, job.local.tasks)
    work = replace(embed_work(params), is_small=is_small(own_files))
    workload = Workload("embed", own_files, work, params.results_dir)
    return staged(workload, job, "input_dir")


def is_small(files: Sequence[TaskFile]) -> bool:
    """Returns whether a corpus is too small for a trial; looks at no more files than show that it is not."""
    n_bytes = 0
    for file in files:
        n_bytes += file.size()
        if n_bytes >= MIN_TRIAL_BYTES or (file.url and not file.size()):  # of unknown size
            return False
    return True


def embed_work(params: EmbeddingPipelineParameters) -> EmbedWork:
    """Returns the work of an embedding job, after finding the model and computing its digests.

    Raises:
        EncoderError: The model is missing.
        HeadError: A checkpoint is missing.
    """
    request = embed_request(params, resolve_model(params.embedding_model, params.model_revision))
    return EmbedWork(params, request, _inline_annotation(params))


def embed_request(params: EmbeddingPipelineParameters, model: ModelFiles) -> EmbedRequest:
    """Returns the request that the parameters make."""
    return EmbedRequest(
        model=model,
        encoder=EncoderSettings(
            max_length=params.max_length if params.chunks is None else params.chunks.tokens or params.max_length,
            truncate=params.truncation not in (False, "do_not_truncate"),
            pad_to_max_length=params.padding == "max_length",
            pooling=params.pooling,
            prompt=params.prompt,
            model_dtype=params.model_dtype,
            trust_remote_code=params.trust_remote_code,
            embedding_dim=params.embedding_dim,
            add_eos=params.add_eos,
            chunks=None if params.chunks is None else Chunks(params.chunks.overlap, params.chunks.most),
        ),
        schema=params.schema_of_documents(),
        group=params.hdf5_dataset_name,
        embedding_dtype=params.embedding_dtype,
        batch_size=params.batch_size,
        writer_batch_size=params.writer_batch_size,
        commit_documents=params.commit_documents,
        fail_on_bad_record=params.on_bad_record == "fail",
        max_rejected_fraction=params.max_rejected_fraction,
        max_line_bytes=params.max_line_bytes,
    )


def _inline_annotation(params: EmbeddingPipelineParameters) -> InlineAnnotation | None:
    if params.annotate_inline is None:
        return None
    asked = annotate_request(
        *(params.annotate_inline, params.annotated_output_dir, params.hdf5_dataset_name), params.input_dir
    )
    return InlineAnnotation(asked, params.keep_embeddings)


@functools.lru_cache(maxsize=1)
def _encoder(
    model: ModelFiles,
    settings: EncoderSettings,
    device: str,
    max_batch_tokens: int | None,
    torch_compile: bool,
    has_trial: bool,
    has_openvino: bool,
) -> "Encoder":
    """Returns the encoder, loaded once per worker process, as it takes seconds and gigabytes."""
    from mlfilter_core.encoder.loading import load_encoder

    return load_encoder(model, settings, device, max_batch_tokens, torch_compile, has_trial, has_openvino)
