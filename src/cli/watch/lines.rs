//! Prints one line per update, for pipes and logs.

use super::super::output::print;
use super::WatchError;
use super::state::{PanelChange, PanelState, UpdateKind, WatchState};
use crate::client::Follow;
use crate::domain::Slot;
use std::time::Duration;
use tokio::time::Instant;

/// Maximum number of changed slots that a line lists; beyond that it prints only their number.
const SLOTS_LISTED_MAX: usize = 12;

/// Prints until Ctrl-C or until the reader closes the pipe.
pub async fn run(mut state: WatchState, mut follow: Follow) -> Result<(), WatchError> {
    let start = Instant::now();
    loop {
        let update = tokio::select! {
            update = follow.next() => update?,
            interrupted = tokio::signal::ctrl_c() => return Ok(interrupted?),
        };
        let now = start.elapsed();
        let (kind, changes) = state.handle_update(now, &update, follow.counts(), |index| follow.replica(index));
        let text = line(&state, now, kind, update.bytes, &changes, &update.absent);
        print(text)?;
    }
}

fn line(
    state: &WatchState,
    now: Duration,
    kind: UpdateKind,
    bytes: usize,
    changes: &[PanelChange],
    absent: &[usize],
) -> String {
    let kind = match kind {
        UpdateKind::Full => "full",
        UpdateKind::Delta => "delta",
        UpdateKind::Mixed => "mixed",
        UpdateKind::Absent => "absent",
        UpdateKind::Heartbeat => "heartbeat",
        UpdateKind::CaughtUp => "caught-up",
    };
    let mut text = format!("{:9.3} s  {kind:9} {bytes:5} B", now.as_secs_f64());
    for change in changes {
        text.push_str(&format!("  {}", change_text(state, change)));
    }
    for panel in absent.iter().filter_map(|index| state.panels.get(*index)) {
        text.push_str(&format!("  {} is absent", panel.id));
    }
    text
}

/// Formats a change, for example `steve r4: 3=stone*63 7=-`.
fn change_text(state: &WatchState, change: &PanelChange) -> String {
    let panel = &state.panels[change.panel];
    let revision = match &panel.state {
        PanelState::Known(replica) => replica.contents.revision().0,
        PanelState::Waiting | PanelState::Absent => 0,
    };
    let content = |slot: &Slot| match panel.stack(*slot) {
        Some(stack) => format!("{}={}*{}", slot.0, state.name(stack), stack.count.get()),
        None => format!("{}=-", slot.0),
    };
    let slots = match change.slots.len() {
        0 => "0 slots".to_owned(),
        1..=SLOTS_LISTED_MAX => change.slots.iter().map(content).collect::<Vec<_>>().join(" "),
        count => format!("{count} slots"),
    };
    format!("{} r{revision}: {slots}", panel.id)
}

#[cfg(test)]
mod tests {
    use super::super::state::tests::{replica, stack, state, update};
    use super::*;

    #[test]
    fn a_line_has_time_kind_bytes_and_the_changed_slots() {
        let mut state = state();
        let mut lines = Vec::new();
        let kit: Vec<_> = (0..20).map(|slot| (slot, stack(7, 64))).collect();
        for (ms, after, bytes) in [
            (2, replica(1, 36, &kit), 140),
            (1_500, replica(2, 36, &[&kit[1..], &[(35, stack(99, 3))]].concat()), 21),
            (1_700, replica(3, 36, &[&kit[1..], &[(35, stack(99, 3))]].concat()), 16),
        ] {
            let (kind, changes) = update(&mut state, ms, 0, &after, bytes);
            lines.push(line(&state, Duration::from_millis(ms), kind, bytes, &changes, &[]));
        }
        lines.push(line(&state, Duration::from_secs(20), UpdateKind::Heartbeat, 33, &[], &[]));
        lines.push(line(&state, Duration::from_secs(21), UpdateKind::Absent, 9, &[], &[1]));
        let expected = [
            "    0.002 s  full        140 B  steve r1: 20 slots",
            "    1.500 s  delta        21 B  steve r2: 0=- 35=#99*3",
            "    1.700 s  delta        16 B  steve r3: 0 slots",
            "   20.000 s  heartbeat    33 B",
            "   21.000 s  absent        9 B  chest-1 is absent",
        ];
        assert_eq!(lines, expected);
    }
}
