//! Firecracker's rate limiters: token buckets.

use serde::{Deserialize, Serialize, Serializer};

/// `rate_limiter`, `rx_rate_limiter` and `tx_rate_limiter`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimiter {
    /// A token for each byte.
    pub bandwidth: Option<TokenBucket>,
    /// A token for each request or frame.
    pub ops: Option<TokenBucket>,
}

/// A bucket that fills up steadily. Without a size or a time it is no limit.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TokenBucket {
    /// Tokens that fit in.
    pub size: u64,
    /// Tokens that there are besides at first, and never again.
    #[serde(default, deserialize_with = "null_is_default")]
    pub one_time_burst: u64,
    /// Milliseconds in which an empty bucket fills up.
    pub refill_time: u64,
}

/// No limit is said as `null`, and not as an object without buckets: clients take it for that.
pub(crate) fn null_if_unlimited<S: Serializer>(
    limits: &RateLimiter,
    to: S,
) -> Result<S::Ok, S::Error> {
    limits.given().serialize(to)
}

impl RateLimiter {
    /// The limits, where there is one.
    pub(crate) fn given(self) -> Option<Self> {
        (self != Self::default()).then_some(self)
    }
}

/// `null` is as good as leaving a field out.
pub(crate) fn null_is_default<'de, T, D>(from: D) -> Result<T, D::Error>
where
    T: Deserialize<'de> + Default,
    D: serde::Deserializer<'de>,
{
    Ok(Option::deserialize(from)?.unwrap_or_default())
}
