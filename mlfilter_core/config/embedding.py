"""An embedding job: what to embed, with which encoder, and where to."""

from pathlib import Path, PurePosixPath
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from mlfilter_core.config.annotation import ANNOTATED_DIR, Scoring
from mlfilter_core.config.execution import Job
from mlfilter_core.config.written import Written
from mlfilter_core.corpus.documents import DocumentSchema
from mlfilter_core.corpus.lines import DEFAULT_MAX_LINE_BYTES
from mlfilter_core.corpus.windows import DEFAULT_COMMIT_DOCUMENTS

DEFAULT_EMBEDDING_DIR = "embeddings"
UNKEPT_DIR = ".embeddings"


class EmbeddingPipelineParameters(Written):
    """What to embed, with which encoder, and where to."""

    input_dir: Path = Field(description="Folder that holds the source JSONL files.")
    glob_pattern: str = Field(
        "**/*.jsonl*",
        min_length=1,
        description="Which files below input_dir: .jsonl, .jsonl.gz or .jsonl.zst. ** is any number of folders.",
    )
    text_field: str | None = Field(
        None, description="Key of the text to embed. Unset: the keys_to_index, joined by a line feed, are."
    )
    keys_to_index: tuple[str, ...] | None = Field(
        None,
        description="Keys stored beside each embedding; without text_field also the text. Default: text, "
        "or none with text_field.",
    )
    id_key: str | None = Field(
        None, description="Key of the document's id. Unset: document_id, doc_id, id or uuid, else file:line."
    )
    save_labels: bool = Field(False, description="Store labels beside the embeddings.")
    label_key: str | tuple[str, ...] | None = Field(
        None,
        description="Key of the labels, such as scores.score, or a list of keys, for labels of (n, k). Unset: label, "
        "else score, else scores.score.",
    )
    output_dir: Path = Field(description="Folder for everything that the run writes.")
    embedding_dir: str = Field(
        DEFAULT_EMBEDDING_DIR, min_length=1, description="Folder of the HDF5 files in output_dir."
    )
    hdf5_dataset_name: str = Field("train", min_length=1, description="Group inside each HDF5 file.")
    embedding_model: str = Field(
        min_length=1,
        description="Hugging Face model id, local folder, or package:<package>/<folder> for a model that an "
        "installed Python package ships.",
    )
    model_revision: str | None = Field(None, description="Branch, tag or commit of a model id.")
    trust_remote_code: bool = Field(False, description="Run Python code that the model's repository ships.")
    batch_size: int | None = Field(
        None, ge=1, description="Most documents in one forward pass. Unset: max_batch_tokens alone limits it."
    )
    writer_batch_size: int = Field(1024, ge=1, description="Documents written to HDF5 at a time.")
    commit_documents: int = Field(
        DEFAULT_COMMIT_DOCUMENTS,
        ge=1,
        description="Documents after which what is encoded is flushed to disk, to outlive the machine; it outlives its "
        "process every 4096. Fewer than these are sorted in smaller windows, which is slower.",
    )
    max_length: int | None = Field(
        None, ge=3, description="Most tokens of a document; longer ones are cut. Unset: the model's own maximum."
    )
    padding: bool | Literal["longest", "max_length"] = Field(
        True, description="true or longest: to the longest of a batch; max_length: always to max_length."
    )
    truncation: bool | Literal["longest_first", "only_first", "do_not_truncate"] = Field(
        True, description="false or do_not_truncate: documents above max_length are rejected, not cut."
    )
    pooling: Literal["cls", "mean", "max", "last_token"] | None = Field(
        None, description="How token embeddings become one. Unset: as the model is configured, else mean."
    )
    prompt: str | None = Field(None, description="Set before each text. Unset: the model's own default prompt.")
    max_batch_tokens: Literal["auto"] | Annotated[int, Field(ge=1)] = Field(
        "auto", description="Most tokens in one forward pass. auto: each worker finds the size that is fastest there."
    )
    model_dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "float32",
        description="Precision of the forward pass; pooling is float32 always. auto: bfloat16 where it is fast.",
    )
    torch_compile: bool = Field(
        False,
        description="Have torch.compile make the code of the model's forward pass, about a minute for each worker. "
        "A CPU is faster without.",
    )
    embedding_dtype: Literal["float32", "float16"] = Field("float32", description="Precision in the file.")
    label_dtype: Literal["float32", "float64", "int8", "int16", "int32", "int64"] = Field(
        "float32",
        description="Type of stored labels; one out of its range, or a fraction in an integer, is a rejected line.",
    )
    device: str = Field("auto", description="auto (CUDA, then MPS, then CPU), cpu, mps, cuda or cuda:<n>.")
    on_bad_record: Literal["reject", "fail"] = Field(
        "reject", description="What a bad line does: goes to rejected/ with its reason, or fails its file."
    )
    max_rejected_fraction: float = Field(
        0.5, ge=0, le=1, description="A file of which a larger share is rejected fails: its keys are likely wrong."
    )
    max_line_bytes: int = Field(DEFAULT_MAX_LINE_BYTES, ge=1024, description="A longer line is rejected.")
    overwrite: bool = Field(False, description="Replace finished files that another request made.")
    annotate_inline: Scoring | None = Field(
        None, description="Heads to score each file with once it is embedded; fields as in an annotation job."
    )
    keep_embeddings: bool = Field(True, description="false: each HDF5 file is removed once it is annotated.")
    compression: Literal["infer", "gzip", "zstd"] | None = Field(
        "infer", description="Accepted from older files; each file's first bytes tell its compression."
    )

    @field_validator("padding")
    @classmethod
    def _can_pad(cls, value: bool | str) -> bool | str:
        if value is False:
            raise ValueError("texts of different lengths share a batch only when padded; use true")
        return value

    @field_validator("embedding_dir")
    @classmethod
    def _stays_inside(cls, value: str) -> str:
        if PurePosixPath(value).is_absolute() or ".." in PurePosixPath(value).parts:
            raise ValueError("must be a folder below output_dir; change output_dir for another place")
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
        """`max_batch_tokens`; None leaves it to the encoder."""
        return None if self.max_batch_tokens == "auto" else self.max_batch_tokens

    @property
    def annotated_output_dir(self) -> Path:
        return self.output_dir / ANNOTATED_DIR

    @property
    def embedding_output_dir(self) -> Path:
        """Embeddings that do not stay lie apart from those that do, so that none of those is removed."""
        return self.output_dir / (self.embedding_dir if self.keep_embeddings else UNKEPT_DIR)

    @property
    def results_dir(self) -> Path:
        """Where what stays lies."""
        return self.embedding_output_dir if self.keep_embeddings else self.annotated_output_dir

    @property
    def rejected_output_dir(self) -> Path:
        """`rejected/`; below it one folder for each further folder of embeddings, which has rejects of its own."""
        own = "" if self.embedding_dir == DEFAULT_EMBEDDING_DIR else self.embedding_dir
        return self.output_dir / "rejected" / own

    def schema_of_documents(self) -> DocumentSchema:
        """Where the records keep their text, id, index values and labels."""
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

    params: EmbeddingPipelineParameters = Field(description="What to embed, with what, and where to.")

    @property
    def device(self) -> str:
        return self.params.device
