"""Submit a job script of Snakemake to Kubernetes, and print the name of the job.

Environment variables configure the job: SPAT_IMAGE is the image, SPAT_CLAIM the claim of the shared
volume, and SPAT_MOUNT the folder where the volume is mounted, which contains the project.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import uuid
from pathlib import Path
from typing import Any


def manifest(options: argparse.Namespace) -> dict[str, Any]:
    """The manifest of the job: one pod, which Kubernetes does not restart."""
    labels = {"app": "spat", "spat-exclusive": str(bool(options.exclusive)).lower()}
    amounts = {"cpu": str(options.cpu), "memory": f"{options.memory}M"}
    if options.gpu:
        amounts["nvidia.com/gpu"] = str(options.gpu)
    # Kubernetes starts no other pod on a node where latencies are measured, and starts a pod that
    # measures latencies only on a node without other pods.
    others = {"app": "spat"} if options.exclusive else {"spat-exclusive": "true"}
    apart = [{"labelSelector": {"matchLabels": others}, "topologyKey": "kubernetes.io/hostname"}]
    container = {
        "name": "spat",
        "image": os.environ["SPAT_IMAGE"],
        "command": ["sh", str(options.script.resolve())],
        "workingDir": str(Path.cwd()),
        # Kubernetes assigns cards by limits.
        "resources": {"requests": amounts, "limits": amounts},
        "volumeMounts": [{"name": "shared", "mountPath": os.environ["SPAT_MOUNT"]}],
    }
    pod = {
        "restartPolicy": "Never",
        "containers": [container],
        "volumes": [
            {
                "name": "shared",
                "persistentVolumeClaim": {"claimName": os.environ["SPAT_CLAIM"]},
            }
        ],
        "affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": apart}},
    }
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": f"spat-{uuid.uuid4().hex[:12]}", "labels": labels},
        "spec": {
            "backoffLimit": 0,
            "activeDeadlineSeconds": 60 * options.minutes,
            # Snakemake reads the status of the job within this time.
            "ttlSecondsAfterFinished": 86400,
            "template": {"metadata": {"labels": labels}, "spec": pod},
        },
    }


def main() -> None:
    """Create the job with `kubectl`."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("cpu", "memory", "minutes", "gpu", "exclusive"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("script", type=Path)
    job = manifest(parser.parse_args())
    subprocess.run(
        ["kubectl", "create", "-f", "-"],
        input=json.dumps(job).encode(),
        stdout=subprocess.DEVNULL,
        check=True,
    )
    print(job["metadata"]["name"])


if __name__ == "__main__":
    main()
