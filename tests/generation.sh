#!/usr/bin/env bash
# Runs the commands that docs/quickstart.md gives for Go, C# and Java, with protoc and the plugins of Debian, and checks the
# packages and files that come out. Needs protoc, protoc-gen-go, protoc-gen-go-grpc and grpc_java_plugin. For C# only the
# messages are generated: grpc_csharp_plugin is published on NuGet alone, as part of Grpc.Tools, which needs the .NET SDK.
#
#     tests/generation.sh
set -euo pipefail
cd "$(dirname "$0")/.."
page=docs/quickstart.md

# The home folder of the page's commands.
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
mkdir "$folder/checkout" && cp -r proto "$folder/checkout/"

# commands SECTION: prints the sh blocks of a section of the page, without those that install packages.
commands() {
  awk -v heading="## $1" '/^## / { inside = $0 == heading } /^```/ { code = inside && $0 == "```sh"; next } code' $page
}

# generate SECTION: runs the commands of a section.
generate() {
  local commands
  commands=$(commands "$1")
  [ -n "$commands" ] || { echo "$page has no commands in the section $1" && exit 1; }
  (cd "$folder/checkout" && HOME=$folder bash -euo pipefail -c "$commands") ||
    { echo "the commands of the section $1 in $page failed" && exit 1; }
}

# expect FILE TEXT...: the generated file is there and has each of these lines.
expect() {
  local file=$folder/$1 text
  shift
  [ -f "$file" ] || { echo "not generated: $file; there is:" && find "$folder" -type f && exit 1; }
  for text in "$@"; do
    grep -qF -- "$text" "$file" || { echo "${file#"$folder/"} does not have: $text" && exit 1; }
  done
}

protos=(proto/slotcast/v1/*.proto)

generate Go
go=slotcast-go/gen/slotcast/v1
for proto in "${protos[@]}"; do
  expect "$go/$(basename "$proto" .proto).pb.go" 'package slotcastv1'
done
expect $go/service_grpc.pb.go 'package slotcastv1' 'type InventoryServiceClient interface'
expect $go/admin_grpc.pb.go 'type AdminServiceClient interface'

generate Java
java=slotcast-java/src/main/java/slotcast/v1
# A file for each message: it is not nested in a class that is named after the proto.
for message in AddItemRequest SubscribeInventoryResponse GetRolloutRequest Inventory; do
  expect "$java/$message.java" 'package slotcast.v1;' "public final class $message "
done
expect $java/InventoryServiceGrpc.java 'package slotcast.v1;' 'public static InventoryServiceBlockingStub newBlockingStub('
expect $java/AdminServiceGrpc.java 'public static AdminServiceBlockingStub newBlockingStub('

generate 'C#'
csharp=slotcast-csharp-messages
expect $csharp/Service.cs 'namespace Slotcast.V1 {' 'class GetInventoryRequest :'
expect $csharp/Mutations.cs 'namespace Slotcast.V1 {' 'class AddItem :'
expect $csharp/Admin.cs 'namespace Slotcast.V1 {' 'class GetRolloutRequest :'
echo "${#protos[@]} protos generated for Go, Java and C#"
