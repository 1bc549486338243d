"""The rooms and the arrows between them."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections import Counter
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

import radial

ROOT = Path(__file__).parent.parent
PACKAGES = {
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
# The stations on the data's way: each imports those before it in its package.
STATIONS = [
    "radial_kernels.triton_runtime", "radial_kernels.block_sparse", "radial_kernels.fused",
    "radial.version", "radial.errors", "radial.files", "radial.yaml_file", "radial.field_words", "radial.plans",
    "radial.video", "radial.attention",
    "radial.models", "radial.input_files", "radial.controls", "radial.timed_prompts", "radial.request",
    "radial.shorthands", "radial.advice", "radial.adapters",
    "radial.loading", "radial.generation", "radial.profiling", "radial.stories",
    "radial_finetune.world", "radial_finetune.noise", "radial_finetune.sample_prompts", "radial_finetune.objective",
    "radial_finetune.data", "radial_finetune.adapter", "radial_finetune.training", "radial_finetune.merge",
    "radial_finetune.pretrain", "radial_finetune.evaluate", "radial_finetune.cli",
    "radial_app.client", "radial_app.jobs", "radial_app.tuning", "radial_app.worker", "radial_app.server",
    "radial_app.studio", "radial_app.cli", "radial_app.__main__",
]  # fmt: skip
MOST_LINES, MOST_FILES = 400, 12


def module_files() -> dict[str, Path]:
    files = {}
    for folder in PACKAGES.values():
        for file in folder.rglob("*.py"):
            parts = file.relative_to(folder.parent).with_suffix("").parts
            files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return files


FILES = module_files()


def imports_of(module: str) -> set[str]:
    """Our modules that a module imports: at its top, within functions, and for its types."""
    found = set()
    for node in ast.walk(ast.parse(FILES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name in FILES else node.module for name in names}
    return {name for name in found if name in FILES and name != module}


IMPORTS = {module: imports_of(module) for module in FILES}


@pytest.mark.parametrize("package", PACKAGES)
def test_packages_import_one_way(package: str) -> None:
    own = [module for module in FILES if module.split(".")[0] == package]
    assert own
    for module in own:
        others = {name.split(".")[0] for name in IMPORTS[module]} - {package}
        assert others <= MAY_IMPORT[package], module


def station_of(module: str) -> int | None:
    """The place of a module's station; None for the packages themselves, which hand out names."""
    return next((i for i, s in enumerate(STATIONS) if module == s or module.startswith(f"{s}.")), None)


def test_arrows_run_one_way() -> None:
    up = []
    for module, imported in IMPORTS.items():
        here = station_of(module)
        if here is None:
            assert module in PACKAGES or module.startswith("radial_assets"), f"{module} is in no station"
            continue
        up += [f"{module} -> {name}" for name in imported if (station_of(name) or 0) > here]
    assert not up


def test_no_circles() -> None:
    """No file is imported, in whatever way, by one that it imports."""
    left = {module: set(imported) for module, imported in IMPORTS.items() if module != "radial"}
    while ready := {module for module, imported in left.items() if not imported & left.keys()}:
        left = {module: imported for module, imported in left.items() if module not in ready}
    assert not left


def test_files_and_folders_are_small() -> None:
    long = {name for name, file in FILES.items() if len(file.read_text().splitlines()) > MOST_LINES}
    assert long <= {"radial.models.table", "radial_app.jobs.store"}  # each one thing, cut up for nothing
    counts = Counter(file.parent for file in FILES.values() if file.name != "__init__.py")
    assert not [str(folder) for folder, count in counts.items() if count > MOST_FILES]


def test_each_room_says_what_it_is_for() -> None:
    for file in FILES.values():
        if file.name == "__init__.py":
            assert ast.get_docstring(ast.parse(file.read_text())), file


def declared(*extras: str) -> set[str]:
    """The distributions that pyproject.toml names, always and with some extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [*project["dependencies"], *(one for extra in extras for one in project["optional-dependencies"][extra])]
    return {re.split(r"[\[<>=;]", one)[0].lower().replace("_", "-") for one in wanted}


@pytest.mark.parametrize(
    ("package", "extras"),
    [
        ("radial_kernels", ("flash",)), ("radial", ("gguf", "upscale")),
        ("radial_app", ("server", "studio", "cluster")),
        ("radial_finetune", ("train", "eight-bit", "optimizers", "measure")),
    ],
)  # fmt: skip
def test_every_import_is_declared(package: str, extras: tuple[str, ...]) -> None:
    absent = {"flash_attn": ["flash-attn-4"], "spandrel": ["spandrel"]}
    distributions = packages_distributions() | absent
    imported = set()
    for module in FILES:
        for node in ast.walk(ast.parse(FILES[module].read_text())) if module.split(".")[0] == package else ():
            if isinstance(node, ast.Import):
                imported |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                imported.add(node.module.split(".")[0])
    others = imported - sys.stdlib_module_names - PACKAGES.keys()
    names = {name: {one.lower().replace("_", "-") for one in distributions[name]} for name in others}
    assert {name for name, found in names.items() if not found & declared(*extras)} == set()


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
