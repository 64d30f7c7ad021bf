//! TLS: who gets in, and certificates that are exchanged meanwhile.

use crate::common::{add, create_named};
use crate::support::{Authority, Files, WAIT, closed_after, create, eventually, get, handshake, start};
use slotcast::client::{Client, ClientError, ClientOptions, fresh_context};
use slotcast::server::RunningServer;
use slotcast::transport::{ConnectionRefusal, Peer, TlsSettings, Transport, TransportSettings};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ProtocolVersion, SupportedProtocolVersion};
use tonic::{Code, Status};

const H2: &[&[u8]] = &[b"h2"];

async fn served_certificate(server: &RunningServer, files: &Files) -> Vec<u8> {
    let stream = handshake(server, &files.path("ca.pem"), H2, &[&TLS13]).await.unwrap();
    stream.get_ref().1.peer_certificates().unwrap()[0].to_vec()
}

fn der(pem: &str) -> Vec<u8> {
    use tokio_rustls::rustls::pki_types::{CertificateDer, pem::PemObject};
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap().to_vec()
}

#[tokio::test]
async fn calls_and_streams_go_over_tls_1_3_and_1_2() {
    let files = Files::new();
    let server = start(files.transport()).await;
    assert!(server.uri().starts_with("https://"));
    let client = files.client(&server);
    create(&client, "a").await;
    let mut follow = client.follow(vec!["a".into()]);
    assert!(follow.next().await.unwrap().caught_up);
    client.mutate(fresh_context(), add("a", "coal", 3)).await.unwrap();
    assert_eq!(follow.next().await.unwrap().changed, [0]);

    let versions: [(&'static SupportedProtocolVersion, ProtocolVersion); 2] =
        [(&TLS13, ProtocolVersion::TLSv1_3), (&TLS12, ProtocolVersion::TLSv1_2)];
    for (offered, agreed) in versions {
        let stream = handshake(&server, &files.path("ca.pem"), H2, &[offered]).await.unwrap();
        assert_eq!(stream.get_ref().1.protocol_version(), Some(agreed));
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    }
    let end_of_2098 = 4_070_908_800;
    assert_eq!(server.transport.certificate_not_after(), Some(end_of_2098));
}

/// What is answered to a request in HTTP/1.1.
async fn answer(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> String {
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    // Not every client of TLS is told that it has ended.
    let _ = tokio::time::timeout(WAIT, stream.read_to_end(&mut answer)).await.expect("it is closed");
    String::from_utf8(answer).unwrap()
}

#[tokio::test]
async fn what_is_not_encrypted_is_told_so_closed_and_counted() {
    let files = Files::new();
    let server = start(files.transport()).await;
    let refused = || server.transport.refused(ConnectionRefusal::Handshake);
    let plain = Client::new(&format!("http://{}", server.address), "test").unwrap();
    get(&plain, "a").await.expect_err("what it hears is not HTTP/2");
    eventually("plaintext is not a handshake", || refused() >= 1).await;
    let before = refused();
    let told = answer(TcpStream::connect(server.address).await.unwrap()).await;
    assert!(told.starts_with("HTTP/1.1 400") && told.ends_with("with TLS\n"), "{told:?}");
    let mut nonsense = TcpStream::connect(server.address).await.unwrap();
    nonsense.write_all(b"\x00\x01\x02 nonsense").await.unwrap();
    closed_after(&mut nonsense).await;
    eventually("both are counted", || refused() == before + 2).await;
    let client = files.client(&server);
    create(&client, "a").await;
    eventually("only that client is left", || server.transport.connections() == 1).await;
}

#[tokio::test]
async fn over_tls_http_1_1_gets_a_sentence_and_http_2_needs_alpn() {
    let files = Files::new();
    let server = start(files.transport()).await;
    for offered in [&[][..], &[b"http/1.1".as_slice()]] {
        let stream = handshake(&server, &files.path("ca.pem"), offered, &[&TLS13]).await.unwrap();
        let told = answer(stream).await;
        assert!(told.starts_with("HTTP/1.1 505") && told.contains("gRPC over HTTP/2"), "{offered:?}: {told:?}");
    }
    let mut unasked = handshake(&server, &files.path("ca.pem"), &[], &[&TLS13]).await.unwrap();
    unasked.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(WAIT, unasked.read_to_end(&mut answer)).await.expect("it is closed");
    assert!(!answer.starts_with(b"\0"), "no frame of HTTP/2: {answer:?}");
    assert!(handshake(&server, &files.path("ca.pem"), &[b"spdy/1"], &[&TLS13]).await.is_err());
    eventually("nobody is left", || server.transport.connections() == 0).await;
}

#[tokio::test]
async fn a_client_believes_its_roots_only() {
    let files = Files::new();
    let server = start(files.transport()).await;
    files.write("others.pem", &Authority::new("others").pem());
    let options = ClientOptions { ca: Some(files.path("others.pem")), ..files.options(&server) };
    let status = get(&Client::open(&options).unwrap(), "a").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");

    let missing = ClientOptions { ca: Some(files.path("nowhere.pem")), ..files.options(&server) };
    assert!(matches!(Client::open(&missing), Err(ClientError::Tls { .. })));
    let half = ClientOptions { certificate: Some(files.path("server.pem")), ..files.options(&server) };
    assert!(matches!(Client::open(&half), Err(ClientError::HalfCertificate)));
    let plain = ClientOptions { uri: "http://127.0.0.1:1".into(), ..files.options(&server) };
    assert!(matches!(Client::open(&plain), Err(ClientError::NotEncrypted { .. })));
}

/// What the service is told of who is on the other side; none if nothing reached it.
async fn certificate_seen(files: &Files, tls: TlsSettings, shown: Option<&str>) -> Option<Option<Vec<u8>>> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let settings = TransportSettings { tls: Some(tls), ..TransportSettings::default() };
    let (seen, (_draining, is_draining)) = (Arc::new(Mutex::new(None)), watch::channel(false));
    let seen_there = seen.clone();
    let service = tower::service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let peer: &Peer = request.extensions().get().expect("every request has it");
        assert!(peer.address.ip().is_loopback());
        *seen_there.lock().unwrap() = Some(peer.certificate.as_ref().map(|certificate| certificate.0.clone()));
        async { Ok::<_, std::convert::Infallible>(Status::not_found("nothing").into_http::<tonic::body::Body>()) }
    });
    let serving =
        tokio::spawn(Transport::open(settings, Arc::default()).unwrap().serve(listener, service, is_draining));
    let client = Client::open(&ClientOptions {
        uri: format!("https://{address}"),
        caller: "test".into(),
        ca: Some(files.path("ca.pem")),
        certificate: shown.map(|name| files.path(&format!("{name}.pem"))),
        key: shown.map(|name| files.path(&format!("{name}.key"))),
        token_file: None,
    });
    let status = get(&client.unwrap(), "a").await.unwrap_err();
    serving.abort();
    let seen = seen.lock().unwrap().take();
    assert_eq!(status.code() == Code::NotFound, seen.is_some(), "{status:?}");
    seen
}

#[tokio::test]
async fn a_client_s_certificate_is_verified_and_shown_to_the_service() {
    let files = Files::new();
    let (clients, strangers) = (Authority::new("clients"), Authority::new("strangers"));
    files.write("clients.pem", &clients.pem());
    let (own, stranger) = (clients.issue("lobby"), strangers.issue("lobby"));
    files.put("own", &own);
    files.put("stranger", &stranger);
    let asked = |client_certificate_required| TlsSettings {
        client_ca: Some(files.path("clients.pem")),
        client_certificate_required,
        ..files.tls()
    };
    let own_der = der(&own.0);
    assert_eq!(certificate_seen(&files, files.tls(), Some("own")).await, Some(None), "nobody asked for it");
    assert_eq!(certificate_seen(&files, asked(false), None).await, Some(None), "it is not required");
    assert_eq!(certificate_seen(&files, asked(false), Some("own")).await, Some(Some(own_der.clone())));
    assert_eq!(certificate_seen(&files, asked(false), Some("stranger")).await, None, "a wrong one is worse than none");
    assert_eq!(certificate_seen(&files, asked(true), None).await, None, "it is required");
    assert_eq!(certificate_seen(&files, asked(true), Some("stranger")).await, None);
    assert_eq!(certificate_seen(&files, asked(true), Some("own")).await, Some(Some(own_der)));
}

#[tokio::test]
async fn a_token_goes_along_with_each_call_and_is_that_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "first\n").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    let (_draining, is_draining) = watch::channel(false);
    // It says what it was shown.
    let service = tower::service_fn(async |request: http::Request<hyper::body::Incoming>| {
        let shown = request.headers().get("authorization").map(|value| value.to_str().unwrap().to_owned());
        let status = Status::not_found(shown.unwrap_or_default());
        Ok::<_, std::convert::Infallible>(status.into_http::<tonic::body::Body>())
    });
    let serving = tokio::spawn(Transport::open(TransportSettings::default(), Arc::default()).unwrap().serve(
        listener,
        service,
        is_draining,
    ));
    let options =
        ClientOptions { uri, caller: "test".into(), token_file: Some(path.clone()), ..ClientOptions::default() };
    let client = Client::open(&options).unwrap();
    assert_eq!(get(&client, "a").await.unwrap_err().message(), "Bearer first");
    std::fs::write(&path, "second\n").unwrap();
    let second = async { while get(&client, "a").await.unwrap_err().message() != "Bearer second" {} };
    tokio::time::timeout(WAIT, second).await.expect("the file is read again");
    serving.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_talk_tls() {
    let files = Files::new();
    let server = start(files.transport()).await;
    let (uri, ca) = (server.uri(), files.path("ca.pem"));
    let call = move |ca: Option<&std::path::Path>| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_slotcast"));
        command.args(["call", "GetCatalog", "{}", "--server", &uri]);
        ca.map(|ca| command.arg("--ca").arg(ca));
        command.output().unwrap()
    };
    let (trusted, untrusted) = tokio::task::spawn_blocking(move || (call(Some(&ca)), call(None))).await.unwrap();
    assert!(trusted.status.success(), "{}", String::from_utf8_lossy(&trusted.stderr));
    assert!(String::from_utf8_lossy(&trusted.stdout).contains("diamond_axe"));
    assert!(!untrusted.status.success(), "the system does not trust these roots");
}

#[test]
fn what_cannot_be_served_is_told_at_the_start() {
    let files = Files::new();
    let open = |tls: TlsSettings| {
        let opened =
            Transport::open(TransportSettings { tls: Some(tls), ..TransportSettings::default() }, Arc::default());
        opened.err().map(|error| error.to_string()).expect("it is refused")
    };
    files.put("other", &files.authority.issue("other"));
    files.write("empty.pem", "");
    for (settings, told) in [
        (TlsSettings { certificate: files.path("nowhere.pem"), ..files.tls() }, "cannot read"),
        (TlsSettings { certificate: files.path("empty.pem"), ..files.tls() }, "contains no certificate"),
        (TlsSettings { key: files.path("server.pem"), ..files.tls() }, "contains no private key"),
        (TlsSettings { key: files.path("other.key"), ..files.tls() }, "cannot use the certificate"),
        (TlsSettings { client_ca: Some(files.path("empty.pem")), ..files.tls() }, "contains no certificate"),
        (TlsSettings { client_certificate_required: true, ..files.tls() }, "requires client_ca"),
    ] {
        let problem = open(settings);
        assert!(problem.contains(told), "{problem}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_exchanged_under_load_without_one_failed_call_and_a_bad_one_changes_nothing() {
    let files = Arc::new(Files::new());
    let server = Arc::new(start(files.transport()).await);
    let first = files.client(&server);
    create(&first, "a").await;
    let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let callers: Vec<_> = (0..4)
        .map(|number| {
            let (files, server, stop, calls) = (files.clone(), server.clone(), stop.clone(), calls.clone());
            let mut client = first.clone();
            tokio::spawn(async move {
                while !stop.load(Ordering::Relaxed) {
                    if number % 2 == 0 {
                        client = files.client(&server);
                    }
                    get(&client, "a").await.unwrap();
                    calls.fetch_add(1, Ordering::Relaxed);
                }
            })
        })
        .collect();
    let reloads =
        || (server.transport.certificate_reloads().succeeded(), server.transport.certificate_reloads().failed());
    let old = served_certificate(&server, &files).await;
    let new = files.authority.issue_until("server", 2_090);
    files.put("server", &new);
    eventually("it is taken", || reloads() == (1, 0)).await;
    let now = served_certificate(&server, &files).await;
    assert!(now == der(&new.0) && now != old);
    let not_after = server.transport.certificate_not_after();

    let key_of_another = (files.authority.issue("server").0, new.1.clone());
    let bad = [key_of_another, ("nonsense".into(), new.1.clone()), files.authority.issue_until("server", 2_001)];
    for (failed, bad) in bad.into_iter().enumerate() {
        files.put("server", &bad);
        eventually("it is refused", || reloads() == (1, failed as u64 + 1)).await;
        assert_eq!(served_certificate(&server, &files).await, now);
    }
    assert_eq!(server.transport.certificate_not_after(), not_after);
    let last = files.authority.issue("server");
    files.put("server", &last);
    eventually("a good one is taken again", || reloads() == (2, 3)).await;
    assert_eq!(served_certificate(&server, &files).await, der(&last.0));
    let so_far = calls.load(Ordering::Relaxed);
    eventually("calls go on", || calls.load(Ordering::Relaxed) > so_far + 20).await;
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.expect("not one call failed");
    }
    first.mutate(fresh_context(), create_named("b")).await.unwrap();
}
