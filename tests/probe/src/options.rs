//! The kernel command line as options.

/// Words of the form `key` or `key=value`.
#[derive(Clone, Copy)]
pub struct Options(&'static str);

impl Options {
    pub fn new(command_line: &'static str) -> Self {
        Options(command_line)
    }

    /// Whether the word `key` stands alone.
    pub fn flag(&self, key: &str) -> bool {
        self.0.split_ascii_whitespace().any(|word| word == key)
    }

    /// The value of `key`.
    pub fn text(&self, key: &str) -> Option<&'static str> {
        self.values(key).next()
    }

    /// The parts of the value of `key`, between commas.
    pub fn list(&self, key: &str) -> impl Iterator<Item = &'static str> + use<> {
        self.text(key)
            .unwrap_or("")
            .split(',')
            .filter(|part| !part.is_empty())
    }

    /// The value of `key` as a number, decimal or hexadecimal with `0x`.
    pub fn number(&self, key: &str) -> Option<u64> {
        number(self.text(key)?)
    }

    /// All values of `key`, in order.
    fn values(&self, key: &str) -> impl Iterator<Item = &'static str> {
        self.0
            .split_ascii_whitespace()
            .filter_map(|word| word.split_once('='))
            .filter(move |(name, _)| *name == key)
            .map(|(_, value)| value)
    }

    /// Candidates for virtio-mmio devices: `virtio=BASE+STRIDE*COUNT`, and Linux's
    /// `virtio_mmio.device=SIZE@BASE:IRQ`.
    pub fn virtio_addresses(&self) -> impl Iterator<Item = u64> + use<> {
        let ranges = self.text("virtio").and_then(|text| {
            let (base, rest) = text.split_once('+')?;
            let (stride, count) = rest.split_once('*')?;
            Some((number(base)?, number(stride)?, number(count)?))
        });
        let listed = self.0.split_ascii_whitespace().filter_map(|word| {
            let place = word.strip_prefix("virtio_mmio.device=")?;
            number(place.split_once('@')?.1.split_once(':')?.0)
        });
        ranges
            .into_iter()
            .flat_map(|(base, stride, count)| (0..count).map(move |n| base + n * stride))
            .chain(listed)
    }
}

fn number(text: &str) -> Option<u64> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}
