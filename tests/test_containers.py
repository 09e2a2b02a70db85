"""The images of deployments/containers: their steps run in a chroot to a copy of this machine's files.

The packages are those of this environment, in place of those of the base image and of an index.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
CONTAINERS = REPOSITORY / "deployments" / "containers"
# Installs what the image installs, from the packages that are installed here, after a trial of its own command.
PIP = """#!/bin/sh -e
set -- --disable-pip-version-check "$@" --quiet --no-index --no-build-isolation
{python} -m pip "$@" --dry-run
{python} -m pip "$@" --no-deps --target /opt/mlfilter
ln -s /opt/mlfilter/bin/ml_filter /usr/local/bin/ml_filter
"""


@dataclass(frozen=True)
class Image:
    """An image's recipe.

    Attributes:
        base: Image that it begins with.
        files: What is copied, with its place in the image.
        steps: Shell commands that make it.
        entry: Command that it runs; arguments follow.
    """

    base: str
    files: list[tuple[str, str]]
    steps: list[str]
    entry: str


def dockerfile() -> Image:
    text = re.sub(r"^#.*\n", "", (CONTAINERS / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", "")
    said = [line.split(maxsplit=1) for line in text.splitlines() if line]
    of = {name: [rest for each, rest in said if each == name] for name, _ in said}
    assert set(of) == {"FROM", "ARG", "COPY", "WORKDIR", "RUN", "ENV", "USER", "ENTRYPOINT"}
    files = []
    for copied in of["COPY"]:
        *sources, place = copied.split()
        files += [(source, place + source if place.endswith("/") else place) for source in sources]
    setting = " ".join(["export", *of["ARG"], *of["ENV"]])
    steps = [f"{setting}; cd {of['WORKDIR'][0]}; {step}" for step in of["RUN"]]
    assert of["USER"] == ["mlfilter"]
    return Image(of["FROM"][0], files, steps, shlex.join(json.loads(of["ENTRYPOINT"][0])) + ' "$@"')


def apptainer() -> Image:
    header, *rest = re.split(r"^%(\w+)\n", (CONTAINERS / "apptainer.def").read_text(), flags=re.MULTILINE)
    sections = dict(zip(rest[::2], rest[1::2], strict=True))
    assert set(sections) == {"arguments", "files", "post", "test", "runscript"}
    arguments = dict(line.strip().split("=") for line in sections["arguments"].split())
    post = re.sub(r"{{ (\w+) }}", lambda name: arguments[name[1]], sections["post"])
    files = [(source, place) for source, place in map(str.split, sections["files"].strip().splitlines())]
    base = re.search(r"^Bootstrap: docker\nFrom: (\S+)$", header, re.MULTILINE)
    assert base is not None
    return Image(base[1], files, [post, sections["test"]], sections["runscript"])


@pytest.fixture(params=[dockerfile, apptainer], ids=lambda recipe: recipe.__name__)
def image(request: pytest.FixtureRequest) -> Image:
    made: Image = request.param()
    return made


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Path]:
    """A copy of this machine's files for a chroot; what is written there is lost."""
    layers, merged = tmp_path / "layers", tmp_path / "root"
    layers.mkdir()
    merged.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "none", layers], capture_output=True, check=False)
    for name in ("upper", "work"):
        (layers / name).mkdir()
    options = f"lowerdir=/,upperdir={layers}/upper,workdir={layers}/work"
    mounted = subprocess.run(
        ["mount", "-t", "overlay", "-o", options, "overlay", merged], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        subprocess.run(["umount", layers], capture_output=True, check=False)
        pytest.skip(f"no overlay can be mounted: {mounted.stderr.strip()}")
    for place in ("/proc", "/dev"):
        subprocess.run(["mount", "--rbind", place, f"{merged}{place}"], check=True)
    yield merged
    subprocess.run(["umount", "--recursive", "--lazy", merged], check=True)
    subprocess.run(["umount", "--lazy", layers], check=True)


def test_the_base_image_is_of_a_stated_python(image: Image) -> None:
    version = re.fullmatch(r"python:(3\.\d+)\.\d+-slim-\w+", image.base)
    assert version is not None
    assert tuple(map(int, version[1].split("."))) >= (3, 11)
    assert image.base == dockerfile().base == apptainer().base


def test_both_recipes_make_the_same_image() -> None:
    docker, other = dockerfile(), apptainer()
    assert docker.files == other.files
    pip = [
        re.findall(r"pip install .*", step.replace("\\\n", ""))[0].split() for step in (docker.steps[0], other.steps[0])
    ]
    assert pip[0] == [word.replace("whl/cpu", "whl/$torch") for word in pip[1]]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can enter a chroot")
def test_the_steps_make_an_image_that_any_user_can_run(image: Image, root: Path) -> None:
    for source, place in image.files:
        assert (REPOSITORY / source).exists()
        target = root / place.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        if (REPOSITORY / source).is_dir():
            shutil.copytree(REPOSITORY / source, target)
        else:
            shutil.copy(REPOSITORY / source, target)
    pip = root / "usr/local/bin/pip"
    pip.write_text(PIP.format(python=sys.executable))
    pip.chmod(0o755)
    for folder in Path(sys.executable).resolve().parents:  # Python may lie in root's home
        (root / folder.relative_to("/")).chmod(0o755)
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin", "PYTHONPATH": "/opt/mlfilter", "HOME": "/"}
    for step in image.steps:
        done = subprocess.run(
            ["chroot", root, "sh", "-e", "-c", step], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    for user in ("nobody", "54321:54321"):
        line = ["chroot", f"--userspec={user}", root, "sh", "-c", image.entry, "sh", "--version"]
        done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("mlfilter 0.")
    where = ["chroot", root, sys.executable, "-c", "import flows, mlfilter_core; print(flows.__path__[0])"]
    assert subprocess.run(where, env=environment, capture_output=True, text=True, check=True).stdout == (
        "/opt/mlfilter/flows\n"
    )
