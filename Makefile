# Each target calls plain commands, which also work in an activated environment.
# To pass arguments to Snakemake: make run ARGS="--configfile workflow/experiments/smoke.yaml"

SHELL := bash
.SHELLFLAGS := -euo pipefail -c
PYTHON ?= python3.11
ARGS ?=
ACTIVATE := . .venv/bin/activate

.PHONY: run test test-faults test-cluster test-server lint figures page ui report bench docs

run: .venv/ready
	$(ACTIVATE); extra="$$(python -m spat preflight)"; snakemake --cores all $$extra $(ARGS)

test: lint
	$(ACTIVATE); pytest -n auto

test-faults: .venv/ready
	$(ACTIVATE); python tests/faults/campaign.py --write $(ARGS)

# Tests on a Slurm of one node and on an MLflow server on PostgreSQL: tests/cluster/README.md.
test-cluster: .venv/ready
	$(ACTIVATE); pip install -q --no-deps -r envs/requirements-slurm.txt; pytest -n 0 -s -v tests/cluster/slurm_cluster.py $(ARGS)

test-server: .venv/ready
	$(ACTIVATE); pip install -q --no-deps -r envs/requirements-server.txt; pytest -n 0 -s -v tests/cluster/mlflow_server.py $(ARGS)

lint: .venv/ready
	$(ACTIVATE); mypy & types=$$!; ruff check .; ruff format --check .; \
	snakefmt --check Snakefile workflow/rules; snakemake --lint; wait $$types

figures: .venv/ready
	$(ACTIVATE); snakemake --cores all --allowed-rules tables figures --forcerun tables figures $(ARGS) -- figures

ui: .venv/ready
	$(ACTIVATE); MLFLOW_DISABLE_TELEMETRY=true mlflow ui --backend-store-uri sqlite:///results/mlflow.db --host 127.0.0.1

page: .venv/ready
	$(ACTIVATE); python -m spat page $(ARGS)

report: .venv/ready
	$(ACTIVATE); folder="$$(python -m spat folder --config config.yaml $(filter %.yaml %.yml,$(ARGS)))"; snakemake --report "$$folder/report.zip" $(ARGS)

bench: .venv/ready
	$(ACTIVATE); python benchmarks/run.py

docs: .venv/ready
	$(ACTIVATE); python docs/build.py

# pip would compile all modules on one core, which takes half of its time. Like pip, ignore files that
# cannot be compiled. Tests of packages are not compiled, since nothing imports them.
.venv/ready: envs/requirements.txt pyproject.toml
	$(PYTHON) -m venv .venv
	$(ACTIVATE); pip install --no-compile -r envs/requirements.txt; pip install --no-deps -e .
	$(ACTIVATE); python -m compileall -qq -j 0 -x '/tests/' .venv/lib || true
	touch $@
