//! The access log: one line for a call that was refused or failed, and if wanted for each of the others. It is written by the
//! outermost layer (`telemetry`), so that no answer is left out, whichever layer gives it.

use super::Identity;
use crate::domain::{Caller, PlayerId};
use crate::statistics::{LogRate, OTHER_REASON};
use crate::telemetry::{AccessLogMode, trace_id};
use http::{HeaderMap, HeaderValue};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tonic::{Code, Status};
use tonic_types::StatusExt;

const TRACEPARENT: &str = "traceparent";
/// Bytes of a path that is not a method, and of the text of an answer.
const PATH_BYTES_MAX: usize = 128;
const DETAIL_BYTES_MAX: usize = 256;

/// What is logged, and how much of it.
#[derive(Debug)]
pub struct AccessLog {
    mode: AccessLogMode,
    start: Instant,
    rates: HashMap<&'static str, LogRate>,
}

/// In a request's extensions: who calls, filled in by the identity layer as soon as that is known.
#[derive(Debug, Clone, Default)]
pub struct CallParties(Arc<OnceLock<Parties>>);

#[derive(Debug)]
struct Parties {
    caller: Caller,
    player: Option<PlayerId>,
}

/// What is known of a call when it begins.
#[derive(Debug)]
pub struct AccessRecord {
    parties: CallParties,
    peer: Option<SocketAddr>,
    /// Of a method that is not known: what was asked for.
    path: Option<Box<str>>,
    traceparent: Option<HeaderValue>,
}

/// How a call has ended.
#[derive(Debug, Default)]
pub struct Ending {
    pub code: Option<Code>,
    /// As callers get it in ErrorInfo, or what stands for it in an answer that is not gRPC.
    pub reason: Option<String>,
    /// What the caller was told in words.
    pub detail: String,
    /// The inventory that the answer names, if it names one.
    pub inventory: Option<String>,
}

/// In the extensions of an answer that is not gRPC: why it is none.
#[derive(Debug, Clone, Copy)]
pub struct NotServed {
    pub reason: &'static str,
    pub text: &'static str,
}

impl CallParties {
    /// To be called once: only the first one counts.
    pub fn set(&self, caller: &Caller, player: Option<&PlayerId>) {
        // The second one loses, as said above.
        let _ = self.0.set(Parties { caller: caller.clone(), player: player.cloned() });
    }

    pub fn set_identity(&self, identity: &Identity) {
        self.set(&identity.caller, identity.player.as_ref());
    }
}

impl AccessRecord {
    pub fn new(headers: &HeaderMap, unknown_path: Option<&str>, peer: Option<SocketAddr>) -> Self {
        Self {
            parties: CallParties::default(),
            peer,
            path: unknown_path.map(|path| path[..path.floor_char_boundary(PATH_BYTES_MAX)].into()),
            traceparent: headers.get(TRACEPARENT).cloned(),
        }
    }

    pub fn parties(&self) -> CallParties {
        self.parties.clone()
    }
}

impl Ending {
    pub fn of(code: Code) -> Self {
        Self { code: Some(code), ..Self::default() }
    }

    /// By headers or trailers that hold the status; without one it has ended as `otherwise`.
    pub fn of_headers(headers: &HeaderMap, otherwise: Code) -> Self {
        // Most calls end well, and nothing more is read of them.
        if headers.get(Status::GRPC_STATUS).is_some_and(|status| status.as_bytes() == b"0") {
            return Self::of(Code::Ok);
        }
        let Some(status) = Status::from_header_map(headers) else { return Self::of(otherwise) };
        let (reason, inventory) = match status.get_details_error_info() {
            Some(mut info) => (Some(info.reason), info.metadata.remove("inventory_id")),
            None => (None, None),
        };
        Self { code: Some(status.code()), reason, detail: status.message().to_owned(), inventory }
    }

    pub fn of_not_served(not_served: NotServed, code: Code) -> Self {
        let NotServed { reason, text } = not_served;
        Self { code: Some(code), reason: Some(reason.into()), detail: text.into(), inventory: None }
    }

    pub fn code(&self) -> Code {
        self.code.unwrap_or(Code::Unknown)
    }

    /// Whoever goes away before the answer, as every reader of a stream does in the end, was not refused.
    pub fn is_refusal(&self) -> bool {
        !matches!(self.code(), Code::Ok | Code::Cancelled)
    }
}

macro_rules! line {
    ($level:ident, $call:expr, $took:expr, $suppressed:expr, $text:literal) => {{
        let (record, method, status, ending): (&AccessRecord, &str, &str, &Ending) = $call;
        let parties = record.parties.0.get();
        let detail = &ending.detail[..ending.detail.floor_char_boundary(DETAIL_BYTES_MAX)];
        tracing::$level!(
            caller = parties.map(|parties| parties.caller.as_str()),
            player = parties.and_then(|parties| parties.player.as_ref()).map(PlayerId::as_str),
            peer = record.peer.map(tracing::field::display),
            method = record.path.as_deref().unwrap_or(method),
            status,
            reason = ending.reason.as_deref(),
            detail = Some(detail).filter(|detail| !detail.is_empty()),
            inventory = ending.inventory.as_deref(),
            trace_id = record.traceparent.as_ref().and_then(trace_id),
            duration_ms = $took.as_micros() as f64 / 1_000.0,
            suppressed = Some($suppressed).filter(|suppressed: &u64| *suppressed > 0),
            $text
        );
    }};
}

impl AccessLog {
    /// `reasons` is the closed set of them.
    pub fn new(mode: AccessLogMode, reasons: impl IntoIterator<Item = &'static str>) -> Self {
        let rates = reasons.into_iter().chain([OTHER_REASON]).map(|reason| (reason, LogRate::default())).collect();
        Self { mode, start: Instant::now(), rates }
    }

    pub fn log(&self, record: &AccessRecord, method: &str, status: &str, ending: &Ending, took: Duration) {
        let call = (record, method, status, ending);
        match self.mode {
            AccessLogMode::Errors | AccessLogMode::All if ending.is_refusal() => {
                if let Some(suppressed) = self.admit(ending.reason.as_deref()) {
                    line!(info, call, took, suppressed, "call refused");
                }
            }
            AccessLogMode::All => line!(info, call, took, 0, "call ended"),
            AccessLogMode::Errors | AccessLogMode::Off => line!(debug, call, took, 0, "call ended"),
        }
    }

    fn admit(&self, reason: Option<&str>) -> Option<u64> {
        let rate = reason.and_then(|reason| self.rates.get(reason)).or_else(|| self.rates.get(OTHER_REASON))?;
        rate.admit(self.start.elapsed())
    }
}
