# shellcheck shell=bash
# The one definition of which LibTorch signvote uses, and how it is fetched. Sourced by scripts/setup, and by the installed
# program signvote-libtorch, after wheels.sh of the same folder, whose conditions hold here too; the caller also defines
# EXIT_LIBTORCH.

# shellcheck disable=SC2034  # the caller's
readonly TORCH_VERSION=2.11.0
# The wheels that a CPU worker needs. LibTorch's libraries and headers are the same in the wheels of all Pythons.
readonly TORCH_REQUIREMENTS="torch==$TORCH_VERSION --hash=sha256:7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a
nvidia-cuda-runtime==13.0.96 --hash=sha256:7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548
nvidia-cuda-cupti==13.0.85 --hash=sha256:4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8"
readonly TORCH_FILES="torch/include/torch/csrc/api/include/torch/torch.h torch/lib/libtorch_cpu.so torch/lib/libc10.so
nvidia/cu13/lib/libcudart.so.13 nvidia/cu13/lib/libcupti.so.13"
readonly TORCH_MIB=2300  # the wheels (550 MiB) and what is kept of them (1,700 MiB while unpacking)

# Names what a LibTorch folder lacks; nothing if it is complete.
torch_lacks() { wheels_lack "$1" "$TORCH_FILES"; }

# libtorch_check_own LIBTORCH [FILE...]: refuses a folder of the user's that is no LibTorch, or lacks FILE.
libtorch_check_own() {
  local own=$1 file
  shift
  for file in "$@" lib/libtorch_cpu.so lib/libc10.so; do
    [ -s "$own/$file" ] ||
      fail $EXIT_LIBTORCH "LIBTORCH=$own has no $file; name the folder that holds include/ and lib/, or unset it"
  done
}

# libtorch_install TARGET LOCK WITHOUT [PREFIX]: LibTorch in the folder TARGET, downloaded unless it is there. WITHOUT: what
# the user may do instead of a download; PREFIX begins the messages.
libtorch_install() {
  if [ "$(uname -m)" != x86_64 ] && [ -n "$(torch_lacks "$1")" ]; then
    fail $EXIT_LIBTORCH "PyPI's LibTorch wheel used here is for x86_64, this is $(uname -m); give your own by LIBTORCH=/path"
  fi
  # Of the torch wheel only libraries, headers and licence are used.
  wheels_install --name LibTorch --phrase LibTorch --version "$TORCH_VERSION" --target "$1" --lock "$2" \
    --files "$TORCH_FILES" --requirements "$TORCH_REQUIREMENTS" \
    --platforms "manylinux_2_28_x86_64 manylinux_2_25_x86_64 manylinux2014_x86_64" \
    --members "torch/lib/* torch/include/* nvidia/*" --download-mib 550 --disk-mib $TORCH_MIB --without "$3" --prefix "${4:-}"
}
