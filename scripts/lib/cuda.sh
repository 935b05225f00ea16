# Part of scripts/setup: a CUDA compiler from PyPI where the machine has none. Needs fail, step, EXIT_…, check_disk and
# is_network_error; cuda_cleanup belongs into the caller's exit trap.
# shellcheck shell=bash

readonly EXIT_NVCC=9
readonly CUDA_VERSION=13.0
# Driver and front end, their headers, the runtime and its headers, the back end. Neither GPU nor driver is needed.
readonly CUDA_REQUIREMENTS="nvidia-cuda-nvcc==13.0.88 --hash=sha256:56fe502eb77625a12f25172caa3cdddb4e4c8ba2c8c17dba44b164761b380f03
nvidia-cuda-crt==13.0.88 --hash=sha256:2c8043c7c9e02492716426e9919fc78d2c5b3b2a7a768a88e952676b08aa55a4
nvidia-cuda-runtime==13.0.96 --hash=sha256:7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548
nvidia-nvvm==13.0.88 --hash=sha256:c5f41ffeb6466944a026dfa5317d7d85355c119bbec279205d22f1869d1054e0"
readonly CUDA_COMPILER_FILES="nvidia/cu13/bin/nvcc nvidia/cu13/bin/ptxas nvidia/cu13/bin/cudafe++ nvidia/cu13/nvvm/bin/cicc
nvidia/cu13/include/crt/host_config.h nvidia/cu13/include/cuda_runtime.h nvidia/cu13/lib/libcudart.so.13"
readonly CUDA_MIB=500  # the wheels (97 MiB) and what is unpacked of them (250 MiB)

cuda_unpacking=""
cuda_cleanup() { [ -z "$cuda_unpacking" ] || rm -rf "$cuda_unpacking"; }

# The release of an nvcc that is 13 or later, as M.m; nothing for any other.
nvcc_release() {
  "$1" --version 2>/dev/null | sed -n 's/.*release \([0-9]*\.[0-9]*\).*/\1/p' | awk '$1 >= 13' || true
}

# Names what a folder of the compiler lacks; nothing if it is complete.
cuda_lacks() {
  local file
  for file in $CUDA_COMPILER_FILES; do
    [ -s "$1/$file" ] || { echo "$file"; return; }
  done
}

install_cuda() {  # install_cuda CACHE TOOLKIT_NVCC
  local target="$1/cuda-$CUDA_VERSION" nvcc release lacks work log kept wheel
  if [ -n "${SIGNVOTE_NVCC:-}" ]; then
    release=$(nvcc_release "$SIGNVOTE_NVCC")
    [ -n "$release" ] || fail $EXIT_NVCC "SIGNVOTE_NVCC=$SIGNVOTE_NVCC is no nvcc 13 or later; name one, or unset it"
    step "[4/4] CUDA compiler: using SIGNVOTE_NVCC=$SIGNVOTE_NVCC ($release)"
    return
  fi
  for nvcc in "$(command -v nvcc || true)" "$2"; do
    if [ -n "$nvcc" ] && [ -x "$nvcc" ]; then
      release=$(nvcc_release "$nvcc")
      [ -z "$release" ] || { step "[4/4] CUDA compiler: all there ($nvcc, $release)"; return; }
    fi
  done
  if [ -z "$(cuda_lacks "$target")" ]; then
    step "[4/4] CUDA compiler $CUDA_VERSION: all there ($target)"
    return
  fi
  if [ "$(uname -m)" != x86_64 ]; then
    step "[4/4] CUDA compiler: PyPI's wheels used here are for x86_64, this is $(uname -m): left out"
    return
  fi
  check_disk "$1" $CUDA_MIB "the CUDA compiler"
  mkdir -p "$1"
  # Two runs at once: the second waits, then finds the work done.
  exec 8>"$1/cuda.lock"
  flock -w 1800 8 || fail $EXIT_INSTALL "another scripts/setup holds $1/cuda.lock for half an hour"
  lacks=$(cuda_lacks "$target")
  [ -n "$lacks" ] || { step "[4/4] CUDA compiler $CUDA_VERSION: all there ($target)"; return; }
  [ ! -e "$target" ] || step "      the copy in $target lacks $lacks: replacing it"
  cuda_unpacking="$1/unpacking-cuda.$$"
  work=$cuda_unpacking
  mkdir -p "$work/wheels" "$work/tree"
  log="$work/pip.log"
  step "[4/4] CUDA compiler $CUDA_VERSION: downloading 97 MiB from PyPI"
  echo "$CUDA_REQUIREMENTS" >"$work/requirements.txt"
  if ! python3 -m pip download --no-deps --only-binary=:all: --python-version 311 \
    --platform manylinux2014_x86_64 --platform manylinux2010_x86_64 \
    --require-hashes --requirement "$work/requirements.txt" --dest "$work/wheels" \
    --retries 2 --disable-pip-version-check --progress-bar off >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    if is_network_error "$log"; then
      fail $EXIT_NETWORK "no network: PyPI cannot be reached; check the connection or pip's configuration, then run this again" \
        "(--no-cuda builds a worker that knows no GPU)"
    fi
    kept=$(mktemp "${TMPDIR:-/tmp}/signvote-setup-XXXXXX.log")
    cp "$log" "$kept"
    fail $EXIT_INSTALL "downloading the CUDA compiler failed; the log is $kept (--no-cuda builds a worker that knows no GPU)"
  fi
  step "      unpacking"
  for wheel in "$work"/wheels/*.whl; do
    # unzip answers 11 for a pattern without a match.
    unzip -q -o "$wheel" 'nvidia/*' '*.dist-info/*' -d "$work/tree" 2>"$log" ||
      [ $? -eq 11 ] || fail $EXIT_INSTALL "cannot unpack $(basename "$wheel"): $(tail -n 1 "$log")"
    rm -f "$wheel"
  done
  lacks=$(cuda_lacks "$work/tree")
  [ -z "$lacks" ] || fail $EXIT_INSTALL "the downloaded wheels hold no $lacks"
  # unzip does not keep wheels' execute bits everywhere.
  chmod -R a+rx "$work/tree/nvidia/cu13/bin" "$work/tree/nvidia/cu13/nvvm/bin"
  # By renames, so that a half-unpacked copy never stands under the final name.
  [ ! -e "$target" ] || mv "$target" "$work/old"
  mv "$work/tree" "$target"
  step "      CUDA compiler $CUDA_VERSION is in $target"
}
