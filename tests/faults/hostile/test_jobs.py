"""Broken, wrong and malicious job files: each is refused with a message, in little time and memory."""

import tracemalloc
from pathlib import Path

import pytest

from mlfilter_core.config.embedding import EmbeddingJob
from mlfilter_core.config.job_files import load_job
from mlfilter_core.errors import ConfigError

PARAMS = "params: {input_dir: in, output_dir: out, embedding_model: org/model}\n"
NOT_YAML = r"job\.yaml is not valid YAML: "
NO_MAPPING = r'job\.yaml must contain a mapping with a "params:" section'


def files_per_task(value: str) -> str:
    return f"{PARAMS}files_per_task: {value}\n"


def named(value: str) -> str:
    return f"{PARAMS}dataset_name: {value}\n"


def laughs(first: str, ten_times: str, n_levels: int) -> str:
    """Values, each ten times as long as the previous one."""
    return "".join([first, *(ten_times.format(i=i, before=i - 1) for i in range(1, n_levels))])


# The content of a job file, and the message about it.
BAD_JOBS: dict[str, tuple[str | bytes, str]] = {
    "empty": ("", NO_MAPPING),
    "null": ("null\n", NO_MAPPING),
    "list": ("- params\n", NO_MAPPING),
    "number": ("5\n", r"job\.yaml cannot be read"),
    "bytes": (b"\xff\x00\xfe", r"job\.yaml cannot be read: 'utf-8' codec"),
    "UTF-16": (PARAMS.encode("utf-16"), r"job\.yaml cannot be read: 'utf-8' codec"),
    "raw NUL": ("params: \0", NOT_YAML),
    "escaped NUL in a path": (PARAMS.replace("in,", '"a\\0b",'), r"params\.input_dir = .* contains a NUL character"),
    "escaped NUL in a list": (
        PARAMS.replace("}", ', keys_to_index: ["a\\0"]}'),
        "keys_to_index .* contains a NUL character",
    ),
    "escaped surrogate": (named('"\\ud800"'), NOT_YAML),
    "tabs": ("params:\n\tinput_dir: in\n", f"{NOT_YAML}.*"),
    "two documents": (f"{PARAMS}---\n{PARAMS}", NOT_YAML),
    "duplicate keys": (named("a") + "dataset_name: b\n", f"{NOT_YAML}(.|\n)*found duplicate key dataset_name"),
    "code": (f'{PARAMS}x: !!python/object/apply:pathlib.Path.touch ["executed"]\n', f"{NOT_YAML}could not determine"),
    "name of code": (named("!!python/name:os.system"), f"{NOT_YAML}could not determine a constructor"),
    "module": (named("!!python/module:this"), f"{NOT_YAML}could not determine a constructor"),
    "tag of our own": (named("!secret x"), f"{NOT_YAML}could not determine a constructor"),
    "set": (named("!!set {a}"), NOT_YAML),
    "a key that is no text": (f"{PARAMS}5: x\n", "5 = 5"),
    "a key that is null": (f"{PARAMS}null: x\n", NOT_YAML),
    "a key that is a mapping": (f"{PARAMS}{{a: b}}: x\n", NOT_YAML),
    "integer of 10,000 digits": (files_per_task("9" * 10_000), f"{NOT_YAML}Exceeds the limit"),
    "hexadecimal of 10,000 digits": (files_per_task("0x" + "f" * 10_000), f"{NOT_YAML}Exceeds the limit"),
    "10,000 digits to the base 60": (files_per_task(":".join(["59"] * 10_000)), f"{NOT_YAML}Exceeds the limit"),
    "huge exponent": (files_per_task("1.0e+999999"), "files_per_task = inf"),
    "NaN": (files_per_task(".nan"), "files_per_task = nan"),
    "integer without digits": (files_per_task('!!int ""'), NOT_YAML),
    "boolean that is none": (files_per_task("!!bool x"), NOT_YAML),
    "day that is none": (named("!!timestamp x"), NOT_YAML),
    "binary that is none": (named("!!binary a"), NOT_YAML),
    "3,000 lists in one another": ("params: " + "[" * 3000 + "]" * 3000, f"{NOT_YAML}maximum recursion"),
    "3,000 mappings in one another": ("params: " + "{a: " * 3000 + "}" * 3000, f"{NOT_YAML}maximum recursion"),
    "3,000 brackets that never close": ("[" * 3000, NOT_YAML),
    "an alias to itself": (f"{PARAMS}x: &x [*x]\n", f"{NOT_YAML}YAML recursive aliases"),
    "a merge with itself": (f"{PARAMS}x: &x {{<<: *x}}\n", f"{NOT_YAML}YAML recursive aliases"),
    "an alias to nothing": (f"{PARAMS}x: *nothing\n", f"{NOT_YAML}found undefined alias"),
    "a billion laughs": (
        laughs("a0: &a0 [ha]\n", "a{i}: &a{i} [" + ", ".join(["*a{before}"] * 10) + "]\n", 10) + PARAMS,
        f"{NOT_YAML}YAML node expansion exceeds",
    ),
    "a billion laughs in mappings": (
        laughs(
            "a0: &a0 {x: ha}\n", "a{i}: &a{i} {{" + ", ".join(f"k{k}: *a{{before}}" for k in range(10)) + "}}\n", 10
        ),
        f"{NOT_YAML}YAML node expansion exceeds",
    ),
    "a billion laughs of another kind": (
        laughs("a0: ha\n", 'a{i}: "' + "${{a{before}}}" * 10 + '"\n', 10) + PARAMS,
        r"has more than 1000000 characters after each \$\{\.\.\.\} is replaced; shorten it",
    ),
    "a billion laughs of another kind, in sections": (
        laughs(
            "a0: {x: ha}\n", "a{i}: {{" + ", ".join(f'k{k}: "${{{{a{{before}}}}}}"' for k in range(10)) + "}}\n", 10
        ),
        r"has more than 1000000 characters after each \$\{\.\.\.\} is replaced",
    ),
    "2 MB of text": (named("x" * 2_000_000), "has more than 1000000 characters"),
    "a value that stands for itself": (named("${dataset_name}"), r"job\.yaml: dataset_name: Recursive interpolation"),
    "values that stand for one another": (
        named("${x}") + "x: ${dataset_name}\n",
        r"job\.yaml: dataset_name: Recursive interpolation",
    ),
    "a value that stands for what it is in": (
        'params: {a: "${params}"}',
        r"job\.yaml: params\.a: Interpolation to parent node",
    ),
    "an interpolation that never ends": (named('"${"'), NOT_YAML),
    "500 interpolations in one another": (named('"' + "${a:" * 500 + "}" * 500 + '"'), NOT_YAML),
    "an unknown resolver": (named("${python:x}"), r"job\.yaml: dataset_name: Unsupported interpolation type python"),
    "a variable that is not set": (
        named("${oc.env:MLFILTER_NOBODY_SETS_THIS}"),
        r"job\.yaml: dataset_name: the variable",
    ),
    "the home of nobody": (
        PARAMS.replace("in,", "~nobody-has-this-name/in,"),
        r"params\.input_dir = .*Write the path in full",
    ),
    "an unknown field of 5,000 letters": (f"{PARAMS}? {'x' * 5000}\n: 1\n", "unknown field"),
}


@pytest.mark.parametrize("name", BAD_JOBS)
def test_a_hostile_job_file_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    content, message = BAD_JOBS[name]
    Path("job.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    tracemalloc.start()
    with pytest.raises(ConfigError, match=message):
        load_job("job.yaml", EmbeddingJob)
    assert tracemalloc.get_traced_memory()[1] < 100 << 20
    tracemalloc.stop()
    assert not Path("executed").exists()


def test_a_job_may_stand_for_itself_in_many_places(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        "dataset_name: web\nparams: {input_dir: '/corpora/${dataset_name}', output_dir: '${params.input_dir}/out', "
        "embedding_dir: '${dataset_name}', embedding_model: '${params.output_dir}/${.embedding_dir}'}\n"
    )
    assert load_job(tmp_path / "job.yaml", EmbeddingJob).params.embedding_model == "/corpora/web/out/web"


def test_a_huge_number_from_elsewhere_is_refused() -> None:
    """For example from a form."""
    with pytest.raises(ConfigError, match="the job is not valid YAML: Exceeds the limit"):
        load_job({"files_per_task": 10**5000}, EmbeddingJob)
