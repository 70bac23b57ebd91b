"""The library works without the pipeline: the modules that it loads, and the time of the import."""

import pkgutil
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import spat

ROOT = Path(__file__).parents[2]

LIBRARY = ("attention", "scoring", "surgery", "tasks", "data", "models", "training")
# The pipeline's own packages, and the packages that only the pipeline needs.
ABOVE = ("spat.pipeline", "spat.study", "pydantic", "pandas", "pandera", "snakemake", "mlflow")

LOADED = """
import importlib, sys
for module in sys.argv[1].split():
    importlib.import_module(module)
above = sys.argv[2].split()
print(*sorted(n for n in sys.modules if any(n == a or n.startswith(a + ".") for a in above)))
"""


def modules(package: str) -> list[str]:
    """The package and all modules in it, by their full names."""
    folder = Path(spat.__path__[0]) / package
    inside = pkgutil.walk_packages([str(folder)], f"spat.{package}.")
    return [f"spat.{package}", *(module.name for module in inside)]


@pytest.mark.parametrize("package", LIBRARY)
def test_a_library_package_loads_nothing_of_the_pipeline(package: str) -> None:
    arguments = [" ".join(modules(package)), " ".join(ABOVE)]
    done = subprocess.run(
        [sys.executable, "-c", LOADED, *arguments], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == []


WITHOUT = """
import importlib, sys
refused = set(sys.argv[2].split())
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in refused:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
for module in sys.argv[1].split():
    importlib.import_module(module)
from spat.pipeline.cli import main
assert main(["models", "--dataset", "ETTh1", "--horizon", "96"]) == 0
for stage in (["tables"], ["grid"], ["add", "my.csv"], ["advise", "my.csv", "--horizon", "3"]):
    assert main(stage) == 1
import spat
try:
    spat.advise
except ImportError as error:
    print(error, file=sys.stderr)
"""


def test_the_library_works_without_the_packages_of_the_pipeline() -> None:
    """The packages of `pip install .` are enough; the command names missing packages."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extra = {
        canonicalize_name(Requirement(text).name)
        for text in project["optional-dependencies"]["pipeline"]
    }
    extra -= {"filelock"}  # torch requires it
    names = {
        module
        for module, distributions in metadata.packages_distributions().items()
        if extra & {canonicalize_name(name) for name in distributions}
    }
    assert {"pydantic", "yaml", "mlflow", "snakemake", "pandas"} <= names
    library = " ".join(name for package in LIBRARY for name in modules(package))
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT, library, " ".join(names)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 5 and all("pip install '.[pipeline]'" in line for line in lines), lines
    assert "iTransformer" in done.stdout
