//! Who calls, and for which player. The one place that decides it: from here on a request carries an [`Identity`] in its
//! extensions, or it goes no further.
//!
//! Today both name themselves in the metadata, `slotcast-caller` (default `anonymous`) and `slotcast-player`, which is why
//! a server without verified identities listens on loopback only, unless it is told otherwise.

use crate::domain::{Caller, PlayerId};
use crate::grpc::status;
use futures_util::future::Either;
use http::{HeaderMap, Request, Response};
use std::future::{Ready, ready};
use std::task::{Context, Poll};
use tonic::Status;
use tonic::body::Body;
use tower::{Layer, Service};

/// The metadata in which a caller names itself: 1 to 128 bytes.
pub const CALLER_METADATA: &str = "slotcast-caller";
/// The metadata that names the player for whom the call is: by a trusted service, or by the player's own client. 1 to 128
/// bytes; without, the caller speaks for itself.
pub const PLAYER_METADATA: &str = "slotcast-player";
const ANONYMOUS: &str = "anonymous";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    pub caller: Caller,
    pub player: Option<PlayerId>,
}

#[derive(Debug, Clone, Copy, Default)]
pub struct IdentityLayer;

#[derive(Debug, Clone)]
pub struct Identified<S> {
    inner: S,
}

impl<S> Layer<S> for IdentityLayer {
    type Service = Identified<S>;

    fn layer(&self, inner: S) -> Self::Service {
        Identified { inner }
    }
}

impl<S, B> Service<Request<B>> for Identified<S>
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
        match identity(request.headers()) {
            Ok(identity) => {
                request.extensions_mut().insert(identity);
                Either::Left(self.inner.call(request))
            }
            Err(status) => Either::Right(ready(Ok(status.into_http()))),
        }
    }
}

fn identity(headers: &HeaderMap) -> Result<Identity, Status> {
    let caller = named(headers, CALLER_METADATA).map_err(|_| status::unknown_caller())?.unwrap_or(ANONYMOUS);
    let player = named(headers, PLAYER_METADATA).map_err(|_| status::unknown_player())?;
    let caller = Caller::new(caller).map_err(|_| status::unknown_caller())?;
    let player = player.map(PlayerId::new).transpose().map_err(|_| status::unknown_player())?;
    Ok(Identity { caller, player })
}

fn named<'a>(headers: &'a HeaderMap, metadata: &str) -> Result<Option<&'a str>, std::str::Utf8Error> {
    headers.get(metadata).map(|value| std::str::from_utf8(value.as_bytes())).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use tonic::Code;

    fn identity_of(named: &[(&'static str, &[u8])]) -> Result<(String, Option<String>), Code> {
        let mut headers = HeaderMap::new();
        for (metadata, value) in named {
            headers.insert(*metadata, HeaderValue::from_bytes(value).expect("a header value"));
        }
        let identity = identity(&headers).map_err(|status| status.code())?;
        Ok((identity.caller.to_string(), identity.player.map(|player| player.to_string())))
    }

    #[test]
    fn a_call_may_name_its_caller_and_its_player() {
        assert_eq!(identity_of(&[]), Ok(("anonymous".into(), None)));
        let named: [(_, &[u8]); 2] = [(CALLER_METADATA, b"lobby"), (PLAYER_METADATA, "Zoë".as_bytes())];
        assert_eq!(identity_of(&named), Ok(("lobby".into(), Some("Zoë".into()))));
    }

    #[test]
    fn a_malformed_name_is_nobody() {
        for metadata in [CALLER_METADATA, PLAYER_METADATA] {
            for malformed in [b"".as_slice(), b"\xff", &[b'x'; 129]] {
                assert_eq!(identity_of(&[(metadata, malformed)]), Err(Code::Unauthenticated));
            }
        }
    }
}
