//! The balloon as a flag describes it.

use std::str::FromStr;

use super::MemorySize;

/// Why a text describes no balloon.
#[derive(Debug, thiserror::Error)]
#[error("a balloon is SIZE[,deflate-on-oom][,reporting], its size 0 or whole MiB such as 64m")]
pub struct BalloonSpecError;

/// A balloon: how large it is at first, and what the guest does by itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BalloonSpec {
    pub target_mib: u32,
    pub deflate_on_oom: bool,
    pub reporting: bool,
}

impl FromStr for BalloonSpec {
    type Err = BalloonSpecError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut parts = text.split(',');
        let mut balloon = Self {
            target_mib: mib(parts.next().unwrap_or_default())?,
            deflate_on_oom: false,
            reporting: false,
        };
        for part in parts {
            let option = match part {
                "deflate-on-oom" => &mut balloon.deflate_on_oom,
                "reporting" => &mut balloon.reporting,
                _ => return Err(BalloonSpecError),
            };
            if std::mem::replace(option, true) {
                return Err(BalloonSpecError);
            }
        }
        Ok(balloon)
    }
}

fn mib(text: &str) -> Result<u32, BalloonSpecError> {
    if text == "0" {
        return Ok(0);
    }
    let MemorySize(bytes) = text.parse().map_err(|_| BalloonSpecError)?;
    match u32::try_from(bytes >> 20) {
        Ok(mib) if bytes.is_multiple_of(1 << 20) => Ok(mib),
        _ => Err(BalloonSpecError),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn balloons() {
        let balloon = |target_mib, deflate_on_oom, reporting| BalloonSpec {
            target_mib,
            deflate_on_oom,
            reporting,
        };
        for (text, expected) in [
            ("0", balloon(0, false, false)),
            ("64m", balloon(64, false, false)),
            ("1.5g,reporting", balloon(1536, false, true)),
            ("0,deflate-on-oom,reporting", balloon(0, true, true)),
        ] {
            assert_eq!(text.parse::<BalloonSpec>().unwrap(), expected, "{text}");
        }
        for text in [
            "",
            "64",
            "1.0001m",
            "9999999t",
            "0,",
            "0,hinting",
            "0,reporting,reporting",
            "reporting",
        ] {
            assert!(text.parse::<BalloonSpec>().is_err(), "{text}");
        }
    }
}
