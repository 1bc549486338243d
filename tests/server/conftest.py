"""A server over folders of its own, with one small model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from radial_app.server.app import make_app
from radial_app.server.service import ServerPaths


@pytest.fixture
def paths(tmp_path: Path, wan_folder: Path) -> ServerPaths:
    shutil.copytree(wan_folder, tmp_path / "data" / "models" / "small")
    return ServerPaths(tmp_path / "data", tmp_path / "out")


@pytest.fixture
def client(paths: ServerPaths) -> TestClient:
    return TestClient(make_app(paths), base_url="http://127.0.0.1")
