//! CRC-32C (Castagnoli), as the superblock's checksum uses it: reflected, started with all ones, and
//! not inverted at the end.

/// The polynomial, reflected.
const POLYNOMIAL: u32 = 0x82f6_3b78;

/// The checksum of `data`.
pub(super) fn checksum(data: &[u8]) -> u32 {
    data.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_catalogue_check_value() {
        // CRC-32/ISCSI of "123456789" is e3069283 with the final inversion.
        assert_eq!(!super::checksum(b"123456789"), 0xe306_9283);
    }
}
