"""The tree keeps its promises: the standard library's `platform` is not shadowed, the contract stays small."""

from __future__ import annotations

import ast
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
CONTRACT = sorted((ROOT / "runner" / "contract").rglob("*.py"))
ASK_PLATFORM = "import platform, clavier; print(platform.system(), platform.__file__)"


def run_python(*arguments: str, cwd: Path = ROOT, **environment: str) -> str:
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def assert_is_stdlib(answer: str) -> None:
    system, file = answer.split()
    assert system == "Linux"
    assert file == os.__file__.replace("os.py", "platform.py")


def test_the_stdlib_platform_is_not_shadowed_in_pytest() -> None:
    assert_is_stdlib(f"{platform.system()} {platform.__file__}")


def test_the_stdlib_platform_is_not_shadowed_in_the_repository_root() -> None:
    assert_is_stdlib(run_python("-c", ASK_PLATFORM, PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'platform'}"))


def test_the_stdlib_platform_is_not_shadowed_by_the_editable_install(tmp_path: Path) -> None:
    answer = run_python("-c", ASK_PLATFORM, cwd=tmp_path, PYTHONPATH="")
    assert_is_stdlib(answer)


def test_the_stdlib_platform_is_not_shadowed_in_manage_py(tmp_path: Path) -> None:
    show = (
        f"import runpy, sys; sys.argv = ['manage.py', '--version']\ntry: runpy.run_path({str(ROOT / 'manage.py')!r}, "
    )
    show += f"run_name='__main__')\nfinally: {ASK_PLATFORM}"
    version, answer = run_python("-I", "-c", show, cwd=tmp_path).splitlines()
    assert version.startswith("5.2")
    assert_is_stdlib(answer)


def test_the_source_root_is_no_package() -> None:
    assert not (ROOT / "platform" / "__init__.py").exists()


def imported_modules(file: Path) -> set[str]:
    modules: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            modules.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno} is a relative import"
            modules.add(node.module or "")
    return modules


@pytest.mark.parametrize("file", CONTRACT, ids=lambda file: file.name)
def test_the_contract_imports_the_standard_library_only(file: Path) -> None:
    foreign = {
        module
        for module in imported_modules(file)
        if module.split(".")[0] not in sys.stdlib_module_names and not module.startswith("runner.contract")
    }
    assert not foreign
