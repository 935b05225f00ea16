# shellcheck shell=bash
# The one definition of which LibTorch signvote uses, and how it is fetched. Sourced by scripts/setup, and by the installed
# program signvote-libtorch. Needs bash, python3 with pip, unzip, flock.
#
# The caller defines `fail STATUS MESSAGE...` (does not return), `step MESSAGE...`, and EXIT_NETWORK, EXIT_DISK,
# EXIT_LIBTORCH, EXIT_INSTALL; it calls libtorch_cleanup when it ends.

# shellcheck disable=SC2034  # the caller's
readonly TORCH_VERSION=2.11.0
# The wheels that a CPU worker needs. LibTorch's libraries and headers are the same in the wheels of all Pythons.
readonly TORCH_REQUIREMENTS="torch==2.11.0 --hash=sha256:7aa2f9bbc6d4595ba72138026b2074be1233186150e9292865e04b7a63b8c67a
nvidia-cuda-runtime==13.0.96 --hash=sha256:7f82250d7782aa23b6cfe765ecc7db554bd3c2870c43f3d1821f1d18aebf0548
nvidia-cuda-cupti==13.0.85 --hash=sha256:4eb01c08e859bf924d222250d2e8f8b8ff6d3db4721288cf35d14252a4d933c8"
readonly TORCH_FILES="torch/include/torch/csrc/api/include/torch/torch.h torch/lib/libtorch_cpu.so torch/lib/libc10.so
nvidia/cu13/lib/libcudart.so.13 nvidia/cu13/lib/libcupti.so.13"
readonly TORCH_MIB=2300  # the wheels (550 MiB) and what is kept of them (1,700 MiB while unpacking)

unpacking=""  # the folder of a download in progress
libtorch_cleanup() { [ -z "$unpacking" ] || rm -rf "$unpacking"; }

# The nearest folder that exists, because a cache folder may have to be made first.
existing_parent() {
  local path=$1
  while [ ! -d "$path" ]; do path=$(dirname "$path"); done
  echo "$path"
}

check_disk() {  # check_disk PATH MIB PURPOSE
  local path free
  path=$(existing_parent "$1")
  free=$(df -Pk "$path" | awk 'NR == 2 { print int($4 / 1024) }')
  [ "${free:-0}" -ge "$2" ] ||
    fail $EXIT_DISK "not enough disk space for $3: $path has ${free:-0} MiB free, $2 MiB are needed"
}

is_network_error() {  # is_network_error LOG
  grep -qiE 'temporary failure|could not resolve|could not connect|failed to fetch|unable to fetch|connection (timed|refused|reset|broken)|timed out|network is unreachable|failed to establish|name resolution|no route to host|some index files failed' "$1"
}

# Two runs at once: the second waits, then finds the work done.
lock_installation() {  # lock_installation LOCK
  mkdir -p "$(dirname "$1")"
  exec 9>"$1"
  if ! flock -w 1800 9; then
    fail $EXIT_INSTALL "another installation holds $1 for half an hour"
  fi
}

pip_failed() {  # pip_failed LOG WHAT WITHOUT
  local kept
  tail -n 5 "$1" >&2
  if is_network_error "$1"; then
    fail $EXIT_NETWORK "no network: PyPI cannot be reached; check the connection or pip's configuration, then run this" \
      "again ($3)"
  fi
  kept=$(mktemp "${TMPDIR:-/tmp}/signvote-setup-XXXXXX.log")
  cp "$1" "$kept"
  fail $EXIT_INSTALL "$2 failed; the log is $kept ($3)"
}

# Names what a LibTorch folder lacks; nothing if it is complete.
torch_lacks() {
  local file
  for file in $TORCH_FILES; do
    [ -s "$1/$file" ] || { echo "$file"; return; }
  done
}

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
# the user may do instead of a download; PREFIX begins the messages. Half a copy never stands under TARGET.
libtorch_install() {
  local target=$1 lock=$2 without=$3 prefix=${4:-} cache lacks work log wheel
  cache=$(dirname "$target")
  if [ -z "$(torch_lacks "$target")" ]; then
    step "${prefix}LibTorch $TORCH_VERSION: all there ($target)"
    return
  fi
  [ "$(uname -m)" = x86_64 ] ||
    fail $EXIT_LIBTORCH "PyPI's LibTorch wheel used here is for x86_64, this is $(uname -m); give your own by LIBTORCH=/path"
  check_disk "$cache" $TORCH_MIB "LibTorch"
  lock_installation "$lock"
  lacks=$(torch_lacks "$target")
  [ -n "$lacks" ] || { step "${prefix}LibTorch $TORCH_VERSION: all there ($target)"; return; }
  [ ! -e "$target" ] || step "      the copy in $target lacks $lacks: replacing it"
  unpacking="$cache/unpacking.$$"
  work=$unpacking
  mkdir -p "$work/wheels" "$work/tree"
  log="$work/pip.log"
  step "${prefix}LibTorch $TORCH_VERSION: downloading 550 MiB from PyPI"
  echo "$TORCH_REQUIREMENTS" >"$work/requirements.txt"
  if ! python3 -m pip download --no-deps --only-binary=:all: --python-version 311 \
    --platform manylinux_2_28_x86_64 --platform manylinux_2_25_x86_64 --platform manylinux2014_x86_64 \
    --require-hashes --requirement "$work/requirements.txt" --dest "$work/wheels" \
    --retries 2 --disable-pip-version-check --progress-bar off >"$log" 2>&1; then
    pip_failed "$log" "downloading LibTorch" "$without"
  fi
  step "      unpacking"
  for wheel in "$work"/wheels/*.whl; do
    # Of the torch wheel only libraries, headers and licence are used; unzip answers 11 for a pattern without a match.
    unzip -q -o "$wheel" 'torch/lib/*' 'torch/include/*' 'nvidia/*' '*.dist-info/*' -d "$work/tree" 2>"$log" ||
      [ $? -eq 11 ] || fail $EXIT_INSTALL "cannot unpack $(basename "$wheel"): $(tail -n 1 "$log")"
    rm -f "$wheel"
  done
  lacks=$(torch_lacks "$work/tree")
  [ -z "$lacks" ] || fail $EXIT_INSTALL "the downloaded wheels hold no $lacks"
  # By renames, so that a half-unpacked copy never stands under the final name.
  [ ! -e "$target" ] || mv "$target" "$work/old"
  mv "$work/tree" "$target"
  step "      LibTorch $TORCH_VERSION is in $target"
}
