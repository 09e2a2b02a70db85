"""The training job: heads to train, labels, and embeddings."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from mlfilter_core.config.annotation import HEAD_NAME
from mlfilter_core.config.execution import Job
from mlfilter_core.config.written import Written

HEADS_DIR = "heads"


class HeadRecipe(Written):
    """How to train one head."""

    labels_path: Path | None = Field(
        None,
        description="JSONL file of labels, or a folder of such files, joined to embeddings by document id. Unset: the "
        "labels in the HDF5 files, stored with save_labels.",
    )
    label_key: str | tuple[str, ...] | None = Field(
        None,
        description="Key of the label, or keys of several targets, as in the embedding job or in labels_path. Unset: "
        "all labels of the HDF5 files; in labels_path the mean of a list scores, or label, score or scores.score, the "
        "first that a line has.",
    )
    id_key: str | None = Field(
        None,
        description="Key of the document's id in labels_path. Unset: document_id, doc_id, id, uuid or warc_record_id.",
    )
    task: Literal["regression", "binary", "multiclass", "multilabel"] = Field(
        "regression",
        description="Kind of labels. regression: numbers. binary: 0 and 1. multiclass: class numbers from 0. "
        "multilabel: 0 and 1 in each of several label_key.",
    )
    label_names: tuple[str, ...] = Field((), description="Names of the targets or classes, in order.")
    scale: tuple[float, float] | None = Field(
        None, description="Lowest and highest valid label. Documents with other labels are left out and counted."
    )
    hidden_dims: tuple[Annotated[int, Field(ge=1)], ...] = Field(
        (1000,), description="Widths of the hidden layers; [] for a linear head."
    )
    activation: Literal["relu", "gelu", "tanh"] = Field(
        "relu", description="Activation function after each hidden layer."
    )
    dropout: float = Field(0.5, ge=0, lt=1, description="Dropout rate after each hidden layer.")
    learning_rate: float = Field(1e-4, gt=0, description="Learning rate of AdamW. Embeddings are standardised first.")
    weight_decay: float = Field(
        0.01, ge=0, description="Weight decay of AdamW. A linear head needs more: 30 with a learning rate of 0.001."
    )
    batch_size: int = Field(64, ge=1, description="Documents per step.")
    max_epochs: int = Field(100, ge=1, description="Most passes over the documents.")
    patience: int = Field(
        10,
        ge=1,
        description="Epochs without a lower validation loss after which training stops; the best epoch is kept.",
    )
    folds: Literal["auto"] | Annotated[int, Field(ge=1, le=100)] = Field(
        "auto",
        description="Cross-validation folds to find the best epoch; the head is then trained on all of them. 1: train "
        "once, without validation_fraction of the documents. auto: 5 below 20,000 documents, otherwise 1.",
    )
    balance: Literal["none", "labels"] = Field(
        "none",
        description="labels: weight documents so that all labels, rounded to whole numbers, have the same total.",
    )
    seed: int = Field(0, ge=0, description="Seed of initial weights, order and dropout.")

    @model_validator(mode="after")
    def _fits_together(self) -> "HeadRecipe":
        several = isinstance(self.label_key, tuple) and len(self.label_key) > 1
        if several and self.task not in ("regression", "multilabel"):
            raise ValueError(f"task: {self.task} takes one label_key; set task: multilabel, or train a head for each")
        if several and self.balance != "none":
            raise ValueError("balance: labels takes one label_key; train a head for each")
        if self.task == "binary" and len(self.label_names) not in (0, 2):
            raise ValueError("task: binary has two classes; give two label_names, that of 0 first")
        if self.scale is not None and self.scale[0] >= self.scale[1]:
            raise ValueError(f"scale: {list(self.scale)} is empty; write the lower number first")
        if len(set(self.label_names)) < len(self.label_names):
            raise ValueError("label_names names one twice")
        return self


class TrainingParameters(Written):
    """The parameters of a training job."""

    embeddings_directory: Path = Field(description="Folder of the HDF5 files, searched recursively.")
    glob_pattern: str = Field(
        "**/*", min_length=1, description="Pattern of .h5 or .hdf5 files below embeddings_directory."
    )
    hdf5_dataset_name: str = Field("train", min_length=1, description="Group inside each HDF5 file.")
    heads: dict[str, HeadRecipe] = Field(min_length=1, description="Heads to train, by name: the fields of a head.")
    output_dir: Path = Field(description=f"Output folder; heads go to {HEADS_DIR}/ in it.")
    test_fraction: float = Field(0.2, gt=0, lt=1, description="Share of the documents to hold out for evaluation.")
    validation_fraction: float = Field(
        0.1, gt=0, lt=1, description="Share of the other documents to find the best epoch on, with folds: 1."
    )
    split_seed: int = Field(0, ge=0, description="Seed of the split, which depends on hashes of the texts.")
    memory_gb: float = Field(
        4, gt=0, description="Most embeddings in memory, in GB. Larger data is read again in each epoch."
    )
    device: str = Field("auto", description="auto (CUDA, then MPS, then CPU), cpu, mps, cuda or cuda:<n>.")
    overwrite: bool = Field(False, description="Replace finished heads that were made with other settings.")

    @field_validator("heads", mode="before")
    @classmethod
    def _defaults_may_be_left_out(cls, value: Any) -> Any:
        return (
            {name: {} if recipe is None else recipe for name, recipe in value.items()}
            if isinstance(value, dict)
            else value
        )

    @field_validator("heads")
    @classmethod
    def _usable_names(cls, value: dict[str, HeadRecipe]) -> dict[str, HeadRecipe]:
        for name in value:
            if not HEAD_NAME.fullmatch(name):
                raise ValueError(f"the name {name!r} may have letters, digits, _, . and - only")
        return value

    @property
    def heads_dir(self) -> Path:
        """Folder of the heads."""
        return self.output_dir / HEADS_DIR


class TrainingJob(Job):
    """A run that trains heads."""

    one_per_core: ClassVar[bool] = False

    params: TrainingParameters = Field(description="Heads to train, embeddings, and output.")

    @property
    def device(self) -> str:
        return self.params.device

    @property
    def about(self) -> str:
        return f"{', '.join(self.params.heads)} on {self.params.embeddings_directory}, to {self.params.output_dir}"
