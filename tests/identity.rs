//! Who gets in: tokens, keys and certificates against the verifier itself, without a network.
//!
//! `cargo test --test identity -- --nocapture cost` tells what the checks cost.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

#[path = "support/tokens.rs"]
mod tokens;

use jsonwebtoken::{Algorithm as Jws, EncodingKey, Header, encode};
use proptest::prelude::*;
use rcgen::string::Ia5String;
use rcgen::{CertificateParams, KeyPair, SanType};
use serde_json::{Value, json};
use slotcast::identity::{
    Algorithm, CertificateIdentity, IdentitySettings, Lapsed, Role, Unverified, Verified, Verifier,
};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};
use tokens::{AUDIENCE, Login, SetClock, SigningKey, base64url, claims, claims_but, jwks, now_s};

fn reason(checked: Result<Verified, Unverified>) -> Result<Role, &'static str> {
    checked.map(|verified| verified.role).map_err(|unverified| match unverified {
        Unverified::Missing => "missing",
        Unverified::Invalid { why } => why,
        Unverified::Expired => "expired",
        Unverified::TooManyWrong { .. } => "too many",
    })
}

#[tokio::test]
async fn a_token_of_each_kind_of_key_is_accepted_and_tells_name_and_role() {
    let keys = [SigningKey::ed25519("ed"), SigningKey::es256("es"), SigningKey::rs256("rs")];
    let verifier = Login::new(&keys.each_ref()).verifier();
    for key in &keys {
        for (name, role) in [("player", Role::Player), ("service", Role::Service), ("admin", Role::Admin)] {
            let verified = verifier.token(&key.sign(&claims("zoë", name))).unwrap();
            assert_eq!((verified.caller.as_str(), verified.role), ("zoë", role));
            assert_eq!(verified.player.as_ref().map(|player| player.as_str()), (role == Role::Player).then_some("zoë"));
            assert_eq!(verified.expires.check(), Ok(()));
        }
    }
    let several = claims_but("a", "player", json!({ "aud": ["other", AUDIENCE], "nbf": now_s() - 1, "jti": "1" }));
    assert_eq!(reason(verifier.token(&keys[0].sign(&several))), Ok(Role::Player));
    let fraction = claims_but("a", "player", json!({ "exp": now_s() as f64 + 3.5 }));
    assert_eq!(reason(verifier.token(&keys[0].sign(&fraction))), Ok(Role::Player));
    let for_ever = claims_but("a", "player", json!({ "exp": u64::MAX }));
    assert_eq!(reason(verifier.token(&keys[0].sign(&for_ever))), Ok(Role::Player));
}

#[tokio::test]
async fn claims_that_are_not_as_they_must_be_are_refused() {
    let key = SigningKey::ed25519("ed");
    let verifier = Login::new(&[&key]).verifier();
    let but = |changed: Value| reason(verifier.token(&key.sign(&claims_but("steve", "player", changed))));
    assert_eq!(but(json!({})), Ok(Role::Player));
    assert_eq!(but(json!({ "exp": now_s() - 3 })), Err("expired"));
    assert_eq!(but(json!({ "exp": now_s() - 1 })), Ok(Role::Player), "within the leeway of 2 s");
    assert_eq!(but(json!({ "nbf": now_s() + 4 })), Err("it does not hold yet"));
    assert_eq!(but(json!({ "nbf": now_s() + 1 })), Ok(Role::Player), "within the leeway of 2 s");
    for (claim, other) in [("iss", "https://elsewhere"), ("aud", "another game")] {
        assert!(but(json!({ claim: other })).unwrap_err().ends_with("is another"), "{claim}");
    }
    for claim in ["exp", "iss", "aud", "sub", "role"] {
        assert!(but(json!({ claim: null })).is_err(), "{claim} is missing");
        for wrong in [json!(""), json!([]), json!({}), json!(true), json!(-1), json!([[AUDIENCE]])] {
            assert!(but(json!({ claim: wrong })).is_err(), "{claim}: {wrong}");
        }
    }
    for role in ["Player", "root", "player ", "service,admin"] {
        assert!(but(json!({ "role": role })).is_err(), "{role}");
    }
    for sub in ["a".repeat(129), "a\nb".into()] {
        assert!(but(json!({ "sub": sub })).is_err(), "{sub:?}");
    }
    assert!(but(json!({ "nbf": "soon" })).is_err());
    assert!(but(json!({ "iss": [tokens::ISSUER] })).is_err(), "several issuers");
}

#[tokio::test]
async fn a_key_is_used_with_its_own_algorithm_only_and_only_by_its_id() {
    let keys = [SigningKey::ed25519("ed"), SigningKey::es256("es"), SigningKey::rs256("rs")];
    let verifier = Login::new(&keys.each_ref()).verifier();
    let good = claims("steve", "admin");
    for signer in &keys {
        for named in keys.iter().map(|key| key.id.as_str()).chain(["unknown", ""]).filter(|id| *id != signer.id) {
            let header = Header { kid: Some(named.into()), ..Header::new(signer.algorithm) };
            assert!(
                verifier.token(&encode(&header, &good, &signer.private).unwrap()).is_err(),
                "{} as {named}",
                signer.id
            );
        }
        let unnamed = encode(&Header::new(signer.algorithm), &good, &signer.private).unwrap();
        assert_eq!(reason(verifier.token(&unnamed)), Err("it names no key"));
        let critical = Header { crit: Some(vec!["exp".into()]), ..signer.header() };
        assert!(verifier.token(&encode(&critical, &good, &signer.private).unwrap()).is_err(), "critical headers");
        // The classic one: the public key as a shared secret.
        for secret in [signer.public.try_get_as_bytes().unwrap().to_vec(), jwks(&[signer]).into_bytes()] {
            let header = Header { kid: Some(signer.id.clone()), ..Header::new(Jws::HS256) };
            let token = encode(&header, &good, &EncodingKey::from_secret(&secret)).unwrap();
            assert_eq!(reason(verifier.token(&token)), Err("its algorithm is not one of its key's"));
        }
    }
    let header = Header { kid: Some("rs".into()), ..Header::new(Jws::RS512) };
    assert!(verifier.token(&encode(&header, &good, &keys[2].private).unwrap()).is_err(), "its JWK says RS256");
}

#[tokio::test]
async fn what_is_signed_by_nobody_or_another_is_refused() {
    let (key, another) = (SigningKey::ed25519("ed"), SigningKey::ed25519("ed"));
    let verifier = Login::new(&[&key]).verifier();
    let payload = base64url(claims("steve", "admin").to_string().as_bytes());
    for alg in ["none", "None", "NONE", "nOnE", "", "HS256", "EdDSA"] {
        let header = base64url(json!({ "alg": alg, "kid": "ed" }).to_string().as_bytes());
        for signature in ["", "AA", &"A".repeat(86)] {
            assert!(verifier.token(&format!("{header}.{payload}.{signature}")).is_err(), "{alg}");
            assert!(verifier.token(&format!("{header}.{payload}")).is_err(), "{alg}");
        }
    }
    assert_eq!(reason(verifier.token(&another.sign(&claims("steve", "admin")))), Err("its signature is wrong"));
    let (player, admin) = (key.sign(&claims("steve", "player")), another.sign(&claims("steve", "admin")));
    let (head, signature) = (player.split('.').next().unwrap(), player.rsplit('.').next().unwrap());
    let tampered = format!("{head}.{}.{signature}", admin.split('.').nth(1).unwrap());
    assert_eq!(reason(verifier.token(&tampered)), Err("its signature is wrong"));
    let long = key.sign(&claims_but("steve", "player", json!({ "padding": "x".repeat(8 * 1_024) })));
    assert_eq!(reason(verifier.token(&long)), Err("it is too long"));
    let large = key.sign(&claims_but("steve", "player", json!({ "padding": "x".repeat(5 * 1_024) })));
    assert_eq!(reason(verifier.token(&large)), Ok(Role::Player));
    assert_eq!(reason(verifier.token(&large)), Ok(Role::Player), "again, too long to be remembered");
}

#[tokio::test]
async fn a_file_of_keys_that_cannot_be_right_is_refused_with_what_to_do() {
    let key = SigningKey::ed25519("ed");
    let login = Login::new(&[&key]);
    let told = |text: &str| {
        login.write(text);
        Verifier::open(login.settings()).map(drop).unwrap_err().to_string()
    };
    let of = |key: Value| json!({ "keys": [key] }).to_string();
    let ed = serde_json::to_value(key.jwk()).unwrap();
    let with = |changed: Value| {
        let mut jwk = ed.clone();
        changed.as_object().unwrap().iter().for_each(|(name, value)| jwk[name] = value.clone());
        of(jwk)
    };
    for (text, part) in [
        ("", "is no JWKS (line 1"),
        ("{}", "is no JWKS"),
        ("[]", "is no JWKS"),
        ("{\"keys\": []}", "no usable key"),
        (&of(json!({ "kty": "oct", "k": "c2VjcmV0", "kid": "hmac" })), "\"hmac\""),
        (&of(json!({ "kty": "oct", "k": "c2VjcmV0", "kid": "hmac" })), "shared secret"),
        (&with(json!({ "d": "c2VjcmV0" })), "private key"),
        (&with(json!({ "kid": null })), "no usable key"),
        (&with(json!({ "use": "enc" })), "no usable key"),
        (&with(json!({ "alg": "RS256" })), "no usable key"),
        (&with(json!({ "crv": "Ed448" })), "no usable key"),
        (&with(json!({ "x": "AAAA" })), "32 bytes"),
        (&with(json!({ "x": format!("{}AAAA", ed["x"].as_str().unwrap()) })), "damaged"),
        (&with(json!({ "x": "*" })), "base64url"),
        (&json!({ "keys": [ed, ed] }).to_string(), "two keys"),
        (
            &of(json!({ "kty": "EC", "crv": "P-256", "x": base64url(&[1; 32]), "y": base64url(&[2; 32]), "kid": "p" })),
            "curve",
        ),
        (&of(json!({ "kty": "RSA", "n": base64url(&[0xFF; 128]), "e": "AQAB", "kid": "r" })), "2,048"),
        (&of(json!({ "kty": "RSA", "n": base64url(&[0xFF; 1024]), "e": "AQAB", "kid": "r" })), "4,096"),
        (&of(json!({ "kty": "RSA", "n": base64url(&[0xFF; 256]), "e": "AQ", "kid": "r" })), "exponent"),
        (&"x".repeat(1 << 21), "larger"),
    ] {
        let told = told(text);
        assert!(told.contains(part), "{text}: {told}");
        assert!(!told.contains("c2VjcmV0"), "no secret is told: {told}");
    }
    std::fs::remove_file(login.path()).unwrap();
    let told = Verifier::open(login.settings()).map(drop).unwrap_err().to_string();
    assert!(told.contains("cannot read") && told.contains("jwks.json"), "{told}");
}

#[tokio::test]
async fn keys_for_something_else_are_left_out_and_the_settings_choose_algorithms() {
    let (ed, es) = (SigningKey::ed25519("ed"), SigningKey::es256("es"));
    let login = Login::new(&[]);
    let others = json!([{ "kty": "AKP", "kid": "new", "alg": "ML-DSA-44", "pub": "AA" }, { "kty": "RSA", "use": "enc", "kid": "e", "n": "AA", "e": "AA" }]);
    let mut keys: Vec<Value> = others.as_array().unwrap().clone();
    keys.extend([&ed, &es].map(|key| serde_json::to_value(key.jwk()).unwrap()));
    login.write(&json!({ "keys": keys }).to_string());
    let settings = IdentitySettings { algorithms: vec![Algorithm::ES256], ..login.settings() };
    let verifier = Verifier::open(settings).unwrap();
    assert!(verifier.token(&es.sign(&claims("a", "player"))).is_ok());
    assert_eq!(reason(verifier.token(&ed.sign(&claims("a", "player")))), Err("its key is not known"));
}

/// Twice: what has changed is taken once it stands still.
async fn look(verifier: &Verifier) {
    verifier.look().await;
    verifier.look().await;
}

#[tokio::test]
async fn keys_are_exchanged_while_old_ones_go_on_and_a_bad_file_changes_nothing() {
    let (old, new) = (SigningKey::ed25519("old"), SigningKey::es256("new"));
    let login = Login::new(&[&old]);
    let verifier = login.verifier();
    let [by_old, by_new] = [&old, &new].map(|key| key.sign(&claims("lobby", "service")));
    let verified = verifier.token(&by_old).unwrap();
    assert!(verifier.token(&by_new).is_err());

    login.publish(&[&old, &new]);
    verifier.look().await;
    assert!(verifier.token(&by_new).is_err(), "it may just be being written");
    verifier.look().await;
    assert!(verifier.token(&by_new).is_ok() && verifier.token(&by_old).is_ok());
    assert_eq!(verified.expires.check(), Ok(()));

    for (refused, bad) in ["", "{\"keys\": []}", "{\"keys\": [{\"kty\": \"oct\"}]}"].iter().enumerate() {
        login.write(bad);
        look(&verifier).await;
        look(&verifier).await;
        assert_eq!(verifier.reloads().failed(), refused as u64 + 1, "each is counted once");
        assert!(verifier.token(&by_new).is_ok() && verifier.token(&by_old).is_ok());
    }
    std::fs::remove_file(login.path()).unwrap();
    look(&verifier).await;
    assert!(verifier.token(&by_new).is_ok(), "there is no file");
    assert_eq!((verifier.reloads().succeeded(), verifier.reloads().failed()), (1, 4));

    let mut watch = verified.expires.watch();
    login.publish(&[&new]);
    look(&verifier).await;
    watch.changed().await;
    assert_eq!(watch.check(), Err(Lapsed::Revoked));
    assert_eq!(reason(verifier.token(&by_old)), Err("its key is not known"));
    assert!(verifier.token(&by_new).is_ok());

    login.publish(&[&SigningKey::es256("new")]);
    look(&verifier).await;
    assert_eq!(reason(verifier.token(&by_new)), Err("its signature is wrong"), "another key of the same name");
}

#[tokio::test(start_paused = true)]
async fn case_50_a_clock_set_back_extends_no_token_and_one_set_ahead_ends_it() {
    let key = SigningKey::ed25519("ed");
    let (login, clock) = (Login::new(&[&key]), SetClock::new());
    let verifier = login.verifier_at(&clock);
    let token = |sub: &str, seconds: u64| key.sign(&claims_but(sub, "player", json!({ "exp": now_s() + seconds })));
    let (short, long, unseen) = (token("a", 100), token("b", 100_000), token("c", 100));
    let expires = verifier.token(&short).unwrap().expires;
    let long_expires = verifier.token(&long).unwrap().expires;
    let mut watch = long_expires.watch();
    tokio::time::advance(Duration::from_secs(60)).await;
    clock.move_by(-86_400_000);
    verifier.look().await;
    assert!(verifier.token(&short).is_ok() && expires.check().is_ok());
    tokio::time::advance(Duration::from_secs(41)).await;
    assert_eq!(expires.check(), Err(Lapsed::Expired));
    assert_eq!(reason(verifier.token(&short)), Err("expired"));
    assert_eq!(reason(verifier.token(&unseen)), Err("expired"), "also one that was never seen before");
    assert!(verifier.token(&long).is_ok());

    clock.move_by(3 * 86_400_000);
    verifier.look().await;
    watch.changed().await;
    assert_eq!(watch.check(), Err(Lapsed::Expired));
    assert_eq!(reason(verifier.token(&long)), Err("expired"));
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
async fn a_certificate_shows_whom_its_exact_name_stands_for() {
    let identity = |san: &str, role, name: &str| CertificateIdentity { san: san.into(), role, name: name.into() };
    let certificates = vec![
        identity("spiffe://game/lobby", Role::Service, "lobby"),
        identity("ops.example.com", Role::Admin, "operator"),
    ];
    let settings = IdentitySettings { certificates, ..IdentitySettings::default() };
    let verifier = Verifier::open(settings.clone()).unwrap();
    let shown = |names| {
        let verified = verifier.certificate(&certificate(names)).ok()?;
        Some((verified.caller.to_string(), verified.role))
    };
    assert_eq!(shown(vec![uri("spiffe://game/lobby")]), Some(("lobby".into(), Role::Service)));
    assert_eq!(shown(vec![dns("other"), dns("ops.example.com")]), Some(("operator".into(), Role::Admin)));
    for names in [
        vec![],
        vec![uri("spiffe://game/lobby2")],
        vec![dns("OPS.example.com")],
        vec![dns("x.ops.example.com")],
        vec![dns("*.example.com")],
        vec![SanType::Rfc822Name(Ia5String::try_from("ops.example.com").unwrap())],
    ] {
        assert_eq!(shown(names.clone()), None, "{names:?}");
    }
    let mut over = CertificateParams::new(vec!["ops.example.com".into()]).unwrap();
    over.not_after = rcgen::date_time_ymd(2020, 1, 1);
    let over = over.self_signed(&KeyPair::generate().unwrap()).unwrap();
    assert_eq!(reason(verifier.certificate(over.der())), Err("expired"));
    assert_eq!(reason(verifier.certificate(b"no certificate")), Err("missing"));
    assert_eq!(reason(verifier.token("a.b.c")), Err("it is no JWS"), "no token is accepted without keys");

    for (certificates, part) in [
        (vec![identity("", Role::Admin, "a")], "san"),
        (vec![identity("a", Role::Admin, "")], "empty"),
        (vec![identity("a", Role::Admin, "a"), identity("a", Role::Player, "b")], "two"),
    ] {
        let told =
            Verifier::open(IdentitySettings { certificates, ..settings.clone() }).map(drop).unwrap_err().to_string();
        assert!(told.contains(part), "{told}");
    }
}

static RANDOM_KEY: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::ed25519("ed"));
static RANDOM_VERIFIER: LazyLock<(Login, Arc<Verifier>)> = LazyLock::new(|| {
    let login = Login::new(&[&RANDOM_KEY]);
    let verifier = login.verifier();
    (login, verifier)
});

/// Any JSON, often of the words that a token has.
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
    fn random_texts_never_pass_as_tokens(text in "\\PC{0,200}", parts in "[A-Za-z0-9_-]{0,40}\\.[A-Za-z0-9_-]{0,80}\\.[A-Za-z0-9_-]{0,90}") {
        prop_assert!(RANDOM_VERIFIER.1.token(&text).is_err());
        prop_assert!(RANDOM_VERIFIER.1.token(&parts).is_err());
    }

    #[test]
    fn random_json_never_passes_as_a_token(header in any_json(), payload in any_json(), signature in any::<Vec<u8>>()) {
        let [header, payload] = [header, payload].map(|json| base64url(json.to_string().as_bytes()));
        let genuine = base64url(RANDOM_KEY.header_json().as_bytes());
        for header in [header, genuine] {
            let token = format!("{header}.{payload}.{}", base64url(&signature));
            prop_assert!(RANDOM_VERIFIER.1.token(&token).is_err());
        }
    }

    /// Signed rightly, with claims of any shape: what passes has all that it must have.
    #[test]
    fn random_claims_that_are_signed_never_make_anybody(claims in any_json()) {
        if claims.is_object() {
            prop_assert!(RANDOM_VERIFIER.1.token(&RANDOM_KEY.sign(&claims)).is_err());
        }
    }

    #[test]
    fn a_token_with_any_byte_changed_is_refused(at in any::<prop::sample::Index>(), to in "[A-Za-z0-9_.-]") {
        let token = RANDOM_KEY.sign(&claims("steve", "player"));
        let at = at.index(token.len());
        let changed = format!("{}{to}{}", &token[..at], &token[at + 1..]);
        prop_assert!(changed == token || RANDOM_VERIFIER.1.token(&changed).is_err());
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
        prop_assert!(RANDOM_VERIFIER.1.certificate(&der).is_err());
    }
}

#[tokio::test]
async fn the_cost_of_a_check_is_told() {
    let keys = [SigningKey::ed25519("ed"), SigningKey::es256("es"), SigningKey::rs256("rs")];
    let verifier = Login::new(&keys.each_ref()).verifier();
    for key in &keys {
        let tokens: Vec<_> = (0..200).map(|number| key.sign(&claims(&format!("lobby-{number}"), "service"))).collect();
        let begin = Instant::now();
        assert!(tokens.iter().all(|token| verifier.token(token).is_ok()));
        let first = begin.elapsed() / 200;
        let begin = Instant::now();
        for _ in 0..50 {
            assert!(tokens.iter().all(|token| verifier.token(token).is_ok()));
        }
        println!(
            "{:?}: {first:?} for a new token of {} bytes, {:?} again",
            key.algorithm,
            tokens[0].len(),
            begin.elapsed() / 10_000
        );
    }
}
