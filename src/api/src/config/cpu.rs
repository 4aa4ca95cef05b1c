//! How the guest's CPUs differ from the host's.

use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserializer};
use serde::{Deserialize, Serialize, Serializer};

/// `cpu-config`, on x86_64.
#[derive(Debug, Default, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CpuConfig {
    /// What KVM has to be able to do, or needn't.
    pub kvm_capabilities: Vec<KvmCapability>,
    /// Changes to CPUID leaves.
    pub cpuid_modifiers: Vec<CpuidModifier>,
    /// Changes to model-specific registers.
    pub msr_modifiers: Vec<MsrModifier>,
}

/// The number of a capability, with a `!` where it is not to be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum KvmCapability {
    /// Without it there is to be no VM.
    Needed(u32),
    /// It is not missed.
    NotNeeded(u32),
}

/// A leaf, and what changes of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuidModifier {
    /// EAX
    pub leaf: Hex,
    /// ECX
    pub subleaf: Hex,
    /// KVM's flags of the entry, which follow from the leaf.
    pub flags: u32,
    /// What changes.
    pub modifiers: Vec<CpuidRegisterModifier>,
}

/// What changes of a register.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CpuidRegisterModifier {
    /// Which one.
    pub register: CpuidRegister,
    /// What it becomes.
    pub bitmap: Bitmap<32>,
}

/// A register of a leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs)] // They are what they are called.
pub enum CpuidRegister {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// What changes of an MSR.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MsrModifier {
    /// Which one.
    pub addr: Hex,
    /// What it becomes.
    pub bitmap: Bitmap<64>,
}

/// A number, written as `"0x1f"`, `"0b1"` or `"31"`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hex(pub u32);

/// Up to `WIDTH` bits, written as `"0b1x0"`, the highest first: those that are `x`, or left out at
/// the front, stay as they are. `_` may stand between any.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bitmap<const WIDTH: usize> {
    /// Which bits are given.
    pub filter: u64,
    /// What these are.
    pub value: u64,
}

impl FromStr for KvmCapability {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let number = text.strip_prefix('!').unwrap_or(text);
        let is_number = number.bytes().all(|byte| byte.is_ascii_digit());
        let number = number.parse().ok().filter(|_| is_number);
        let number = number.ok_or("a capability is a number, or '!' and a number")?;
        Ok(match text.starts_with('!') {
            true => KvmCapability::NotNeeded(number),
            false => KvmCapability::Needed(number),
        })
    }
}

impl fmt::Display for KvmCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            KvmCapability::Needed(number) => write!(f, "{number}"),
            KvmCapability::NotNeeded(number) => write!(f, "!{number}"),
        }
    }
}

impl FromStr for Hex {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (digits, radix) = match (text.strip_prefix("0x"), text.strip_prefix("0b")) {
            (Some(digits), _) => (digits, 16),
            (_, Some(digits)) => (digits, 2),
            _ => (text, 10),
        };
        let signed = digits.starts_with(['+', '-']);
        let number = u32::from_str_radix(digits, radix).ok().filter(|_| !signed);
        number.map(Hex).ok_or("not a number of 32 bits as '0x1f'")
    }
}

impl fmt::Display for Hex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl<const WIDTH: usize> FromStr for Bitmap<WIDTH> {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bits = text.strip_prefix("0b").unwrap_or(text);
        let bits: Vec<char> = bits.chars().filter(|bit| *bit != '_').collect();
        if bits.is_empty() || bits.len() > WIDTH {
            return Err("a bitmap has at least one bit, and no more than its register");
        }
        let mut bitmap = Bitmap {
            filter: 0,
            value: 0,
        };
        for bit in bits {
            let (given, value) = match bit {
                '0' => (1, 0),
                '1' => (1, 1),
                'x' => (0, 0),
                _ => return Err("the bits of a bitmap are '0', '1' and 'x'"),
            };
            bitmap.filter = bitmap.filter << 1 | given;
            bitmap.value = bitmap.value << 1 | value;
        }
        Ok(bitmap)
    }
}

impl<const WIDTH: usize> fmt::Display for Bitmap<WIDTH> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("0b")?;
        (0..WIDTH).rev().try_for_each(|place| {
            let bit = |of: u64| of >> place & 1;
            f.write_str(match (bit(self.filter), bit(self.value)) {
                (0, _) => "x",
                (_, 0) => "0",
                _ => "1",
            })
        })
    }
}

/// Has a type read from and written to JSON as its text.
macro_rules! as_text {
    ([$($generics:tt)*] $name:ty) => {
        impl<'de, $($generics)*> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
                let text = String::deserialize(from)?;
                let wrong = |error| de::Error::custom(format_args!("'{text}': {error}"));
                text.parse().map_err(wrong)
            }
        }

        impl<$($generics)*> Serialize for $name {
            fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
                to.collect_str(self)
            }
        }
    };
}

as_text!([] KvmCapability);
as_text!([] Hex);
as_text!([const WIDTH: usize] Bitmap<WIDTH>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_is_read_and_written() {
        let json = r#"{"kvm_capabilities":["56","!7"],"cpuid_modifiers":[{"leaf":"0x7",
            "subleaf":"0x0","flags":1,"modifiers":[{"register":"ebx","bitmap":"0bx1_0"}]}],
            "msr_modifiers":[{"addr":"0x10a","bitmap":"0b1xxx"}]}"#;
        let config: CpuConfig = serde_json::from_str(json).unwrap();
        let needed = [KvmCapability::Needed(56), KvmCapability::NotNeeded(7)];
        assert_eq!(config.kvm_capabilities, needed);
        let bitmap = config.cpuid_modifiers[0].modifiers[0].bitmap;
        assert_eq!((bitmap.filter, bitmap.value), (0b11, 0b10));
        assert_eq!(config.msr_modifiers[0].bitmap.filter, 0b1000);
        let written = serde_json::to_string(&config).unwrap();
        assert_eq!(serde_json::from_str::<CpuConfig>(&written).unwrap(), config);
        assert!(
            written.contains(&format!("0b{}10", "x".repeat(30))),
            "{written}"
        );
        assert_eq!(
            serde_json::from_str::<CpuConfig>("{}").unwrap(),
            CpuConfig::default()
        );
    }

    #[test]
    fn what_is_no_template() {
        for text in ["", "!", "-1", "x", "4294967296"] {
            assert!(text.parse::<KvmCapability>().is_err(), "{text}");
        }
        for text in ["", "0x", "0x100000000", "-1", "0x+1", "0b2"] {
            assert!(text.parse::<Hex>().is_err(), "{text}");
        }
        for text in ["", "0b", "0b2", "0b_", &"1".repeat(33)] {
            assert!(text.parse::<Bitmap<32>>().is_err(), "{text}");
        }
        assert!("1".repeat(64).parse::<Bitmap<64>>().is_ok());
        let unknown = serde_json::from_str::<CpuConfig>(r#"{"reg_modifiers":[]}"#);
        assert!(unknown.is_err());
    }
}
