//! Ethernet frames, as far as the service looks at them itself: it finds those that are meant for
//! it, and answers who has its address (RFC 826).

use std::net::Ipv4Addr;

/// Bytes of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
/// So much of a frame tells whether it is for the service.
pub(crate) const HEAD: usize = ETHERNET + ARP;

/// Bytes of an ARP packet for Ethernet and IPv4.
const ARP: usize = 28;
/// Bytes of an IPv4 header without options.
const IPV4: usize = 20;
const TYPE_IPV4: [u8; 2] = [0x08, 0x00];
const TYPE_ARP: [u8; 2] = [0x08, 0x06];
/// Ethernet, IPv4, and how long their addresses are.
const ARP_KIND: [u8; 6] = [0, 1, 0x08, 0x00, 6, 4];
const ARP_REQUEST: [u8; 2] = [0, 1];
const ARP_REPLY: [u8; 2] = [0, 2];
const TCP: u8 = 6;

/// An Ethernet address.
pub(crate) type Mac = [u8; 6];

/// What a frame for the service is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Somebody asks for the service's Ethernet address, or says that it has its IP address.
    Arp,
    /// A packet.
    Ipv4,
}

/// Whether a frame is for the service, as its first [`HEAD`] bytes say. Frames with a VLAN tag are
/// for others.
pub(crate) fn kind(head: &[u8], address: Ipv4Addr) -> Option<Kind> {
    let address = address.octets();
    match part(head, 12)? {
        TYPE_IPV4 if part(head, ETHERNET + 16)? == address => Some(Kind::Ipv4),
        TYPE_ARP if part(head, ETHERNET)? == ARP_KIND && part(head, 38)? == address => {
            Some(Kind::Arp)
        }
        _ => None,
    }
}

/// The answer to an ARP frame, where it is a question.
pub(crate) fn answer_arp(frame: &[u8], own: Mac) -> Option<Vec<u8>> {
    let asks = part(frame, 20)? == ARP_REQUEST;
    let (asker, question) = (source(frame)?, frame.get(22..HEAD)?);
    let (from, target) = question.split_at(10);
    asks.then(|| {
        let parts: [&[u8]; 7] = [
            &asker,
            &own,
            &TYPE_ARP,
            &ARP_KIND,
            &ARP_REPLY,
            &own,
            &target[6..],
        ];
        let mut answer = parts.concat();
        answer.extend(from);
        answer
    })
}

/// A TCP packet's part of a frame and where it comes from. `None` where it is another packet, or a
/// fragment, of which the service reassembles none.
pub(crate) fn tcp(frame: &[u8]) -> Option<(Mac, Ipv4Addr, &[u8])> {
    let packet = frame.get(ETHERNET..)?;
    let [_, _, fragment @ ..] = part::<4>(packet, 4)?;
    let more_or_later = u16::from_be_bytes(fragment) & 0x3fff != 0;
    if packet.len() < IPV4 || more_or_later || packet[9] != TCP {
        return None;
    }
    Some((
        source(frame)?,
        Ipv4Addr::from(part::<4>(packet, 12)?),
        packet,
    ))
}

/// Where an IPv4 packet goes.
pub(crate) fn destination(packet: &[u8]) -> Option<Ipv4Addr> {
    part::<4>(packet, 16).map(Ipv4Addr::from)
}

/// The header of a frame with an IPv4 packet.
pub(crate) fn header(to: Mac, from: Mac) -> [u8; ETHERNET] {
    let mut header = [0; ETHERNET];
    header[..6].copy_from_slice(&to);
    header[6..12].copy_from_slice(&from);
    header[12..].copy_from_slice(&TYPE_IPV4);
    header
}

/// Who has sent a frame. `None` where that can't be the address of one card.
fn source(frame: &[u8]) -> Option<Mac> {
    part(frame, 6).filter(|mac: &Mac| mac[0] & 1 == 0)
}

fn part<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: Mac = [2, 0, 0, 0, 0, 9];
    const OWN: Mac = [6, 1, 2, 3, 4, 5];
    const ADDRESS: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

    fn arp(operation: u8, target: Ipv4Addr) -> Vec<u8> {
        let head = [
            &[0xff; 6][..],
            &GUEST,
            &TYPE_ARP,
            &ARP_KIND,
            &[0, operation],
        ];
        let body = [&GUEST[..], &[10, 0, 0, 2], &[0; 6], &target.octets()];
        [head.concat(), body.concat()].concat()
    }

    fn packet(protocol: u8, fragment: u16, to: Ipv4Addr) -> Vec<u8> {
        let mut frame = header(OWN, GUEST).to_vec();
        frame.extend([0x45, 0, 0, 24, 0, 0]);
        frame.extend(fragment.to_be_bytes());
        frame.extend([64, protocol, 0, 0, 10, 0, 0, 2]);
        frame.extend(to.octets());
        frame.extend([1, 2, 3, 4]);
        frame
    }

    #[test]
    fn who_has_the_address() {
        let question = arp(1, ADDRESS);
        assert_eq!(question.len(), HEAD);
        assert_eq!(kind(&question, ADDRESS), Some(Kind::Arp));
        let answer = answer_arp(&question, OWN).unwrap();
        let head = [&GUEST[..], &OWN, &TYPE_ARP, &ARP_KIND, &[0, 2]].concat();
        let body = [&OWN[..], &ADDRESS.octets(), &GUEST, &[10, 0, 0, 2]].concat();
        assert_eq!(answer, [head, body].concat());
        assert_eq!(kind(&arp(2, ADDRESS), ADDRESS), Some(Kind::Arp));
        assert_eq!(answer_arp(&arp(2, ADDRESS), OWN), None);
        let mut from_many = question.clone();
        from_many[6] |= 1;
        assert_eq!(answer_arp(&from_many, OWN), None);
    }

    #[test]
    fn frames_for_others() {
        let other = Ipv4Addr::new(169, 254, 169, 253);
        assert_eq!(kind(&arp(1, other), ADDRESS), None);
        assert_eq!(kind(&packet(TCP, 0, other), ADDRESS), None);
        let mut not_ethernet = arp(1, ADDRESS);
        not_ethernet[15] = 6;
        assert_eq!(kind(&not_ethernet, ADDRESS), None);
        let mut ipv6 = packet(TCP, 0, ADDRESS);
        ipv6[12..14].copy_from_slice(&[0x86, 0xdd]);
        assert_eq!(kind(&ipv6, ADDRESS), None);
        let mut tagged = packet(TCP, 0, ADDRESS);
        tagged.splice(12..12, [0x81, 0, 0, 1]);
        assert_eq!(kind(&tagged, ADDRESS), None);
    }

    #[test]
    fn packets() {
        let frame = packet(TCP, 0x4000, ADDRESS);
        assert_eq!(kind(&frame, ADDRESS), Some(Kind::Ipv4));
        let (mac, ip, bytes) = tcp(&frame).unwrap();
        assert_eq!((mac, ip), (GUEST, Ipv4Addr::new(10, 0, 0, 2)));
        assert_eq!(bytes, &frame[ETHERNET..]);
        assert_eq!(destination(bytes), Some(ADDRESS));
        // UDP, the first fragment, a later one.
        for (protocol, fragment) in [(17, 0), (TCP, 0x2000), (TCP, 1)] {
            assert_eq!(tcp(&packet(protocol, fragment, ADDRESS)), None);
        }
    }

    #[test]
    fn frames_that_are_cut_short() {
        let (question, frame) = (arp(1, ADDRESS), packet(TCP, 0, ADDRESS));
        for len in 0..HEAD {
            let head = kind(&question[..len], ADDRESS);
            assert_eq!(head, None, "{len}");
            assert_eq!(answer_arp(&question[..len], OWN), None);
            if len < ETHERNET + IPV4 {
                assert_eq!(kind(&frame[..len.min(frame.len())], ADDRESS), None);
                assert_eq!(tcp(&frame[..len.min(frame.len())]), None);
            }
        }
    }
}
