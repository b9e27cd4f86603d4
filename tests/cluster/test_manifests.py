"""What README.md and manifests/README.md print for a cluster's platform and for an image that holds its release."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from tests.bundles import xray
from tests.cluster.asking import Asking
from tests.cluster.commands import ROOT, block
from tests.cluster.conftest import NAME, Namespace, kubectl, run


@pytest.mark.parametrize("overlay", ["1-operators", "2-platform"])
def test_the_platforms_manifests_are_accepted(overlay: str) -> None:
    """Each apply as printed, but on the server's side alone: a cluster in use keeps what it has."""
    lines = block(
        "manifests/README.md", "kubectl apply --server-side --force-conflicts -k manifests/overlays/production"
    )
    (line,) = [line.partition("#")[0].split() for line in lines if overlay in line]
    folder = line[line.index("-k") + 1]
    try:
        run([*kubectl(), "kustomize", str(ROOT / folder)], timeout_s=120)
    except AssertionError as error:
        if re.search(r"https?://|accumulat", str(error)):
            pytest.skip(f"{folder} takes releases from the web, which does not answer here")
        raise
    done = subprocess.run(
        [*kubectl(), *line[1:], "--dry-run=server"], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    # What an operator of the first overlay will define is not known to a cluster that does not have it yet.
    known = [
        item for item in done.stderr.splitlines() if "no matches for kind" not in item and "ensure CRDs" not in item
    ]
    assert done.returncode == 0 or not known, done.stderr
    assert done.stdout


def test_an_image_that_holds_its_release(namespace: Namespace, tmp_path: Path) -> None:
    if not os.environ.get("CLUSTER_IMAGE_IS_BAKED"):
        pytest.skip("CLUSTER_IMAGE holds no release; set CLUSTER_IMAGE_IS_BAKED=1 where it does")
    found = re.search(r"`(helm install pneumonia helm/pneumonia --set image\.repository=)<registry>/pneumonia-triton`",
                      (ROOT / "README.md").read_text("utf-8"))  # fmt: skip
    assert found, "README.md no longer prints how an image that holds its release is installed"
    repository, _, tag = os.environ["CLUSTER_IMAGE"].rpartition(":")
    # What a reader's own values file would say of this cluster.
    more = tmp_path / "values.yaml"
    more.write_text(f"image: {{tag: '{tag}'}}\nresources: {{requests: {{cpu: 100m, memory: 256Mi}}}}\n")
    command = f"{found[1]}{repository}".split()
    namespace.helm(*command[1:], "-f", str(more))
    namespace.ready()
    with Asking(f"http://{NAME}.{namespace.name}.svc", xray(1)) as asking:
        namespace.helm("test", NAME)
    assert asking.asked and not asking.failures, asking.said()
