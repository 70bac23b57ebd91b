"""The library stands without the pipeline: what its packages load, and how long that takes."""

import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import spat

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
