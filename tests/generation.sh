#!/usr/bin/env bash
# Generates code for Go, Java and C# from the protos as they are, with protoc and the plugins that their users have, and
# checks the packages and files that come out. Needs protoc, protoc-gen-go and protoc-gen-go-grpc. Service stubs are
# generated for Go only: the gRPC plugins for Java and C# are not in Debian, and follow the same options.
#
#     tests/generation.sh
set -euo pipefail
cd "$(dirname "$0")/../proto"

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/go" "$folder/java" "$folder/csharp"
protos=(slotcast/v1/*.proto)

# expect FILE TEXT...: the generated file is there and has each of these lines.
expect() {
  local file=$folder/$1 text
  shift
  [ -f "$file" ] || { echo "not generated: $file; there is:" && find "$folder" -type f && exit 1; }
  for text in "$@"; do
    grep -qF -- "$text" "$file" || { echo "${file#"$folder/"} does not have: $text" && exit 1; }
  done
}

protoc -I . --go_out="$folder/go" --go-grpc_out="$folder/go" "${protos[@]}"
go=go/slotcast/gen/slotcast/v1
for proto in "${protos[@]}"; do
  expect "$go/$(basename "$proto" .proto).pb.go" 'package slotcastv1'
done
expect $go/service_grpc.pb.go 'package slotcastv1' 'type InventoryServiceClient interface'
expect $go/admin_grpc.pb.go 'type AdminServiceClient interface'

protoc -I . --java_out="$folder/java" "${protos[@]}"
# A file for each message: it is not nested in a class that is named after the proto.
for message in AddItemRequest SubscribeInventoryResponse GetRolloutRequest Inventory; do
  expect "java/slotcast/v1/$message.java" 'package slotcast.v1;' "public final class $message "
done

protoc -I . --csharp_out="$folder/csharp" "${protos[@]}"
expect csharp/Service.cs 'namespace Slotcast.V1 {' 'class GetInventoryRequest :'
expect csharp/Mutations.cs 'namespace Slotcast.V1 {' 'class AddItem :'
expect csharp/Admin.cs 'namespace Slotcast.V1 {' 'class GetRolloutRequest :'
echo "${#protos[@]} protos generated for Go, Java and C#"
