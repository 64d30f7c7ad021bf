//! Describes failed TLS handshakes: which certificate is invalid, why, and what to change.

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

/// Returns the UTC date of a time in seconds since Unix epoch, as RFC 3339 writes it: `2026-01-31`.
pub fn utc_date(unix_s: i64) -> String {
    // Howard Hinnant's `civil_from_days`: a year starts in March, so that a leap day is the last day of its year.
    let days = unix_s.div_euclid(86_400) + 719_468;
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + i64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02}")
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
            format!("the {owner} certificate expired on {} (renew it)", utc_date(not_after.as_secs() as i64))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_its_date_in_utc() {
        for (unix_s, date) in [
            (0, "1970-01-01"),
            (-1, "1969-12-31"),
            (951_782_400, "2000-02-29"),
            (951_868_800, "2000-03-01"),
            (1_767_225_599, "2025-12-31"),
            (4_107_542_400, "2100-03-01"),
        ] {
            assert_eq!(utc_date(unix_s), date, "{unix_s}");
        }
    }
}
