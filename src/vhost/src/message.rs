//! The words of vhost-user: requests, their headers and their payloads, in the host's byte order.

/// What the monitor asks for ("Front-end message types").
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Request {
    GetFeatures = 1,
    SetFeatures = 2,
    SetOwner = 3,
    SetMemTable = 5,
    SetVringNum = 8,
    SetVringAddr = 9,
    SetVringBase = 10,
    GetVringBase = 11,
    SetVringKick = 12,
    SetVringCall = 13,
    SetVringErr = 14,
    GetProtocolFeatures = 15,
    SetProtocolFeatures = 16,
    GetQueueNum = 17,
    SetVringEnable = 18,
    GetConfig = 24,
}

impl Request {
    /// As the protocol's specification calls it.
    pub fn name(self) -> &'static str {
        match self {
            Request::GetFeatures => "GET_FEATURES",
            Request::SetFeatures => "SET_FEATURES",
            Request::SetOwner => "SET_OWNER",
            Request::SetMemTable => "SET_MEM_TABLE",
            Request::SetVringNum => "SET_VRING_NUM",
            Request::SetVringAddr => "SET_VRING_ADDR",
            Request::SetVringBase => "SET_VRING_BASE",
            Request::GetVringBase => "GET_VRING_BASE",
            Request::SetVringKick => "SET_VRING_KICK",
            Request::SetVringCall => "SET_VRING_CALL",
            Request::SetVringErr => "SET_VRING_ERR",
            Request::GetProtocolFeatures => "GET_PROTOCOL_FEATURES",
            Request::SetProtocolFeatures => "SET_PROTOCOL_FEATURES",
            Request::GetQueueNum => "GET_QUEUE_NUM",
            Request::SetVringEnable => "SET_VRING_ENABLE",
            Request::GetConfig => "GET_CONFIG",
        }
    }
}

/// A feature beside those of virtio: there are protocol features.
pub const FEATURE_PROTOCOL: u64 = 1 << 30;

/// Several queues, and a question for how many.
pub const PROTOCOL_MQ: u64 = 1;
/// Any request can be acknowledged.
pub const PROTOCOL_REPLY_ACK: u64 = 1 << 3;
/// The configuration space is the other side's.
pub const PROTOCOL_CONFIG: u64 = 1 << 9;

/// Bytes of a header.
pub const HEADER: usize = 12;
/// Bytes of the longest payload that either side sends here.
pub const MAX_PAYLOAD: usize = 512;

const VERSION: u32 = 1;
const VERSION_MASK: u32 = 3;
const FLAG_REPLY: u32 = 1 << 2;
const FLAG_NEED_REPLY: u32 = 1 << 3;

/// What comes before each payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub request: u32,
    pub flags: u32,
    pub size: u32,
}

impl Header {
    /// Of a request with `size` bytes of payload.
    pub fn request(request: Request, size: usize, acknowledge: bool) -> Self {
        let flags = if acknowledge { FLAG_NEED_REPLY } else { 0 };
        Self {
            request: request as u32,
            flags: VERSION | flags,
            size: size as u32,
        }
    }

    /// Whether it is a reply to `request`.
    pub fn answers(&self, request: Request) -> bool {
        self.request == request as u32
            && self.flags & VERSION_MASK == VERSION
            && self.flags & FLAG_REPLY != 0
    }

    pub fn from_bytes(bytes: [u8; HEADER]) -> Self {
        let word = |at: usize| u32::from_ne_bytes([0, 1, 2, 3].map(|byte| bytes[at + byte]));
        Self {
            request: word(0),
            flags: word(4),
            size: word(8),
        }
    }

    pub fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[..4].copy_from_slice(&self.request.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[8..].copy_from_slice(&self.size.to_ne_bytes());
        bytes
    }
}

/// A payload of words.
pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

/// A payload of double words.
pub fn doubles(doubles: &[u64]) -> Vec<u8> {
    doubles.iter().flat_map(|word| word.to_ne_bytes()).collect()
}
