//! The origins whose web pages may call the server.

use http::header::{ACCEPT_ENCODING, AUTHORIZATION, CONTENT_TYPE};
use http::{HeaderName, HeaderValue, Method, Uri};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;
use tower_http::cors::{AllowOrigin, CorsLayer};

/// How long a browser may remember the answer to a preflight request.
const PREFLIGHT_MAX_AGE: Duration = Duration::from_secs(2 * 60 * 60);
/// Headers that a web page may send.
const REQUEST_HEADERS: [&str; 13] = [
    "connect-protocol-version",
    "connect-timeout-ms",
    "connect-accept-encoding",
    "connect-content-encoding",
    "content-encoding",
    "grpc-timeout",
    "x-grpc-web",
    "x-user-agent",
    "slotcast-caller",
    "slotcast-player",
    "traceparent",
    "tracestate",
    "accept",
];
/// Headers of replies that a web page may read.
const REPLY_HEADERS: [&str; 5] =
    ["grpc-status", "grpc-message", "grpc-status-details-bin", "connect-content-encoding", "content-encoding"];

/// An origin of web pages: scheme, host and perhaps a port, as browsers send it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin(HeaderValue);

impl FromStr for Origin {
    type Err = &'static str;

    /// # Errors
    ///
    /// A text that says which form an origin has.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const FORM: &str = "must be scheme://host or scheme://host:port in lower case, without a path, for example https://game.example";
        let uri = Uri::from_str(text).map_err(|_| FORM)?;
        let (scheme, authority) = uri.scheme_str().zip(uri.authority()).ok_or(FORM)?;
        let is_origin = text == format!("{scheme}://{authority}") && text == text.to_lowercase();
        let has_default_port = matches!((scheme, authority.port_u16()), ("http", Some(80)) | ("https", Some(443)));
        if !is_origin || authority.as_str().contains(['@', '*']) || has_default_port {
            return Err(FORM);
        }
        HeaderValue::from_str(text).map(Self).map_err(|_| FORM)
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(self.0.to_str().unwrap_or_default())
    }
}

/// The allowed origins; clones share them. By default there are none, so that no web page can call the server.
#[derive(Debug, Clone, Default)]
pub struct Origins(Arc<[Origin]>);

impl FromIterator<Origin> for Origins {
    fn from_iter<I: IntoIterator<Item = Origin>>(origins: I) -> Self {
        Self(origins.into_iter().collect())
    }
}

impl Origins {
    pub fn allows(&self, origin: &HeaderValue) -> bool {
        self.0.iter().any(|allowed| allowed.0 == *origin)
    }

    /// Returns the layer that tells browsers what web pages of these origins may send and read. Web pages send no
    /// cookies and no client certificates, only tokens.
    pub(super) fn cors_layer(&self) -> CorsLayer {
        let headers = REQUEST_HEADERS.map(HeaderName::from_static).into_iter();
        CorsLayer::new()
            .allow_origin(AllowOrigin::list(self.0.iter().map(|origin| origin.0.clone())))
            .allow_methods([Method::POST])
            .allow_headers(headers.chain([AUTHORIZATION, CONTENT_TYPE, ACCEPT_ENCODING]).collect::<Vec<_>>())
            .expose_headers(REPLY_HEADERS.map(HeaderName::from_static))
            .max_age(PREFLIGHT_MAX_AGE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_origin_has_a_scheme_and_a_host_and_nothing_else() {
        for good in ["https://game.example", "http://localhost:8080", "http://[::1]:3000", "app://game"] {
            assert_eq!(good.parse::<Origin>().map(|origin| origin.to_string()), Ok(good.into()));
        }
        let bad = [
            "",
            "*",
            "null",
            "game.example",
            "https://",
            "https://game.example/",
            "https://Game.example",
            "https://user@game.example",
            "https://game.example:443",
            "http://game.example:80",
            "https://*.example",
            "https://game.example, https://other.example",
            "//game.example",
        ];
        for bad in bad {
            assert!(bad.parse::<Origin>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_an_equal_origin_is_allowed() {
        let origins: Origins = ["https://game.example".parse().expect("an origin")].into_iter().collect();
        assert!(origins.allows(&HeaderValue::from_static("https://game.example")));
        for other in ["https://game.example.evil", "http://game.example", "https://game.example:8443", "null", ""] {
            assert!(!origins.allows(&HeaderValue::from_static(other)), "{other}");
            assert!(!Origins::default().allows(&HeaderValue::from_static(other)), "{other}");
        }
    }
}
