#!/usr/bin/env bash
# Loads the images of server and steps, built by `make images`, into the local cluster. IMAGE and STEP_IMAGE name others.
# Not yet run.
set -euo pipefail
# shellcheck source=manifests/kind/lib.sh
. "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

need docker kind kubectl
need_cluster
for image in "$IMAGE" "$STEP_IMAGE"; do
  docker image inspect "$image" >/dev/null 2>&1 ||
    fail 4 "no image $image here; build it with make images, or set IMAGE and STEP_IMAGE"
  kind load docker-image "$image" --name "$CLUSTER"
done
