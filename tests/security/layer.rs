//! The identity layer alone, with client certificates as the transport provides them.

use crate::common::error_of;
use crate::tokens::{Login, SigningKey, claims};
use http::{Request, Response};
use rcgen::{CertificateParams, KeyPair};
use slotcast::identity::{Authentication, CertificateIdentity, Identity, IdentitySettings, Role, Verifier};
use slotcast::middleware::IdentityLayer;
use slotcast::transport::{Connection, Peer, PeerCertificate};
use std::convert::Infallible;
use std::sync::Arc;
use tonic::body::Body;
use tonic::{Code, Status};
use tower::{Layer, ServiceExt, service_fn};

fn certificate(name: &str) -> Vec<u8> {
    let parameters = CertificateParams::new(vec![name.to_owned()]).unwrap();
    parameters.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

/// Returns the caller that the service behind the layer sees.
async fn identify(
    verifier: &Arc<Verifier>,
    der: Option<Vec<u8>>,
    headers: &[(&str, String)],
) -> Result<Identity, Status> {
    let (seen, mut sees) = tokio::sync::mpsc::unbounded_channel();
    let inner = service_fn(move |request: Request<()>| {
        seen.send(request.extensions().get::<Identity>().cloned().expect("an identity")).unwrap();
        std::future::ready(Ok::<_, Infallible>(Response::new(Body::empty())))
    });
    let mut request = Request::builder().uri("/slotcast.v1.InventoryService/GetInventory").body(()).unwrap();
    for (name, value) in headers {
        request.headers_mut().append(http::HeaderName::try_from(*name).unwrap(), value.parse().unwrap());
    }
    let peer = Peer { address: "127.0.0.1:1".parse().unwrap(), certificate: der.map(PeerCertificate) };
    request.extensions_mut().insert(Connection::detached(peer));
    let layer = IdentityLayer::new(Authentication::Enabled(verifier.clone()));
    let response = layer.layer(inner).oneshot(request).await.unwrap();
    sees.try_recv().map_err(|_| Status::from_header_map(response.headers()).expect("a status"))
}

#[tokio::test]
async fn a_token_overrides_the_client_certificate() {
    let key = SigningKey::ed25519("ed");
    let login = Login::new(&[&key]);
    let certificates = vec![
        CertificateIdentity { san: "lobby.example".into(), role: Role::Service, name: "lobby".into() },
        CertificateIdentity { san: "steve.example".into(), role: Role::Player, name: "steve".into() },
    ];
    let verifier = Arc::new(Verifier::open(IdentitySettings { certificates, ..login.settings() }).unwrap());
    let token = |token: &str| vec![("authorization", format!("Bearer {token}"))];
    let good = token(&key.sign(&claims("alex", "player")));

    let lobby = identify(&verifier, Some(certificate("lobby.example")), &[]).await.unwrap();
    assert_eq!((lobby.caller.as_str(), lobby.role, lobby.player), ("lobby", Role::Service, None));
    let named = [("slotcast-player", "alex".to_owned())];
    let for_alex = identify(&verifier, Some(certificate("lobby.example")), &named).await.unwrap();
    assert_eq!(for_alex.player.unwrap().as_str(), "alex");
    let steve = identify(&verifier, Some(certificate("steve.example")), &[]).await.unwrap();
    assert_eq!((steve.caller.as_str(), steve.player.unwrap().as_str(), steve.role), ("steve", "steve", Role::Player));
    let refused = identify(&verifier, Some(certificate("steve.example")), &named).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);

    let alex = identify(&verifier, Some(certificate("lobby.example")), &good).await.unwrap();
    assert_eq!((alex.caller.as_str(), alex.role), ("alex", Role::Player), "the token, although it may do less");
    let both = identify(&verifier, Some(certificate("lobby.example")), &token("nonsense")).await.unwrap_err();
    assert_eq!(error_of(&both).1, "TOKEN_INVALID", "a bad token is not made good by a certificate");
    let basic = [("authorization", "Basic x".to_owned())];
    let both = identify(&verifier, Some(certificate("lobby.example")), &basic).await.unwrap_err();
    assert_eq!(error_of(&both).1, "TOKEN_INVALID");
    for unknown in [None, Some(certificate("other.example")), Some(b"nonsense".to_vec())] {
        assert_eq!(error_of(&identify(&verifier, unknown, &[]).await.unwrap_err()).1, "TOKEN_MISSING");
    }
}
