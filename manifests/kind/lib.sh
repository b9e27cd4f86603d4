#!/usr/bin/env bash
# What the scripts of the local cluster share. Not yet run on a cluster. Source it; it does nothing by itself.

# Settings may be overridden from the environment.
CLUSTER=${CLUSTER:-pneumonia}
NAMESPACE=${NAMESPACE:-pneumonia}
RELEASE=${RELEASE:-pneumonia}
IMAGE=${IMAGE:-pneumonia-triton:0.1.0}
# shellcheck disable=SC2034
STEP_IMAGE=${STEP_IMAGE:-pneumonia-step:0.1.0}
CONTEXT=kind-$CLUSTER
# shellcheck disable=SC2034  # used by the scripts that source this file
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)

say() { echo "kind: $*" >&2; }

fail() { # fail CODE SENTENCE
  echo "error: $2" >&2
  exit "$1"
}

need() { # need TOOL...
  local tool
  for tool in "$@"; do
    command -v "$tool" >/dev/null 2>&1 || fail 4 "$tool is not installed; manifests/README.md says which tools this takes"
  done
}

kube() { kubectl --context "$CONTEXT" "$@"; }

cluster_exists() { kind get clusters 2>/dev/null | grep -qx "$CLUSTER"; }

need_cluster() { cluster_exists || fail 4 "no cluster $CLUSTER; create it with make kind-up"; }

# until_ok SECONDS WHAT COMMAND...: repeats a command until it succeeds. Webhooks answer later than their pods are up.
until_ok() {
  local limit=$1 what=$2 began=$SECONDS
  shift 2
  until "$@"; do
    [ $((SECONDS - began)) -lt "$limit" ] || fail 1 "$what: not within $limit s"
    say "waiting for $what, $((SECONDS - began)) s"
    sleep 5
  done
}

# deployments_ready NAMESPACE SECONDS: every Deployment there is available, and there is one.
deployments_ready() {
  until_ok "$2" "Deployments in $1" has_deployments "$1"
  kube -n "$1" wait --for=condition=Available deployment --all --timeout="$2s" ||
    fail 1 "Deployments in $1 are not available within $2 s; see kubectl --context $CONTEXT -n $1 get pods"
}

has_deployments() { [ -n "$(kube -n "$1" get deployments -o name 2>/dev/null)" ]; }
