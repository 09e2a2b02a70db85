"""The embedding job: documents to embed, encoder, and output."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from mlfilter_core.config.annotation import ANNOTATED_DIR, Scoring
from mlfilter_core.config.execution import Job
from mlfilter_core.config.written import SPLIT, Split, Written
from mlfilter_core.corpus.documents import DocumentSchema
from mlfilter_core.corpus.lines import DEFAULT_MAX_LINE_BYTES
from mlfilter_core.corpus.windows import DEFAULT_COMMIT_DOCUMENTS
from mlfilter_core.files.urls import shown_path

DEFAULT_EMBEDDING_DIR = "embeddings"
UNKEPT_DIR = ".embeddings"
# Arbitrary: 512 million tokens in chunks of 512. Tokenizers cannot count as far as YAML.
MAX_CHUNKS = 1_000_000


class ChunkSettings(Written):
    """The division of long documents into chunks, each with its own embedding."""

    tokens: int | None = Field(
        None,
        ge=3,
        description="Most tokens of a chunk, special tokens and prompt included. Unset: max_length, or the model's "
        "maximum.",
    )
    overlap: int = Field(0, ge=0, description="Tokens that two neighbouring chunks share.")
    most: int = Field(
        32,
        ge=1,
        le=MAX_CHUNKS,
        description="Most chunks of a document. The tokens after them are cut, as by max_length.",
    )

    @model_validator(mode="after")
    def _has_new_tokens(self) -> "ChunkSettings":
        if self.tokens is not None and self.overlap >= self.tokens:
            raise ValueError(f"overlap is {self.overlap}, and tokens {self.tokens}: a chunk would have no new token")
        return self


class EmbeddingPipelineParameters(Written):
    """The parameters of an embedding job."""

    URLS: ClassVar[Mapping[str, bool]] = {"input_dir": False, "output_dir": True}

    input_dir: Path = Field(
        description="Folder or URL of the source files: JSON lines, plain or compressed, or Parquet."
    )
    glob_pattern: str = Field(
        "**/*.jsonl*",
        min_length=1,
        description="Pattern of source files below input_dir; ** is any number of folders. Names with other suffixes "
        "are read where it spells them out: *.txt.gz, part-*.",
    )
    text_field: str | None = Field(
        None,
        description="Key of the text to embed. Unset: the values of keys_to_index, joined by line feeds, are the text.",
    )
    keys_to_index: tuple[str, ...] | None = Field(
        None,
        description="Keys to store beside each embedding; without text_field also the text to embed. Unset: text, "
        "or nothing with text_field.",
    )
    id_key: str | None = Field(
        None,
        description="Key of the document's id. Unset: document_id, doc_id, id, uuid or warc_record_id, "
        "otherwise file:line.",
    )
    save_labels: bool = Field(False, description="Store labels beside the embeddings.")
    label_key: str | tuple[str, ...] | None = Field(
        None,
        description="Key of the label, such as scores.score, or a list of k keys for labels of shape (n, k). Unset: "
        "label, score or scores.score, the first that a document has.",
    )
    output_dir: Path = Field(description="Folder or URL of all outputs.")
    embedding_dir: str = Field(
        DEFAULT_EMBEDDING_DIR, min_length=1, description="Folder of the HDF5 files, below output_dir."
    )
    hdf5_dataset_name: str = Field("train", min_length=1, description="Group inside each HDF5 file.")
    embedding_model: str = Field(
        min_length=1,
        description="Hugging Face model id, local folder, or package:<package>/<folder> for a model inside an "
        "installed Python package.",
    )
    model_revision: str | None = Field(None, description="Branch, tag or commit of a model id.")
    trust_remote_code: bool = Field(False, description="Run Python code from the model's repository.")
    batch_size: int | None = Field(
        None, ge=1, description="Most documents per forward pass. Unset: only max_batch_tokens limits it."
    )
    split: Split = Field("auto", description=SPLIT.format(work="embed", limit="the file's format allows"))
    writer_batch_size: int = Field(1024, ge=1, description="Documents per write to HDF5.")
    commit_documents: int = Field(
        DEFAULT_COMMIT_DOCUMENTS,
        ge=1,
        description="Documents between checkpoints that survive a crash of the machine. A crash of the process loses "
        "at most 4096 documents. Below 4096, fewer documents are sorted by length together, which is slower.",
    )
    max_length: int | None = Field(
        None, ge=3, description="Most tokens of a document; longer documents are truncated. Unset: the model's maximum."
    )
    chunks: ChunkSettings | None = Field(
        None, description="Divide longer documents into chunks with an embedding each, instead of truncating them."
    )
    padding: bool | Literal["longest", "max_length"] = Field(
        True, description="true or longest: pad to the longest document of a batch. max_length: pad to max_length."
    )
    truncation: bool | Literal["longest_first", "only_first", "do_not_truncate"] = Field(
        True, description="false or do_not_truncate: reject documents above max_length instead of truncating them."
    )
    pooling: Literal["cls", "mean", "max", "last_token"] | None = Field(
        None, description="Pooling of token embeddings. Unset: as the model is configured, otherwise mean."
    )
    prompt: str | None = Field(None, description="Prefix of each text. Unset: the model's default prompt.")
    add_eos: bool = Field(
        False, description="End each text with the tokenizer's end token, for models whose tokenizer does not add it."
    )
    embedding_dim: int | None = Field(
        None,
        ge=1,
        description="Keep the first dimensions of an embedding (Matryoshka), and normalise again where the model does. "
        "Unset: all, or the truncate_dim of the model's folder.",
    )
    max_batch_tokens: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="Most tokens per forward pass. auto: each worker measures which size is fastest."
    )
    model_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "float32",
        description="Precision of the forward pass; pooling is always float32. auto: bfloat16 where it is fast.",
    )
    torch_compile: bool = Field(
        False,
        description="Compile the model with torch.compile, which takes about a minute per worker. CPUs are faster "
        "without.",
    )
    openvino: bool = Field(
        True,
        description="On a CPU, compute by OpenVINO where it is installed (mlfilter[openvino]), gives the same "
        "embeddings, and the corpus has at least 1 MiB. false: always by PyTorch.",
    )
    embedding_dtype: Literal["float32", "float16", "int8"] = Field(
        "float32", description="Precision of the stored embeddings. int8: with a scale for each embedding."
    )
    label_dtype: Literal["float32", "float64", "int8", "int16", "int32", "int64"] = Field(
        "float32",
        description="Type of the stored labels. A label out of range, or a fraction for an integer, makes a bad line.",
    )
    device: str = Field("auto", description="auto (CUDA, then MPS, then CPU), cpu, mps, cuda or cuda:<n>.")
    on_bad_record: Literal["reject", "fail"] = Field(
        "reject", description="reject: write a bad line to rejected/ with its reason. fail: fail the file."
    )
    max_rejected_fraction: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Share of rejected lines above which a file fails, as the job's keys are likely wrong.",
    )
    max_line_bytes: int = Field(
        DEFAULT_MAX_LINE_BYTES, ge=1024, description="Most bytes of a line; a longer line is a bad line."
    )
    overwrite: bool = Field(False, description="Replace finished files that were made with other settings.")
    annotate_inline: Scoring | None = Field(
        None, description="Heads to score each file with after it is embedded; fields as in an annotation job."
    )
    keep_embeddings: bool = Field(True, description="false: remove each HDF5 file after it is annotated.")
    compression: Literal["infer", "gzip", "zstd"] | None = Field(
        "infer",
        description="Ignored; accepted from older job files. The compression is detected from each file's content.",
    )

    @field_validator("annotate_inline", mode="before")
    @classmethod
    def _has_no_clusters(cls, value: Any) -> Any:
        if isinstance(value, Mapping) and "clusters_directory" in value:
            raise ValueError(
                "clusters_directory: documents have clusters only after a cluster job, which needs the embeddings; "
                "annotate in a job of its own"
            )
        return value

    @field_validator("padding")
    @classmethod
    def _can_pad(cls, value: bool | str) -> bool | str:
        if value is False:
            raise ValueError("a batch of texts of different lengths needs padding; use true")
        return value

    @field_validator("embedding_dir")
    @classmethod
    def _stays_inside(cls, value: str) -> str:
        if PurePosixPath(value).is_absolute() or ".." in PurePosixPath(value).parts:
            raise ValueError("must be a folder below output_dir; for another place, change output_dir")
        return value

    @field_validator("keys_to_index")
    @classmethod
    def _distinct(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        names = [key.replace("/", "_") for key in value or ()]  # as in the HDF5 file
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f'"{twice}" would be stored twice (/ becomes _ in the file); list it once')
        return value

    @model_validator(mode="after")
    def _has_one_length(self) -> "EmbeddingPipelineParameters":
        tokens = None if self.chunks is None else self.chunks.tokens
        if None not in (tokens, self.max_length) and tokens != self.max_length:
            raise ValueError(
                f"max_length is {self.max_length} and chunks.tokens {tokens}, and both are the most tokens of a chunk; "
                "remove max_length"
            )
        return self

    @model_validator(mode="after")
    def _has_text(self) -> "EmbeddingPipelineParameters":
        if self.text_field is None and self.keys_to_index == ():
            raise ValueError("text_field and keys_to_index are both empty; name the key of the text")
        return self

    @model_validator(mode="after")
    def _keeps_something(self) -> "EmbeddingPipelineParameters":
        if not self.keep_embeddings and self.annotate_inline is None:
            raise ValueError("keep_embeddings: false leaves nothing without annotate_inline; name the heads there")
        return self

    @property
    def batch_token_limit(self) -> int | None:
        """`max_batch_tokens`; None for auto."""
        return None if self.max_batch_tokens == "auto" else self.max_batch_tokens

    @property
    def annotated_output_dir(self) -> Path:
        return self.output_dir / ANNOTATED_DIR

    @property
    def embedding_output_dir(self) -> Path:
        """Folder of the HDF5 files. Temporary ones have a separate folder, so that no others are removed."""
        return self.output_dir / (self.embedding_dir if self.keep_embeddings else UNKEPT_DIR)

    @property
    def results_dir(self) -> Path:
        """Folder of the outputs that are kept."""
        return self.embedding_output_dir if self.keep_embeddings else self.annotated_output_dir

    @property
    def rejected_output_dir(self) -> Path:
        """Folder of the rejected lines: `rejected/`, with a subfolder for an `embedding_dir` other than the default."""
        own = "" if self.embedding_dir == DEFAULT_EMBEDDING_DIR else self.embedding_dir
        return self.output_dir / "rejected" / own

    def schema_of_documents(self) -> DocumentSchema:
        """Returns the keys of the text, id, index values and labels of records."""
        index_keys = self.keys_to_index
        if index_keys is None:
            index_keys = () if self.text_field else ("text",)
        return DocumentSchema(
            text_keys=(self.text_field,) if self.text_field else index_keys,
            id_key=self.id_key,
            index_keys=index_keys,
            label_keys=self.label_key if self.save_labels else (),
            label_dtype=self.label_dtype,
        )


class EmbeddingJob(Job):
    """A run of the embedding pipeline."""

    one_per_core: ClassVar[bool] = False

    params: EmbeddingPipelineParameters = Field(description="Documents to embed, encoder, and output.")

    @property
    def device(self) -> str:
        return self.params.device

    @property
    def about(self) -> str:
        source = shown_path(self.params.input_dir / self.params.glob_pattern)
        return f"{source} with {self.params.embedding_model}, to {shown_path(self.params.output_dir)}"
