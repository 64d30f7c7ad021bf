//! Authentication by tokens, keys and certificates, tested directly on the verifier without a network.
//!
//! `cargo test --test identity -- --nocapture time` prints how long a verification takes.

#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

#[path = "support/tokens.rs"]
mod tokens;

use jsonwebtoken::{Algorithm as Jws, EncodingKey, Header, encode};
use proptest::prelude::*;
use rcgen::string::Ia5String;
use rcgen::{CertificateParams, KeyPair, SanType};
use serde_json::{Value, json};
use slotcast::identity::{Algorithm, AuthError, CertificateIdentity, IdentitySettings, Principal, Role, Verifier};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};
use tokens::{AUDIENCE, Login, SetClock, SigningKey, base64url, claims, claims_but, jwks, now_s};

/// Returns the role of an authenticated caller, or the reason why it is not authenticated.
fn role(verified: Result<Principal, AuthError>) -> Result<Role, &'static str> {
    verified.map(|principal| principal.role).map_err(|error| match error {
        AuthError::CredentialsMissing => "missing",
        AuthError::InvalidToken { reason } => reason,
        AuthError::Expired => "expired",
        AuthError::KeyRevoked => "revoked",
        AuthError::TooManyInvalidTokens { .. } => "too many",
    })
}

#[tokio::test]
async fn a_token_of_each_key_type_authenticates_its_name_and_role() {
    let keys = [SigningKey::ed25519("ed"), SigningKey::es256("es"), SigningKey::rs256("rs")];
    let verifier = Login::new(&keys.each_ref()).verifier();
    for key in &keys {
        for (name, role) in [("player", Role::Player), ("service", Role::Service), ("admin", Role::Admin)] {
            let verified = verifier.verify_token(&key.sign(&claims("zoë", name))).unwrap();
            assert_eq!((verified.caller.as_str(), verified.role), ("zoë", role));
            assert_eq!(verified.player.as_ref().map(|player| player.as_str()), (role == Role::Player).then_some("zoë"));
            assert_eq!(verified.credential_status.check(), Ok(()));
        }
    }
    let several = claims_but("a", "player", json!({ "aud": ["other", AUDIENCE], "nbf": now_s() - 1, "jti": "1" }));
    assert_eq!(role(verifier.verify_token(&keys[0].sign(&several))), Ok(Role::Player));
    let fraction = claims_but("a", "player", json!({ "exp": now_s() as f64 + 3.5 }));
    assert_eq!(role(verifier.verify_token(&keys[0].sign(&fraction))), Ok(Role::Player));
    let for_ever = claims_but("a", "player", json!({ "exp": u64::MAX }));
    assert_eq!(role(verifier.verify_token(&keys[0].sign(&for_ever))), Ok(Role::Player));
}

#[tokio::test]
async fn tokens_with_missing_or_wrong_claims_are_refused() {
    let key = SigningKey::ed25519("ed");
    let verifier = Login::new(&[&key]).verifier();
    let role_with = |changed: Value| role(verifier.verify_token(&key.sign(&claims_but("steve", "player", changed))));
    assert_eq!(role_with(json!({})), Ok(Role::Player));
    assert_eq!(role_with(json!({ "exp": now_s() - 3 })), Err("expired"));
    assert_eq!(role_with(json!({ "exp": now_s() - 1 })), Ok(Role::Player), "within the leeway of 2 s");
    assert_eq!(role_with(json!({ "nbf": now_s() + 4 })), Err("not valid yet (nbf)"));
    assert_eq!(role_with(json!({ "nbf": now_s() + 1 })), Ok(Role::Player), "within the leeway of 2 s");
    for (claim, other) in [("iss", "https://elsewhere"), ("aud", "another game")] {
        assert!(role_with(json!({ claim: other })).unwrap_err() == format!("wrong {claim}"), "{claim}");
    }
    for claim in ["exp", "iss", "aud", "sub", "role"] {
        assert!(role_with(json!({ claim: null })).is_err(), "{claim} is missing");
        for wrong in [json!(""), json!([]), json!({}), json!(true), json!(-1), json!([[AUDIENCE]])] {
            assert!(role_with(json!({ claim: wrong })).is_err(), "{claim}: {wrong}");
        }
    }
    for role in ["Player", "root", "player ", "service,admin"] {
        assert!(role_with(json!({ "role": role })).is_err(), "{role}");
    }
    for sub in ["a".repeat(129), "a\nb".into()] {
        assert!(role_with(json!({ "sub": sub })).is_err(), "{sub:?}");
    }
    assert!(role_with(json!({ "nbf": "soon" })).is_err());
    assert!(role_with(json!({ "iss": [tokens::ISSUER] })).is_err(), "several issuers");
}

#[tokio::test]
async fn a_key_verifies_only_its_own_algorithm_and_only_tokens_with_its_key_id() {
    let keys = [SigningKey::ed25519("ed"), SigningKey::es256("es"), SigningKey::rs256("rs")];
    let verifier = Login::new(&keys.each_ref()).verifier();
    let claims = claims("steve", "admin");
    for signer in &keys {
        for named in keys.iter().map(|key| key.id.as_str()).chain(["unknown", ""]).filter(|id| *id != signer.id) {
            let header = Header { kid: Some(named.into()), ..Header::new(signer.algorithm) };
            assert!(
                verifier.verify_token(&encode(&header, &claims, &signer.private).unwrap()).is_err(),
                "{} as {named}",
                signer.id
            );
        }
        let unnamed = encode(&Header::new(signer.algorithm), &claims, &signer.private).unwrap();
        assert_eq!(role(verifier.verify_token(&unnamed)), Err("no kid"));
        let critical = Header { crit: Some(vec!["exp".into()]), ..signer.header() };
        assert!(
            verifier.verify_token(&encode(&critical, &claims, &signer.private).unwrap()).is_err(),
            "critical headers"
        );
        // The classic attack: the public key as a shared secret.
        for secret in [signer.public.try_get_as_bytes().unwrap().to_vec(), jwks(&[signer]).into_bytes()] {
            let header = Header { kid: Some(signer.id.clone()), ..Header::new(Jws::HS256) };
            let token = encode(&header, &claims, &EncodingKey::from_secret(&secret)).unwrap();
            assert_eq!(role(verifier.verify_token(&token)), Err("alg does not match the key"));
        }
    }
    let header = Header { kid: Some("rs".into()), ..Header::new(Jws::RS512) };
    assert!(verifier.verify_token(&encode(&header, &claims, &keys[2].private).unwrap()).is_err(), "its JWK says RS256");
}

#[tokio::test]
async fn tokens_without_a_valid_signature_are_refused() {
    let (key, another) = (SigningKey::ed25519("ed"), SigningKey::ed25519("ed"));
    let verifier = Login::new(&[&key]).verifier();
    let payload = base64url(claims("steve", "admin").to_string().as_bytes());
    for alg in ["none", "None", "NONE", "nOnE", "", "HS256", "EdDSA"] {
        let header = base64url(json!({ "alg": alg, "kid": "ed" }).to_string().as_bytes());
        for signature in ["", "AA", &"A".repeat(86)] {
            assert!(verifier.verify_token(&format!("{header}.{payload}.{signature}")).is_err(), "{alg}");
            assert!(verifier.verify_token(&format!("{header}.{payload}")).is_err(), "{alg}");
        }
    }
    assert_eq!(role(verifier.verify_token(&another.sign(&claims("steve", "admin")))), Err("wrong signature"));
    let (player, admin) = (key.sign(&claims("steve", "player")), another.sign(&claims("steve", "admin")));
    let (head, signature) = (player.split('.').next().unwrap(), player.rsplit('.').next().unwrap());
    let tampered = format!("{head}.{}.{signature}", admin.split('.').nth(1).unwrap());
    assert_eq!(role(verifier.verify_token(&tampered)), Err("wrong signature"));
    let long = key.sign(&claims_but("steve", "player", json!({ "padding": "x".repeat(8 * 1_024) })));
    assert_eq!(role(verifier.verify_token(&long)), Err("larger than 8 KiB"));
    let large = key.sign(&claims_but("steve", "player", json!({ "padding": "x".repeat(5 * 1_024) })));
    assert_eq!(role(verifier.verify_token(&large)), Ok(Role::Player));
    assert_eq!(role(verifier.verify_token(&large)), Ok(Role::Player), "again, because it is too large for the cache");
}

#[tokio::test]
async fn an_invalid_jwks_file_is_refused_with_a_hint() {
    let key = SigningKey::ed25519("ed");
    let login = Login::new(&[&key]);
    let error = |text: &str| {
        login.write(text);
        Verifier::open(login.settings()).map(drop).unwrap_err().to_string()
    };
    let jwks_of = |key: Value| json!({ "keys": [key] }).to_string();
    let ed = serde_json::to_value(key.jwk()).unwrap();
    let with = |changed: Value| {
        let mut jwk = ed.clone();
        changed.as_object().unwrap().iter().for_each(|(name, value)| jwk[name] = value.clone());
        jwks_of(jwk)
    };
    for (text, part) in [
        ("", "not a valid JWKS at line 1"),
        ("{}", "not a valid JWKS"),
        ("[]", "not a valid JWKS"),
        ("{\"keys\": []}", "no usable key"),
        (&jwks_of(json!({ "kty": "oct", "k": "c2VjcmV0", "kid": "hmac" })), "\"hmac\""),
        (&jwks_of(json!({ "kty": "oct", "k": "c2VjcmV0", "kid": "hmac" })), "shared secret"),
        (&with(json!({ "d": "c2VjcmV0" })), "private key"),
        (&with(json!({ "kid": null })), "no usable key"),
        (&with(json!({ "use": "enc" })), "no usable key"),
        (&with(json!({ "alg": "RS256" })), "no usable key"),
        (&with(json!({ "crv": "Ed448" })), "no usable key"),
        (&with(json!({ "x": "AAAA" })), "32 bytes"),
        (&with(json!({ "x": format!("{}AAAA", ed["x"].as_str().unwrap()) })), "invalid"),
        (&with(json!({ "x": "*" })), "base64url"),
        (&json!({ "keys": [ed, ed] }).to_string(), "duplicate key id"),
        (
            &jwks_of(
                json!({ "kty": "EC", "crv": "P-256", "x": base64url(&[1; 32]), "y": base64url(&[2; 32]), "kid": "p" }),
            ),
            "curve",
        ),
        (&jwks_of(json!({ "kty": "RSA", "n": base64url(&[0xFF; 128]), "e": "AQAB", "kid": "r" })), "2,048"),
        (&jwks_of(json!({ "kty": "RSA", "n": base64url(&[0xFF; 1024]), "e": "AQAB", "kid": "r" })), "4,096"),
        (&jwks_of(json!({ "kty": "RSA", "n": base64url(&[0xFF; 256]), "e": "AQ", "kid": "r" })), "exponent"),
        (&"x".repeat(1 << 21), "larger"),
    ] {
        let message = error(text);
        assert!(message.contains(part), "{text}: {message}");
        assert!(!message.contains("c2VjcmV0"), "the message contains a secret: {message}");
    }
    std::fs::remove_file(login.path()).unwrap();
    let message = Verifier::open(login.settings()).map(drop).unwrap_err().to_string();
    assert!(message.contains("cannot read") && message.contains("jwks.json"), "{message}");
}

#[tokio::test]
async fn keys_for_other_purposes_are_ignored_and_the_settings_restrict_the_algorithms() {
    let (ed, es) = (SigningKey::ed25519("ed"), SigningKey::es256("es"));
    let login = Login::new(&[]);
    let others = json!([{ "kty": "AKP", "kid": "new", "alg": "ML-DSA-44", "pub": "AA" }, { "kty": "RSA", "use": "enc", "kid": "e", "n": "AA", "e": "AA" }]);
    let mut keys: Vec<Value> = others.as_array().unwrap().clone();
    keys.extend([&ed, &es].map(|key| serde_json::to_value(key.jwk()).unwrap()));
    login.write(&json!({ "keys": keys }).to_string());
    let settings = IdentitySettings { algorithms: vec![Algorithm::ES256], ..login.settings() };
    let verifier = Verifier::open(settings).unwrap();
    assert!(verifier.verify_token(&es.sign(&claims("a", "player"))).is_ok());
    assert_eq!(role(verifier.verify_token(&ed.sign(&claims("a", "player")))), Err("unknown kid"));
}

/// Refreshes twice, because a changed file is read once two consecutive reads agree.
async fn refresh(verifier: &Verifier) {
    verifier.refresh().await;
    verifier.refresh().await;
}

#[tokio::test]
async fn keys_are_reloaded_without_a_restart_and_an_invalid_file_changes_nothing() {
    let (old, new) = (SigningKey::ed25519("old"), SigningKey::es256("new"));
    let login = Login::new(&[&old]);
    let verifier = login.verifier();
    let [by_old, by_new] = [&old, &new].map(|key| key.sign(&claims("lobby", "service")));
    let verified = verifier.verify_token(&by_old).unwrap();
    assert!(verifier.verify_token(&by_new).is_err());

    login.publish(&[&old, &new]);
    verifier.refresh().await;
    assert!(verifier.verify_token(&by_new).is_err(), "a file that just changed may still be incomplete");
    verifier.refresh().await;
    assert!(verifier.verify_token(&by_new).is_ok() && verifier.verify_token(&by_old).is_ok());
    assert_eq!(verified.credential_status.check(), Ok(()));

    for (refused, bad) in ["", "{\"keys\": []}", "{\"keys\": [{\"kty\": \"oct\"}]}"].iter().enumerate() {
        login.write(bad);
        refresh(&verifier).await;
        refresh(&verifier).await;
        assert_eq!(verifier.reloads().failed(), refused as u64 + 1, "each change is counted once");
        assert!(verifier.verify_token(&by_new).is_ok() && verifier.verify_token(&by_old).is_ok());
    }
    std::fs::remove_file(login.path()).unwrap();
    refresh(&verifier).await;
    assert!(verifier.verify_token(&by_new).is_ok(), "the file does not exist");
    assert_eq!((verifier.reloads().succeeded(), verifier.reloads().failed()), (1, 4));

    let mut changes = verifier.key_changes();
    login.publish(&[&new]);
    refresh(&verifier).await;
    changes.changed().await;
    assert_eq!(verified.credential_status.check(), Err(AuthError::KeyRevoked));
    assert_eq!(role(verifier.verify_token(&by_old)), Err("unknown kid"));
    assert!(verifier.verify_token(&by_new).is_ok());

    login.publish(&[&SigningKey::es256("new")]);
    refresh(&verifier).await;
    assert_eq!(role(verifier.verify_token(&by_new)), Err("wrong signature"), "another key with the same id");
}

#[tokio::test(start_paused = true)]
async fn case_50_setting_the_clock_back_does_not_extend_a_token_and_setting_it_ahead_expires_it() {
    let key = SigningKey::ed25519("ed");
    let (login, clock) = (Login::new(&[&key]), SetClock::new());
    let verifier = login.verifier_at(&clock);
    let token = |sub: &str, seconds: u64| key.sign(&claims_but(sub, "player", json!({ "exp": now_s() + seconds })));
    let (short, long, unseen) = (token("a", 100), token("b", 100_000), token("c", 100));
    let short_status = verifier.verify_token(&short).unwrap().credential_status;
    let long_status = verifier.verify_token(&long).unwrap().credential_status;
    let mut changes = verifier.key_changes();
    tokio::time::advance(Duration::from_secs(60)).await;
    clock.move_by(-86_400_000);
    verifier.refresh().await;
    assert!(verifier.verify_token(&short).is_ok() && short_status.check().is_ok());
    tokio::time::advance(Duration::from_secs(41)).await;
    assert_eq!(short_status.check(), Err(AuthError::Expired));
    assert_eq!(role(verifier.verify_token(&short)), Err("expired"));
    assert_eq!(role(verifier.verify_token(&unseen)), Err("expired"), "including a token that was never used before");
    assert!(verifier.verify_token(&long).is_ok());

    clock.move_by(3 * 86_400_000);
    verifier.refresh().await;
    changes.changed().await;
    assert_eq!(long_status.check(), Err(AuthError::Expired));
    assert_eq!(role(verifier.verify_token(&long)), Err("expired"));
}

fn certificate(names: Vec<SanType>) -> Vec<u8> {
    let mut parameters = CertificateParams::default();
    parameters.subject_alt_names = names;
    parameters.self_signed(&KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

fn uri(name: &str) -> SanType {
    SanType::URI(Ia5String::try_from(name).unwrap())
}

fn dns(name: &str) -> SanType {
    SanType::DnsName(Ia5String::try_from(name).unwrap())
}

#[tokio::test]
async fn a_certificate_authenticates_the_caller_with_exactly_its_name() {
    let identity = |san: &str, role, name: &str| CertificateIdentity { san: san.into(), role, name: name.into() };
    let certificates = vec![
        identity("spiffe://game/lobby", Role::Service, "lobby"),
        identity("ops.example.com", Role::Admin, "operator"),
    ];
    let settings = IdentitySettings { certificates, ..IdentitySettings::default() };
    let verifier = Verifier::open(settings.clone()).unwrap();
    let authenticate = |names| {
        let verified = verifier.verify_certificate(&certificate(names)).ok()?;
        Some((verified.caller.to_string(), verified.role))
    };
    assert_eq!(authenticate(vec![uri("spiffe://game/lobby")]), Some(("lobby".into(), Role::Service)));
    assert_eq!(authenticate(vec![dns("other"), dns("ops.example.com")]), Some(("operator".into(), Role::Admin)));
    for names in [
        vec![],
        vec![uri("spiffe://game/lobby2")],
        vec![dns("OPS.example.com")],
        vec![dns("x.ops.example.com")],
        vec![dns("*.example.com")],
        vec![SanType::Rfc822Name(Ia5String::try_from("ops.example.com").unwrap())],
    ] {
        assert_eq!(authenticate(names.clone()), None, "{names:?}");
    }
    let mut expired = CertificateParams::new(vec!["ops.example.com".into()]).unwrap();
    expired.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let expired = expired.self_signed(&KeyPair::generate().unwrap()).unwrap();
    assert_eq!(role(verifier.verify_certificate(expired.der())), Err("expired"));
    assert_eq!(role(verifier.verify_certificate(b"not a certificate")), Err("missing"));
    assert_eq!(role(verifier.verify_token("a.b.c")), Err("not a JWS"), "no token is accepted without keys");

    for (certificates, part) in [
        (vec![identity("", Role::Admin, "a")], "san"),
        (vec![identity("a", Role::Admin, "")], "empty"),
        (vec![identity("a", Role::Admin, "a"), identity("a", Role::Player, "b")], "duplicate"),
    ] {
        let opened = Verifier::open(IdentitySettings { certificates, ..settings.clone() });
        let message = opened.map(drop).unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
}

static RANDOM_KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::ed25519("ed"));
static RANDOM_VERIFIER: LazyLock<(Login, Arc<Verifier>)> = LazyLock::new(|| {
    let login = Login::new(&[&RANDOM_KEY]);
    let verifier = login.verifier();
    (login, verifier)
});

/// Generates any JSON, often with the words that a token contains.
fn any_json() -> impl Strategy<Value = Value> {
    let word =
        prop::sample::select(vec!["alg", "kid", "ed", "EdDSA", "none", "HS256", "exp", "aud", "sub", "role", "admin"]);
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        ".*".prop_map(Value::from),
        word.clone().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            prop::collection::vec((word.clone(), inner), 0..8).prop_map(|pairs| Value::Object(
                pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
            )),
        ]
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_text_is_never_accepted_as_a_token(text in "\\PC{0,200}", parts in "[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,80}\\.[A-Za-z0-9_-]{0,90}") {
        prop_assert!(RANDOM_VERIFIER.1.verify_token(&text).is_err());
        prop_assert!(RANDOM_VERIFIER.1.verify_token(&parts).is_err());
    }

    #[test]
    fn random_json_is_never_accepted_as_a_token(header in any_json(), payload in any_json(), signature in any::<Vec<u8>>()) {
        let [header, payload] = [header, payload].map(|json| base64url(json.to_string().as_bytes()));
        let genuine = base64url(RANDOM_KEY.header_json().as_bytes());
        for header in [header, genuine] {
            let token = format!("{header}.{payload}.{}", base64url(&signature));
            prop_assert!(RANDOM_VERIFIER.1.verify_token(&token).is_err());
        }
    }

    #[test]
    fn random_signed_claims_never_authenticate_a_caller(claims in any_json()) {
        if claims.is_object() {
            prop_assert!(RANDOM_VERIFIER.1.verify_token(&RANDOM_KEY.sign(&claims)).is_err());
        }
    }

    #[test]
    fn a_token_with_a_changed_byte_is_refused(at in any::<prop::sample::Index>(), to in "[A-Za-z0-9_.-]") {
        let token = RANDOM_KEY.sign(&claims("steve", "player"));
        let at = at.index(token.len());
        let changed = format!("{}{to}{}", &token[..at], &token[at + 1..]);
        prop_assert!(changed == token || RANDOM_VERIFIER.1.verify_token(&changed).is_err());
    }

    #[test]
    fn random_files_and_certificates_never_panic(bytes in any::<Vec<u8>>(), json in any_json(), der in any::<Vec<u8>>()) {
        let login = &RANDOM_VERIFIER.0;
        let path = login.path().with_extension(format!("{:x}", bytes.len()));
        for content in [bytes, json!({ "keys": [json] }).to_string().into_bytes()] {
            std::fs::write(&path, content).unwrap();
            let settings = IdentitySettings { jwks: Some(path.clone()), ..login.settings() };
            prop_assert!(Verifier::open(settings).is_err());
        }
        prop_assert!(RANDOM_VERIFIER.1.verify_certificate(&der).is_err());
    }
}

#[tokio::test]
async fn verification_times_are_printed() {
    let keys = [SigningKey::ed25519("ed"), SigningKey::es256("es"), SigningKey::rs256("rs")];
    let verifier = Login::new(&keys.each_ref()).verifier();
    for key in &keys {
        let tokens: Vec<_> = (0..200).map(|number| key.sign(&claims(&format!("lobby-{number}"), "service"))).collect();
        let start = Instant::now();
        assert!(tokens.iter().all(|token| verifier.verify_token(token).is_ok()));
        let first = start.elapsed() / 200;
        let start = Instant::now();
        for _ in 0..50 {
            assert!(tokens.iter().all(|token| verifier.verify_token(token).is_ok()));
        }
        println!(
            "{:?}: {first:?} for a new token of {} bytes, {:?} again",
            key.algorithm,
            tokens[0].len(),
            start.elapsed() / 10_000
        );
    }
}
