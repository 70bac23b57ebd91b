"""One locked environment, written three times: they agree, and nothing is imported unpinned."""

import ast
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
LINES = (ROOT / "envs" / "requirements.txt").read_text().splitlines()
PINS = [line for line in LINES if not line.startswith("#")]
OURS = ("workflow", "tests", "benchmarks")
PINNED = {canonicalize_name(pin.split("==")[0]): pin.split("==")[1] for pin in PINS}


def test_every_line_is_a_pin_and_they_are_sorted() -> None:
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", pin) for pin in PINS)
    names = [pin.split("==")[0].lower() for pin in PINS]
    assert names == sorted(names)
    assert len(PINNED) == len(PINS)


def test_conda_gets_the_same_pins() -> None:
    environment = yaml.safe_load((ROOT / "envs" / "environment.yaml").read_text())
    python, _, pip = environment["dependencies"]
    assert python == "python=3.11"
    assert pip["pip"] == PINS, "copy the lines of envs/requirements.txt into envs/environment.yaml"


def test_the_container_installs_the_same_file_on_the_same_python() -> None:
    text = (ROOT / "envs" / "Containerfile").read_text()
    assert "FROM python:3.11-slim" in text
    assert "pip install --no-cache-dir -r envs/requirements.txt" in text
    copied = re.findall(r"^COPY (.+) \S+$", text, re.MULTILINE)
    for name in " ".join(copied).split():
        assert (ROOT / name).exists(), f"Containerfile copies {name}, which is not there"


def test_pins_satisfy_the_requirements_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = project["optional-dependencies"].items()
    extras = [texts for extra, texts in optional if extra != "language"]  # a file of its own
    for text in [*project["dependencies"], *(text for extra in extras for text in extra)]:
        wanted = Requirement(text)
        pin = PINNED.get(canonicalize_name(wanted.name))
        assert pin is not None, f"{wanted.name} is not pinned"
        assert wanted.specifier.contains(pin), f"{text}, but pinned {pin}"


def test_installed_versions_are_the_pinned_ones() -> None:
    for name, pin in PINNED.items():
        assert metadata.version(name).split("+")[0] == pin, name


def test_every_import_of_package_tests_and_benchmarks_is_pinned() -> None:
    files = [path for name in OURS for path in (ROOT / name).rglob("*.py")]
    own = {"spat", "snakemake_logger_plugin_spat", *(path.stem for path in files)}
    distributions = metadata.packages_distributions()
    for path in files:
        for module in _imported(path) - own - set(sys.stdlib_module_names):
            names = distributions.get(module, [])
            assert any(canonicalize_name(n) in PINNED for n in names), f"{path}: {module}"


@pytest.mark.parametrize(
    ("file", "part"),
    [("slurm", "slurm"), ("kubernetes", "cluster-generic"), ("server", "psycopg2-binary")],
)
def test_the_file_of_a_service_only_adds_its_plugin(file: str, part: str) -> None:
    extra = (ROOT / "envs" / f"requirements-{file}.txt").read_text().splitlines()
    names = {line.split("==")[0] for line in extra if not line.startswith("#")}
    assert names
    assert all(part in name for name in names)
    assert not names & set(PINNED)


def test_the_language_file_only_adds_what_its_extra_needs() -> None:
    lines = (ROOT / "envs" / "requirements-language.txt").read_text().splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", pin) for pin in pins)
    extra = {canonicalize_name(pin.split("==")[0]): pin.split("==")[1] for pin in pins}
    assert list(extra) == sorted(extra)
    assert not extra.keys() & PINNED.keys()
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    for text in project["optional-dependencies"]["language"]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(extra[canonicalize_name(wanted.name)])


def _imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names
