"""The rooms and the arrows between them."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

import radial

ROOT = Path(__file__).parent.parent
ROOMS = {
    "radial_kernels": ROOT / "kernels" / "radial_kernels",
    "radial": ROOT / "radial",
    "radial_app": ROOT / "app" / "radial_app",
    "radial_finetune": ROOT / "finetune" / "radial_finetune",
    "radial_assets": ROOT / "assets" / "radial_assets",
}
MAY_IMPORT = {
    "radial_kernels": set(),
    "radial": {"radial_kernels"},
    "radial_app": {"radial", "radial_kernels"},
    "radial_finetune": {"radial", "radial_kernels"},
    "radial_assets": set(),
}


def imported_names(file: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("room", ROOMS)
def test_imports_go_one_way(room: str) -> None:
    files = list(ROOMS[room].rglob("*.py"))
    assert files
    for file in files:
        others = imported_names(file) & (set(ROOMS) - {room})
        assert others <= MAY_IMPORT[room], f"{file} imports {others - MAY_IMPORT[room]}"


@pytest.mark.parametrize("folder", ["kernels", "app", "finetune", "assets"])
def test_outer_folders_are_no_packages(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()


def test_the_distribution_named_kernels_is_not_shadowed(tmp_path: Path) -> None:
    """Python started at the repository root must find an installed package named kernels, not our folder."""
    (tmp_path / "kernels").mkdir()
    (tmp_path / "kernels" / "__init__.py").write_text("def get_kernel(): return 'the installed one'")
    found = subprocess.run(
        [sys.executable, "-c", "import kernels; print(kernels.get_kernel())"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stdout.strip() == "the installed one"


def test_importing_radial_is_light() -> None:
    code = "import radial, sys; print(*{m.split('.')[0] for m in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"gradio", "triton", "peft", "diffusers", "transformers", "torch"} & set(loaded)


def test_every_public_name_loads() -> None:
    assert radial.__all__ == sorted(radial.__all__)
    for name in radial.__all__:
        assert getattr(radial, name) is not None
    with pytest.raises(AttributeError, match="nonsense"):
        _ = radial.nonsense
