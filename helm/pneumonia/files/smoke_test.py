"""What `helm test` runs: asks the stable predictor about an embedded image and checks its answer. Standard library."""

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
WAIT_S = 240


def get_json(url: str, data: bytes | None = None, token: str = "", authority: str | None = None) -> Any:
    """The JSON that `url` answers; POSTs `data` where there is some."""
    request = urllib.request.Request(url, data=data, headers={"Content-Type": "application/json"})
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    context = ssl.create_default_context(cafile=authority) if url.startswith("https:") else None
    with urllib.request.urlopen(request, timeout=30, context=context) as response:
        return json.load(response)


def read_service(namespace: str, name: str) -> dict[str, Any]:
    """The InferenceService as the API server has it."""
    host = "https://kubernetes.default.svc"
    path = f"/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices/{name}"
    token = (TOKEN / "token").read_text("ascii")
    service: dict[str, Any] = get_json(host + path, token=token, authority=str(TOKEN / "ca.crt"))
    return service


def stable_address(service: dict[str, Any]) -> str:
    """Where the stable predictor answers: promotions change its name."""
    metadata, predictor = service["metadata"], service["spec"]["predictor"]
    parts = [metadata["name"], *([predictor["name"]] if predictor.get("name") else []), "predictor"]
    return f"http://{'-'.join(parts)}.{metadata['namespace']}.svc"


def expected_digest(service: dict[str, Any], contract: dict[str, Any]) -> str:
    """Digest of the bundle that storageUri names, or "" where it names none."""
    uri = service["spec"]["predictor"].get("model", {}).get("storageUri", "")
    before, _, digest = uri.rstrip("/").rpartition("/")
    return digest if before.endswith(contract["RELEASES_DIR"]) else ""


def ask(address: str, contract: dict[str, Any], image: str) -> dict[str, Any]:
    """Outputs by name for the image, given as base64 text. Waits for a service that is still starting."""
    tensor = {"name": contract["ENSEMBLE_INPUT"], "shape": [1, 1], "datatype": "BYTES", "data": [image]}
    body = json.dumps({"inputs": [tensor]}).encode()
    until = time.monotonic() + WAIT_S
    while True:
        try:
            answer = get_json(f"{address}/v2/models/{contract['ENSEMBLE']}/infer", body)
        except urllib.error.HTTPError as error:
            if error.code < 500 or time.monotonic() > until:
                raise SystemExit(f"FAILED: {address} answers {error.code}: {error.read()[:500]!r}") from error
        except OSError as error:
            if time.monotonic() > until:
                raise SystemExit(f"FAILED: {address} does not answer: {error}") from error
        else:
            return {output["name"]: output["data"][0] for output in answer["outputs"]}
        time.sleep(3)


def problems(outputs: dict[str, Any], contract: dict[str, Any], digest: str) -> list[str]:
    """What is wrong with an answer; empty where all is well."""
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
    elif digest and not digest.startswith(short):
        found.append(f"model id {model_id!r} answers, but the InferenceService names the release {digest}")
    return found


def main() -> int:
    contract = json.loads((HERE / "contract.json").read_text("utf-8"))
    service = read_service(os.environ["NAMESPACE"], os.environ["SERVICE"])
    outputs = ask(stable_address(service), contract, (HERE / "image.base64").read_text("ascii"))
    print(json.dumps(outputs))
    found = problems(outputs, contract, expected_digest(service, contract))
    for problem in found:
        print(f"FAILED: {problem}")
    return 1 if found else 0


if __name__ == "__main__":
    raise SystemExit(main())
