"""The pages compared with the code: links, job files, commands, messages, Python."""

import ast
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
import yaml

from flows.commands.app import build_app
from mlfilter_core.config.embedding import EmbeddingPipelineParameters
from mlfilter_core.corpus.documents import BadRecordError
from mlfilter_core.embedding.work import embed_work
from mlfilter_core.files.task_files import TaskFile
from mlfilter_core.heads.trained_head import TrainedHead, write_head
from mlfilter_core.job_kinds import JobKind, kinds, load_any_job
from tests.conftest import TINY_DIM
from tests.docs.pages import DOCS, PAGES, REPOSITORY, blocks, name_of, prose

# Words after `ml_filter` in a shell line that are not commands.
OPTIONS = ("--version", "--help", "COMMAND")
PART = ", part"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)|srcset=\"([^\"]+)\"|src=\"([^\"]+)\"", prose(page)):
        target = "".join(target)
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        if not other.exists():  # pages that the site takes from elsewhere in the repository
            elsewhere = {"contributing.md": "CONTRIBUTING.md", "benchmarks.md": "benchmarks/README.md"}
            other = REPOSITORY / elsewhere.get(other.name, f"nowhere/{target}")
        assert other.exists(), target
        if anchor and other.suffix == ".md":
            assert anchor in headings(other), target


def headings(page: Path) -> set[str]:
    """Returns the anchors of a page's headings, as GitHub and MkDocs make them."""
    titles = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-") for title in titles}


EXAMPLES = [(page, about, content) for page in PAGES for about, content in blocks(page, "yaml")]


@pytest.mark.parametrize(("page", "about", "content"), EXAMPLES, ids=[name_of(page) for page, _, _ in EXAMPLES])
def test_each_job_file_can_be_read(page: Path, about: str, content: str, tmp_path: Path) -> None:
    title = re.search(r'title="([^"]+)"', about)
    assert title, "give it a title: embed.yaml; or embed.yaml, part"
    job = yaml.safe_load(content)
    if title[1].endswith(PART):
        whole = yaml.safe_load((REPOSITORY / "deployments" / "local" / title[1].removesuffix(PART)).read_text())
        if "slurm_settings" in job:
            del whole["local_settings"]
        job = {**whole, **job, "params": {**whole["params"], **job.get("params", {})}}
    file = tmp_path / "job.yaml"
    file.write_text(yaml.safe_dump(job))
    kind = next(kind for kind in kinds() if f"{kind.flow}.yaml" == title[1].removesuffix(PART))
    assert isinstance(load_any_job(file, {}), kind.config)


def test_the_commands_exist_and_take_the_options() -> None:
    commands: dict[str, Any] = typer.main.get_command(build_app()).commands  # type: ignore[attr-defined]
    lines = [
        line
        for page in PAGES
        for _, content in blocks(page, "bash")
        for line in content.replace("\\\n", " ").splitlines()
    ]
    lines += [line for page in PAGES for line in re.findall(r"`(ml_filter [^`]*)`", prose(page))]
    used = [shlex.split(line[line.index("ml_filter ") :], comments=True)[1:] for line in lines if "ml_filter " in line]
    assert len(used) > 30
    for name, *arguments in used:
        if name in OPTIONS:
            continue
        command = commands[name if name in commands else name.replace("_", "-")]  # as click looks it up
        options = {option for parameter in command.params for option in parameter.opts} | {"--help"}
        given = {argument.replace("_", "-") for argument in arguments if argument.startswith("--")}
        assert given <= {option.replace("_", "-") for option in options}, (name, given)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_the_shell_can_be_parsed(page: Path) -> None:
    script = "\n".join(content for _, content in blocks(page, "bash"))
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_modules_and_folders_that_are_named_exist() -> None:
    for page in PAGES:
        for name in re.findall(
            r"`((?:\w+/)+\w+\.(?:py|yaml)|(?:flows|mlfilter_core|deployments|tests)/[\w/]+)`", prose(page)
        ):
            places = (REPOSITORY, REPOSITORY / "mlfilter_core")
            assert any((place / name).exists() for place in places), f"{name_of(page)}: {name}"


def test_the_recipe_of_a_kind_of_job_lists_the_fields_of_its_row() -> None:
    recipe = (REPOSITORY / "CONTRIBUTING.md").read_text().partition("## Add a kind of job")[2].partition("\n## ")[0]
    assert re.findall(r"^    \| `(\w+)`", recipe, re.MULTILINE) == list(JobKind.__dataclass_fields__)


def test_each_reason_of_rejection_is_listed() -> None:
    modules = ("corpus/documents", "corpus/windows", "embedding/window_encoder")
    core = "".join((REPOSITORY / "mlfilter_core" / f"{name}.py").read_text() for name in modules)
    reasons = set(re.findall(BadRecordError.__name__ + r'\(\s*"(\w+)"', core))
    reasons |= set(re.findall(r'(?:Rejection|_reject)\([^()"]*(?:\([^()]*\))?[^()"]*, "(\w+)"', core))
    reasons |= set(re.findall(r'= "(\w+)"  # reason of a rejected line', core))
    assert len(reasons) > 8
    table = (DOCS / "reference" / "formats.md").read_text().partition("| Reason | Meaning |")[2].partition("\n\n")[0]
    assert reasons == set(re.findall(r"^\| `(\w+)`", table, re.MULTILINE))


def test_each_message_is_one_that_the_code_has() -> None:
    messages = re.findall(r"^\| `([^`]+)` \|", (DOCS / "reference" / "errors.md").read_text(), re.MULTILINE)
    assert len(messages) >= 30
    texts = "\n".join(texts_of_code())
    for message in messages:
        pieces = [piece.strip(" :;,") for piece in message.split("...")]
        missing = [piece for piece in pieces if piece and piece not in texts]
        assert not missing, message


def texts_of_code() -> list[str]:
    """Returns the strings in the code; of f-strings, the constant parts."""
    files = [path for package in ("mlfilter_core", "flows") for path in (REPOSITORY / package).rglob("*.py")]
    nodes = [node for path in files for node in ast.walk(ast.parse(path.read_text()))]
    plain = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return plain + [
        "".join(str(part.value) if isinstance(part, ast.Constant) else "\0" for part in node.values)
        for node in nodes
        if isinstance(node, ast.JoinedStr)
    ]


@pytest.mark.parametrize("name", ["reference/api.md", "reference/formats.md"])
def test_the_python_runs(name: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    params = EmbeddingPipelineParameters(
        input_dir=REPOSITORY / "examples" / "corpus",
        text_field="text",
        output_dir=tmp_path / "outputs" / "example",
        embedding_model=str(tiny_model),
    )
    embed_work(params).run(TaskFile("en/forum.jsonl", "en/forum", params.input_dir))
    linear = TrainedHead([torch.ones(1, TINY_DIM)], [torch.zeros(1)], "relu", "regression", [], {}, {})
    (tmp_path / "outputs" / "example" / "heads").mkdir()
    write_head(tmp_path / "outputs" / "example" / "heads" / "education.safetensors", linear)
    (tmp_path / "embed.yaml").write_text(yaml.safe_dump({"params": params.model_dump(mode="json")}))
    monkeypatch.chdir(tmp_path)
    found = blocks(DOCS / name, "python")
    assert found
    names = {"__name__": "example"}
    for _, content in found:
        exec(content.replace("sentence-transformers/all-MiniLM-L6-v2", str(tiny_model)), names)
