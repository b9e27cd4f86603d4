#!/usr/bin/env bash
# Installs the chart on the local cluster, tests it and asks it one question. Run again, it upgrades. Not yet run.
set -euo pipefail
# shellcheck source=manifests/kind/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need kind kubectl helm curl base64
need_cluster

# The image serves what `make demo` trained, which on drawn X-rays is a synthetic release.
helm --kube-context "$CONTEXT" upgrade --install "$RELEASE" "$ROOT/helm/pneumonia" --namespace "$NAMESPACE" \
  --set "image.repository=${IMAGE%:*}" --set "image.tag=${IMAGE##*:}" --set image.pullPolicy=Never \
  --set model.allowSynthetic=true --set gateway.exposed=true
kube -n "$NAMESPACE" wait --for='jsonpath={.status.conditions[?(@.type=="Ready")].status}=True' "inferenceservice/$RELEASE" --timeout=600s
helm --kube-context "$CONTEXT" test "$RELEASE" --namespace "$NAMESPACE" --timeout 5m --logs

url=$(kube -n "$NAMESPACE" get inferenceservice "$RELEASE" -o "jsonpath={.status.url}")
host=${url#*://}
answer() {
  printf '{"inputs":[{"name":"image","shape":[1,1],"datatype":"BYTES","data":["%s"]}]}' \
    "$(cat "$ROOT/helm/pneumonia/files/image.base64")" |
    curl -sf --max-time 30 -H "Host: ${host%/}" -d @- http://127.0.0.1:8080/v2/models/pneumonia_detection/infer
}
until_ok 120 "an answer through the gateway" answer
