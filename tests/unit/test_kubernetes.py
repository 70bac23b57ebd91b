"""The commands of profiles/kubernetes, with a stand-in for `kubectl`."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from spat.models.registry import MODELS
from spat.pipeline.resources import group

ROOT = Path(__file__).parents[2]
PROFILE = ROOT / "profiles" / "kubernetes"
# Stores its input, and prints the answer that a test sets.
KUBECTL = """#!/bin/sh
echo "$@" >> "$KEPT/calls"
if [ "$1" = create ]; then
    cat > "$KEPT/job.json"
    exit "${CREATED:-0}"
fi
printf '%s' "$SHOWN"
exit "${FOUND:-0}"
"""


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    program = tmp_path / "bin" / "kubectl"
    program.parent.mkdir()
    program.write_text(KUBECTL, encoding="utf-8")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("KEPT", str(tmp_path))
    for name in ("IMAGE", "CLAIM", "MOUNT"):
        monkeypatch.setenv(f"SPAT_{name}", f"/the-{name.lower()}")
    return tmp_path


def submitted(folder: Path, *options: str) -> dict[str, Any]:
    script = folder / "job.sh"
    script.write_text("true", encoding="utf-8")
    command = [sys.executable, str(PROFILE / "submit.py"), *options, str(script)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    job: dict[str, Any] = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    assert done.stdout == job["metadata"]["name"] + "\n"
    return job


AMOUNTS = ("--cpu", "4", "--memory", "3000", "--minutes", "90")


def test_a_job_gets_the_requested_resources(kubectl: Path) -> None:
    job = submitted(kubectl, *AMOUNTS, "--gpu", "1", "--exclusive", "0")
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert job["spec"]["activeDeadlineSeconds"] == 5400
    assert job["spec"]["backoffLimit"] == 0 and pod["restartPolicy"] == "Never"
    amounts = {"cpu": "4", "memory": "3000M", "nvidia.com/gpu": "1"}
    assert container["resources"] == {"requests": amounts, "limits": amounts}
    assert container["image"] == "/the-image"
    assert container["workingDir"] == str(kubectl)
    assert container["command"] == ["sh", str(kubectl / "job.sh")]
    assert container["volumeMounts"] == [{"name": "shared", "mountPath": "/the-mount"}]


def test_a_job_without_a_card_requests_none_and_a_measuring_job_is_alone(kubectl: Path) -> None:
    other = submitted(kubectl, *AMOUNTS, "--gpu", "0", "--exclusive", "0")
    measures = submitted(kubectl, *AMOUNTS, "--gpu", "0", "--exclusive", "1")
    for job, avoids in ((other, {"spat-exclusive": "true"}), (measures, {"app": "spat"})):
        template = job["spec"]["template"]
        assert "nvidia.com/gpu" not in str(template)
        apart = template["spec"]["affinity"]["podAntiAffinity"]
        (rule,) = apart["requiredDuringSchedulingIgnoredDuringExecution"]
        assert rule["labelSelector"]["matchLabels"] == avoids
    assert measures["spec"]["template"]["metadata"]["labels"]["spat-exclusive"] == "true"


def test_a_refused_job_is_an_error(kubectl: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CREATED", "1")
    with pytest.raises(subprocess.CalledProcessError):
        submitted(kubectl, *AMOUNTS, "--gpu", "0", "--exclusive", "0")


@pytest.mark.parametrize(
    ("shown", "pods", "status"),
    [
        ("spat-1:", "0", "running"),
        ("spat-1:SuccessCriteriaMet Complete ", "0", "success"),
        ("spat-1:FailureTarget Failed ", "0", "failed"),
        ("", "0", "failed"),  # deleted
        ("", "1", "running"),  # no answer
    ],
)
def test_the_status_of_a_job_is_reported(
    shown: str, pods: str, status: str, kubectl: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHOWN", shown)
    monkeypatch.setenv("FOUND", pods)
    command = [str(PROFILE / "status.sh"), "spat-1"]
    assert subprocess.check_output(command, text=True) == f"{status}\n"


def test_cancelling_deletes_all(kubectl: Path) -> None:
    subprocess.run([str(PROFILE / "cancel.sh"), "spat-1", "spat-2"], check=True)
    call = (kubectl / "calls").read_text(encoding="utf-8")
    assert call.startswith("delete job") and call.endswith("spat-1 spat-2\n")


def test_the_profile_and_the_pod_of_snakemake_name_what_exists() -> None:
    profile = yaml.safe_load((PROFILE / "profile.yaml").read_text(encoding="utf-8"))
    for key in ("status", "cancel"):
        assert os.access(ROOT / profile[f"cluster-generic-{key}-cmd"], os.X_OK)
    submit = profile["cluster-generic-submit-cmd"]
    named = set(re.findall(r"\{resources\.(\w+)\}", submit))
    assert named == {"mem_mb", "runtime", "gpu", "exclusive"}
    # Resources that not every rule sets have a default.
    assert {"gpu", "exclusive"} <= profile["default-resources"].keys()
    head = list(yaml.safe_load_all((PROFILE / "head.yaml").read_text(encoding="utf-8")))
    assert [part["kind"] for part in head][-1] == "Job"
    container = head[-1]["spec"]["template"]["spec"]["containers"][0]
    names = {entry["name"] for entry in container["env"]}
    assert names == set(re.findall(r"SPAT_[A-Z]+", (PROFILE / "submit.py").read_text("utf-8")))


@pytest.mark.parametrize("name", ["slurm", "kubernetes"])
def test_the_groups_of_a_cluster_are_those_of_the_rules(name: str) -> None:
    profile = yaml.safe_load((ROOT / f"profiles/{name}/profile.yaml").read_text(encoding="utf-8"))
    rules = "".join(path.read_text("utf-8") for path in (ROOT / "workflow/rules").glob("*.smk"))
    groups = {group(model) for model in MODELS}
    groups |= set(re.findall(r'group:\n\s+"(\w+)"', rules))
    assert {entry.split("=")[0] for entry in profile["group-components"]} <= groups
    assert set(profile["set-resources"]) <= set(re.findall(r"^ *rule (\w+):", rules, re.MULTILINE))
