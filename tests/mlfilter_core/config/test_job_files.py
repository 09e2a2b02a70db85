from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlfilter_core.config.annotation import AnnotationJob
from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.config.filtering import FilterJob, Selection
from mlfilter_core.config.job_files import load_job, parse_overrides
from mlfilter_core.corpus.documents import DocumentSchema
from mlfilter_core.errors import ConfigError
from mlfilter_core.job_kinds import JobKind, kinds

# The three examples in the predecessor's description, unchanged.
LOCAL_EMBEDDING = """
running_on_slurm: false
params:
  input_dir: data/jsonl
  glob_pattern: "*.jsonl"
  keys_to_index: ["text"]
  output_dir: outputs
  embedding_dir: embeddings
  embedding_model: sentence-transformers/all-MiniLM-L6-v2
  hdf5_dataset_name: train
  batch_size: 64
  writer_batch_size: 512
  max_length: 512
  padding: true
  truncation: true
  save_labels: true
local_settings: {}
"""
SLURM_EMBEDDING = """
running_on_slurm: true
params:
  input_dir: /scratch/corpus
  glob_pattern: "*.jsonl"
  keys_to_index: ["title", "body"]
  output_dir: /scratch/run123
  embedding_dir: embeddings
  embedding_model: my-org/embedding-large
  hdf5_dataset_name: train
  batch_size: 128
  writer_batch_size: 1024
  max_length: 1024
  padding: longest
  truncation: true
  save_labels: false
slurm_settings:
  tasks: 200        # number of shards / array jobs
  time: "08:00:00"
  partition: gpu
  cpus_per_task: 8
  mem_per_cpu_gb: 8
  job_name: emb_job
  sbatch_args: { gres: "gpu:1" }
"""
LOCAL_ANNOTATION = """
running_on_slurm: false
params:
  embeddings_directory: outputs/embeddings
  output_keys: ["doc_id", "text"]
  output_dir: outputs
  regression_head_checkpoints:
    quality: checkpoints/quality_head.pt
    toxicity: checkpoints/tox_head.pt
  batch_size: 256
local_settings:
  tasks: 1
  local_tasks: 1
  local_rank_offset: 0
  workers: 4
"""
EMBEDDING = "params: {input_dir: in, output_dir: out, embedding_model: org/model"
MIXED = "scores: {a: {best_tokens: 5}}, per: cluster"
FILTERING = "params: {annotated_directory: in, output_dir: out, keep: {scores: {edu: {}}}"
ANNOTATION = "params: {embeddings_directory: in, output_dir: out, regression_head_checkpoints: {a: a.pt}"
Load = Callable[..., Any]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load_text(text: str, kind: type[Any] = EmbeddingJob, overrides: dict[str, Any] | None = None) -> Any:
        (tmp_path / "job.yaml").write_text(text)
        return load_job(tmp_path / "job.yaml", kind, overrides)

    return load_text


def slurm(setting: str) -> str:
    """An embedding job with one Slurm setting."""
    return embedding(rest=f"running_on_slurm: true\nslurm_settings: {{{setting}}}")


def embedding(fields: str = "", rest: str = "") -> str:
    return f"{EMBEDDING}{fields and ', '}{fields}}}\n{rest}"


def annotation(fields: str = "", rest: str = "") -> str:
    return f"{ANNOTATION}{fields and ', '}{fields}}}\n{rest}"


def test_the_known_local_embedding_job_runs_as_it_stands(load: Load) -> None:
    job = load(LOCAL_EMBEDDING)
    assert not job.running_on_slurm
    assert job.params.input_dir == Path("data/jsonl")
    assert job.params.embedding_output_dir == Path("outputs/embeddings")
    assert job.logging_dir == Path("outputs/logs")
    assert (job.params.batch_size, job.params.writer_batch_size, job.params.max_length) == (64, 512, 512)
    assert job.params.schema_of_documents() == DocumentSchema(("text",), None, ("text",), None, "float32")
    assert list(job.local.ranks) == [0]


def test_the_known_slurm_embedding_job_is_read_as_it_stands(load: Load) -> None:
    job = load(SLURM_EMBEDDING)
    assert job.running_on_slurm
    assert job.params.padding == "longest"
    assert job.params.schema_of_documents() == DocumentSchema(("title", "body"), None, ("title", "body"))
    settings = job.slurm_settings
    assert (settings.tasks, settings.time, settings.partition) == (200, "08:00:00", "gpu")
    assert settings.sbatch_args == {"gres": "gpu:1"}


def test_the_known_annotation_job_runs_as_it_stands(load: Load) -> None:
    job = load(LOCAL_ANNOTATION, AnnotationJob)
    assert job.params.output_keys == ("doc_id", "text")
    assert job.params.annotated_output_dir == Path("outputs/annotated_data")
    assert list(job.params.regression_head_checkpoints.items()) == [
        ("quality", "checkpoints/quality_head.pt"),
        ("toxicity", "checkpoints/tox_head.pt"),
    ]
    assert (job.local.workers, list(job.local.ranks)) == (4, [0])


def test_an_embedding_job_needs_three_fields(load: Load) -> None:
    params = load(embedding()).params
    assert (params.glob_pattern, params.embedding_dir, params.hdf5_dataset_name) == (
        "**/*.jsonl*",
        "embeddings",
        "train",
    )
    assert (params.batch_size, params.max_length, params.padding, params.truncation) == (None, None, True, True)
    assert (params.pooling, params.prompt, params.model_dtype, params.embedding_dtype) == (
        None,
        None,
        "float32",
        "float32",
    )
    assert (params.on_bad_record, params.max_rejected_fraction, params.overwrite) == ("reject", 0.5, False)
    assert not params.trust_remote_code
    assert params.schema_of_documents() == DocumentSchema(("text",), None, ("text",))


def test_an_annotation_job_needs_three_fields(load: Load) -> None:
    params = load(annotation(), AnnotationJob).params
    assert (params.glob_pattern, params.hdf5_dataset_name, params.output_keys) == ("**/*", "train", ("document_id",))
    assert (params.score_prefix, params.batch_size, params.device, params.compression) == ("score_", 2048, "cpu", None)


@pytest.mark.parametrize(
    ("fields", "schema"),
    [
        ("text_field: body", DocumentSchema(("body",))),
        ("text_field: body, keys_to_index: [url]", DocumentSchema(("body",), None, ("url",))),
        ("text_field: body, keys_to_index: []", DocumentSchema(("body",))),
        ("id_key: meta.id", DocumentSchema(("text",), "meta.id", ("text",))),
        ("label_key: score", DocumentSchema(("text",), None, ("text",))),
        ("save_labels: true", DocumentSchema(("text",), None, ("text",), None)),
        (
            "save_labels: true, label_key: scores.score, label_dtype: int8",
            DocumentSchema(("text",), None, ("text",), "scores.score", "int8"),
        ),
        ("save_labels: true, label_key: [a, b]", DocumentSchema(("text",), None, ("text",), ("a", "b"))),
    ],
)
def test_the_fields_tell_where_documents_keep_their_parts(load: Load, fields: str, schema: DocumentSchema) -> None:
    assert load(embedding(fields)).params.schema_of_documents() == schema


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            embedding("batch_sizes: 8"),
            r"job\.yaml: 1 problem\n  params\.batch_sizes: unknown field; did you mean batch_size\?",
        ),
        (
            embedding("zzz: 8"),
            r"params\.zzz: unknown field; known here: add_eos, .*compression, .*writer_batch_size",
        ),
        (
            embedding(rest="running_on_slrum: true"),
            r"  running_on_slrum: unknown field; did you mean running_on_slurm\?",
        ),
        (
            embedding(rest="local_settings: {worker: 3}"),
            r"local_settings\.worker: unknown field; did you mean workers\?",
        ),
        ("running_on_slurm: false", r"params: missing \(Documents to embed, encoder, and output\)"),
        ("params: {output_dir: out}", r"params\.input_dir: missing \(Folder or URL of the source files: "),
        ("params: 3", r"params = 3 \(Documents to embed.*\): Input should be a valid dictionary"),
        (
            embedding("batch_size: 0"),
            r"params\.batch_size = 0 \(Most documents per .*\): Input should be greater than or equal to 1",
        ),
        (embedding("batch_size: many"), r"params\.batch_size = 'many' \(.+\): Input should be a valid integer"),
        (embedding("max_length: 2"), r"params\.max_length = 2 \(.+\): Input should be greater than or equal to 3"),
        (
            embedding("padding: false"),
            r"params\.padding = False \(.+\): a batch of texts of different lengths needs .*use true",
        ),
        (embedding("padding: longer"), r"params\.padding = 'longer' \(.+\): .*'longest' or 'max_length'"),
        (
            embedding("pooling: meen"),
            r"params\.pooling = 'meen' \(.+\): Input should be 'cls', 'mean', 'max' or 'last_token'",
        ),
        (
            embedding("embedding_dtype: float64"),
            r"params\.embedding_dtype = 'float64' \(.+\): .* 'float32', 'float16' or 'int8'",
        ),
        (
            embedding("on_bad_record: skip"),
            r"params\.on_bad_record = 'skip' \(.+\): Input should be 'reject' or 'fail'",
        ),
        (
            embedding("max_rejected_fraction: 5"),
            r"params\.max_rejected_fraction = 5 \(.+\): .* less than or equal to 1",
        ),
        (
            embedding("keys_to_index: text"),
            r"params\.keys_to_index = 'text' \(.+\): Input should be a list, as in \[a, b\]",
        ),
        (
            embedding("label_key: 3"),
            r"params\.label_key = 3 \(.+\): Input should be a valid string; or Input should be a list",
        ),
        (
            embedding("keys_to_index: []"),
            r"params: text_field and keys_to_index are both empty; name the key of the text",
        ),
        (
            embedding("keys_to_index: [a, a]"),
            r"params\.keys_to_index = .* \"a\" would be stored twice .*; list it once",
        ),
        (
            embedding("keys_to_index: [a/b, a_b]"),
            r"params\.keys_to_index = .* \"a_b\" would be stored twice \(/ becomes _",
        ),
        (
            embedding("embedding_dir: ../x"),
            r"params\.embedding_dir = '\.\./x' \(.+\): must be a folder below output_dir; for another place, change",
        ),
        (embedding("embedding_dir: /x"), r"params\.embedding_dir = '/x' \(.+\): must be a folder below output_dir"),
        (
            embedding().replace("org/model", "''"),
            r"params\.embedding_model = '' \(.+\): String should have at least 1 character",
        ),
        (
            embedding(rest="local_settings: {workers: 0}"),
            r"local_settings\.workers = 0 \(.+\): must be at least 1, or -1 to choose",
        ),
        (
            embedding(rest="local_settings: {local_tasks: 0}"),
            r"local_settings\.local_tasks = 0 \(.+\): must be at least 1",
        ),
        (
            embedding(rest="running_on_slurm: true\nlocal_settings: {workers: 2}"),
            "the job: running_on_slurm is true; replace local_settings by slurm_settings",
        ),
        (
            embedding(rest="slurm_settings: {tasks: 2}"),
            "the job: slurm_settings are given; set running_on_slurm: true, or remove them",
        ),
        (
            embedding(rest="running_on_slurm: true\nslurm_settings: {time: 10:00:00}"),
            r'slurm_settings\.time = 36000 \(.+\): write it in quotes, as in "10:00:00"',
        ),
        (
            embedding(rest="running_on_slurm: true\nslurm_settings: {time: soon}"),
            r"slurm_settings\.time = 'soon' \(.+\): String should match pattern",
        ),
        (slurm("sbatch_args: {array: 1-5}"), "array cannot be used: each job is submitted by itself; set workers"),
        (slurm("sbatch_args: {a: 1-5}"), "array cannot be used: each job is submitted by itself; set workers"),
        (slurm("sbatch_args: {nodes: 2}"), "nodes: 2 cannot be used: a job is one node; set workers for more jobs"),
        (slurm("sbatch_args: {ntasks_per_node: 4}"), "ntasks-per-node: 4 cannot be used: a job is one node"),
        (slurm("sbatch_args: {time: 10:00:00}"), "time: 36000 is not a time limit; write it in quotes"),
        (slurm("sbatch_args: {cpus_per_task: all}"), "cpus-per-task: all is not a number"),
        (slurm("sbatch_args: {wrap: hostname}"), "wrap cannot be used: the job's script is made here"),
        (slurm("job_name: my job"), r"slurm_settings\.job_name = 'my job' \(.+\): String should match pattern"),
        (slurm("skip_completed: false"), "slurm_settings: skip_completed: false is not supported; to make all"),
        (slurm("requeue_signals: [SIGUSR2]"), "slurm_settings: requeue_signals is not supported; workers stop before"),
        (slurm("stagger_max_array_jobs: 5"), "slurm_settings: stagger_max_array_jobs is not supported: there are no"),
    ],
)
def test_a_wrong_field_is_named_with_its_value_and_how_to_mend_it(load: Load, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (annotation("output_key: [a]"), r"params\.output_key: unknown field; did you mean output_keys\?"),
        (annotation("compression: bz2"), r"params\.compression = 'bz2' \(.+\): Input should be 'gzip' or 'zstd'"),
        (
            annotation().replace("{a: a.pt}", "{}"),
            r"params\.regression_head_checkpoints: Dictionary should have at least 1 item",
        ),
        (
            annotation().replace("{a:", "{a b:"),
            r"params\.regression_head_checkpoints: the name 'a b' may have letters",
        ),
        (
            annotation().replace("a.pt", "3"),
            r"params\.regression_head_checkpoints\.a = 3 \(.+\): Input should be a valid string",
        ),
        (
            embedding(),
            r"params\.embeddings_directory: missing \(Folder of the HDF5 files, searched recursively; may be a URL\)",
        ),
    ],
)
def test_a_wrong_field_of_an_annotation_job_is_named_too(load: Load, text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(text, AnnotationJob)


@pytest.mark.parametrize(
    ("keep", "message"),
    [
        ("{}", r"params\.keep\.scores: missing"),
        ("{scores: {}}", r"params\.keep\.scores: Dictionary should have at least 1 item"),
        ("{scores: {a: {percentile: 70, threshold: 3}}}", "percentile, threshold and best_tokens exclude each other"),
        ("{scores: {a: {percentile: 100}}}", r"scores\.a\.percentile = 100 .*: Input should be less than 100"),
        ("{scores: {a: {threshold: .nan}}}", r"scores\.a\.threshold = nan .*: Input should be a finite number"),
        ("{scores: {a: {best_tokens: 0}}}", r"scores\.a\.best_tokens = 0 .*greater than or equal to 1"),
        ("{scores: {a: {percentil: 7}}}", r"scores\.a\.percentil: unknown field; did you mean percentile\?"),
        ("{scores: {a: {}, b: {}}, at_least: 3}", "at_least is 3, and there are 2 scores"),
        ("{scores: {a: {}, score_a: {}}}", 'scores "a" and "score_a" are the same one; give it once'),
        ("{scores: a}, output_format: parquet, compression: gzip", "compressed with zstd; leave compression out"),
        ("{scores: {a: {best_tokens: 5}}, weights: {de: 1}}", "weights divide best_tokens among the groups of per; se"),
        ("{scores: {a: {}}, per: k, weights: {de: 1}}", "weights divide best_tokens among the groups of per; set both"),
        (f"{{{MIXED}, weights: {{}}}}", "no weight is above 0, so that no group gets tokens"),
        (f"{{{MIXED}, weights: {{3: 0, de: 0.0}}}}", "no weight is above 0, so that no group gets tokens"),
        (f"{{{MIXED}, weights: {{3: 1, de: -2}}}}", r"keep\.weights\.de = -2 .*: Input should be greater than or eq"),
        (f"{{{MIXED}, weights: {{3: .nan}}}}", r"keep\.weights\.3 = nan .*: Input should be a finite number"),
        (f"{{{MIXED}, weights: {{3: .inf}}}}", r"keep\.weights\.3 = inf .*: Input should be a finite number"),
        (f"{{{MIXED}, weights: {{3: many}}}}", r"keep\.weights\.3 = 'many' .*: Input should be a valid number"),
        (
            f"{{{MIXED}, weights: {{no: 1}}}}",
            'the group False is no text; write it in quotes, such as "no", which is f',
        ),
        (f"{{{MIXED}, weights: [3]}}", r"keep\.weights = \[3\] .*: Input should be a valid dictionary"),
        (f"{{{MIXED}, weights: none.yaml}}", "the file none.yaml cannot be read: .*No such file"),
        (f"{{{MIXED}, weights: 's3://bucket/w.yaml'}}", "is a URL, which is not taken here"),
    ],
)
def test_a_selection_that_cannot_be_meant_is_refused(load: Load, keep: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load(f"params: {{annotated_directory: in, output_dir: out, keep: {keep}}}", FilterJob)


def test_weights_are_of_the_text_of_their_group_in_a_job_or_a_file(load: Load, tmp_path: Path) -> None:
    for name, written in (
        ("w.yaml", "{3: 2, '17': 0.5, -1: 1, de: 1e-5}"),
        ("w.json", '{"3": 2, "17": 0.5, "-1": 1, "de": 1e-05}'),
    ):
        (tmp_path / name).write_text(written)
        for weights in (written, tmp_path / name):
            text = f"params: {{annotated_directory: in, output_dir: out, keep: {{{MIXED}, weights: {weights}}}}}"
            job = load(text, FilterJob)
            assert job.params.keep.weights == {"3": 2, "17": 0.5, "-1": 1, "de": 0.00001}
            assert load_job(job.model_dump(mode="json"), FilterJob) == job


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- 3", "w.yaml has no mapping from groups to weights"),
        ("{3: ", "w.yaml cannot be read: "),
        ('{3: "${oc.env:HOME}"}', r"weights\.3 = .*oc\.env:HOME.*: Input should be a valid number"),
    ],
)
def test_a_file_without_weights_is_refused(load: Load, tmp_path: Path, content: str, message: str) -> None:
    (tmp_path / "w.yaml").write_text(content)
    keep = f"{{{MIXED}, weights: {tmp_path / 'w.yaml'}}}"
    with pytest.raises(ConfigError, match=message):
        load(f"params: {{annotated_directory: in, output_dir: out, keep: {keep}}}", FilterJob)


def test_a_group_has_one_weight_whether_it_is_a_number_or_text() -> None:
    keep = {"scores": {"a": {"best_tokens": 5}}, "per": "cluster", "weights": {3: 1, "3": 2}}
    with pytest.raises(ValueError, match='the group "3" has two weights; give it one'):
        Selection.model_validate(keep)


def test_a_score_without_a_limit_is_kept_from_the_seventieth_percentile_on(load: Load) -> None:
    for keep in ("{scores: a}", "{scores: {a: }}", "{scores: {a: {}}}"):
        job = load(f"params: {{annotated_directory: in, output_dir: out, keep: {keep}}}", FilterJob)
        assert [bound.percentile_or_default for bound in job.params.keep.scores.values()] == [70.0]


def test_every_wrong_field_is_named_at_once(load: Load) -> None:
    with pytest.raises(ConfigError) as error:
        load(embedding("batch_size: 0, max_lenght: 8", "runing_on_slurm: true"))
    lines = str(error.value).splitlines()
    assert lines[0].endswith("job.yaml: 3 problems")
    assert [line.split()[0] for line in lines[1:]] == ["params.batch_size", "params.max_lenght:", "runing_on_slurm:"]


@pytest.mark.parametrize(
    ("settings", "ranks"),
    [
        ("{}", [0]),
        ("{tasks: 4}", [0, 1, 2, 3]),
        ("{tasks: 4, local_rank_offset: 2}", [2, 3]),
        ("{tasks: 4, local_tasks: 2}", [0, 1]),
        ("{tasks: 4, local_tasks: 2, local_rank_offset: 1}", [1, 2]),
        ("{tasks: 4, local_tasks: 1, local_rank_offset: 3}", [3]),
    ],
)
def test_a_machine_takes_its_shards(load: Load, settings: str, ranks: list[int]) -> None:
    assert list(load(embedding(rest=f"local_settings: {settings}")).local.ranks) == ranks


@pytest.mark.parametrize(
    ("settings", "shards"),
    [
        ("{tasks: 4, local_tasks: 5}", "0 to 4"),
        ("{tasks: 4, local_tasks: 2, local_rank_offset: 3}", "3 to 4"),
        ("{tasks: 4, local_rank_offset: 4}", "4 to 4"),
    ],
)
def test_shards_that_are_not_there_are_refused(load: Load, settings: str, shards: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"shards {shards} \(local_rank_offset, local_tasks\) do not exist: tasks is 4"
    ):
        load(embedding(rest=f"local_settings: {settings}"))


def test_values_may_refer_to_one_another(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORPUS", "/corpus")
    job = load(
        embedding(
            "glob_pattern: '${dataset_name}/*.jsonl', id_key: '${oc.env:CORPUS}'",
            "dataset_name: de\nlocal_settings: {logging_dir: '${params.output_dir}/protocols'}",
        )
    )
    assert (job.params.glob_pattern, job.params.id_key) == ("de/*.jsonl", "/corpus")
    assert job.logging_dir == Path("out/protocols")


def test_a_reference_to_nothing_is_an_error(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"job\.yaml: params\.glob_pattern: .*'datset_name' not found$"):
        load(embedding("glob_pattern: '${datset_name}/*.jsonl'", "dataset_name: de"))


def test_overrides_replace_values_of_the_file(load: Load) -> None:
    job = load(
        embedding("batch_size: 8"), overrides={"params.batch_size": 16, "params.prompt": "a", "dataset_name": "de"}
    )
    assert (job.params.batch_size, job.params.prompt, job.dataset_name) == (16, "a", "de")


def test_an_override_may_name_a_section_that_the_file_lacks(load: Load) -> None:
    assert load(embedding(), overrides={"local_settings.workers": 3}).local.workers == 3


def test_an_override_adds_a_head_or_replaces_them_all(load: Load) -> None:
    heads = "params.regression_head_checkpoints"
    added = load(annotation(), AnnotationJob, {f"{heads}.b": "b.pt"})
    assert added.params.regression_head_checkpoints == {"a": "a.pt", "b": "b.pt"}
    replaced = load(annotation(), AnnotationJob, {heads: {"b": "b.pt"}})
    assert replaced.params.regression_head_checkpoints == {"b": "b.pt"}


def test_a_wrong_override_is_named_as_a_field_is(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"params\.batch: unknown field; did you mean batch_size\?"):
        load(embedding(), overrides={"params.batch": 8})


def test_a_job_may_be_given_whole_instead_of_a_file(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CORPUS", "/corpus")
    text = embedding("glob_pattern: '${oc.env:CORPUS}/${dataset_name}'", "dataset_name: de\nlocal_settings: null")
    written = yaml.safe_load(text)
    overrides = {"params.batch_size": 16, "local_settings.workers": 3}
    job = load_job(written, EmbeddingJob, overrides)
    assert job == load(text, overrides=overrides) == load_job(EmbeddingJob(**written), EmbeddingJob, overrides)
    assert (job.params.glob_pattern, job.params.batch_size, job.local.workers) == ("/corpus/de", 16, 3)


def test_a_wrong_field_of_a_whole_job_is_named_as_that_of_a_file_is(load: Load) -> None:
    written = yaml.safe_load(embedding("batch: 8"))
    with pytest.raises(ConfigError, match=r"^the job: 1 problem\n  params\.batch: unknown field; did you mean batch"):
        load_job(written, EmbeddingJob)
    with pytest.raises(ConfigError, match=r'^the job must contain a mapping with a "params:" section'):
        load_job({}, EmbeddingJob)


def test_overrides_are_read_from_assignments() -> None:
    assignments = ["params.batch_size=8", "params.prompt=a=b", "keys=[a, b]", "none=", "text='1'", "flag=true"]
    assignments += ["params.glob_pattern=**/*.json.gz", "params.output_keys=['*']", "star=*"]
    assert parse_overrides(assignments) == {
        "params.batch_size": 8,
        "params.prompt": "a=b",
        "keys": ["a", "b"],
        "none": None,
        "text": "1",
        "flag": True,
        "params.glob_pattern": "**/*.json.gz",
        "params.output_keys": ["*"],
        "star": "*",
    }


@pytest.mark.parametrize(
    ("assignment", "message"),
    [
        ("params.batch_size", "--set params.batch_size: write it as --set params.batch_size=128"),
        ("=8", "--set =8: write it as"),
        ("a=[1", r"--set a=\[1: the value is not valid YAML"),
    ],
)
def test_an_assignment_that_is_none_is_refused(assignment: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_overrides([assignment])


def test_tabs_are_named(load: Load) -> None:
    with pytest.raises(
        ConfigError, match=r"is not valid YAML(?s:.*); indent with spaces, as YAML allows no tabs there"
    ):
        load("params:\n\tinput_dir: in\n")


@pytest.mark.parametrize("overrides", [None, {"params.batch_size": 8}])
@pytest.mark.parametrize("text", ["", "null", "{}", "- params", "# nothing"])
def test_a_file_that_holds_no_mapping_is_refused(load: Load, text: str, overrides: dict[str, Any] | None) -> None:
    with pytest.raises(ConfigError, match=r'job\.yaml must contain a mapping with a "params:" section'):
        load(text, overrides=overrides)


def test_a_file_that_is_not_yaml_is_refused(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"job\.yaml is not valid YAML: .*\n.*\n.*line 2"):
        load("params: [\n")


def test_a_field_that_stands_twice_is_refused(load: Load) -> None:
    with pytest.raises(ConfigError, match=r"job\.yaml is not valid YAML: .*\n.*\nfound duplicate key batch_size"):
        load(embedding("batch_size: 8, batch_size: 9"))


def test_code_in_a_yaml_tag_is_not_run(load: Load, tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError, match=r"not valid YAML: could not determine a constructor for the tag .*python/object"
    ):
        load(f"params: !!python/object/apply:os.mkdir ['{tmp_path}/executed']")
    assert not (tmp_path / "executed").exists()


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"the job file .*/nowhere\.yaml does not exist"):
        load_job(tmp_path / "nowhere.yaml", EmbeddingJob)


def test_a_file_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    (tmp_path / "latin1.yaml").write_bytes("params: größer".encode("latin-1"))
    for path in (tmp_path, tmp_path / "latin1.yaml"):
        with pytest.raises(ConfigError, match=rf"the job file {path} cannot be read: .+"):
            load_job(path, EmbeddingJob)


@pytest.mark.parametrize("kind", kinds(), ids=lambda kind: kind.flow)
def test_every_field_has_a_description_in_the_schema(kind: JobKind) -> None:
    """Forms show these; pydantic omits the description of a section that equals its class's docstring."""
    schema = kind.config.model_json_schema()
    for section in (schema, *schema["$defs"].values()):
        for name, field in section["properties"].items():
            assert field.get("description"), name


@pytest.mark.parametrize(
    ("kind", "content", "field", "url", "message"),
    [
        (
            EmbeddingJob,
            EMBEDDING,
            "params.output_dir",
            "https://host/out",
            r"https:// is only read; write to s3://, gs://",
        ),
        (EmbeddingJob, EMBEDDING, "params.output_dir", "gs://bucket/out", r"run: pip install 'mlfilter\[gs\]'"),
        (EmbeddingJob, EMBEDDING, "params.input_dir", "az://box/in", r"run: pip install 'mlfilter\[az\]'"),
        (EmbeddingJob, EMBEDDING, "params.input_dir", "s4://b/in", r"s4:// is no store that .*; did you mean s3://\?"),
        (EmbeddingJob, EMBEDDING, "params.input_dir", "https://h/in?key=a", r"contains credentials or a query"),
        (EmbeddingJob, EMBEDDING, "staging_dir", "s3://bucket/staging", r"is a URL, which is not taken here"),
        (FilterJob, FILTERING, "params.annotated_directory", "s3://b/in", r"is a URL, which is not taken here"),
        (FilterJob, FILTERING, "params.output_dir", "s3://b/out", r"is a URL, which is not taken here"),
    ],
)
def test_a_url_that_cannot_be_used_is_refused(kind: Any, content: str, field: str, url: str, message: str) -> None:
    job = yaml.safe_load(content + "}")
    section, _, name = field.rpartition(".")
    (job[section] if section else job)[name] = url
    with pytest.raises(ConfigError, match=rf"{field} = .*{message}"):
        load_job(job, kind)


def test_the_url_of_a_head_is_checked() -> None:
    job = yaml.safe_load(ANNOTATION + "}")
    job["params"]["regression_head_checkpoints"] = {"edu": "gs://bucket/edu.pt"}
    with pytest.raises(ConfigError, match=r"the checkpoint of edu: gs:// needs the package gcsfs; run: pip install"):
        load_job(job, AnnotationJob)


def test_files_of_urls_are_not_divided() -> None:
    job = yaml.safe_load(EMBEDDING + "}")
    job["params"] |= {"input_dir": "s3://bucket/in", "split": 4}
    with pytest.raises(
        ConfigError, match=r"split is 4, and input_dir a URL, whose files are not divided; remove split"
    ):
        load_job(job, EmbeddingJob)
    for split in ("auto", False):
        job["params"]["split"] = split
        assert load_job(job, EmbeddingJob).params.split == split


def test_credentials_in_a_refused_url_are_not_repeated() -> None:
    job = yaml.safe_load(EMBEDDING + "}")
    job["params"]["input_dir"] = "s3://id:hunter2@bucket/in"
    with pytest.raises(ConfigError, match=r"s3:/+\*\*\*@bucket/in.*contains credentials") as refused:
        load_job(job, EmbeddingJob)
    assert "hunter2" not in str(refused.value)


def test_a_url_is_written_as_it_was_read() -> None:
    job = yaml.safe_load(EMBEDDING + "}")
    job["params"] |= {"input_dir": "s3://bucket/in", "output_dir": "s3://bucket/out"}
    loaded = load_job(job, EmbeddingJob)
    written = loaded.model_dump(mode="json")
    assert (written["params"]["input_dir"], written["params"]["output_dir"]) == ("s3://bucket/in", "s3://bucket/out")
    assert load_job(written, EmbeddingJob) == loaded
    assert loaded.about == "s3://bucket/in/**/*.jsonl* with org/model, to s3://bucket/out"


def test_the_folders_of_urls_depend_on_all_of_them(tmp_path: Path) -> None:
    def job(**urls: str) -> EmbeddingJob:
        content = yaml.safe_load(EMBEDDING + "}")
        return load_job({"params": content["params"] | urls, "staging_dir": str(tmp_path)}, EmbeddingJob)

    here, one = job(), job(input_dir="s3://bucket/in")
    other = job(input_dir="s3://bucket/other")
    assert here.on_this_machine() is here
    assert one.on_this_machine().params.input_dir.is_relative_to(tmp_path)
    assert one.output_dir == Path("out")
    assert one.staging != other.staging
