//! Packet headers (VIRTIO 1.2 §5.10.6).

/// The host's CID. The only one that a guest reaches through the device.
pub const HOST_CID: u64 = 2;
/// Bytes of a header; the payload follows at once.
pub const HEADER_LEN: usize = 44;
/// Type of a stream socket's packets.
pub const TYPE_STREAM: u16 = 1;
/// `VIRTIO_VSOCK_OP_SHUTDOWN`: the sender will receive no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// `VIRTIO_VSOCK_OP_SHUTDOWN`: the sender will send no more.
pub const SHUTDOWN_SEND: u32 = 2;
/// Both: the connection is over once the other side answers with a reset.
pub const SHUTDOWN_BOTH: u32 = SHUTDOWN_RECEIVE | SHUTDOWN_SEND;

/// What a packet does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub enum Op {
    /// Asks for a connection.
    Request = 1,
    /// Grants it.
    Response = 2,
    /// Refuses or ends a connection.
    Reset = 3,
    /// Closes one direction or both.
    Shutdown = 4,
    /// Carries payload.
    Rw = 5,
    /// Says how much payload the sender can take.
    CreditUpdate = 6,
    /// Asks the other side to say so.
    CreditRequest = 7,
}

impl Op {
    /// The operation of that number, if it is one.
    pub fn from_raw(raw: u16) -> Option<Self> {
        Some(match raw {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Rw,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }
}

/// A packet's header, by value. Whatever a guest writes there can be held; nothing is checked yet.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Header {
    /// The sender's CID.
    pub src_cid: u64,
    /// The receiver's CID.
    pub dst_cid: u64,
    /// The sender's port.
    pub src_port: u32,
    /// The receiver's port.
    pub dst_port: u32,
    /// Bytes of payload after the header.
    pub len: u32,
    /// Type of the socket, [`TYPE_STREAM`].
    pub kind: u16,
    /// An [`Op`].
    pub op: u16,
    /// The `SHUTDOWN_*` flags of [`Op::Shutdown`].
    pub flags: u32,
    /// How many bytes of payload the sender buffers for this connection.
    pub buf_alloc: u32,
    /// How many bytes of payload the sender has taken out of that buffer so far, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// Takes a header apart.
    pub fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Self {
        let mut fields = Fields(bytes);
        Self {
            src_cid: u64::from_le_bytes(fields.take()),
            dst_cid: u64::from_le_bytes(fields.take()),
            src_port: u32::from_le_bytes(fields.take()),
            dst_port: u32::from_le_bytes(fields.take()),
            len: u32::from_le_bytes(fields.take()),
            kind: u16::from_le_bytes(fields.take()),
            op: u16::from_le_bytes(fields.take()),
            flags: u32::from_le_bytes(fields.take()),
            buf_alloc: u32::from_le_bytes(fields.take()),
            fwd_cnt: u32::from_le_bytes(fields.take()),
        }
    }

    /// As it lies in guest memory.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The packet that tells its sender that there is no such connection.
    pub fn reset(&self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: Op::Reset as u16,
            ..Self::default()
        }
    }
}

/// What is left of a header's bytes.
struct Fields<'b>(&'b [u8]);

impl Fields<'_> {
    /// The next field; zeros past the end.
    fn take<const N: usize>(&mut self) -> [u8; N] {
        match self.0.split_first_chunk() {
            Some((field, rest)) => {
                self.0 = rest;
                *field
            }
            None => [0; N],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_lie_where_the_specification_puts_them() {
        let bytes: [u8; HEADER_LEN] = std::array::from_fn(|at| at as u8);
        let header = Header::from_bytes(&bytes);
        assert_eq!(header.src_cid, 0x0706_0504_0302_0100);
        assert_eq!(header.dst_cid, 0x0f0e_0d0c_0b0a_0908);
        assert_eq!(header.src_port, 0x1312_1110);
        assert_eq!(header.dst_port, 0x1716_1514);
        assert_eq!(header.len, 0x1b1a_1918);
        assert_eq!(header.kind, 0x1d1c);
        assert_eq!(header.op, 0x1f1e);
        assert_eq!(header.flags, 0x2322_2120);
        assert_eq!(header.buf_alloc, 0x2726_2524);
        assert_eq!(header.fwd_cnt, 0x2b2a_2928);
        assert_eq!(header.to_bytes(), bytes);
    }

    #[test]
    fn only_seven_operations_exist() {
        let known: Vec<u16> = (0..=u16::MAX)
            .filter(|&raw| Op::from_raw(raw).is_some())
            .collect();
        assert_eq!(known, [1, 2, 3, 4, 5, 6, 7]);
        for raw in known {
            assert_eq!(Op::from_raw(raw).map(|op| op as u16), Some(raw));
        }
    }

    #[test]
    fn a_reset_goes_back_where_the_packet_came_from() {
        let header = Header {
            src_cid: 3,
            dst_cid: 7,
            src_port: 10,
            dst_port: 20,
            len: 99,
            kind: 4,
            op: Op::Rw as u16,
            flags: 1,
            buf_alloc: 5,
            fwd_cnt: 6,
        };
        let expected = Header {
            src_cid: 7,
            dst_cid: 3,
            src_port: 20,
            dst_port: 10,
            kind: 4,
            op: 3,
            ..Header::default()
        };
        assert_eq!(header.reset(), expected);
    }
}
