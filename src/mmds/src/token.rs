//! Session tokens: a time of expiry and a code that proves that it was given here.
//!
//! Nothing is kept of a token, so that a guest may have as many as it likes. The key is made anew
//! with each service and never leaves it: a token is worth nothing to another VM.

use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::hmac;
use ring::rand::SystemRandom;

/// How many seconds a token may live.
pub(crate) const LIFETIMES: RangeInclusive<u32> = 1..=21600;

/// Bytes of the time of expiry.
const TIME: usize = 8;

/// Who gives tokens, and knows them again.
#[derive(Debug)]
pub(crate) struct Tokens {
    key: hmac::Key,
    /// Times are counted from then, and need not be meaningful to anybody else.
    start: Instant,
}

impl Tokens {
    /// `None` where the system has no random numbers.
    pub(crate) fn new(now: Instant) -> Option<Self> {
        let key = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()).ok()?;
        Some(Self { key, start: now })
    }

    /// A token that is good for so many seconds, one of [`LIFETIMES`].
    pub(crate) fn issue(&self, seconds: u32, now: Instant) -> String {
        let lifetime = Duration::from_secs(u64::from(seconds));
        let mut token = self.milliseconds(now + lifetime).to_be_bytes().to_vec();
        let code = hmac::sign(&self.key, &token);
        token.extend(code.as_ref());
        URL_SAFE_NO_PAD.encode(token)
    }

    /// Whether it was given here and has not expired.
    pub(crate) fn is_valid(&self, token: &str, now: Instant) -> bool {
        let Ok(bytes) = URL_SAFE_NO_PAD.decode(token) else {
            return false;
        };
        let Some((time, code)) = bytes.split_first_chunk::<TIME>() else {
            return false;
        };
        hmac::verify(&self.key, time, code).is_ok()
            && self.milliseconds(now) < u64::from_be_bytes(*time)
    }

    fn milliseconds(&self, at: Instant) -> u64 {
        // A VM does not run for as long as would be cut off.
        at.duration_since(self.start).as_millis() as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_live_as_long_as_they_should() {
        let start = Instant::now();
        let tokens = Tokens::new(start).unwrap();
        let later = |seconds| start + Duration::from_millis(seconds);
        let token = tokens.issue(2, later(500));
        assert!(tokens.is_valid(&token, later(500)));
        assert!(tokens.is_valid(&token, later(2499)));
        assert!(!tokens.is_valid(&token, later(2500)));
        assert!(!tokens.is_valid(&token, later(1 << 40)));
        let longest = tokens.issue(*LIFETIMES.end(), start);
        assert!(tokens.is_valid(&longest, later(21_599_999)));
        assert!(!tokens.is_valid(&longest, later(21_600_000)));
    }

    #[test]
    fn nobody_else_can_make_one() {
        let now = Instant::now();
        let [ours, other] = [Tokens::new(now).unwrap(), Tokens::new(now).unwrap()];
        let token = ours.issue(60, now);
        assert!(ours.is_valid(&token, now) && !other.is_valid(&token, now));
        let bytes = URL_SAFE_NO_PAD.decode(&token).unwrap();
        for bit in 0..8 * bytes.len() {
            let mut forged = bytes.clone();
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(!ours.is_valid(&URL_SAFE_NO_PAD.encode(forged), now));
        }
        for len in 0..bytes.len() {
            assert!(!ours.is_valid(&URL_SAFE_NO_PAD.encode(&bytes[..len]), now));
        }
        for text in ["", "foo", "한", &format!("{token}A"), &format!(" {token}")] {
            assert!(!ours.is_valid(text, now));
        }
    }
}
