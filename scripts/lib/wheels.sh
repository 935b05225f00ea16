# shellcheck shell=bash
# Fetches pinned wheels of PyPI and unpacks what is wanted of them, without a Python to install them into. Sourced by
# scripts/setup, and by the installed program signvote-libtorch. Needs bash, python3 with pip, unzip, flock.
#
# The caller defines `fail STATUS MESSAGE...` (does not return), `step MESSAGE...`, EXIT_NETWORK, EXIT_DISK and EXIT_INSTALL; it
# calls wheels_cleanup when it ends.

unpacking=""  # the folder of a download in progress
wheels_cleanup() { [ -z "$unpacking" ] || rm -rf "$unpacking"; }

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

# Names which of FILES, a list of words, the folder lacks; nothing if it is complete.
wheels_lack() {  # wheels_lack FOLDER FILES
  local file
  for file in $2; do
    [ -s "$1/$file" ] || { echo "$file"; return; }
  done
}

# wheels_install OPTION VALUE...: what the wheels hold in the folder --target, downloaded unless it is there. Half a copy never
# stands under that name.
#
#   --name WORDS  --version V      as messages begin              --phrase WORDS  the same within a sentence
#   --target FOLDER  --lock FILE
#   --files FILES                  what makes the folder complete
#   --requirements TEXT            pip's, with hashes             --platforms TAGS  of the wheels
#   --members PATTERNS             what is kept of the wheels' files
#   --programs FOLDERS             in which every file is one: unzip does not keep wheels' execute bits everywhere
#   --download-mib N  --disk-mib N
#   --without WORDS                what the user may do instead   --prefix WORDS  before the messages
wheels_install() {
  local -A o=([programs]="" [prefix]="")
  while [ $# -gt 0 ]; do
    o[${1#--}]=$2
    shift 2
  done
  local target=${o[target]} title="${o[prefix]}${o[name]} ${o[version]}" cache lacks work log wheel word
  if [ -z "$(wheels_lack "$target" "${o[files]}")" ]; then
    step "$title: all there ($target)"
    return
  fi
  cache=$(dirname "$target")
  check_disk "$cache" "${o[disk-mib]}" "${o[phrase]}"
  lock_installation "${o[lock]}"
  lacks=$(wheels_lack "$target" "${o[files]}")
  [ -n "$lacks" ] || { step "$title: all there ($target)"; return; }
  [ ! -e "$target" ] || step "      the copy in $target lacks $lacks: replacing it"
  unpacking="$cache/unpacking.$$"
  work=$unpacking
  rm -rf "$work"
  mkdir -p "$work/wheels" "$work/tree"
  log="$work/pip.log"
  step "$title: downloading ${o[download-mib]} MiB from PyPI"
  echo "${o[requirements]}" >"$work/requirements.txt"
  local platforms=() members=()
  for word in ${o[platforms]}; do platforms+=(--platform "$word"); done
  read -r -a members <<<"${o[members]}"
  if ! python3 -m pip download --no-deps --only-binary=:all: --python-version 311 "${platforms[@]}" \
    --require-hashes --requirement "$work/requirements.txt" --dest "$work/wheels" \
    --retries 2 --disable-pip-version-check --progress-bar off >"$log" 2>&1; then
    pip_failed "$log" "downloading ${o[phrase]}" "${o[without]}"
  fi
  step "      unpacking"
  for wheel in "$work"/wheels/*.whl; do
    # unzip answers 11 for a pattern without a match.
    unzip -q -o "$wheel" "${members[@]}" '*.dist-info/*' -d "$work/tree" 2>"$log" ||
      [ $? -eq 11 ] || fail $EXIT_INSTALL "cannot unpack $(basename "$wheel"): $(tail -n 1 "$log")"
    rm -f "$wheel"
  done
  lacks=$(wheels_lack "$work/tree" "${o[files]}")
  [ -z "$lacks" ] || fail $EXIT_INSTALL "the downloaded wheels hold no $lacks"
  for word in ${o[programs]}; do chmod -R a+rx "$work/tree/$word"; done
  # By renames, so that a half-unpacked copy never stands under the final name.
  [ ! -e "$target" ] || mv "$target" "$work/old"
  mv "$work/tree" "$target"
  rm -rf "$work"
  step "      ${o[name]} ${o[version]} is in $target"
}
