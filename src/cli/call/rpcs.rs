//! The RPCs of the server, from its protobuf descriptors.

use super::request::fields;
use crate::wire::FILE_DESCRIPTOR_SET;
use http::uri::PathAndQuery;
use prost_reflect::{DescriptorPool, MethodDescriptor};

/// Minimum similarity of a known name to be suggested, from 0 to 1.
const SIMILARITY_MIN: f64 = 0.9;

pub struct Rpcs(DescriptorPool);

impl Rpcs {
    pub fn built_in() -> Result<Self, String> {
        DescriptorPool::decode(FILE_DESCRIPTOR_SET)
            .map(Self)
            .map_err(|error| format!("cannot read the built-in descriptors: {error}"))
    }

    fn all(&self) -> impl Iterator<Item = MethodDescriptor> {
        self.0.services().flat_map(|service| service.methods().collect::<Vec<_>>())
    }

    /// Finds an RPC by its method name or by `package.Service/Method`. The error suggests the RPC with the most similar
    /// name and lists all RPCs.
    pub fn find(&self, name: &str) -> Result<MethodDescriptor, String> {
        let name = name.trim_start_matches('/');
        self.all().find(|rpc| rpc.name() == name || full_name(rpc) == name).ok_or_else(|| {
            let nearest = self.nearest(name);
            let hint = nearest.map(|rpc| format!("; did you mean {}?", rpc.name())).unwrap_or_default();
            format!("unknown RPC {name:?}{hint}\n\n{}", self.list())
        })
    }

    fn nearest(&self, name: &str) -> Option<MethodDescriptor> {
        let name = name.rsplit('/').next().unwrap_or(name).to_lowercase();
        let similarity = |rpc: &MethodDescriptor| strsim::jaro_winkler(&rpc.name().to_lowercase(), &name);
        let similar =
            self.all().map(|rpc| (similarity(&rpc), rpc)).filter(|(similarity, _)| *similarity >= SIMILARITY_MIN);
        similar.max_by(|(one, _), (other, _)| one.total_cmp(other)).map(|(_, rpc)| rpc)
    }

    /// Returns one line per RPC with the fields of its request.
    pub fn list(&self) -> String {
        let width = self.all().map(|rpc| rpc.name().len()).max().unwrap_or_default();
        let mut text = String::new();
        for service in self.0.services() {
            text.push_str(&format!("{}\n", service.full_name()));
            for rpc in service.methods() {
                let streams = if rpc.is_server_streaming() { "  (streams)" } else { "" };
                let line = format!("  {:width$}  {}{streams}", rpc.name(), fields(&rpc.input()));
                text.push_str(line.trim_end());
                text.push('\n');
            }
        }
        text.push_str("\n`slotcast call RPC --list` prints a request template.");
        text
    }
}

fn full_name(rpc: &MethodDescriptor) -> String {
    format!("{}/{}", rpc.parent_service().full_name(), rpc.name())
}

pub fn path(rpc: &MethodDescriptor) -> Result<PathAndQuery, http::uri::InvalidUri> {
    format!("/{}", full_name(rpc)).parse()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_rpc_is_found_by_its_name_and_by_its_full_name() {
        let rpcs = Rpcs::built_in().unwrap();
        for name in ["AddItem", "slotcast.v1.InventoryService/AddItem", "/slotcast.v1.InventoryService/AddItem"] {
            let rpc = rpcs.find(name).unwrap();
            assert_eq!(path(&rpc).unwrap(), "/slotcast.v1.InventoryService/AddItem");
        }
    }

    #[test]
    fn the_error_for_an_unknown_rpc_suggests_the_nearest_and_lists_all() {
        let find = |name| Rpcs::built_in().unwrap().find(name).unwrap_err();
        for (misspelled, suggested) in
            [("additem", "AddItem"), ("AddItm", "AddItem"), ("slotcast.v1.InventoryService/MoveItems", "MoveItem")]
        {
            let error = find(misspelled);
            let expected = format!("unknown RPC {misspelled:?}; did you mean {suggested}?\n");
            assert!(error.starts_with(&expected), "{error}");
            assert!(error.contains("\n  GetCatalog\n"), "{error}");
        }
        let error = find("Frobnicate");
        assert!(error.starts_with("unknown RPC \"Frobnicate\"\n"), "{error}");
    }

    #[test]
    fn the_list_has_the_fields_of_each_request_and_marks_streams() {
        let list = Rpcs::built_in().unwrap().list();
        let subscribe = list.lines().find(|line| line.contains("SubscribeInventory ")).unwrap();
        assert!(subscribe.contains("  inventories [{ inventoryId, resume { epoch, revision } }]"), "{subscribe}");
        assert!(subscribe.ends_with("  (streams)"), "{subscribe}");
    }
}
