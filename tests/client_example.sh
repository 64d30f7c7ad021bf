#!/usr/bin/env bash
# Runs the example of the client library, which is built without the server.
#
#     SLOTCAST_BIN=target/debug/slotcast tests/client_example.sh
set -euo pipefail

. "$(dirname "$0")/start_server.sh"

# With the dependencies of all features, which are compiled already.
cargo run --quiet --no-default-features --features client,cli-dependencies --example client -- "$url" | tee "$folder/example"
[ "$(tail -n 1 "$folder/example")" = 'received: 8 stones' ]
