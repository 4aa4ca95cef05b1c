//! Points in time and spans of it, as Docker writes and reads them.

use std::fmt;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use chrono::{DateTime, NaiveDate, NaiveDateTime, SecondsFormat};
use serde::{Deserialize, Serialize};

/// A point in time: nanoseconds since the Unix epoch. Its text is RFC 3339 in UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Time(pub u64);

/// A text that is no time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no time: give 2026-01-31T10:00:00Z, seconds since 1970, or how long ago, as 10m")]
pub struct TimeError(String);

/// A text that is no duration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no duration, such as 500ms, 30s or 1m30s")]
pub struct DurationError(String);

impl Time {
    pub fn now() -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let nanos = since.unwrap_or_default().as_nanos();
        Self(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// How long ago that is; nothing if it is to come.
    pub fn age(self) -> Duration {
        Duration::from_nanos(Self::now().0.saturating_sub(self.0))
    }

    /// Reads what `--since` takes: RFC 3339 (the zone may be missing and is then UTC), a day, seconds
    /// since the epoch, or how long ago.
    ///
    /// # Errors
    /// It is none of these.
    pub fn parse(text: &str) -> Result<Self, TimeError> {
        let moment = |nanos: Option<i64>| nanos.and_then(|nanos| u64::try_from(nanos).ok());
        let read = || {
            if let Ok(time) = DateTime::parse_from_rfc3339(text) {
                return moment(time.timestamp_nanos_opt());
            }
            for format in ["%Y-%m-%dT%H:%M:%S%.f", "%Y-%m-%dT%H:%M"] {
                if let Ok(time) = NaiveDateTime::parse_from_str(text, format) {
                    return moment(time.and_utc().timestamp_nanos_opt());
                }
            }
            if let Ok(day) = NaiveDate::parse_from_str(text, "%Y-%m-%d") {
                return moment(
                    day.and_time(Default::default())
                        .and_utc()
                        .timestamp_nanos_opt(),
                );
            }
            if text.starts_with(|c: char| c.is_ascii_digit())
                && let Ok(seconds) = text.parse::<f64>()
            {
                return Some((seconds * 1e9) as u64);
            }
            let ago = duration(text).ok()?;
            let ago = u64::try_from(ago.as_nanos()).ok()?;
            Some(Self::now().0.saturating_sub(ago))
        };
        read().map(Self).ok_or_else(|| TimeError(text.to_owned()))
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let nanos = i64::try_from(self.0).unwrap_or(i64::MAX);
        let time = DateTime::from_timestamp_nanos(nanos);
        f.write_str(&time.to_rfc3339_opts(SecondsFormat::Nanos, true))
    }
}

impl From<Time> for String {
    fn from(time: Time) -> String {
        time.to_string()
    }
}

impl TryFrom<String> for Time {
    type Error = TimeError;

    fn try_from(text: String) -> Result<Self, TimeError> {
        Self::parse(&text)
    }
}

/// Reads a duration as Go writes them: numbers with units, of which there may be several.
///
/// # Errors
/// It is none, or has more than fits.
pub fn duration(text: &str) -> Result<Duration, DurationError> {
    let refuse = || DurationError(text.to_owned());
    if text == "0" {
        return Ok(Duration::ZERO);
    }
    let mut total = Duration::ZERO;
    let mut rest = text;
    if rest.is_empty() {
        return Err(refuse());
    }
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.');
        let (number, after) = rest.split_at(digits.ok_or_else(refuse)?);
        let letters = after.find(|c: char| c.is_ascii_digit() || c == '.');
        let (unit, after) = after.split_at(letters.unwrap_or(after.len()));
        let scale = match unit {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return Err(refuse()),
        };
        let number: f64 = number.parse().map_err(|_| refuse())?;
        let part = Duration::try_from_secs_f64(number * scale).map_err(|_| refuse())?;
        total = total.checked_add(part).ok_or_else(refuse)?;
        rest = after;
    }
    Ok(total)
}

/// A duration in about so many words as Docker's lists use.
pub fn roughly(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours) = (
        seconds / 60,
        (duration.as_secs_f64() / 3600.0).round() as u64,
    );
    match (seconds, minutes, hours) {
        (0, ..) => "Less than a second".to_owned(),
        (1, ..) => "1 second".to_owned(),
        (2..60, ..) => format!("{seconds} seconds"),
        (_, 1, _) => "About a minute".to_owned(),
        (_, 2..60, _) => format!("{minutes} minutes"),
        (_, _, 1) => "About an hour".to_owned(),
        (_, _, 2..48) => format!("{hours} hours"),
        (_, _, 48..336) => format!("{} days", hours / 24),
        (_, _, 336..1440) => format!("{} weeks", hours / 24 / 7),
        (_, _, 1440..17520) => format!("{} months", hours / 24 / 30),
        _ => format!("{} years", hours / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_read_as_it_is_written() {
        let time = Time(1_795_546_800_123_456_789);
        assert_eq!(time.to_string(), "2026-11-24T19:00:00.123456789Z");
        assert_eq!(Time::parse(&time.to_string()), Ok(time));
    }

    #[test]
    fn what_since_takes() {
        for (text, seconds) in [
            ("2026-11-24T20:00:00+01:00", 1_795_546_800.0),
            ("2026-11-24T19:00:00", 1_795_546_800.0),
            ("2026-11-24T19:00", 1_795_546_800.0),
            ("2026-11-24", 1_795_478_400.0),
            ("1795546800.5", 1_795_546_800.5),
            ("0", 0.0),
        ] {
            assert_eq!(
                Time::parse(text),
                Ok(Time((seconds * 1e9) as u64)),
                "{text}"
            );
        }
        let ago = Time::parse("1h30m").unwrap().age().as_secs();
        assert!((5400..5460).contains(&ago), "{ago}");
        for text in ["", "yesterday", "-1", "1x", "2026-13-01", "nan"] {
            assert!(Time::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations() {
        for (text, millis) in [
            ("500ms", 500),
            ("30s", 30_000),
            ("1m30s", 90_000),
            ("1.5h", 5_400_000),
            ("0", 0),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(millis)), "{text}");
        }
        for text in ["", "5", "s", "1d", "-1s", "1..2s", "99999999999999999999h"] {
            assert!(duration(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ages() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (59, "59 seconds"),
            (61, "About a minute"),
            (3500, "58 minutes"),
            (3700, "About an hour"),
            (90_000, "25 hours"),
            (3 * 86400, "3 days"),
            (30 * 86400, "4 weeks"),
            (70 * 86400, "2 months"),
            (900 * 86400, "2 years"),
        ] {
            assert_eq!(roughly(Duration::from_secs(seconds)), text);
        }
    }
}
