//! When to try again whether waiting pays, for the commit window and for the pauses between reads of the store.

/// Minimum and maximum number of steps from one probe to the next.
const STEPS_MIN: u32 = 8;
const STEPS_MAX: u32 = 1_024;

/// Counts steps. Probes become rarer, up to one in [`STEPS_MAX`] steps, while they find that waiting does not pay.
#[derive(Debug)]
pub(super) struct Probes {
    steps_per_probe: u32,
    steps_since_probe: u32,
}

impl Default for Probes {
    fn default() -> Self {
        Self { steps_per_probe: STEPS_MIN, steps_since_probe: 0 }
    }
}

impl Probes {
    /// Counts a step. Returns whether it must be a probe.
    pub fn must_probe(&mut self) -> bool {
        self.steps_since_probe += 1;
        let must_probe = self.steps_since_probe >= self.steps_per_probe;
        if must_probe {
            self.steps_since_probe = 0;
        }
        must_probe
    }

    /// Handles the result of a step that waited: whether waiting paid.
    pub fn handle_result(&mut self, has_paid: bool) {
        self.steps_per_probe = if has_paid { STEPS_MIN } else { (self.steps_per_probe * 2).min(STEPS_MAX) };
    }
}
