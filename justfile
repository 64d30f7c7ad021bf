# Development commands. `just` without arguments lists them.

buf_bin := ".cache/buf/node_modules/.bin/buf"

_list:
    @just --list

# Play recorded traces with full frames, deltas and predictions, and compare the bytes sent
demo *arguments:
    cargo run --release -- demo {{ arguments }}

# Run every check: formatting, lints, buf, tests
test:
    ./test

# Write docs/reference.md from the protos and the tables in the source
reference:
    SLOTCAST_UPDATE_REFERENCE=1 cargo test --test reference

# Run formatting, lints, unit tests and property tests
quick:
    ./test quick

# Lint each feature with its own dependencies alone
features:
    cargo clippy --no-default-features --features client --lib -- -D warnings
    cargo clippy --no-default-features --features server --lib -- -D warnings

# Lint Rust and protos
lint:
    cargo fmt --check
    cargo clippy --all-targets -- -D warnings
    just buf

# Format Rust and, if ./test has installed buf, protos
fmt:
    cargo fmt
    if [ -x {{ buf_bin }} ]; then {{ buf_bin }} format --write; fi

# Measure throughput, latency and CPU time of a server on this machine (docs/performance.md)
bench *arguments="all":
    cargo run --release -- bench {{ arguments }}

# Benchmark throughput and latency of the store against a plain log
bench-store *arguments:
    cargo bench --bench store {{ arguments }}

# Measure the size of the log, and how long it takes to look back
bench-log *arguments:
    cargo bench --bench log {{ arguments }}

# Count the instructions of the hot paths, and accept the counts as the new baseline of ./test
instructions:
    benches/instructions.sh write

# Print what each layer of a unary call costs in instructions of a release build
layers:
    SLOTCAST_INSTRUCTIONS=release benches/instructions.sh layers

# Compare the bytes sent to a client for each trace: JSON, protobuf, Colyseus, Slotcast; --json prints JSON
bytes *arguments:
    mkdir -p .cache/bytes
    cp benches/bytes/package.json benches/bytes/package-lock.json .cache/bytes/
    npm ci --prefix .cache/bytes --no-audit --no-fund --loglevel=error
    cargo run --release -- demo --json > .cache/bytes/demo.json
    node benches/bytes/bytes.mjs .cache/bytes/demo.json {{ arguments }}

# Compare with Redis, etcd, PostgreSQL and NATS at the same job (installs them); --seconds N, --only NAME, --json FILE
peers *arguments:
    cargo build --release
    SLOTCAST_NATS=$(benches/peers/install.sh) SLOTCAST_BIN=target/release/slotcast cargo bench --bench peers -- {{ arguments }}

# Kill the server N times at random moments and check that nothing was lost or duplicated
crash n="50":
    SLOTCAST_CRASHES={{ n }} cargo test --release --test crash -- --nocapture

# Fail each of the first N calls of every kind on the store's files, one at a time, under a running server
io-faults n="8":
    SLOTCAST_IO_FAULTS={{ n }} cargo test --test io_faults -- --nocapture

# Check the log of random histories against a model
histories count="100":
    SLOTCAST_HISTORIES={{ count }} cargo test --test store_history -- --nocapture

# Simulate random histories of predicting clients in virtual time
simulate histories="10000":
    SLOTCAST_HISTORIES={{ histories }} cargo test --test sync mirror_sim -- --nocapture

# Measure memory with idle subscriptions and a stalled reader, at full size
memory mutations="200000" subscriptions="2000":
    SLOTCAST_MUTATIONS={{ mutations }} SLOTCAST_SUBSCRIPTIONS={{ subscriptions }} cargo test --release --test memory -- --nocapture

# Attack a server with hostile clients at full size and measure the impact on victims; NAMES selects attacks
hostile *names:
    cargo build
    SLOTCAST_HOSTILE=large SLOTCAST_BIN=target/debug/slotcast .cache/venv/bin/python tests/python/test_hostile.py {{ names }}

# Build the image as for a release, and check it (needs buildah and root)
image:
    SLOTCAST_IMAGE=release deploy/check image

# Check licenses, advisories, bans and sources of dependencies (cargo install cargo-deny)
deny:
    cargo deny check

# Lint protos and compare them with main (./test installs buf)
buf:
    {{ buf_bin }} lint
    {{ buf_bin }} format --diff --exit-code
    {{ buf_bin }} breaking --against '.git#branch=main'
