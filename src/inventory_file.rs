//! Inventories as JSON lines, the format of `slotcast export` and `slotcast import`.
//!
//! The first line is a [`Header`]. Each further line is one inventory: id, owner (omitted if none), layout and filled
//! slots. Items are named by id, or by code if the catalog does not have them; attributes are in base64. Epoch,
//! revision and digest identify the exported state. An import assigns new epochs, starts at revision 1, and verifies
//! the digest if present.

use crate::domain::catalog::COUNT_MAX;
use crate::domain::{
    Attributes, Catalog, Contents, Count, Digest, Edit, Epoch, Inventory, InventoryId, ItemCode, LayoutId, PlayerId,
    Revision, Slot, Stack,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

/// Version of the format. It increases when an older program cannot read the files of this version.
pub const FORMAT_VERSION: u32 = 1;
/// Maximum length of a line, in bytes. No valid inventory needs more.
pub const LINE_BYTES_MAX: usize = 4 << 20;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Header {
    /// The format version, [`FORMAT_VERSION`].
    pub slotcast_export: u32,
    /// Version of the catalog that provided the item ids.
    pub catalog: String,
    pub exported_unix_ms: u64,
    /// Number of lines that follow, so that a truncated file is detected.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inventories: Option<u64>,
}

impl Header {
    pub fn write(&self) -> String {
        serde_json::to_string(self).expect("numbers and strings are JSON")
    }

    pub fn read(line: &str) -> Result<Self, String> {
        let header: Self = serde_json::from_str(line).map_err(|error| format!("not a valid export header: {error}"))?;
        if header.slotcast_export > FORMAT_VERSION {
            let found = header.slotcast_export;
            return Err(format!(
                "unsupported format {found}: this version reads formats up to {FORMAT_VERSION}, upgrade slotcast"
            ));
        }
        Ok(header)
    }
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    id: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<String>,
    layout: String,
    stacks: Vec<StackEntry>,
    #[serde(default)]
    epoch: Option<u32>,
    #[serde(default)]
    revision: Option<u64>,
    /// Both lanes in hexadecimal, lane A first.
    #[serde(default)]
    digest: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct StackEntry {
    slot: u64,
    item: ItemRef,
    count: u64,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    attributes: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(untagged)]
enum ItemRef {
    Id(String),
    Code(u32),
}

/// Returns one inventory as a line, without a line break.
pub fn write(inventory: &Inventory, catalog: &Catalog) -> String {
    let entry = |(slot, stack): (Slot, &Stack)| StackEntry {
        slot: u64::from(slot.0),
        item: match catalog.item_by_code(stack.item) {
            Some(item) => ItemRef::Id(item.id.to_string()),
            None => ItemRef::Code(stack.item.get()),
        },
        count: u64::from(stack.count.get()),
        attributes: STANDARD.encode(stack.attributes.as_bytes()),
    };
    let line = Line {
        id: inventory.id.as_str().to_owned(),
        owner: inventory.owner.as_ref().map(|owner| owner.as_str().to_owned()),
        layout: inventory.layout.as_str().to_owned(),
        stacks: inventory.contents.stacks().map(entry).collect(),
        epoch: Some(inventory.epoch.get()),
        revision: Some(inventory.contents.revision().0),
        digest: Some(digest_text(inventory.contents.digest())),
    };
    serde_json::to_string(&line).expect("numbers and strings are JSON")
}

/// The options of an import.
#[derive(Debug, Clone, Copy, Default)]
pub struct ImportOptions {
    /// Accepts stacks larger than their item's `max_stack`, left over after the catalog lowered it.
    pub allow_oversized: bool,
}

/// Reads a line as a new inventory with the given epoch, or returns every problem of the line.
pub fn read(line: &str, catalog: &Catalog, options: ImportOptions, epoch: Epoch) -> Result<Inventory, Vec<String>> {
    let line: Line = serde_json::from_str(line).map_err(|error| vec![format!("not a valid inventory: {error}")])?;
    let mut problems = Vec::new();
    let mut report = |problem: String| problems.push(problem);
    let id = InventoryId::new(&line.id).map_err(|error| report(format!("id {error}"))).ok();
    let owner = line.owner.as_deref().map(PlayerId::new).transpose().map_err(|error| report(format!("owner {error}")));
    let layout = LayoutId::new(&line.layout).ok().and_then(|layout| catalog.layout(&layout));
    if layout.is_none() {
        report(format!("unknown layout {:?}: add it to the catalog", line.layout));
    }
    let slots = layout.map_or(usize::from(u16::MAX), |layout| layout.slots());
    let mut edits: Vec<Edit> = Vec::with_capacity(line.stacks.len());
    let mut used = vec![false; slots];
    for entry in &line.stacks {
        let slot = usize::try_from(entry.slot).unwrap_or(usize::MAX);
        match used.get_mut(slot) {
            None => report(format!("slot {}: out of range, the layout has {slots} slots", entry.slot)),
            Some(used) if *used => report(format!("slot {slot}: duplicate")),
            Some(used) => *used = true,
        }
        match read_stack(entry, catalog, options) {
            Ok(stack) => edits.push((Slot(slot as u16), Some(stack))),
            Err(problem) => report(format!("slot {slot}: {problem}")),
        }
    }
    let (Some(id), Ok(owner), Some(layout), true) = (id, owner, layout, problems.is_empty()) else {
        return Err(problems);
    };
    let contents = Contents::new(slots, Revision::CREATED, &edits);
    if line.digest.is_some_and(|digest| digest != digest_text(contents.digest())) {
        let problem = "the digest does not match the stacks; if you changed them on purpose, remove the digest";
        return Err(vec![problem.to_owned()]);
    }
    Ok(Inventory { id, owner, layout: layout.id.clone(), epoch, contents })
}

fn read_stack(entry: &StackEntry, catalog: &Catalog, options: ImportOptions) -> Result<Stack, String> {
    let (item, known) = match &entry.item {
        ItemRef::Id(id) => {
            let item = catalog.item(id).ok_or_else(|| format!("unknown item {id:?}: add it to the catalog"))?;
            (item.code, Some(item))
        }
        ItemRef::Code(code) => {
            let code = ItemCode::new(*code).ok_or("the item code must not be 0")?;
            (code, catalog.item_by_code(code))
        }
    };
    let in_bounds = u32::try_from(entry.count).ok().filter(|count| *count <= COUNT_MAX).and_then(Count::new);
    let count = in_bounds.ok_or_else(|| format!("count must be 1 to {COUNT_MAX}, got {}", entry.count))?;
    if let Some(item) = known.filter(|item| count > item.max_stack && !options.allow_oversized) {
        let (id, max_stack) = (&item.id, item.max_stack.get());
        return Err(format!("count exceeds the max_stack of {id:?}, {max_stack}: got {}", count.get()));
    }
    let bytes =
        STANDARD.decode(&entry.attributes).map_err(|error| format!("attributes are not valid base64: {error}"))?;
    let bytes_max = Attributes::BYTES_MAX;
    let attributes = Attributes::new(&bytes)
        .ok_or_else(|| format!("attributes must have at most {bytes_max} bytes, got {}", bytes.len()))?;
    Ok(Stack { item, count, attributes })
}

fn digest_text(digest: Digest) -> String {
    format!("{:08x}{:08x}", digest.a, digest.b)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog_file::default_catalog;

    fn epoch() -> Epoch {
        Epoch::new(7).unwrap()
    }

    fn problems(line: &str) -> Vec<String> {
        read(line, &default_catalog(), ImportOptions::default(), epoch()).expect_err("the line is invalid")
    }

    #[test]
    fn a_written_line_is_read_back() {
        let catalog = default_catalog();
        let stack = |code, count, attributes: &[u8]| {
            let (item, count) = (ItemCode::new(code).unwrap(), Count::new(count).unwrap());
            Some(Stack { item, count, attributes: Attributes::new(attributes).unwrap() })
        };
        let known = catalog.items()[0].code.get();
        let edits = [
            (Slot(0), stack(known, 1, b"")),
            (Slot(3), stack(999_999, 500, b"")),
            (Slot(9), stack(known, 1, &[0, 255])),
        ];
        let inventory = Inventory {
            id: InventoryId::new("chest \"1\" \u{1F4E6}").unwrap(),
            owner: PlayerId::new("ann").ok(),
            layout: LayoutId::new("player").unwrap(),
            epoch: epoch(),
            contents: Contents::new(36, Revision::CREATED, &edits),
        };
        let line = write(&inventory, &catalog);
        assert!(line.contains(r#""item":999999,"count":500}"#), "{line}");
        assert_eq!(read(&line, &catalog, ImportOptions::default(), epoch()), Ok(inventory));
    }

    #[test]
    fn every_problem_of_a_line_is_reported() {
        let attributes = "A".repeat(4 * 400);
        let line = format!(
            r#"{{"id":"","owner":"a\nb","layout":"player","stacks":[
                {{"slot":36,"item":"stone","count":1}},
                {{"slot":1,"item":"stone","count":0}},
                {{"slot":1,"item":"stone","count":65}},
                {{"slot":2,"item":"unobtainium","count":1}},
                {{"slot":3,"item":0,"count":1}},
                {{"slot":4,"item":77777,"count":4294967296}},
                {{"slot":5,"item":"stone","count":1,"attributes":"?"}},
                {{"slot":6,"item":"stone","count":1,"attributes":"{attributes}"}}]}}"#
        );
        assert_eq!(
            problems(&line),
            [
                "id must not be empty",
                "owner must not contain control characters",
                "slot 36: out of range, the layout has 36 slots",
                "slot 1: count must be 1 to 2147483647, got 0",
                "slot 1: duplicate",
                "slot 1: count exceeds the max_stack of \"stone\", 64: got 65",
                "slot 2: unknown item \"unobtainium\": add it to the catalog",
                "slot 3: the item code must not be 0",
                "slot 4: count must be 1 to 2147483647, got 4294967296",
                "slot 5: attributes are not valid base64: Invalid symbol 63, offset 0.",
                "slot 6: attributes must have at most 1024 bytes, got 1200",
            ]
        );
        assert_eq!(
            problems(r#"{"id":"a","layout":"safe","stacks":[]}"#),
            ["unknown layout \"safe\": add it to the catalog"]
        );
        let changed = r#"{"id":"a","layout":"chest","stacks":[{"slot":0,"item":"stone","count":2}],"digest":"00"}"#;
        assert!(problems(changed)[0].starts_with("the digest does not match the stacks"));
        assert!(problems(r#"{"id":"a","layout":"chest","stacks":[],"slots":9}"#)[0].contains("unknown field `slots`"));
    }

    #[test]
    fn an_oversized_stack_is_accepted_only_if_the_options_allow_it() {
        let line = r#"{"id":"a","layout":"chest","stacks":[{"slot":0,"item":"stone","count":65}]}"#;
        let lenient = ImportOptions { allow_oversized: true };
        assert!(read(line, &default_catalog(), lenient, epoch()).is_ok());
        assert_eq!(problems(line).len(), 1);
    }

    #[test]
    fn a_header_of_a_newer_format_is_invalid() {
        let header = Header { slotcast_export: 1, catalog: "c".into(), exported_unix_ms: 5, inventories: Some(2) };
        assert_eq!(Header::read(&header.write()), Ok(header.clone()));
        let newer = Header { slotcast_export: 2, ..header };
        assert!(Header::read(&newer.write()).unwrap_err().contains("upgrade slotcast"));
        assert!(Header::read(r#"{"id":"a"}"#).is_err());
    }
}
