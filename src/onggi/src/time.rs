//! Points in time as people and scripts read them: RFC 3339, and how long ago, in Docker's words.

use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Seconds since 1970, UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(i64);

impl Moment {
    /// This moment.
    pub fn now() -> Moment {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        Moment(since.map_or(0, |since| {
            i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
        }))
    }

    /// Reads `2026-11-25T17:09:56.123Z`, or with an offset such as `+01:00` in place of the `Z`.
    /// Fractions of a second are dropped.
    pub fn parse(text: &str) -> Option<Moment> {
        let (date, clock) = text.split_once(['T', 't', ' '])?;
        let [year, month, day] = numbers(date, '-')?;
        let zone = clock.find(['Z', 'z', '+', '-'])?;
        let (clock, zone) = clock.split_at(zone);
        let clock = clock.split_once('.').map_or(clock, |(whole, _)| whole);
        let [hour, minute, second] = numbers(clock, ':')?;
        let offset = match zone {
            "Z" | "z" => 0,
            zone => {
                let [hours, minutes] = numbers(&zone[1..], ':')?;
                let offset = hours * 3600 + minutes * 60;
                if zone.starts_with('-') {
                    -offset
                } else {
                    offset
                }
            }
        };
        let valid = (1..=12).contains(&month)
            && (1..=31).contains(&day)
            && (0..=9999).contains(&year)
            && hour < 24
            && minute < 60
            && second <= 60;
        valid.then(|| {
            let seconds = hour * 3600 + minute * 60 + second;
            Moment(days(year, month, day) * 86400 + seconds - offset)
        })
    }

    /// `2026-11-25 17:09:56 +0000 UTC`, as Docker shows it in UTC.
    pub fn long(self) -> String {
        let (year, month, day) = date(self.0.div_euclid(86400));
        let second = self.0.rem_euclid(86400);
        let mut text = format!("{year:04}-{month:02}-{day:02} ");
        let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
        let _ = write!(text, "{hour:02}:{minute:02}:{second:02} +0000 UTC");
        text
    }

    /// `3 days ago`.
    pub fn ago(self, now: Moment) -> String {
        let seconds = u64::try_from(now.0.saturating_sub(self.0)).unwrap_or(0);
        format!("{} ago", duration(seconds))
    }
}

/// A number of seconds as Docker says it, which rounds more the longer it is.
pub fn duration(seconds: u64) -> String {
    let hours = (seconds + HOUR / 2) / HOUR;
    match seconds {
        0 => "Less than a second".to_owned(),
        1 => "1 second".to_owned(),
        s if s < MINUTE => format!("{s} seconds"),
        s if s < 2 * MINUTE => "About a minute".to_owned(),
        s if s < HOUR => format!("{} minutes", s / MINUTE),
        _ if hours == 1 => "About an hour".to_owned(),
        _ if hours < 48 => format!("{hours} hours"),
        _ if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        _ if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        _ if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        s => format!("{} years", s / DAY / 365),
    }
}

fn numbers<const N: usize>(text: &str, separator: char) -> Option<[i64; N]> {
    let mut numbers = [0; N];
    let mut parts = text.split(separator);
    for number in &mut numbers {
        let part = parts.next().filter(|part| (1..=4).contains(&part.len()))?;
        let digits = part.bytes().all(|byte| byte.is_ascii_digit());
        *number = digits.then(|| part.parse().ok()).flatten()?;
    }
    parts.next().is_none().then_some(numbers)
}

/// Days from 1970 to a date of the Gregorian calendar. Years begin in March here, so that the day
/// that comes every four years is a year's last.
fn days(year: i64, month: i64, day: i64) -> i64 {
    let year = if month <= 2 { year - 1 } else { year };
    let since_march = (month + 9) % 12;
    let day_of_year = (153 * since_march + 2) / 5 + day - 1;
    year * 365 + year.div_euclid(4) - year.div_euclid(100) + year.div_euclid(400) + day_of_year
        - 719_468
}

/// The date that many days after 1970.
fn date(days_since: i64) -> (i64, i64, i64) {
    // The year by its mean length, which is off by one at most.
    let mut year = 1970 + days_since.div_euclid(365);
    while days(year, 1, 1) > days_since {
        year -= 1;
    }
    let mut month = 12;
    while days(year, month, 1) > days_since {
        month -= 1;
    }
    (year, month, days_since - days(year, month, 1) + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_and_shown() {
        for (text, seconds, long) in [
            ("1970-01-01T00:00:00Z", 0, "1970-01-01 00:00:00 +0000 UTC"),
            (
                "2024-02-29T12:30:59.999999999Z",
                1_709_209_859,
                "2024-02-29 12:30:59 +0000 UTC",
            ),
            (
                "2026-01-01T00:30:00+01:00",
                1_767_223_800,
                "2025-12-31 23:30:00 +0000 UTC",
            ),
            (
                "2000-03-01T00:00:00-00:30",
                951_870_600,
                "2000-03-01 00:30:00 +0000 UTC",
            ),
        ] {
            let moment = Moment::parse(text).unwrap();
            assert_eq!(moment, Moment(seconds), "{text}");
            assert_eq!(moment.long(), long);
        }
        for bad in [
            "",
            "2024",
            "2024-13-01T00:00:00Z",
            "2024-01-01T24:00:00Z",
            "2024-01-01T00:00:00",
            "2024-01-01T00:00Z",
            "+024-01-01T00:00:00Z",
            "2024-01-01T00:00:00+é:00",
        ] {
            assert_eq!(Moment::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn durations() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (119, "About a minute"),
            (3599, "59 minutes"),
            (5000, "About an hour"),
            (47 * HOUR, "47 hours"),
            (13 * DAY, "13 days"),
            (30 * DAY, "4 weeks"),
            (100 * DAY, "3 months"),
            (800 * DAY, "2 years"),
        ] {
            assert_eq!(duration(seconds), text);
        }
        assert_eq!(Moment(0).ago(Moment(120)), "2 minutes ago");
        assert_eq!(Moment(9).ago(Moment(0)), "Less than a second ago");
    }
}
