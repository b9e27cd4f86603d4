#!/usr/bin/env bash
# Builds, pushes and lists the images; `make images`, `make push` and `make sbom` call it with their variables.
# Usage: images/images.sh build|push|sbom IMAGE...    IMAGE: step step-cuda triton-cpu triton
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

declare -A name=([step]=pneumonia-step [step-cuda]=pneumonia-step-cuda [triton-cpu]=pneumonia-triton [triton]=pneumonia-triton-gpu)
declare -A folder=([step]=step [step-cuda]=step [triton-cpu]=triton-cpu [triton]=triton)
declare -A arguments=(
  [step]="" [triton-cpu]="" [triton]=""
  [step-cuda]="--build-arg TORCH_BUILD=cuda --build-arg TITLE=pneumonia-step-cuda \
    --build-arg EXTRAS=train,pipelines,data,dicom,parquet,s3,tensorrt"
)
docker=${DOCKER:-docker}
version=${VERSION:-$(sed -n 's/^__version__ = "\(.*\)"$/\1/p' src/pneumonia/__init__.py)}
release_copy=build/images/release

fail() { # fail CODE SENTENCE
  echo "error: $2" >&2
  exit "$1"
}

tag() { echo "${name[$1]}:$version"; }

newest_release() { # the release that was published last below releases/, or nothing
  local manifest newest=
  for manifest in releases/*/release.json; do
    [ -f "$manifest" ] || continue
    [ -n "$newest" ] && [ ! "$manifest" -nt "$newest" ] || newest=$manifest
  done
  [ -z "$newest" ] || dirname "$newest"
}

choose_release() { # sets RELEASE, and says what the server's image will serve
  local chosen=given
  if [ -z "${RELEASE:-}" ]; then
    RELEASE=$(newest_release)
    chosen="the newest in releases/"
  fi
  if [ -z "$RELEASE" ] || [ "$RELEASE" = none ]; then
    RELEASE=
    echo "no release goes into the server's image: it serves what is mounted (the chart: model.source=s3, pvc, oci)." >&2
    echo "  For one that serves by itself: make demo first, or RELEASE=<folder that pneumoctl publish printed>" >&2
    return
  fi
  echo "the server's image gets the release $RELEASE ($chosen; RELEASE=none builds without)" >&2
  if grep -q '"synthetic": *true' "$RELEASE/release.json" 2>/dev/null; then
    echo "  it was trained on drawn images: the chart serves it with model.allowSynthetic=true alone" >&2
  fi
}

copy_release() {
  rm -rf "$release_copy"
  [ -n "${RELEASE:-}" ] || return 0
  [ -f "$RELEASE/release.json" ] ||
    fail 4 "RELEASE=$RELEASE: no release there (release.json is missing); give the folder that pneumoctl publish printed"
  mkdir -p "$(dirname "$release_copy")"
  cp -RL "$RELEASE" "$release_copy"
}

build() { # build IMAGE
  local began=$SECONDS given=()
  # NVIDIA's image is another base than Python's, so it has a variable of its own.
  case $1 in
    triton)
      [ -n "${TRITON_BASE_IMAGE:-}" ] ||
        fail 2 "image triton needs TRITON_BASE_IMAGE=<tritonserver:25.09-py3 of NVIDIA's registry>; docs/images.md"
      given+=(--build-arg "BASE_IMAGE=$TRITON_BASE_IMAGE")
      ;;
    *) [ -z "${BASE_IMAGE:-}" ] || given+=(--build-arg "BASE_IMAGE=$BASE_IMAGE") ;;
  esac
  case $1 in
    step*)
      given+=(--build-arg "PIP_ARGS=${PIP_ARGS:-}")
      [ "$1" = step-cuda ] || [ -z "${TORCH_BUILD:-}" ] || given+=(--build-arg "TORCH_BUILD=$TORCH_BUILD")
      ;;
    *) [ -z "${RELEASE:-}" ] || given+=(--build-arg "RELEASE=$release_copy") ;;
  esac
  echo "== $(tag "$1")" >&2
  # Unquoted on purpose: both hold several words.
  # shellcheck disable=SC2086
  $docker build ${DOCKER_ARGS:-} ${arguments[$1]} "${given[@]}" --build-arg "VERSION=$version" \
    --build-arg "REVISION=$(git describe --always --abbrev=40 --dirty --exclude="*" 2>/dev/null || echo unknown)" \
    --file "images/${folder[$1]}/Dockerfile" --tag "$(tag "$1")" . >&2
  echo "built $(tag "$1") in $((SECONDS - began)) s" >&2
}

push() { # push IMAGE
  local target
  target="${REGISTRY%/}/$(tag "$1")"
  $docker image inspect "$(tag "$1")" >/dev/null 2>&1 || fail 4 "no image $(tag "$1") here; build it with make images"
  $docker tag "$(tag "$1")" "$target"
  $docker push "$target" >&2
  echo "$target"
}

sbom() { # sbom IMAGE
  local file=build/sbom/${name[$1]}-$version.cdx.json
  mkdir -p build/sbom
  $docker image inspect "$(tag "$1")" >/dev/null 2>&1 || fail 4 "no image $(tag "$1") here; build it with make images"
  "${SYFT:-syft}" scan --quiet --output "cyclonedx-json=$file" "docker:$(tag "$1")"
  echo "$file"
}

sizes() {
  local image
  for image in "$@"; do
    $docker image inspect --format '{{.Size}}' "$(tag "$image")" |
      awk -v tag="$(tag "$image")" '{ printf "%-32s %5d MB\n", tag, $1 / 1e6 }'
  done
}

command=${1:-}
[ $# -eq 0 ] || shift
for image in "$@"; do
  [ -n "${name[$image]:-}" ] || fail 2 "image $image: not one of step, step-cuda, triton-cpu, triton"
done
case $command in
  build)
    case " $* " in
      *" triton"*)
        choose_release
        copy_release
        ;;
    esac
    for image in "$@"; do build "$image"; done
    sizes "$@"
    ;;
  push)
    [ -n "${REGISTRY:-}" ] || fail 2 "push needs a registry: make images push REGISTRY=registry.example.com/team"
    for image in "$@"; do push "$image"; done
    ;;
  sbom) for image in "$@"; do sbom "$image"; done ;;
  *) fail 2 "'$command': not one of build, push, sbom" ;;
esac
