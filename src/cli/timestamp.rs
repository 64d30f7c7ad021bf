//! Times in arguments and output: UTC, as in RFC 3339.

use std::num::NonZeroU8;
use time::OffsetDateTime;
use time::format_description::well_known::iso8601::{Config, EncodedConfig, TimePrecision};
use time::format_description::well_known::{Iso8601, Rfc3339};

const NANOSECONDS_PER_MS: i128 = 1_000_000;
/// Three decimal places, so that times of a list are aligned.
const MILLISECONDS: EncodedConfig =
    Config::DEFAULT.set_time_precision(TimePrecision::Second { decimal_digits: NonZeroU8::new(3) }).encode();

/// Formats a time in milliseconds since the Unix epoch, such as `2026-07-01T12:00:00.000Z`.
pub fn format_utc(unix_ms: u64) -> String {
    let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(unix_ms) * NANOSECONDS_PER_MS);
    let text = time.ok().and_then(|time| time.format(&Iso8601::<MILLISECONDS>).ok());
    // After the year 9999.
    text.unwrap_or_else(|| format!("{unix_ms} ms since the Unix epoch"))
}

/// Parses an RFC 3339 timestamp, and returns it in milliseconds since the Unix epoch.
pub fn parse_rfc3339(text: &str) -> Result<u64, String> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok();
    let unix_ms = time.map(|time| time.unix_timestamp_nanos().div_euclid(NANOSECONDS_PER_MS));
    let unix_ms = unix_ms.and_then(|unix_ms| u64::try_from(unix_ms).ok());
    unix_ms.ok_or_else(|| "must be an RFC 3339 timestamp after 1970, such as 2026-07-01T12:00:00Z".to_owned())
}

/// Parses an RFC 3339 timestamp, or a number of milliseconds since the Unix epoch.
pub fn parse_time(text: &str) -> Result<u64, String> {
    let error = || "must be an RFC 3339 timestamp, such as 2026-07-01T12:00:00Z, or milliseconds since the Unix epoch";
    text.parse().or_else(|_| parse_rfc3339(text)).map_err(|_| error().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_parsed_as_it_is_written() {
        for unix_ms in [0, 1, 1_782_907_200_123] {
            assert_eq!(parse_rfc3339(&format_utc(unix_ms)), Ok(unix_ms));
        }
        assert_eq!(format_utc(1_782_907_200_000), "2026-07-01T12:00:00.000Z");
        assert_eq!(format_utc(u64::MAX), "18446744073709551615 ms since the Unix epoch");
    }

    #[test]
    fn a_time_may_have_an_offset_or_be_a_number() {
        assert_eq!(parse_time("2026-07-01T14:00:00+02:00"), Ok(1_782_907_200_000));
        assert_eq!(parse_time("1782907200000"), Ok(1_782_907_200_000));
        for text in ["", "yesterday", "2026-07-01", "1969-12-31T23:59:59Z"] {
            assert!(parse_time(text).is_err() && parse_rfc3339(text).is_err(), "{text}");
        }
        assert!(parse_rfc3339("1782907200000").is_err());
    }
}
