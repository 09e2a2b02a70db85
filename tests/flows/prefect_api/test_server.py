import os
import sys
from base64 import b64encode
from pathlib import Path

import httpx
import pytest

from flows.prefect_api.server import ServerError, TemporaryServer, may_set_api


def test_a_server_that_cannot_start_is_an_error_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    server = TemporaryServer(tmp_path, {})
    with pytest.raises(ServerError, match="the temporary Prefect server does not answer"):
        server.wait()
    server.stop()


def test_a_server_answers_only_those_who_know_its_password(tmp_path: Path) -> None:
    server = TemporaryServer(tmp_path, {"PREFECT_SERVER_API_AUTH_STRING": "of:somebody"})
    try:
        server.wait()
        for password, status in ((None, 401), ("of:somebody", 401), (server.password, 200)):
            header = {} if password is None else {"Authorization": f"Basic {b64encode(password.encode()).decode()}"}
            asked = httpx.post(f"{server.api_url}/flow_runs/filter", json={}, headers=header)
            assert asked.status_code == status, password
    finally:
        server.stop()


@pytest.mark.parametrize(
    ("name", "content", "may"),
    [
        (".env", "PREFECT_API_URL=http://a/api", True),
        (".env", "COLOUR=red", False),
        ("prefect.toml", "", True),
        ("pyproject.toml", "[tool.prefect.api]", True),
        ("pyproject.toml", "[project]\ndependencies = ['prefect']", False),
        ("home/profiles.toml", "", True),
    ],
)
def test_files_that_may_set_an_api_are_seen_without_prefect(
    name: str, content: str, may: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in [variable for variable in os.environ if variable.startswith("PREFECT_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(content)
    assert may_set_api(tmp_path / "home") == may


@pytest.mark.parametrize("variable", ["PREFECT_API_URL", "PREFECT_PROFILE", "PREFECT_HOME"])
def test_variables_that_may_set_an_api_are_seen(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path))
    monkeypatch.setenv(variable, "something")
    monkeypatch.chdir(tmp_path)
    assert may_set_api(tmp_path)
