//! Authenticates the caller, determines the player of the call, and authorizes the call. No other module does this, and
//! the default is to deny: only a request with an [`Identity`] in its extensions reaches the next layer.
//!
//! With authentication, the token determines the identity, or the client's certificate if there is no token. A player
//! acts for itself; a service may name the player of a call. A request of a web page needs a token: a browser sends the
//! certificate of its user with the requests of any web page. Without authentication, the metadata
//! `slotcast-caller` (default `anonymous`) and `slotcast-player` name both, and every caller may do everything. The
//! `slotcast-caller` of an authenticated caller is ignored.

use super::access_log::CallerRecord;
use crate::domain::{Caller, PlayerId};
use crate::identity::permissions::{MethodAccess, method_access};
use crate::identity::{AuthError, Authentication, Identity, Principal, Role, Verifier};
use crate::status;
use crate::transport::Connection;
use crate::wire::{CALLER_METADATA, PLAYER_METADATA};
use futures_util::future::Either;
use http::header::{AUTHORIZATION, ORIGIN};
use http::{HeaderMap, Request, Response};
use std::future::{Ready, ready};
use std::sync::LazyLock;
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

/// The caller that has no name, shared by all calls.
static ANONYMOUS: LazyLock<Option<Caller>> = LazyLock::new(|| Caller::new("anonymous").ok());
const BEARER: &str = "Bearer ";

#[derive(Debug, Clone, Default)]
pub struct IdentityLayer(Authentication);

#[derive(Debug, Clone)]
pub struct IdentityService<S> {
    inner: S,
    authentication: Authentication,
}

impl IdentityLayer {
    pub fn new(authentication: Authentication) -> Self {
        Self(authentication)
    }
}

impl<S> Layer<S> for IdentityLayer {
    type Service = IdentityService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        IdentityService { inner, authentication: self.0.clone() }
    }
}

impl<S, B> Service<Request<B>> for IdentityService<S>
where
    S: Service<Request<B>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Either<S::Future, Ready<Result<Response<Body>, S::Error>>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        let caller_record = request.extensions().get::<CallerRecord>().cloned().unwrap_or_default();
        let identity = match &self.authentication {
            Authentication::Disabled if method_access(request.uri().path()).is_none() => Err(status::unknown_method()),
            Authentication::Disabled => identity_from_metadata(request.headers()),
            Authentication::Enabled(verifier) => authorize(verifier, &request, &caller_record),
        };
        match identity {
            Ok(identity) => {
                caller_record.set_identity(&identity);
                request.extensions_mut().insert(identity);
                Either::Left(self.inner.call(request))
            }
            Err(status) => Either::Right(ready(Ok(status.into_http()))),
        }
    }
}

/// Authenticates the caller and returns its identity if its role permits the call. If it does not, sets `caller_record`
/// for the access log.
fn authorize<B>(verifier: &Verifier, request: &Request<B>, caller_record: &CallerRecord) -> Result<Identity, Status> {
    let access = method_access(request.uri().path());
    if access == Some(MethodAccess::Public) {
        // Public methods need no identity. This one owns nothing, so reading an inventory would be denied.
        let caller = ANONYMOUS.clone().ok_or_else(status::invalid_caller)?;
        return Ok(Identity { caller, player: None, role: Role::Player, credential_status: None });
    }
    let principal = authenticate(verifier, request).map_err(|error| {
        // The reply to the caller has fewer details.
        if let AuthError::InvalidToken { reason } = error {
            tracing::debug!(reason, "invalid token");
        }
        status::unauthenticated(error)
    })?;
    let (caller, player) = (principal.caller.clone(), principal.player.clone());
    let identity = match access {
        Some(MethodAccess::MinRole(role)) if principal.role >= role => identity(principal, request.headers()),
        Some(MethodAccess::MinRole(_)) => Err(status::role_too_low()),
        Some(MethodAccess::Public) | None => Err(status::unknown_method()),
    };
    identity.inspect_err(|_| caller_record.set(&caller, player.as_ref()))
}

fn authenticate<B>(verifier: &Verifier, request: &Request<B>) -> Result<Principal, AuthError> {
    let peer = request.extensions().get().map(Connection::peer);
    if let Some(token) = bearer_token(request.headers())? {
        return match peer {
            Some(peer) => verifier.verify_token_from(token, peer.network()),
            None => verifier.verify_token(token),
        };
    }
    let is_from_web_page = request.headers().contains_key(ORIGIN);
    let certificate = peer.filter(|_| !is_from_web_page).and_then(|peer| peer.certificate.as_ref());
    verifier.verify_certificate(&certificate.ok_or(AuthError::CredentialsMissing)?.0)
}

/// Returns the bearer token, or `None` if the request has none.
fn bearer_token(headers: &HeaderMap) -> Result<Option<&str>, AuthError> {
    let mut values = headers.get_all(AUTHORIZATION).iter();
    let Some(value) = values.next() else { return Ok(None) };
    if values.next().is_some() {
        return Err(AuthError::InvalidToken { reason: "more than one authorization header" });
    }
    let token = value.to_str().ok().and_then(|value| {
        let (scheme, token) = value.split_at_checked(BEARER.len())?;
        scheme.eq_ignore_ascii_case(BEARER).then_some(token.trim_matches(' '))
    });
    token.map(Some).ok_or(AuthError::InvalidToken { reason: "not a bearer token" })
}

/// Returns the identity of an authenticated caller, including the player for which it acts.
fn identity(principal: Principal, headers: &HeaderMap) -> Result<Identity, Status> {
    let requested = player(headers)?;
    let Principal { caller, player, role, credential_status } = principal;
    let player = match (player, requested) {
        (Some(player), Some(requested)) if requested != player => return Err(status::cannot_act_for_another_player()),
        (Some(player), _) => Some(player),
        (None, requested) => requested,
    };
    Ok(Identity { caller, player, role, credential_status: Some(credential_status) })
}

/// Returns the identity that the metadata names, without authentication.
fn identity_from_metadata(headers: &HeaderMap) -> Result<Identity, Status> {
    let name = single_value(headers, CALLER_METADATA).map_err(|MalformedMetadata| status::invalid_caller())?;
    let caller = name.map_or_else(|| ANONYMOUS.clone(), |name| Caller::new(name).ok());
    let caller = caller.ok_or_else(status::invalid_caller)?;
    Ok(Identity { caller, player: player(headers)?, role: Role::Admin, credential_status: None })
}

fn player(headers: &HeaderMap) -> Result<Option<PlayerId>, Status> {
    let player = single_value(headers, PLAYER_METADATA).map_err(|MalformedMetadata| status::invalid_player())?;
    player.map(PlayerId::new).transpose().map_err(|_| status::invalid_player())
}

/// Metadata that is not UTF-8 or is sent more than once.
struct MalformedMetadata;

/// Returns the value of metadata that may be sent at most once.
fn single_value<'a>(headers: &'a HeaderMap, metadata: &str) -> Result<Option<&'a str>, MalformedMetadata> {
    let mut values = headers.get_all(metadata).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => std::str::from_utf8(value.as_bytes()).map(Some).map_err(|_| MalformedMetadata),
        (Some(_), Some(_)) => Err(MalformedMetadata),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use tonic::Code;

    fn headers(pairs: &[(&'static str, &[u8])]) -> HeaderMap {
        let value = |value: &[u8]| HeaderValue::from_bytes(value).expect("a header value");
        let mut headers = HeaderMap::new();
        for (name, bytes) in pairs {
            headers.append(*name, value(bytes));
        }
        headers
    }

    fn identity_of(metadata: &[(&'static str, &[u8])]) -> Result<(String, Option<String>), Code> {
        let identity = identity_from_metadata(&headers(metadata)).map_err(|status| status.code())?;
        assert_eq!(identity.role, Role::Admin);
        Ok((identity.caller.to_string(), identity.player.map(|player| player.to_string())))
    }

    #[test]
    fn a_call_may_name_its_caller_and_its_player() {
        assert_eq!(identity_of(&[]), Ok(("anonymous".into(), None)));
        let named: [(_, &[u8]); 2] = [(CALLER_METADATA, b"lobby"), (PLAYER_METADATA, "Zoë".as_bytes())];
        assert_eq!(identity_of(&named), Ok(("lobby".into(), Some("Zoë".into()))));
    }

    #[test]
    fn a_malformed_name_is_an_invalid_argument() {
        for metadata in [CALLER_METADATA, PLAYER_METADATA] {
            for malformed in [b"".as_slice(), b"\xff", &[b'x'; 129]] {
                assert_eq!(identity_of(&[(metadata, malformed)]), Err(Code::InvalidArgument));
            }
            assert_eq!(identity_of(&[(metadata, b"one"), (metadata, b"one")]), Err(Code::InvalidArgument));
        }
    }

    #[test]
    fn a_bearer_token_is_read_from_exactly_one_authorization_header() {
        let token = |values: &[&'static [u8]]| {
            let pairs: Vec<_> = values.iter().map(|value| ("authorization", *value)).collect();
            bearer_token(&headers(&pairs)).map(|token| token.map(str::to_owned))
        };
        assert_eq!(token(&[]), Ok(None));
        for good in [b"Bearer abc.def".as_slice(), b"bearer abc.def", b"BEARER  abc.def "] {
            assert_eq!(token(&[good]), Ok(Some("abc.def".into())));
        }
        for bad in [
            b"".as_slice(),
            b"Bearer",
            b"Basic c3RldmU6eA==",
            b"abc.def",
            b"Bearer\tabc",
            b"Bearer \xff",
            b"Be\xc3\xa9rer x",
        ] {
            assert!(matches!(token(&[bad]), Err(AuthError::InvalidToken { .. })), "{bad:?}");
        }
        assert!(matches!(token(&[b"Bearer abc", b"Bearer abc"]), Err(AuthError::InvalidToken { .. })));
    }
}
