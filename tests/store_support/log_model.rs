//! A model of the log: the expected records, the states of each inventory, and the supply.

use super::*;
use slotcast::domain::Transition;
use slotcast::store::history::PastState;
use slotcast::store::log::{
    CHECKPOINT_REVISIONS, ChainHead, LogEntry, LogRecord, LoggedChange, LoggedChangeKind, LoggedEdit, LoggedOperation,
    Position,
};
use slotcast::store::supply::Amounts;

/// A state of an inventory.
#[derive(Debug, Clone)]
pub struct PastVersion {
    /// `None` if a restore made it.
    pub position: Option<Position>,
    pub time_ms: u64,
    pub epoch: Epoch,
    pub revision: Revision,
    /// `None` if it was deleted.
    pub state: Option<Arc<Inventory>>,
}

/// All states of an inventory, oldest first.
#[derive(Debug, Clone, Default)]
pub struct Chain {
    pub head: ChainHead,
    pub versions: Vec<PastVersion>,
}

#[derive(Debug, Clone)]
pub struct LogModel {
    pub chains: BTreeMap<InventoryId, Chain>,
    /// All records, also those that were deleted from the log, oldest first.
    pub records: Vec<LogRecord>,
    pub supply: BTreeMap<(ItemCode, OperationKind), Amounts>,
    pub writer: u16,
    /// The earliest record that is kept.
    pub earliest: Position,
    /// The time of the last record that was deleted.
    pub trimmed_ms: u64,
    sequence: u64,
    last_ms: u64,
}

impl Default for LogModel {
    fn default() -> Self {
        Self {
            chains: BTreeMap::new(),
            records: Vec::new(),
            supply: BTreeMap::new(),
            writer: 1,
            earliest: Position::NONE,
            trimmed_ms: 0,
            sequence: 0,
            last_ms: 0,
        }
    }
}

impl LogModel {
    pub fn newest(&self, id: &InventoryId) -> Option<&Arc<Inventory>> {
        self.chains.get(id)?.versions.last()?.state.as_ref()
    }

    /// Returns the inventories that exist, in order of ids.
    pub fn present(&self) -> Vec<Arc<Inventory>> {
        self.chains.keys().filter_map(|id| self.newest(id).cloned()).collect()
    }

    /// Adds a batch that was committed at this time of the wall clock.
    pub fn apply(&mut self, batch: &[MutationRecord], unix_ms: u64) {
        self.last_ms = self.last_ms.max(unix_ms);
        for mutation in batch {
            let operation = |(kind, outcome): (&OperationKind, &OperationOutcome)| LoggedOperation {
                kind: *kind,
                outcome: outcome.clone(),
            };
            self.push(LogRecord {
                position: Position::NONE,
                time_ms: self.last_ms,
                caller: mutation.key.caller.clone(),
                key: Some(mutation.key.key.clone()),
                payload: mutation.payload,
                reason: mutation.reason.clone(),
                session: mutation.session.clone(),
                prediction: mutation.prediction,
                operations: mutation.operations.iter().zip(&mutation.reply.outcomes).map(operation).collect(),
                flows: mutation.flows.clone(),
                entries: mutation.touched.iter().map(|touched| self.entry(touched)).collect(),
            });
        }
    }

    /// Adds the record of an import of at most 64 inventories.
    pub fn import(&mut self, inventories: &[Arc<Inventory>], unix_ms: u64) {
        self.last_ms = self.last_ms.max(unix_ms);
        let flows = (0..).zip(inventories).flat_map(|(operation, inventory)| {
            let stacks = inventory.contents.stacks();
            stacks.map(move |(_, stack)| Flow {
                operation,
                item: stack.item,
                added: u64::from(stack.count.get()),
                removed: 0,
            })
        });
        let imported = LoggedOperation { kind: OperationKind::Import, outcome: OperationOutcome::default() };
        self.push(LogRecord {
            position: Position::NONE,
            time_ms: self.last_ms,
            caller: Caller::new("slotcast import").expect("a name"),
            key: None,
            payload: Fingerprint(0),
            reason: "".into(),
            session: None,
            prediction: PredictionOutcome::Unpredicted,
            operations: vec![imported; inventories.len()],
            flows: flows.collect(),
            entries: inventories.iter().map(|inventory| self.entry(&created(inventory))).collect(),
        });
    }

    fn entry(&self, touched: &TouchedInventory) -> LogEntry {
        let version = touched.version.clone();
        let kind = match touched.transition() {
            Transition::Unchanged => return LogEntry { version, change: None },
            Transition::Updated { before, after } => {
                let edit = |(slot, stack): &Edit| LoggedEdit {
                    slot: *slot,
                    before: before.contents.stack(*slot).cloned(),
                    after: stack.clone(),
                };
                let has_checkpoint = after.contents.revision().0.is_multiple_of(CHECKPOINT_REVISIONS);
                let edits = touched.edits.iter().map(edit).collect();
                LoggedChangeKind::Edited { edits, checkpoint: has_checkpoint.then(|| after.clone()) }
            }
            Transition::Created { after } => LoggedChangeKind::Created { after: after.clone() },
            Transition::Deleted { before } => LoggedChangeKind::Deleted { before: Arc::new(before.clone()) },
            Transition::Recreated { before, after } => {
                LoggedChangeKind::Recreated { before: Arc::new(before.clone()), after: after.clone() }
            }
        };
        let head = self.chains.get(&version.id).map(|chain| chain.head).unwrap_or_default();
        let mut change = LoggedChange { previous: head.last, kind, previous_checkpoint: Position::NONE };
        if change.has_state() {
            change.previous_checkpoint = head.checkpoint;
        }
        LogEntry { version, change: Some(change) }
    }

    fn push(&mut self, mut record: LogRecord) {
        self.sequence += 1;
        record.position = Position::new(self.writer, self.sequence);
        let position = record.position;
        for entry in &record.entries {
            let Some(change) = &entry.change else { continue };
            let chain = self.chains.entry(entry.version.id.clone()).or_default();
            chain.head.last = position;
            if change.has_state() {
                chain.head.checkpoint = position;
            }
            let newest = chain.versions.last().and_then(|newest| newest.state.as_ref());
            let state = match &change.kind {
                LoggedChangeKind::Created { after } | LoggedChangeKind::Recreated { after, .. } => Some(after.clone()),
                LoggedChangeKind::Deleted { .. } => None,
                LoggedChangeKind::Edited { edits, .. } => {
                    let edits: Vec<Edit> = edits.iter().map(|edit| (edit.slot, edit.after.clone())).collect();
                    Some(Arc::new(newest.expect("it exists").advanced(&edits)))
                }
            };
            let (epoch, revision) = (entry.version.epoch, entry.version.revision);
            chain.versions.push(PastVersion {
                position: Some(position),
                time_ms: record.time_ms,
                epoch,
                revision,
                state,
            });
        }
        for flow in &record.flows {
            let kind = record.operations[usize::from(flow.operation)].kind;
            let amounts = self.supply.entry((flow.item, kind)).or_default();
            amounts.added += u128::from(flow.added);
            amounts.removed += u128::from(flow.removed);
        }
        self.records.push(record);
    }

    /// Gives each inventory the epoch that a restore gave it.
    pub fn restored(&mut self, writer: u16, epoch_of: impl Fn(&InventoryId) -> Epoch) {
        (self.writer, self.sequence) = (writer, 0);
        for (id, chain) in &mut self.chains {
            let Some(newest) = chain.versions.last().cloned() else { continue };
            let Some(state) = &newest.state else { continue };
            let stacks: Vec<Edit> = state.contents.stacks().map(|(slot, stack)| (slot, Some(stack.clone()))).collect();
            let contents = Contents::new(state.contents.slots().len(), Revision::CREATED, &stacks);
            let state = Inventory { epoch: epoch_of(id), contents, ..(**state).clone() };
            if newest.position.is_none() {
                // Nothing names the life between two restores.
                chain.versions.pop();
            }
            chain.versions.push(PastVersion {
                position: None,
                time_ms: 0,
                epoch: state.epoch,
                revision: Revision::CREATED,
                state: Some(Arc::new(state)),
            });
        }
    }

    /// Forgets the deleted inventories whose history was deleted.
    pub fn trim(&mut self, earliest: Position) {
        self.earliest = earliest;
        let last = self.records.iter().rfind(|record| record.position < earliest);
        self.trimmed_ms = last.map_or(0, |record| record.time_ms);
        self.chains.retain(|_, chain| {
            let is_deleted = chain.versions.last().is_some_and(|newest| newest.state.is_none());
            !is_deleted || chain.head.last >= earliest
        });
    }

    /// The records that are kept, newest first.
    pub fn kept(&self) -> impl Iterator<Item = &LogRecord> {
        self.records.iter().rev().filter(|record| record.position >= self.earliest)
    }

    /// The items in all inventories.
    pub fn items(&self) -> HashMap<ItemCode, u128> {
        let mut items = HashMap::new();
        for inventory in self.present() {
            for (_, stack) in inventory.contents.stacks() {
                *items.entry(stack.item).or_default() += u128::from(stack.count.get());
            }
        }
        items
    }
}

impl Chain {
    /// Returns whether the log leads back to the version with this index: its own record is kept, or the next one undoes a
    /// change of its state, or it is the newest.
    pub fn is_reachable(&self, index: usize, earliest: Position) -> bool {
        let is_kept = |version: &PastVersion| version.position.is_some_and(|position| position >= earliest);
        let (version, next) = (&self.versions[index], self.versions.get(index + 1));
        is_kept(version) || next.is_none_or(|next| is_kept(next) && version.state.is_some())
    }

    fn trimmed(&self, earliest: Position) -> PastState {
        let mut reachable = (0..self.versions.len()).filter(|index| self.is_reachable(*index, earliest));
        let oldest = reachable.find(|index| self.versions[*index].state.is_some());
        let version = |index: usize| (self.versions[index].epoch, self.versions[index].revision);
        PastState::Trimmed { earliest: oldest.map(version) }
    }

    pub fn at_version(&self, index: usize, earliest: Position) -> PastState {
        if !self.is_reachable(index, earliest) {
            return self.trimmed(earliest);
        }
        let version = &self.versions[index];
        found(version, version.position.filter(|position| *position >= earliest))
    }

    pub fn at_time(&self, unix_ms: u64, earliest: Position, trimmed_ms: u64) -> PastState {
        let is_in_time = |version: &PastVersion| version.position.is_some() && version.time_ms <= unix_ms;
        let is_kept = |version: &PastVersion| version.position.is_some_and(|position| position >= earliest);
        match self.versions.iter().rposition(is_in_time) {
            Some(index) if is_kept(&self.versions[index]) => {
                found(&self.versions[index], self.versions[index].position)
            }
            // A restore after it gave it another epoch.
            Some(index) if unix_ms >= trimmed_ms => {
                let restored = self.versions.get(index + 1).filter(|next| next.position.is_none());
                found(restored.unwrap_or(&self.versions[index]), None)
            }
            Some(_) => self.trimmed(earliest),
            None if is_kept(&self.versions[0]) => PastState::Absent,
            None => self.trimmed(earliest),
        }
    }
}

fn found(version: &PastVersion, position: Option<Position>) -> PastState {
    let Some(state) = &version.state else { return PastState::Absent };
    let stacks: Vec<Edit> = state.contents.stacks().map(|(slot, stack)| (slot, Some(stack.clone()))).collect();
    let contents = Contents::new(state.contents.slots().len(), state.contents.revision(), &stacks);
    PastState::Found { inventory: Arc::new(Inventory { contents, ..(**state).clone() }), position }
}
