#!/usr/bin/env bash
# Runs shellcheck and hadolint where they are installed and there is something to check; says what it left out.
set -euo pipefail
cd "$(dirname "$0")/.."
PATH="$PWD/.venv/bin:$PATH"

check() { # check TOOL FILE...
  local tool=$1
  shift
  [ $# -gt 0 ] || return 0
  if command -v "$tool" >/dev/null 2>&1; then
    echo "$tool $*"
    "$tool" "$@"
  else
    echo "$tool is not installed: $# file(s) not checked" >&2
  fi
}

mapfile -t scripts < <(git ls-files -- '*.sh' .ci/run 'images/*/pneumonia-triton')
mapfile -t dockerfiles < <(git ls-files -- 'images/*Dockerfile*')
check shellcheck "${scripts[@]}"
check hadolint "${dockerfiles[@]}"
