//! The RPCs of the service, from its protobuf descriptors.

use super::request::fields;
use crate::wire::FILE_DESCRIPTOR_SET;
use http::uri::PathAndQuery;
use prost_reflect::{DescriptorPool, MethodDescriptor};

/// Minimum similarity of a known name to be suggested, from 0 to 1.
const LIKENESS_MIN: f64 = 0.9;

pub struct Rpcs(DescriptorPool);

impl Rpcs {
    pub fn of_the_service() -> Result<Self, String> {
        DescriptorPool::decode(FILE_DESCRIPTOR_SET)
            .map(Self)
            .map_err(|error| format!("the built-in descriptors cannot be read: {error}"))
    }

    fn all(&self) -> impl Iterator<Item = MethodDescriptor> {
        self.0.services().flat_map(|service| service.methods().collect::<Vec<_>>())
    }

    /// Finds an RPC by its method name or by `package.Service/Method`. The error lists the RPCs.
    pub fn find(&self, name: &str) -> Result<MethodDescriptor, String> {
        let name = name.trim_start_matches('/');
        self.all().find(|rpc| rpc.name() == name || full_name(rpc) == name).ok_or_else(|| {
            let near = self.nearest(name);
            let hint = near.map(|rpc| format!("; did you mean {}?", rpc.name())).unwrap_or_default();
            format!("there is no RPC {name:?}{hint}\n\n{}", self.list())
        })
    }

    fn nearest(&self, name: &str) -> Option<MethodDescriptor> {
        let name = name.rsplit('/').next().unwrap_or(name).to_lowercase();
        let likeness = |rpc: &MethodDescriptor| strsim::jaro_winkler(&rpc.name().to_lowercase(), &name);
        let alike = self.all().map(|rpc| (likeness(&rpc), rpc)).filter(|(likeness, _)| *likeness >= LIKENESS_MIN);
        alike.max_by(|(one, _), (other, _)| one.total_cmp(other)).map(|(_, rpc)| rpc)
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
        text.push_str("\n`slotcast call RPC --list` prints a request to fill in.");
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
        let rpcs = Rpcs::of_the_service().unwrap();
        for name in ["AddItem", "slotcast.v1.InventoryService/AddItem", "/slotcast.v1.InventoryService/AddItem"] {
            let rpc = rpcs.find(name).unwrap();
            assert_eq!(path(&rpc).unwrap(), "/slotcast.v1.InventoryService/AddItem");
        }
    }

    #[test]
    fn an_unknown_rpc_is_answered_with_those_there_are() {
        let told = Rpcs::of_the_service().unwrap().find("additem").unwrap_err();
        assert!(told.starts_with("there is no RPC \"additem\"; did you mean AddItem?\n"), "{told}");
        for (misspelt, meant) in [("AddItm", "AddItem"), ("slotcast.v1.InventoryService/MoveItems", "MoveItem")] {
            let told = Rpcs::of_the_service().unwrap().find(misspelt).unwrap_err();
            assert!(told.contains(&format!("; did you mean {meant}?\n")), "{told}");
        }
        let unlike = Rpcs::of_the_service().unwrap().find("Frobnicate").unwrap_err();
        assert!(!unlike.contains("did you mean"), "{unlike}");
        assert!(told.contains("\n  GetCatalog\n"), "{told}");
        let subscribe = told.lines().find(|line| line.contains("SubscribeInventory ")).unwrap();
        assert!(subscribe.contains("  inventories [{ inventoryId, resume { epoch, revision } }]"), "{subscribe}");
        assert!(subscribe.ends_with("  (streams)"), "{subscribe}");
    }
}
