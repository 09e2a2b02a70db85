"""The site is built from the current code without a warning."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mlfilter_core import errors
from mlfilter_core.config.execution import Job
from mlfilter_core.config.written import Written
from mlfilter_core.job_kinds import kinds
from tests.docs.pages import DOCS, PAGES, REPOSITORY

FETCHED = re.compile(r'<(?:script|link|img)[^>]+(?:src|href)="https?://')


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "NO_MKDOCS_2_WARNING": "true"}
    done = subprocess.run(line, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


def test_each_page_is_in_the_site(site: Path) -> None:
    for page in PAGES:
        if page.is_relative_to(DOCS):
            assert (site / page.relative_to(DOCS)).with_suffix(".html").exists()
    assert (site / "contributing.html").exists()


def test_no_page_needs_a_network(site: Path) -> None:
    for page in site.rglob("*.html"):
        assert not FETCHED.search(page.read_text()), page


def test_each_field_of_each_job_is_described(site: Path) -> None:
    page = (site / "reference" / "configuration.html").read_text()
    assert "<!-- fields" not in page
    models = {model for model in subclasses(Written) if model.__module__.startswith("mlfilter_core.config.")}
    models -= {kind.config for kind in kinds()}
    assert Job in models
    for model in models:
        for name in model.model_fields:
            assert f"<code>{name}</code>" in page, f"{model.__name__}.{name}"


def subclasses(of: type[Written]) -> set[type[Written]]:
    own = set(of.__subclasses__())
    return own.union(*(subclasses(model) for model in own))


def test_each_command_is_described(site: Path) -> None:
    page = (site / "reference" / "commands.html").read_text()
    for kind in kinds():
        assert f"<code>{kind.flow.replace('_', '-')}</code>" in page


def test_each_class_of_errors_is_described(site: Path) -> None:
    page = (site / "reference" / "api.html").read_text()
    for name, value in vars(errors).items():
        if isinstance(value, type):
            assert f"mlfilter_core.errors.{name}" in page


def test_the_structure_is_drawn(site: Path) -> None:
    page = (site / "structure.html").read_text()
    packages = [path.parent.name for path in (REPOSITORY / "mlfilter_core").glob("*/__init__.py")]
    for name in [*packages, "job_kinds", "workers", "pipeline"]:
        assert f">{name}</text>" in page


def test_the_dark_picture_differs_in_colours_alone() -> None:
    light, dark = ((DOCS / name).read_text() for name in ("data-flow.svg", "data-flow-dark.svg"))
    style = re.compile(r"<style>.*</style>", re.DOTALL)
    assert light != dark
    assert style.sub("", light) == style.sub("", dark)


def test_each_family_that_was_compared_has_a_row(site: Path) -> None:
    page = (site / "reference" / "encoders.html").read_text()
    assert "<!-- fidelity" not in page
    figures = json.loads((REPOSITORY / "benchmarks" / "results" / "fidelity.json").read_text())
    families = [name.removesuffix("_float32_difference") for name in figures if name.endswith("_float32_difference")]
    assert len(families) >= 12
    for family in families:
        assert f"<td>{family.replace('_', ' ')}</td>" in page
        assert figures[f"{family}_float32_difference"] < 1e-5


def test_each_format_of_heads_that_was_compared_has_a_row(site: Path) -> None:
    page = (site / "reference" / "heads.html").read_text()
    assert "<!-- head_fidelity" not in page
    figures = json.loads((REPOSITORY / "benchmarks" / "results" / "head_fidelity.json").read_text())
    formats = {name: value for name, value in figures.items() if isinstance(value, float)}
    assert len(formats) >= 10
    for name, difference in formats.items():
        assert f"<td>{name.replace('_', ' ')}</td>" in page
        assert difference < 1e-5
