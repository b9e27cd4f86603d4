#!/usr/bin/env bash
# Deletes the local cluster, with everything on it; no error where there is none. Not yet run.
set -euo pipefail
# shellcheck source=manifests/kind/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need kind
if cluster_exists; then
  kind delete cluster --name "$CLUSTER"
else
  say "no cluster $CLUSTER"
fi
