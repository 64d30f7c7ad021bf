//! The table of error reasons: for each reason of `google.rpc.ErrorInfo`, the status code and the standard details that
//! accompany it. The reasons and their meanings are in `proto/slotcast/v1/errors.proto`; a reason that is added there
//! does not compile until it is in this table.

use super::ErrorReason;
use std::collections::HashMap;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt};

/// The domain of every `google.rpc.ErrorInfo`.
pub const DOMAIN: &str = "slotcast";

const PREFIX: &str = "ERROR_REASON_";
/// No reason has a higher number; `tests/reference.rs` checks this.
pub const NUMBER_MAX: i32 = 99;

/// A message of `google/rpc/error_details.proto` that a status contains beside `ErrorInfo`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Detail {
    BadRequest,
    PreconditionFailure,
    QuotaFailure,
    ResourceInfo,
    RetryInfo,
}

impl ErrorReason {
    /// Returns all reasons in the order of their numbers, except for UNSPECIFIED, which no error has.
    pub fn all() -> impl Iterator<Item = Self> {
        (1..=NUMBER_MAX).filter_map(|number| Self::try_from(number).ok())
    }

    /// Returns the reason as `ErrorInfo` contains it, for example `NO_ROOM`.
    pub fn name(self) -> &'static str {
        let name = self.as_str_name();
        name.strip_prefix(PREFIX).unwrap_or(name)
    }

    /// Returns the status code of every error with this reason.
    pub fn code(self) -> Code {
        self.code_and_details().0
    }

    /// Returns the standard details that every error with this reason has.
    pub fn details(self) -> &'static [Detail] {
        self.code_and_details().1
    }

    fn code_and_details(self) -> (Code, &'static [Detail]) {
        use Detail::{BadRequest, PreconditionFailure, QuotaFailure, ResourceInfo, RetryInfo};
        match self {
            Self::Unspecified => (Code::Unknown, &[]),
            Self::StaleRevision => (Code::Aborted, &[ResourceInfo]),
            Self::NotEnough
            | Self::NoRoom
            | Self::SlotEmpty
            | Self::SlotOccupied
            | Self::NotARearrangement
            | Self::IdempotencyKeyReused
            | Self::IdempotencyKeyExpired => (Code::FailedPrecondition, &[PreconditionFailure]),
            Self::InventoryNotFound => (Code::NotFound, &[ResourceInfo]),
            Self::InventoryExists => (Code::AlreadyExists, &[ResourceInfo]),
            Self::InvalidArgument
            | Self::UnknownItem
            | Self::UnknownRecipe
            | Self::UnknownLayout
            | Self::SlotOutOfRange
            | Self::DuplicateSlot
            | Self::StackTooLarge
            | Self::SameInventory
            | Self::IdempotencyKeyFromTheFuture => (Code::InvalidArgument, &[BadRequest]),
            Self::Malformed => (Code::InvalidArgument, &[]),
            Self::NoAccess | Self::RoleTooLow | Self::OriginNotAllowed => (Code::PermissionDenied, &[]),
            Self::TokenMissing | Self::TokenInvalid | Self::TokenExpired => (Code::Unauthenticated, &[]),
            Self::RateLimited | Self::StoreFull | Self::TooManyStreams => {
                (Code::ResourceExhausted, &[QuotaFailure, RetryInfo])
            }
            Self::QueueFull => (Code::ResourceExhausted, &[RetryInfo]),
            Self::SubscriptionTooLarge => (Code::ResourceExhausted, &[QuotaFailure]),
            Self::Draining | Self::CommitUnknown | Self::StoreUnavailable => (Code::Unavailable, &[RetryInfo]),
            Self::StoreCorrupt => (Code::DataLoss, &[]),
            Self::DeadlineExceeded => (Code::DeadlineExceeded, &[]),
            Self::UnknownMethod | Self::UnsupportedEncoding => (Code::Unimplemented, &[]),
        }
    }
}

/// Returns the details of an error: `ErrorInfo` with the reason and `metadata`.
pub fn error_details(reason: ErrorReason, metadata: impl IntoIterator<Item = (&'static str, String)>) -> ErrorDetails {
    let metadata: HashMap<String, String> =
        metadata.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    ErrorDetails::with_error_info(reason.name(), DOMAIN, metadata)
}

/// Returns the error for a request that cannot be decoded; `problem` describes where.
pub fn malformed(problem: &str) -> Status {
    let reason = ErrorReason::Malformed;
    Status::with_error_details(reason.code(), problem, error_details(reason, []))
}

/// Returns the name of a code, as the gRPC specification and OpenTelemetry's conventions write it.
pub fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}
