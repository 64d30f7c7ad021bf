//! TLS: handshakes, client certificates, and certificates that are reloaded while the server runs.

use crate::common::{add, create_named};
use crate::support::{Authority, Files, WAIT, closed_after, create, eventually, get, handshake, self_signed, start};
use slotcast::client::{Client, ClientError, ClientOptions, new_mutation_context};
use slotcast::server::RunningServer;
use slotcast::transport::{Connection, ConnectionRefusal, Runtimes, TlsSettings, Transport, TransportSettings};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ProtocolVersion, SupportedProtocolVersion};
use tokio_util::sync::CancellationToken;
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
async fn calls_and_streams_work_over_tls_1_3_and_1_2() {
    let files = Files::new();
    let server = start(files.transport()).await;
    assert!(server.uri().starts_with("https://"));
    let client = files.client(&server);
    create(&client, "a").await;
    let mut follow = client.follow(vec!["a".into()]);
    assert!(follow.next().await.unwrap().caught_up);
    client.mutate(new_mutation_context(), add("a", "coal", 3)).await.unwrap();
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

/// Returns the reply to a request in HTTP/1.1.
async fn http1_reply(mut stream: impl AsyncRead + AsyncWrite + Unpin) -> String {
    stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut reply = Vec::new();
    // Closing a TLS connection may end with an error instead of a close notification.
    let _ = tokio::time::timeout(WAIT, stream.read_to_end(&mut reply)).await.expect("the connection is closed");
    String::from_utf8(reply).unwrap()
}

#[tokio::test]
async fn a_plaintext_request_gets_an_explanation_and_counts_as_a_refused_connection() {
    let files = Files::new();
    let server = start(files.transport()).await;
    let refused = || server.transport.refused(ConnectionRefusal::Handshake);
    let plain = Client::new(&format!("http://{}", server.address), "test").unwrap();
    get(&plain, "a").await.expect_err("the reply is not HTTP/2");
    eventually("the failed handshake is counted", || refused() >= 1).await;
    let before = refused();
    let reply = http1_reply(TcpStream::connect(server.address).await.unwrap()).await;
    assert!(reply.starts_with("HTTP/1.1 400") && reply.ends_with("use https\n"), "{reply:?}");
    let mut nonsense = TcpStream::connect(server.address).await.unwrap();
    nonsense.write_all(b"\x00\x01\x02 nonsense").await.unwrap();
    closed_after(&mut nonsense).await;
    eventually("both connections are counted", || refused() == before + 2).await;
    let client = files.client(&server);
    create(&client, "a").await;
    eventually("only that client is connected", || server.transport.connections() == 1).await;
}

#[tokio::test]
async fn over_tls_http_1_1_is_served_and_http_2_requires_alpn() {
    let files = Files::new();
    let server = start(files.transport()).await;
    for offered in [&[][..], &[b"http/1.1".as_slice()]] {
        let stream = handshake(&server, &files.path("ca.pem"), offered, &[&TLS13]).await.unwrap();
        let reply = http1_reply(stream).await;
        assert!(reply.starts_with("HTTP/1.1 405") && reply.contains("use POST"), "{offered:?}: {reply:?}");
    }
    let mut without_alpn = handshake(&server, &files.path("ca.pem"), &[], &[&TLS13]).await.unwrap();
    without_alpn.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await.unwrap();
    let mut answer = Vec::new();
    let _ = tokio::time::timeout(WAIT, without_alpn.read_to_end(&mut answer)).await.expect("the connection is closed");
    assert!(!answer.starts_with(b"\0"), "the reply is not an HTTP/2 frame: {answer:?}");
    assert!(handshake(&server, &files.path("ca.pem"), &[b"spdy/1"], &[&TLS13]).await.is_err());
    eventually("all connections are closed", || server.transport.connections() == 0).await;
}

#[tokio::test]
async fn a_client_trusts_only_its_roots() {
    let files = Files::new();
    let server = start(files.transport()).await;
    files.write("others.pem", &Authority::new("others").pem());
    let options = ClientOptions { ca: Some(files.path("others.pem")), ..files.options(&server) };
    let status = get(&Client::open(&options).unwrap(), "a").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");

    let missing = ClientOptions { ca: Some(files.path("nowhere.pem")), ..files.options(&server) };
    assert!(matches!(Client::open(&missing), Err(ClientError::Tls { .. })));
    let half = ClientOptions { certificate: Some(files.path("server.pem")), ..files.options(&server) };
    assert!(matches!(Client::open(&half), Err(ClientError::IncompleteCertificate)));
    let plain = ClientOptions { uri: "http://127.0.0.1:1".into(), ..files.options(&server) };
    assert!(matches!(Client::open(&plain), Err(ClientError::NotEncrypted { .. })));
}

/// Returns the error of a client whose handshake fails.
async fn handshake_error(server: &RunningServer, options: ClientOptions) -> String {
    let status = get(&Client::open(&options).unwrap(), "a").await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable, "{status:?}");
    eventually("the server counts the failed handshake", || server.transport.refused(ConnectionRefusal::Handshake) > 0)
        .await;
    let mut cause: &dyn std::error::Error = &status;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}

#[tokio::test]
async fn a_certificate_error_names_the_problem_and_what_to_change() {
    let files = Files::new();
    files.write("others.pem", &Authority::new("others").pem());
    let self_signed_ca = self_signed(true);
    files.write("self_signed_ca.pem", &self_signed_ca.0);
    let expired = files.authority.issue_until("server", 2_001);
    let not_yet_valid = files.authority.issue_from("server", 2_098);
    let other_name = files.authority.issue_for("inventory.example");
    let client_only = files.authority.issue_for_clients();
    for (certificate, ca, parts) in [
        (
            &self_signed_ca,
            "self_signed_ca.pem",
            ["is a CA certificate", "create a server certificate that is not a CA"],
        ),
        (&files.authority.issue("server"), "others.pem", ["a CA that this client does not trust", "--ca"]),
        (&other_name, "ca.pem", ["not valid for 127.0.0.1", "inventory.example"]),
        (&expired, "ca.pem", ["expired on 2001-", "renew it"]),
        (&not_yet_valid, "ca.pem", ["not valid yet", "clock"]),
        (&client_only, "ca.pem", ["lacks the extended key usage serverAuth", "create one"]),
    ] {
        files.put("server", certificate);
        let server = start(files.transport()).await;
        let error =
            handshake_error(&server, ClientOptions { ca: Some(files.path(ca)), ..files.options(&server) }).await;
        assert!(error.starts_with("TLS handshake failed: the server certificate "), "{error}");
        assert!(parts.iter().all(|part| error.contains(part)) && !error.contains('\n'), "{parts:?}: {error}");
    }
}

#[tokio::test]
async fn a_self_signed_certificate_that_is_not_a_ca_is_accepted_as_its_own_root() {
    let files = Files::new();
    let certificate = self_signed(false);
    files.put("server", &certificate);
    files.write("ca.pem", &certificate.0);
    let server = start(files.transport()).await;
    create(&files.client(&server), "a").await;
}

#[tokio::test]
async fn a_plaintext_server_is_not_mistaken_for_a_certificate_error() {
    let files = Files::new();
    let server = start(TransportSettings::default()).await;
    let uri = format!("https://{}", server.address);
    let options =
        ClientOptions { uri, caller: "test".into(), ca: Some(files.path("ca.pem")), ..ClientOptions::default() };
    let status = get(&Client::open(&options).unwrap(), "a").await.unwrap_err();
    let error = format!("{status:?}");
    assert!(error.contains("TLS handshake failed") && error.contains("does not use TLS"), "{error}");
}

/// Returns the client certificate that the service sees when a client calls with the named certificate, or `None` if
/// the call does not reach the service.
async fn certificate_seen(files: &Files, tls: TlsSettings, presented: Option<&str>) -> Option<Option<Vec<u8>>> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let settings = TransportSettings { tls: Some(tls), ..TransportSettings::default() };
    let seen = Arc::new(Mutex::new(None));
    let seen_by_service = seen.clone();
    let service = tower::service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let peer = request.extensions().get().map(Connection::peer).expect("every request has a peer");
        assert!(peer.address.ip().is_loopback());
        *seen_by_service.lock().unwrap() = Some(peer.certificate.as_ref().map(|certificate| certificate.0.clone()));
        async { Ok::<_, std::convert::Infallible>(Status::not_found("nothing").into_http::<tonic::body::Body>()) }
    });
    let transport = Transport::open(settings, Arc::default()).unwrap();
    let serving = tokio::spawn(transport.serve(listener, service, Runtimes::default(), CancellationToken::new()));
    let client = Client::open(&ClientOptions {
        add_metadata: None,
        uri: format!("https://{address}"),
        caller: "test".into(),
        ca: Some(files.path("ca.pem")),
        certificate: presented.map(|name| files.path(&format!("{name}.pem"))),
        key: presented.map(|name| files.path(&format!("{name}.key"))),
        token_file: None,
    });
    let status = get(&client.unwrap(), "a").await.unwrap_err();
    serving.abort();
    let seen = seen.lock().unwrap().take();
    assert_eq!(status.code() == Code::NotFound, seen.is_some(), "{status:?}");
    seen
}

#[tokio::test]
async fn a_client_certificate_is_verified_and_passed_to_the_service() {
    let files = Files::new();
    let (clients, strangers) = (Authority::new("clients"), Authority::new("strangers"));
    files.write("clients.pem", &clients.pem());
    let (own, stranger) = (clients.issue("lobby"), strangers.issue("lobby"));
    files.put("own", &own);
    files.put("stranger", &stranger);
    let with_client_ca = |client_certificate_required| TlsSettings {
        client_ca: Some(files.path("clients.pem")),
        client_certificate_required,
        ..files.tls()
    };
    let own_der = der(&own.0);
    assert_eq!(
        certificate_seen(&files, files.tls(), Some("own")).await,
        Some(None),
        "the server requests no certificate"
    );
    assert_eq!(
        certificate_seen(&files, with_client_ca(false), None).await,
        Some(None),
        "a certificate is not required"
    );
    assert_eq!(certificate_seen(&files, with_client_ca(false), Some("own")).await, Some(Some(own_der.clone())));
    assert_eq!(
        certificate_seen(&files, with_client_ca(false), Some("stranger")).await,
        None,
        "an invalid certificate fails the handshake even if none is required"
    );
    assert_eq!(certificate_seen(&files, with_client_ca(true), None).await, None, "a certificate is required");
    assert_eq!(certificate_seen(&files, with_client_ca(true), Some("stranger")).await, None);
    assert_eq!(certificate_seen(&files, with_client_ca(true), Some("own")).await, Some(Some(own_der)));
}

#[tokio::test]
async fn a_client_sends_the_current_token_of_its_file_with_each_call() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    std::fs::write(&path, "first\n").unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let uri = format!("http://{}", listener.local_addr().unwrap());
    // The error message contains the received header.
    let service = tower::service_fn(async |request: http::Request<hyper::body::Incoming>| {
        let header = request.headers().get("authorization").map(|value| value.to_str().unwrap().to_owned());
        let status = Status::not_found(header.unwrap_or_default());
        Ok::<_, std::convert::Infallible>(status.into_http::<tonic::body::Body>())
    });
    let transport = Transport::open(TransportSettings::default(), Arc::default()).unwrap();
    let serving = tokio::spawn(transport.serve(listener, service, Runtimes::default(), CancellationToken::new()));
    let options =
        ClientOptions { uri, caller: "test".into(), token_file: Some(path.clone()), ..ClientOptions::default() };
    let client = Client::open(&options).unwrap();
    assert_eq!(get(&client, "a").await.unwrap_err().message(), "Bearer first");
    std::fs::write(&path, "second\n").unwrap();
    let second = async { while get(&client, "a").await.unwrap_err().message() != "Bearer second" {} };
    tokio::time::timeout(WAIT, second).await.expect("the client reads the file again");
    serving.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commands_work_over_tls() {
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
    assert!(!untrusted.status.success(), "the system does not trust the certificate");
}

#[test]
fn unusable_tls_files_are_refused_at_the_start() {
    let files = Files::new();
    let open = |tls: TlsSettings| {
        let opened =
            Transport::open(TransportSettings { tls: Some(tls), ..TransportSettings::default() }, Arc::default());
        opened.err().map(|error| error.to_string()).expect("opening fails")
    };
    files.put("other", &files.authority.issue("other"));
    files.write("empty.pem", "");
    for (settings, part) in [
        (TlsSettings { certificate: files.path("nowhere.pem"), ..files.tls() }, "cannot read"),
        (TlsSettings { certificate: files.path("empty.pem"), ..files.tls() }, "contains no certificate"),
        (TlsSettings { key: files.path("server.pem"), ..files.tls() }, "contains no private key"),
        (TlsSettings { key: files.path("other.key"), ..files.tls() }, "cannot use the certificate"),
        (TlsSettings { client_ca: Some(files.path("empty.pem")), ..files.tls() }, "contains no certificate"),
        (TlsSettings { client_certificate_required: true, ..files.tls() }, "requires tls.client_ca"),
    ] {
        let problem = open(settings);
        assert!(problem.contains(part), "{problem}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_certificate_is_reloaded_under_load_without_failed_calls_and_an_invalid_one_changes_nothing() {
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
    eventually("the certificate is reloaded", || reloads() == (1, 0)).await;
    let now = served_certificate(&server, &files).await;
    assert!(now == der(&new.0) && now != old);
    let not_after = server.transport.certificate_not_after();

    let key_of_another = (files.authority.issue("server").0, new.1.clone());
    let invalid = [key_of_another, ("nonsense".into(), new.1.clone()), files.authority.issue_until("server", 2_001)];
    for (failed, invalid) in invalid.into_iter().enumerate() {
        files.put("server", &invalid);
        eventually("the invalid certificate is refused", || reloads() == (1, failed as u64 + 1)).await;
        assert_eq!(served_certificate(&server, &files).await, now);
    }
    assert_eq!(server.transport.certificate_not_after(), not_after);
    let last = files.authority.issue("server");
    files.put("server", &last);
    eventually("a valid certificate is reloaded again", || reloads() == (2, 3)).await;
    assert_eq!(served_certificate(&server, &files).await, der(&last.0));
    let so_far = calls.load(Ordering::Relaxed);
    eventually("calls continue", || calls.load(Ordering::Relaxed) > so_far + 20).await;
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        caller.await.expect("no call failed");
    }
    first.mutate(new_mutation_context(), create_named("b")).await.unwrap();
}
