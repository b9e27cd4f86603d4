#!/usr/bin/env bash
# Creates .venv and installs the project with the versions of requirements.lock; `make setup` calls it.
# PYTHON: interpreter to use (empty: python3.11, else python3). PIP_ARGS: further arguments for pip install.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=${VENV:-.venv}
# dvc, kaggle and pydicom are small beside torch, so that one set-up serves every task.
extras=train,pipelines,serve,data,dicom,parquet,s3,bench,dev
in_range='import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 12))'

choose_python() {
  local candidate
  # A name on the path is not enough: version managers leave stubs there that refuse to run.
  for candidate in ${PYTHON:-python3.11 python3}; do
    if "$candidate" -c "$in_range" 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  local found
  found=$("${PYTHON:-python3}" --version 2>&1 | head -n 1) || true
  echo "error: ${PYTHON:-python3} is '${found:-not found}', expected Python 3.10 to 3.12" >&2
  echo "  install Python 3.11 and run: make setup PYTHON=python3.11" >&2
  return 4
}

# An interrupted creation leaves an interpreter without pip; creating it again mends that.
if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
  python=$(choose_python)
  echo "creating $venv with $("$python" --version)" >&2
  "$python" -m venv "$venv"
elif ! "$venv/bin/python" -c "$in_range"; then
  echo "error: $venv holds $("$venv/bin/python" --version 2>&1), expected Python 3.10 to 3.12; remove it and try again" >&2
  exit 4
fi

log=$venv/install.log
echo "installing requirements.lock; full output in $log" >&2
# Unquoted on purpose: PIP_ARGS holds several words.
# shellcheck disable=SC2086
if ! "$venv/bin/python" -m pip install --progress-bar off ${PIP_ARGS:-} \
    -c requirements.lock -e ".[$extras]" 2>&1 | tee "$log" | awk '
      /^Collecting / { if (++count % 50 == 0) print "  " count " packages found" }
      /^  *Downloading .*torch-/ { print "  downloading torch: the largest part" }
      /^Installing collected packages/ { print "  installing, a minute or more" }
      { fflush() }' >&2; then
  echo "error: pip failed; the end of $log:" >&2
  tail -n 20 "$log" >&2
  exit 1
fi
touch "$venv/.installed"
echo "installed into $venv" >&2
