# Sourced by scripts: starts SLOTCAST_BIN on a free port with a temporary data directory, and sets `folder` and `url`. The server
# and the directory are removed when the script exits.
folder=$(mktemp -d)
trap 'kill "$server" 2>/dev/null; wait "$server" 2>/dev/null; rm -rf "$folder"' EXIT
SLOTCAST_LOG=warn SLOTCAST_ADMIN_LISTEN=127.0.0.1:0 \
  "$SLOTCAST_BIN" serve --listen 127.0.0.1:0 --data "$folder/data" >"$folder/out" &
server=$!
for _ in $(seq 100); do
  url=$(sed -n 's/^listening on //p' "$folder/out")
  [ -z "$url" ] || break
  sleep 0.1
done
[ -n "$url" ] || { echo 'the server did not print its address within 10 s'; exit 1; }
