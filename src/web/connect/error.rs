//! Errors as Connect writes them.

use super::super::json;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use http::StatusCode;
use prost::Message;
use serde::Serialize;
use tonic::{Code, Status};

const TYPE_URL_PREFIX: &str = "type.googleapis.com/";

/// The JSON of an error.
#[derive(Debug, Serialize)]
pub struct ConnectError {
    code: &'static str,
    #[serde(skip_serializing_if = "String::is_empty")]
    message: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    details: Vec<Detail>,
}

#[derive(Debug, Serialize)]
struct Detail {
    #[serde(rename = "type")]
    type_name: String,
    /// The message as Protobuf, in base64.
    value: String,
    /// The same message as JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    debug: Option<serde_json::Value>,
}

impl From<&Status> for ConnectError {
    fn from(status: &Status) -> Self {
        // Details that cannot be read are left out; the code and the message remain.
        let details = tonic_types::pb::Status::decode(status.details()).unwrap_or_default().details;
        let details = details.into_iter().map(|detail| {
            let name = detail.type_url.strip_prefix(TYPE_URL_PREFIX).unwrap_or(&detail.type_url);
            Detail {
                debug: json::print_any(name, &detail.value),
                value: STANDARD_NO_PAD.encode(&detail.value),
                type_name: name.to_owned(),
            }
        });
        Self { code: code_name(status.code()), message: status.message().to_owned(), details: details.collect() }
    }
}

fn code_name(code: Code) -> &'static str {
    match code {
        Code::Cancelled => "canceled",
        // An error has no code OK; a server that sent one made a mistake.
        Code::Ok | Code::Unknown => "unknown",
        Code::InvalidArgument => "invalid_argument",
        Code::DeadlineExceeded => "deadline_exceeded",
        Code::NotFound => "not_found",
        Code::AlreadyExists => "already_exists",
        Code::PermissionDenied => "permission_denied",
        Code::ResourceExhausted => "resource_exhausted",
        Code::FailedPrecondition => "failed_precondition",
        Code::Aborted => "aborted",
        Code::OutOfRange => "out_of_range",
        Code::Unimplemented => "unimplemented",
        Code::Internal => "internal",
        Code::Unavailable => "unavailable",
        Code::DataLoss => "data_loss",
        Code::Unauthenticated => "unauthenticated",
    }
}

/// Returns the HTTP status of a unary reply with this code.
pub fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        // 499: the client closed the request. It has no name, because it is not registered.
        Code::Cancelled => StatusCode::from_u16(499).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR),
        Code::InvalidArgument | Code::FailedPrecondition | Code::OutOfRange => StatusCode::BAD_REQUEST,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status;
    use std::time::Duration;

    #[test]
    fn an_error_has_its_details_twice() {
        let status = status::rate_limited(Duration::from_millis(1_500));
        let json = serde_json::to_value(ConnectError::from(&status)).expect("JSON");
        assert_eq!((&json["code"], &json["message"]), (&"resource_exhausted".into(), &status.message().into()));
        let details = json["details"].as_array().expect("details");
        let detail = |name: &str| {
            details.iter().find(|detail| detail["type"] == format!("google.rpc.{name}")).expect("the detail")
        };
        assert_eq!(detail("ErrorInfo")["debug"]["reason"], "RATE_LIMITED");
        assert_eq!(detail("RetryInfo")["debug"]["retryDelay"], "1.500s");
        let value = detail("ErrorInfo")["value"].as_str().expect("base64");
        let bytes = STANDARD_NO_PAD.decode(value).expect("without padding");
        let info = tonic_types::pb::ErrorInfo::decode(&*bytes).expect("an ErrorInfo");
        assert_eq!(info.domain, "slotcast");
    }

    #[test]
    fn an_error_without_details_has_only_a_code_and_a_message() {
        let json = serde_json::to_string(&ConnectError::from(&Status::internal("broken"))).expect("JSON");
        assert_eq!(json, r#"{"code":"internal","message":"broken"}"#);
    }
}
