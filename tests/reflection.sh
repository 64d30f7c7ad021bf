#!/usr/bin/env bash
# Calls with buf, which has no protos and gets them from the server by reflection.
#
#     SLOTCAST_BIN=target/debug/slotcast BUF=.cache/buf/node_modules/.bin/buf tests/reflection.sh
set -euo pipefail

. "$(dirname "$0")/start_server.sh"

call() { "$BUF" curl --protocol grpc --http2-prior-knowledge --data "$2" "$url/slotcast.v1.InventoryService/$1"; }

call GetCatalog '{}' | grep -q '"maxStack"'
call CreateInventory '{"context": {"idempotencyKey": "by-buf"}, "create": {"inventoryId": "by-buf", "layout": "chest"}}' |
  grep -q '"revision": *"1"'
if refusal=$(call GetInventory '{"inventoryId": "nowhere"}' 2>&1) || ! grep -q not_found <<<"$refusal"; then
  echo "expected NOT_FOUND, got: $refusal"
  exit 1
fi

rpc() { "$BUF" curl --protocol grpc --http2-prior-knowledge --data "$2" "$url/$1"; }

# Reflection includes health and the details of errors, which clients resolve by type name.
rpc grpc.health.v1.Health/Check '{}' | grep -q SERVING
wanted='ErrorInfo BadRequest RetryInfo QuotaFailure PreconditionFailure ResourceInfo'
for type in $wanted; do
  answer=$(rpc grpc.reflection.v1.ServerReflection/ServerReflectionInfo "{\"fileContainingSymbol\": \"google.rpc.$type\"}")
  grep -q fileDescriptorProto <<<"$answer" || { echo "reflection lacks google.rpc.$type: $answer"; exit 1; }
done
imported='{"fileByFilename": "google/protobuf/duration.proto"}'
rpc grpc.reflection.v1.ServerReflection/ServerReflectionInfo "$imported" | grep -q fileDescriptorProto
echo 'reflection serves the protos, health and the details of errors'
