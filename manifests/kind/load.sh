#!/usr/bin/env bash
# Loads the server's image, built by `make images`, into the local cluster. IMAGE names another one. Not yet run.
set -euo pipefail
# shellcheck source=manifests/kind/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need docker kind kubectl
need_cluster
docker image inspect "$IMAGE" >/dev/null 2>&1 || fail 4 "no image $IMAGE here; build it with make images, or set IMAGE"
kind load docker-image "$IMAGE" --name "$CLUSTER"
