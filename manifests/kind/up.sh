#!/usr/bin/env bash
# Creates the local cluster and installs the platform on it (after `make images`); run again, it finishes what is missing.
# Not yet run.
set -euo pipefail
# shellcheck source=manifests/kind/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need docker kind kubectl
docker info >/dev/null 2>&1 || fail 4 "Docker does not answer; start it"
# MLflow runs in it.
docker image inspect "$STEP_IMAGE" >/dev/null 2>&1 ||
  fail 4 "no image $STEP_IMAGE here; build it with make images, or set STEP_IMAGE"

if cluster_exists; then
  say "cluster $CLUSTER is there"
else
  kind create cluster --name "$CLUSTER" --config "$ROOT/kind-config.yaml" --wait 180s
fi

kind load docker-image "$STEP_IMAGE" --name "$CLUSTER"

# Built once: what comes by URL is fetched by git, which takes longer than a try may.
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
for step in 1-operators 2-platform; do
  say "building $step"
  kubectl kustomize "$ROOT/manifests/overlays/kind/$step" >"$folder/$step.yaml"
done
apply() { kube apply --server-side --force-conflicts -f "$folder/$1.yaml"; }

# The first tries fail where an object comes before its definition, or before the webhook that judges it.
until_ok 600 "operators to be accepted" apply 1-operators
for crd in inferenceservices.serving.kserve.io servingruntimes.serving.kserve.io gateways.gateway.networking.k8s.io \
  envoyproxies.gateway.envoyproxy.io workflows.argoproj.io trainjobs.trainer.kubeflow.org; do
  kube wait --for=condition=Established "crd/$crd" --timeout=120s
done
for namespace in cert-manager envoy-gateway-system kserve; do
  deployments_ready "$namespace" 600
done
# A Deployment is available before its webhook is reached by everybody: ask the webhook itself.
kserve_answers() {
  kube create --dry-run=server -f - >/dev/null <<'OBJECT'
{"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService",
 "metadata": {"name": "asked", "namespace": "pneumonia"},
 "spec": {"predictor": {"model": {"modelFormat": {"name": "triton"}, "storageUri": "s3://asked/asked"}}}}
OBJECT
}
until_ok 300 "KServe's webhook" kserve_answers
until_ok 300 "the platform to be accepted" apply 2-platform
deployments_ready pneumonia-platform 600
deployments_ready kubeflow 1200
kube -n kserve wait --for=condition=Programmed gateway/kserve-ingress-gateway --timeout=300s
say "ready; next: make kind-load kind-demo"
