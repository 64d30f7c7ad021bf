#!/usr/bin/env bash
# Counts the instructions of the hot paths: benches/instructions.sh check | write | layers | spread N
#
# Slotcast is built with opt-level 1, like its dependencies, which `cargo test` has built already: building all of them again
# would take minutes. So the counts are above those of a release build. With SLOTCAST_INSTRUCTIONS=release, everything is built
# as in a release (`just layers`).
set -euo pipefail
cd "$(dirname "$0")/.."

# ./test sets clippy-driver as the compiler, which would change the counts.
unset RUSTC_WORKSPACE_WRAPPER

# Without the command but with its dependencies: other features would make cargo compile the dependencies again.
target=(--no-default-features --features server,cli-dependencies --bench instructions)
if [ "${SLOTCAST_INSTRUCTIONS:-}" = release ]; then
  exec cargo bench --quiet "${target[@]}" -- "$@"
fi
profile=profile.dev.package.slotcast
CARGO_INCREMENTAL=0 exec cargo test --quiet "${target[@]}" \
  --config "$profile.opt-level=1" --config "$profile.codegen-units=16" \
  --config "$profile.debug=false" --config "$profile.debug-assertions=false" --config "$profile.overflow-checks=false" -- "$@"
