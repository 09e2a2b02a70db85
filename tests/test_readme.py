"""The README against what it describes."""

import re
from pathlib import Path

import pytest
import yaml
from pydantic import BaseModel

from mlfilter_core.config.annotation import AnnotationPipelineParameters
from mlfilter_core.config.embedding import EmbeddingPipelineParameters
from mlfilter_core.config.execution import LocalSettings, SlurmSettings
from mlfilter_core.config.filtering import Bound, FilterParameters, Selection
from mlfilter_core.config.training import HeadRecipe, TrainingParameters
from mlfilter_core.corpus.documents import BadRecordError

REPOSITORY = Path(__file__).parents[1]
README = (REPOSITORY / "README.md").read_text()
PAGES = ["README.md", "benchmarks/README.md", "deployments/README.md"]


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_to_files_and_headings(page: str) -> None:
    text = (REPOSITORY / page).read_text()
    targets = [target for target in re.findall(r"\]\(([^)]+)\)", text) if "://" not in target]
    headings = {re.sub(r"[^\w -]", "", line).strip().lower().replace(" ", "-") for line in text.splitlines() if line}
    assert targets
    for target in targets:
        if target.startswith("#"):
            assert target[1:] in headings, target
        else:
            assert ((REPOSITORY / page).parent / target).exists(), target


def test_the_file_map_is_complete() -> None:
    file_map = README.partition("## Files")[2].partition("\n## ")[0]
    linked = {REPOSITORY / target for target in re.findall(r"\]\(([^)]+)\)", file_map)}
    modules = {*REPOSITORY.glob("mlfilter_core/**/*.py"), *REPOSITORY.glob("flows/*.py")}
    modules = {path for path in modules if path.name != "__init__.py"}
    assert {path for path in modules - linked if path.name not in README} == set()


@pytest.mark.parametrize(
    "model",
    [
        *(EmbeddingPipelineParameters, AnnotationPipelineParameters, TrainingParameters, HeadRecipe),
        *(FilterParameters, Selection, Bound, LocalSettings, SlurmSettings),
    ],
)
def test_the_tables_of_fields_are_those_of_the_models(model: type[BaseModel]) -> None:
    assert field_table(model) in README


def test_every_reason_of_rejection_is_listed() -> None:
    modules = ("corpus/documents", "corpus/windows", "embedding/file_embedding")
    core = "".join((REPOSITORY / "mlfilter_core" / f"{name}.py").read_text() for name in modules)
    reasons = set(re.findall(BadRecordError.__name__ + r'\(\s*"(\w+)"', core))
    reasons |= set(re.findall(r'(?:Rejection|_drop)\([^()"]*(?:\([^()]*\))?[^()"]*, "(\w+)"', core))
    assert len(reasons) > 8
    paragraph = README.partition("The reasons are")[2].partition("\n\n")[0]
    assert reasons == set(re.findall(r"`(\w+)`", paragraph))


def test_of_the_commands_that_open_the_readme_ci_runs_the_tests() -> None:
    opening = README.partition("```bash\n")[2].partition("```")[0]
    commands = {line.partition("#")[0].strip() for line in opening.splitlines()}
    steps = {line.strip() for line in (REPOSITORY / ".ci/run").read_text().splitlines()}
    assert commands == {"make demo", "make test"}
    assert "make test" in steps  # which run make demo


def field_table(model: type[BaseModel]) -> str:
    """Returns the README's table of a model's fields."""
    rows = ["| Field | Default | Meaning |", "| --- | --- | --- |"]
    for name, field in model.model_fields.items():
        default = "required" if field.is_required() else written(field.get_default(call_default_factory=True))
        rows.append(f"| `{name}` | {default} | {(field.description or '').replace('<', '&lt;')} |")
    return "\n".join(rows)


def written(default: object) -> str:
    if default is None:
        return ""
    value = list(default) if isinstance(default, tuple) else default
    text = yaml.safe_dump(value, default_flow_style=True, width=1000).removesuffix("...\n").strip().strip("'")
    return f"`{text}`"
