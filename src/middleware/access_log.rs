//! The access log: writes one line for each call that fails and, if enabled, for each call that succeeds. The outermost
//! layer (`telemetry`) writes it, so that the log includes the replies of all layers.

use crate::domain::{Caller, PlayerId};
use crate::identity::Identity;
use crate::statistics::{LogRateLimiter, OTHER_REASON};
use crate::telemetry::{AccessLogMode, trace_id};
use crate::transport::Connection;
use http::{HeaderMap, HeaderValue};
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};
use tonic::{Code, Status};
use tonic_types::StatusExt;

const TRACEPARENT: &str = "traceparent";
/// Maximum logged length of the path of an unknown method, in bytes.
const PATH_BYTES_MAX: usize = 128;
/// Maximum logged length of an error message, in bytes.
const DETAIL_BYTES_MAX: usize = 256;

/// The access log: which calls are logged, and the maximum log rate for each reason.
#[derive(Debug)]
pub struct AccessLog {
    mode: AccessLogMode,
    start: Instant,
    rates: HashMap<&'static str, LogRateLimiter>,
}

/// The caller and player of a call, in the request's extensions. The identity layer sets them as soon as they are
/// known.
#[derive(Debug, Clone, Default)]
pub struct CallerRecord(Arc<OnceLock<CallerNames>>);

#[derive(Debug)]
struct CallerNames {
    caller: Caller,
    player: Option<PlayerId>,
}

/// The properties of a call that are known when it starts.
#[derive(Debug)]
pub struct AccessRecord {
    caller_record: CallerRecord,
    /// Not its address, which is larger: an open stream keeps this record.
    connection: Option<Connection>,
    /// The requested path, if the method is unknown.
    path: Option<Box<str>>,
    /// Boxed, because an open stream keeps it, and most calls have none.
    traceparent: Option<Box<HeaderValue>>,
}

/// The outcome of a call.
#[derive(Debug, Default)]
pub struct CallOutcome {
    pub code: Option<Code>,
    /// The reason in the reply's ErrorInfo, or in [`NotGrpc`] if the reply is not a gRPC reply.
    pub reason: Option<String>,
    /// The error message of the reply.
    pub detail: String,
    /// The id of the inventory that the error names, if any.
    pub inventory: Option<String>,
}

/// Why a request was not served as gRPC, in the extensions of the reply.
#[derive(Debug, Clone, Copy)]
pub struct NotGrpc {
    pub reason: &'static str,
    pub text: &'static str,
}

impl CallerRecord {
    /// Sets the caller and player. Only the first call has an effect.
    pub fn set(&self, caller: &Caller, player: Option<&PlayerId>) {
        // An error means that they are already set.
        let _ = self.0.set(CallerNames { caller: caller.clone(), player: player.cloned() });
    }

    pub fn set_identity(&self, identity: &Identity) {
        self.set(&identity.caller, identity.player.as_ref());
    }
}

impl AccessRecord {
    pub fn new(headers: &HeaderMap, unknown_path: Option<&str>, connection: Option<Connection>) -> Self {
        Self {
            caller_record: CallerRecord::default(),
            connection,
            path: unknown_path.map(|path| path[..path.floor_char_boundary(PATH_BYTES_MAX)].into()),
            traceparent: headers.get(TRACEPARENT).cloned().map(Box::new),
        }
    }

    pub fn caller_record(&self) -> CallerRecord {
        self.caller_record.clone()
    }
}

impl CallOutcome {
    pub fn of(code: Code) -> Self {
        Self { code: Some(code), ..Self::default() }
    }

    /// Returns the outcome from headers or trailers. The code is `default` if they have no status.
    pub fn of_headers(headers: &HeaderMap, default: Code) -> Self {
        // Most calls succeed and have no details to read.
        if headers.get(Status::GRPC_STATUS).is_some_and(|status| status.as_bytes() == b"0") {
            return Self::of(Code::Ok);
        }
        let Some(status) = Status::from_header_map(headers) else { return Self::of(default) };
        let (reason, inventory) = match status.get_details_error_info() {
            Some(mut info) => (Some(info.reason), info.metadata.remove("inventory_id")),
            None => (None, None),
        };
        Self { code: Some(status.code()), reason, detail: status.message().to_owned(), inventory }
    }

    pub fn of_not_grpc(not_grpc: NotGrpc, code: Code) -> Self {
        let NotGrpc { reason, text } = not_grpc;
        Self { code: Some(code), reason: Some(reason.into()), detail: text.into(), inventory: None }
    }

    pub fn code(&self) -> Code {
        self.code.unwrap_or(Code::Unknown)
    }

    /// Returns whether the call failed. A caller that cancels the call, as every reader of a stream eventually does, is
    /// not a failure.
    pub fn is_error(&self) -> bool {
        !matches!(self.code(), Code::Ok | Code::Cancelled)
    }
}

macro_rules! line {
    ($level:ident, $call:expr, $duration:expr, $suppressed:expr, $text:literal) => {{
        let (record, method, status, outcome): (&AccessRecord, &str, &str, &CallOutcome) = $call;
        let names = record.caller_record.0.get();
        let detail = &outcome.detail[..outcome.detail.floor_char_boundary(DETAIL_BYTES_MAX)];
        tracing::$level!(
            caller = names.map(|names| names.caller.as_str()),
            player = names.and_then(|names| names.player.as_ref()).map(PlayerId::as_str),
            peer = record.connection.as_ref().map(|connection| tracing::field::display(connection.peer().address)),
            method = record.path.as_deref().unwrap_or(method),
            status,
            reason = outcome.reason.as_deref(),
            detail = Some(detail).filter(|detail| !detail.is_empty()),
            inventory = outcome.inventory.as_deref(),
            trace_id = record.traceparent.as_deref().and_then(trace_id),
            duration_ms = $duration.as_micros() as f64 / 1_000.0,
            suppressed = Some($suppressed).filter(|suppressed: &u64| *suppressed > 0),
            $text
        );
    }};
}

impl AccessLog {
    /// Creates an access log. `reasons` are all reasons that have their own log rate; all others share one.
    pub fn new(mode: AccessLogMode, reasons: impl IntoIterator<Item = &'static str>) -> Self {
        let rates =
            reasons.into_iter().chain([OTHER_REASON]).map(|reason| (reason, LogRateLimiter::default())).collect();
        Self { mode, start: Instant::now(), rates }
    }

    pub fn log(&self, record: &AccessRecord, method: &str, status: &str, outcome: &CallOutcome, duration: Duration) {
        let call = (record, method, status, outcome);
        match self.mode {
            AccessLogMode::Errors | AccessLogMode::All if outcome.is_error() => {
                if let Some(suppressed) = self.admit(outcome.reason.as_deref()) {
                    line!(info, call, duration, suppressed, "call refused");
                }
            }
            AccessLogMode::All => line!(info, call, duration, 0, "call ended"),
            AccessLogMode::Errors | AccessLogMode::Off => line!(debug, call, duration, 0, "call ended"),
        }
    }

    fn admit(&self, reason: Option<&str>) -> Option<u64> {
        let rate = reason.and_then(|reason| self.rates.get(reason)).or_else(|| self.rates.get(OTHER_REASON))?;
        rate.admit(self.start.elapsed())
    }
}
