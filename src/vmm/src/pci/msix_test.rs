use super::*;
use crate::interrupt::SentMessages;

const MESSAGE: Message = Message {
    address: 0xfee0_1000,
    data: 0x31,
};

fn msix() -> (MsiX, Vec<Arc<SentMessages>>) {
    let sent: Vec<_> = (0..3).map(|_| Arc::new(SentMessages::default())).collect();
    let lines = sent.iter().map(|sent| sent.clone() as Arc<dyn MessageLine>);
    (MsiX::new(lines.collect()), sent)
}

fn write32(msix: &MsiX, offset: u64, value: u32) {
    msix.write_table(offset, &value.to_le_bytes());
}

/// Programs `vector` with [`MESSAGE`] and unmasks it.
fn program(msix: &MsiX, vector: u64) {
    msix.write_table(vector * 16, &MESSAGE.address.to_le_bytes());
    write32(msix, vector * 16 + 8, MESSAGE.data);
    write32(msix, vector * 16 + 12, 0);
}

fn pending(msix: &MsiX) -> u64 {
    let mut bits = [0; 8];
    msix.read_pending(0, &mut bits);
    u64::from_le_bytes(bits)
}

#[test]
fn a_vector_sends_its_message() {
    let (msix, sent) = msix();
    program(&msix, 1);
    msix.set_control(MsiXControl::Open);
    msix.raise(1);
    msix.raise(1);
    assert_eq!(sent[1].take(), [MESSAGE; 2]);
    assert_eq!(sent[0].take(), []);
    assert_eq!(pending(&msix), 0);
    msix.raise(3);
    msix.raise(0xffff);
}

#[test]
fn a_masked_vector_keeps_one_message_until_it_is_unmasked() {
    let (msix, sent) = msix();
    program(&msix, 0);
    program(&msix, 2);
    msix.set_control(MsiXControl::Open);
    write32(&msix, 2 * 16 + 12, 1);
    msix.raise(2);
    msix.raise(2);
    assert_eq!((sent[2].take(), pending(&msix)), (vec![], 0b100));
    // What is sent is what stands there when it is unmasked.
    write32(&msix, 2 * 16 + 8, 0x55);
    write32(&msix, 2 * 16 + 12, 0);
    let message = Message {
        data: 0x55,
        ..MESSAGE
    };
    assert_eq!((sent[2].take(), pending(&msix)), (vec![message], 0));
    write32(&msix, 2 * 16 + 12, 0);
    assert_eq!(sent[2].take(), []);
}

#[test]
fn the_functions_mask_holds_all_vectors_back() {
    let (msix, sent) = msix();
    program(&msix, 0);
    program(&msix, 1);
    msix.set_control(MsiXControl::Masked);
    (0..3).for_each(|vector| msix.raise(vector));
    assert_eq!(pending(&msix), 0b111);
    msix.set_control(MsiXControl::Open);
    assert_eq!(sent[0].take(), [MESSAGE]);
    assert_eq!(sent[1].take(), [MESSAGE]);
    assert_eq!(sent[2].take(), [], "it is masked by itself, too");
    assert_eq!(pending(&msix), 0b100);
}

#[test]
fn nothing_is_sent_or_kept_while_disabled() {
    let (msix, sent) = msix();
    program(&msix, 0);
    msix.raise(0);
    msix.set_control(MsiXControl::Masked);
    msix.raise(1);
    msix.set_control(MsiXControl::Disabled);
    assert!(!msix.is_enabled());
    msix.set_control(MsiXControl::Open);
    assert!(msix.is_enabled());
    assert_eq!(sent[0].take(), []);
    assert_eq!(pending(&msix), 0);
}

#[test]
fn a_table_that_is_written_while_interrupts_come_loses_none() {
    let (msix, sent) = msix();
    program(&msix, 0);
    msix.set_control(MsiXControl::Open);
    const ROUNDS: usize = 2000;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..ROUNDS as u32 {
                write32(&msix, 12, 1);
                write32(&msix, 8, round);
                write32(&msix, 12, 0);
                msix.set_control(MsiXControl::Masked);
                msix.set_control(MsiXControl::Open);
            }
        });
        for _ in 0..ROUNDS {
            msix.raise(0);
        }
    });
    let count = sent[0].take().len();
    assert!((1..=ROUNDS).contains(&count), "{count}");
    assert_eq!(pending(&msix), 0);
    msix.raise(0);
    assert_eq!(sent[0].take().len(), 1);
}

#[test]
fn a_table_reads_back_and_starts_masked() {
    let (msix, _) = msix();
    let mut entry = [0; 8];
    msix.read_table(16 + 8, &mut entry);
    assert_eq!(entry, 0x1_0000_0000u64.to_le_bytes());
    msix.write_table(16, &u64::MAX.to_le_bytes());
    msix.read_table(16, &mut entry);
    assert_eq!(entry, (u64::MAX - 3).to_le_bytes());
}

#[test]
fn garbage_at_any_offset_and_width_is_harmless() {
    let (msix, sent) = msix();
    msix.set_control(MsiXControl::Open);
    for offset in (0..0x60).chain([u64::MAX - 7, u64::MAX - 3, u64::MAX]) {
        for width in [0, 1, 2, 3, 4, 5, 8, 16] {
            let mut data = vec![0xff; width];
            msix.write_table(offset, &data);
            msix.read_table(offset, &mut data);
            msix.read_pending(offset, &mut data);
            let words = matches!(width, 4 | 8) && offset % width as u64 == 0;
            assert!(words || data.iter().all(|byte| *byte == 0));
        }
    }
    (0..3).for_each(|vector| msix.raise(vector));
    assert!(sent.iter().all(|sent| sent.take().is_empty()), "all masked");
}

fn call() -> Arc<EventFd> {
    Arc::new(EventFd::new(libc::EFD_NONBLOCK).unwrap())
}

#[test]
fn a_call_is_in_other_hands_while_its_vector_is_open() {
    let (msix, sent) = msix();
    let calls = [call(), call()];
    for call in &calls {
        msix.add_call(1, call.clone());
    }
    program(&msix, 1);
    assert_eq!(sent[1].attached(), [], "messages are disabled");
    msix.set_control(MsiXControl::Open);
    assert_eq!(sent[1].attached(), [MESSAGE; 2]);
    msix.set_control(MsiXControl::Masked);
    assert_eq!(sent[1].attached(), []);
    msix.set_control(MsiXControl::Open);
    write32(&msix, 16 + 8, 0x55);
    assert!(
        sent[1]
            .attached()
            .iter()
            .all(|message| message.data == 0x55)
    );
    msix.remove_call(1, &calls[0]);
    assert_eq!(sent[1].attached().len(), 1);
    write32(&msix, 16 + 12, 1);
    msix.remove_call(1, &calls[1]);
    write32(&msix, 16 + 12, 0);
    assert_eq!(sent[1].attached(), []);
    assert_eq!(sent[1].take(), []);
}

#[test]
fn a_call_of_a_masked_vector_is_pending_until_it_is_unmasked() {
    let (msix, sent) = msix();
    let call = call();
    msix.add_call(2, call.clone());
    program(&msix, 2);
    msix.set_control(MsiXControl::Open);
    write32(&msix, 2 * 16 + 12, 1);
    assert_eq!(pending(&msix), 0);
    call.write(1).unwrap();
    assert_eq!(pending(&msix), 0b100);
    write32(&msix, 2 * 16 + 12, 0);
    assert_eq!((sent[2].take(), pending(&msix)), (vec![MESSAGE], 0));
    // The same where the guest does not look.
    write32(&msix, 2 * 16 + 12, 1);
    call.write(1).unwrap();
    write32(&msix, 2 * 16 + 12, 0);
    assert_eq!((sent[2].take(), pending(&msix)), (vec![MESSAGE], 0));
}

#[test]
fn a_call_that_is_refused_is_tried_again() {
    let (msix, sent) = msix();
    program(&msix, 0);
    msix.set_control(MsiXControl::Open);
    sent[0].refuse(true);
    let call = call();
    msix.add_call(0, call.clone());
    call.write(1).unwrap();
    sent[0].refuse(false);
    assert_eq!(sent[0].attached(), []);
    write32(&msix, 12, 0);
    assert_eq!(
        (sent[0].attached(), sent[0].take()),
        (vec![MESSAGE], vec![MESSAGE])
    );
    for vector in [3, 0xffff] {
        msix.add_call(vector, call.clone());
        msix.remove_call(vector, &call);
    }
    assert_eq!(sent[0].attached(), [MESSAGE]);
}
