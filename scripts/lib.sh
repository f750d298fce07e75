# shellcheck shell=bash
# Shared by the scripts beside it; to be sourced after `set -euo pipefail`.
# Sets ROOT (the checkout), DEPS (what scripts/setup fills) and JOBS.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
DEPS="$ROOT/.deps"

# A compile of a LibTorch file takes up to 2 GB of memory.
_memory_jobs=$(($(awk '/^MemAvailable:/ {print $2}' /proc/meminfo) / 2000000))
JOBS="${QLORA_JOBS:-$(nproc)}"
if ((_memory_jobs < 1)); then _memory_jobs=1; fi
if ((JOBS > _memory_jobs)); then JOBS=$_memory_jobs; fi

# ccache and other tools refuse to work without a home directory.
if [[ ! -d "${HOME:-}" || ! -w "${HOME:-}" ]]; then
  export HOME="$DEPS/home"
  mkdir -p "$HOME"
fi

say() { printf '== %s\n' "$*"; }

# die WHAT [CAUSE [HINT]]
die() {
  printf 'error: %s\n' "$1" >&2
  if [[ -n "${2:-}" ]]; then printf 'cause: %s\n' "$2" >&2; fi
  if [[ -n "${3:-}" ]]; then printf 'hint: %s\n' "$3" >&2; fi
  exit 1
}
