#!/usr/bin/env bash
# Counts the instructions of the hot paths: benches/instructions.sh check | write | layers | spread N
#
# Slotcast itself is built optimized. Its dependencies are those that `cargo test` has built already (opt-level 1), because
# building all of them again would take minutes. So the counts are above those of a release build, and changes of Slotcast's
# own code show. With SLOTCAST_INSTRUCTIONS=release, everything is built as in a release: for the figures of docs/performance.md.
set -euo pipefail
cd "$(dirname "$0")/.."

# ./test compiles with clippy, which optimizes less.
unset RUSTC_WORKSPACE_WRAPPER

# Without the command, but with its dependencies: other features of them would be another build of them.
target=(--no-default-features --features cli-dependencies --bench instructions)
if [ "${SLOTCAST_INSTRUCTIONS:-}" = release ]; then
  exec cargo bench --quiet "${target[@]}" -- "$@"
fi
profile=profile.dev.package.slotcast
CARGO_INCREMENTAL=0 exec cargo test --quiet "${target[@]}" \
  --config "$profile.opt-level=1" --config "$profile.codegen-units=16" \
  --config "$profile.debug=false" --config "$profile.debug-assertions=false" --config "$profile.overflow-checks=false" -- "$@"
