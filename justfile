# The commands of the README. `just` alone lists them.

buf_bin := ".cache/buf/node_modules/.bin/buf"

_list:
    @just --list

# The scenarios of the plan, before and after, side by side
demo *arguments:
    cargo run --release -- demo {{ arguments }}

# Everything that has to pass: formatting, lints, buf, tests
test:
    ./test

# Lints of Rust and proto
lint:
    cargo fmt --check
    cargo clippy --all-targets -- -D warnings
    just buf

# Formats Rust and, once ./test has fetched buf, proto
fmt:
    cargo fmt
    if [ -x {{ buf_bin }} ]; then {{ buf_bin }} format --write; fi

# Throughput and latency of the store, next to a plain log
bench *arguments:
    cargo bench {{ arguments }}

# Kills the service N times at random moments and checks that nothing was lost or made
crash n="50":
    SLOTCAST_CRASHES={{ n }} cargo test --release --test crash -- --nocapture

# Makes each of the first N calls of every kind on the store's files fail, in turn, under a running server
io-faults n="8":
    SLOTCAST_IO_FAULTS={{ n }} cargo test --test io_faults -- --nocapture

# Random histories of clients that predict, in virtual time
simulate histories="10000":
    SLOTCAST_HISTORIES={{ histories }} cargo test --test mirror_sim -- --nocapture

# Memory under idle subscriptions and a stalled reader, at full size
memory mutations="200000" subscriptions="2000":
    SLOTCAST_MUTATIONS={{ mutations }} SLOTCAST_SUBSCRIPTIONS={{ subscriptions }} cargo test --release --test memory -- --nocapture

# Floods, bombs, stalled readers and other hostile clients at full size, with the figures that victims see; NAME picks some
hostile *names:
    cargo build
    SLOTCAST_HOSTILE=large SLOTCAST_BIN=target/debug/slotcast .cache/venv/bin/python tests/python/test_hostile.py {{ names }}

# Licenses, advisories, bans and sources of dependencies (cargo install cargo-deny)
deny:
    cargo deny check

# Lints proto and compares it with main; ./test fetches buf
buf:
    {{ buf_bin }} lint
    {{ buf_bin }} format --diff --exit-code
    {{ buf_bin }} breaking --against '.git#branch=main'
