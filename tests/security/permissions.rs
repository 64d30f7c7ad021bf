//! The table of permissions covers all methods of the server.

use prost_reflect::DescriptorPool;
use slotcast::identity::Role;
use slotcast::identity::permissions::{MethodAccess, method_access};
use slotcast::wire::FILE_DESCRIPTOR_SET;

/// Returns the paths of all methods in a descriptor set.
fn paths(descriptors: &[u8]) -> Vec<String> {
    let pool = DescriptorPool::decode(descriptors).unwrap();
    let services: Vec<_> = pool.services().collect();
    let path =
        |method: prost_reflect::MethodDescriptor| format!("/{}/{}", method.parent_service().full_name(), method.name());
    services.iter().flat_map(prost_reflect::ServiceDescriptor::methods).map(path).collect()
}

#[test]
fn every_method_has_a_permission() {
    let reflection = tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET;
    let reflection_alpha = tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET;
    let mut seen = 0;
    for set in [FILE_DESCRIPTOR_SET, tonic_health::pb::FILE_DESCRIPTOR_SET, reflection, reflection_alpha] {
        for path in paths(set) {
            assert!(method_access(&path).is_some(), "{path} has no entry: say in permissions.rs who may call it");
            seen += 1;
        }
    }
    assert!(seen > 20, "{seen} methods were found");
}

#[test]
fn players_are_permitted_only_methods_that_read() {
    let reads = ["GetInventory", "ListInventories", "SubscribeInventory", "ReportDesync", "GetCatalog"];
    for path in paths(FILE_DESCRIPTOR_SET) {
        let (service, method) = path[1..].split_once('/').unwrap();
        let role = match service {
            "slotcast.v1.AdminService" => Role::Admin,
            _ if reads.contains(&method) => Role::Player,
            _ => Role::Service,
        };
        assert_eq!(method_access(&path), Some(MethodAccess::MinRole(role)), "{path}");
    }
}

#[test]
fn unknown_methods_are_denied() {
    for path in [
        "",
        "/",
        "//",
        "AddItem",
        "/slotcast.v1.InventoryService",
        "/slotcast.v1.InventoryService/",
        "/slotcast.v1.InventoryService/additem",
        "/slotcast.v1.InventoryService/GetInventory/",
        "//slotcast.v1.InventoryService/GetInventory",
        "/slotcast.v1.InventoryService/%47etInventory",
        "/slotcast.v2.InventoryService/GetInventory",
        "/slotcast.v1.AdminService/GetInventory",
    ] {
        assert_eq!(method_access(path), None, "{path}");
    }
}
