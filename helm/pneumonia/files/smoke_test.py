"""What `helm test` runs: asks the service about an embedded image and checks its answer. Standard library."""

from __future__ import annotations

import json
import os
import ssl
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount")
API = "https://kubernetes.default.svc"
WAIT_S = 240


def call(url: str, data: bytes | None = None, method: str | None = None) -> Any:
    """The JSON that `url` answers; POSTs `data` where there is some. The API server gets this pod's token."""
    kind = "application/merge-patch+json" if method == "PATCH" else "application/json"
    request = urllib.request.Request(url, data=data, method=method, headers={"Content-Type": kind})
    context = None
    if url.startswith(API):
        request.add_header("Authorization", f"Bearer {(TOKEN / 'token').read_text('ascii')}")
        context = ssl.create_default_context(cafile=str(TOKEN / "ca.crt"))
    with urllib.request.urlopen(request, timeout=30, context=context) as response:
        return json.load(response)


def belong_to(namespace: str, service: str, pod: str) -> None:
    """Make the Service the owner of this pod, so that both go together. The test does without where it may not."""
    root = f"{API}/api/v1/namespaces/{namespace}"
    try:
        uid = call(f"{root}/services/{service}")["metadata"]["uid"]
        owner = {"apiVersion": "v1", "kind": "Service", "name": service, "uid": uid}
        patch = json.dumps({"metadata": {"ownerReferences": [owner]}}).encode()
        call(f"{root}/pods/{pod}", patch, "PATCH")
    except OSError as error:
        print(f"note: this pod stays after `helm uninstall` (delete pod {pod}): {error}")


def ask(address: str, contract: dict[str, Any], image: str) -> dict[str, Any]:
    """Outputs by name for the image, given as base64 text. Waits for a service that is still starting."""
    tensor = {"name": contract["ENSEMBLE_INPUT"], "shape": [1, 1], "datatype": "BYTES", "data": [image]}
    body = json.dumps({"inputs": [tensor]}).encode()
    until = time.monotonic() + WAIT_S
    while True:
        try:
            answer = call(f"{address}/v2/models/{contract['ENSEMBLE']}/infer", body)
        except urllib.error.HTTPError as error:
            if error.code < 500 or time.monotonic() > until:
                raise SystemExit(f"FAILED: {address} answers {error.code}: {error.read()[:500]!r}") from error
        except OSError as error:
            if time.monotonic() > until:
                raise SystemExit(f"FAILED: {address} does not answer: {error}") from error
        else:
            return {output["name"]: output["data"][0] for output in answer["outputs"]}
        time.sleep(3)


def problems(outputs: dict[str, Any], contract: dict[str, Any]) -> list[str]:
    """What is wrong with an answer; empty where all is well.

    A release is named by the digest of all its files and a model id by its bundle's, so the two cannot be compared from
    here; the server compares every file with release.json when it starts, and a rollout asks for the bundle's own id.
    """
    label, model_id = outputs[contract["OUTPUT_PREDICTION"]], outputs[contract["OUTPUT_MODEL_ID"]]
    confidence, probability = outputs[contract["OUTPUT_CONFIDENCE"]], outputs[contract["OUTPUT_PROBABILITY"]]
    found = []
    positive = probability >= outputs[contract["OUTPUT_THRESHOLD"]]
    if label != contract["LABELS"][contract["PNEUMONIA"] if positive else 1 - contract["PNEUMONIA"]]:
        found.append(f"label {label!r} for probability {probability}")
    if not 0 <= confidence <= 1 or abs(confidence - (probability if positive else 1 - probability)) > 1e-4:
        found.append(f"confidence {confidence} for probability {probability}")
    name, _, short = model_id.partition("@")
    if not name or not short:
        found.append(f"model id {model_id!r} is not <name>@<digest>")
    return found


def main() -> int:
    contract = json.loads((HERE / "contract.json").read_text("utf-8"))
    namespace, service = os.environ["NAMESPACE"], os.environ["SERVICE"]
    belong_to(namespace, service, os.environ["POD"])
    outputs = ask(f"http://{service}.{namespace}.svc", contract, (HERE / "image.base64").read_text("ascii"))
    print(json.dumps(outputs))
    found = problems(outputs, contract)
    for problem in found:
        print(f"FAILED: {problem}")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
