# shellcheck shell=bash
# Part of scripts/setup: a CUDA compiler from PyPI where the machine has none. Sourced after wheels.sh, whose conditions hold here
# too.

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

# The release of an nvcc that is 13 or later, as M.m; nothing for any other.
nvcc_release() {
  "$1" --version 2>/dev/null | sed -n 's/.*release \([0-9]*\.[0-9]*\).*/\1/p' | awk '$1 >= 13' || true
}

install_cuda() {  # install_cuda CACHE TOOLKIT_NVCC
  local target="$1/cuda-$CUDA_VERSION" nvcc release
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
  if [ "$(uname -m)" != x86_64 ] && [ -n "$(wheels_lack "$target" "$CUDA_COMPILER_FILES")" ]; then
    step "[4/4] CUDA compiler: PyPI's wheels used here are for x86_64, this is $(uname -m): left out"
    return
  fi
  wheels_install --name "CUDA compiler" --phrase "the CUDA compiler" --version "$CUDA_VERSION" --target "$target" \
    --lock "$1/setup.lock" --files "$CUDA_COMPILER_FILES" --requirements "$CUDA_REQUIREMENTS" \
    --platforms "manylinux2014_x86_64 manylinux2010_x86_64" --members "nvidia/*" --download-mib 97 --disk-mib $CUDA_MIB \
    --programs "nvidia/cu13/bin nvidia/cu13/nvvm/bin" --without "--no-cuda builds a worker that knows no GPU" --prefix "[4/4] "
}
