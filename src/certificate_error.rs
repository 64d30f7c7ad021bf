//! Describes failed TLS handshakes: which certificate was refused, why, and what to change.

use std::io;
use tokio_rustls::rustls::{AlertDescription, CertificateError, Error};

/// Describes a handshake that failed on the client that connected to `host`.
pub fn client_handshake_error(error: &io::Error, host: &str) -> String {
    match rustls_error(error) {
        Some(Error::InvalidCertificate(problem)) => describe_server_certificate(problem, host),
        Some(Error::AlertReceived(AlertDescription::CertificateRequired | AlertDescription::HandshakeFailure)) => {
            "the server refused the handshake (it may require a client certificate)".to_owned()
        }
        Some(Error::InvalidMessage(_)) => "the server does not use TLS on this port (connect with http://)".to_owned(),
        _ => error.to_string(),
    }
}

/// Describes a handshake that failed on the server.
pub fn server_handshake_error(error: &io::Error) -> String {
    match rustls_error(error) {
        Some(Error::InvalidCertificate(problem)) => describe_certificate(
            problem,
            "client",
            "a CA that is not in client_ca (add the CA certificate to client_ca)",
        ),
        Some(Error::NoCertificatesPresented) => "the client sent no certificate, but one is required".to_owned(),
        Some(Error::AlertReceived(AlertDescription::UnknownCA)) => {
            "the client does not trust the CA that issued the server certificate".to_owned()
        }
        Some(Error::AlertReceived(AlertDescription::CertificateExpired)) => {
            "the client refused the server certificate because it has expired".to_owned()
        }
        Some(Error::AlertReceived(AlertDescription::BadCertificate | AlertDescription::CertificateUnknown)) => {
            "the client refused the server certificate (is it valid for the server's name, and not a CA certificate?)"
                .to_owned()
        }
        _ => error.to_string(),
    }
}

fn rustls_error(error: &io::Error) -> Option<&Error> {
    error.get_ref()?.downcast_ref()
}

fn describe_server_certificate(problem: &CertificateError, host: &str) -> String {
    #[allow(clippy::wildcard_enum_match_arm, reason = "the library may add kinds")]
    let names = match problem {
        CertificateError::NotValidForNameContext { presented, .. } if !presented.is_empty() => presented.join(", "),
        CertificateError::NotValidForNameContext { .. } | CertificateError::NotValidForName => "other names".to_owned(),
        _ => {
            let unknown_issuer =
                "a CA that this client does not trust (pass the CA certificate with --ca or the option `ca`)";
            return describe_certificate(problem, "server", unknown_issuer);
        }
    };
    format!(
        "the server certificate is not valid for {host}, but for {names} (connect to a name of the certificate, or create \
         one with the subject alternative name {host})"
    )
}

/// Describes an invalid certificate. `owner` is `server` or `client`.
fn describe_certificate(problem: &CertificateError, owner: &str, unknown_issuer: &str) -> String {
    #[allow(clippy::wildcard_enum_match_arm, reason = "the library may add kinds")]
    match problem {
        CertificateError::ExpiredContext { not_after, .. } => {
            format!("the {owner} certificate has expired at Unix time {} (renew it)", not_after.as_secs())
        }
        CertificateError::Expired => format!("the {owner} certificate has expired (renew it)"),
        CertificateError::NotValidYetContext { .. } | CertificateError::NotValidYet => {
            format!("the {owner} certificate is not valid yet (check the clock of this machine)")
        }
        // A CA with the same name but another key gives a bad signature, for example one that was created again.
        CertificateError::UnknownIssuer | CertificateError::BadSignature => {
            format!("the {owner} certificate was issued by {unknown_issuer}")
        }
        CertificateError::InvalidPurposeContext { .. } | CertificateError::InvalidPurpose => {
            format!("the {owner} certificate lacks the extended key usage {owner}Auth (create one that has it)")
        }
        CertificateError::Other(other) if other.to_string() == CA_USED_AS_END_ENTITY => format!(
            "the {owner} certificate is a CA certificate, as `openssl req -x509` creates by default (create a {owner} \
             certificate that is not a CA: basicConstraints=CA:FALSE)"
        ),
        _ => format!("the {owner} certificate is not valid: {problem}"),
    }
}

/// The text of webpki's error for a CA certificate that a server or client presents as its own. rustls has no variant
/// for it.
const CA_USED_AS_END_ENTITY: &str = "CaUsedAsEndEntity";
