use super::super::testing::{self, Counts, FEATURES, FakeIoEvents};
use super::layout::{CAPABILITY_BAR, CAPABILITY_DATA, CAPABILITY_LENGTH, CAPABILITY_OFFSET};
use super::*;
use crate::interrupt::{Message, SentMessages};

const WINDOW: Range<u64> = 0xe000_0000..0xe010_0000;
const BASE: u64 = 0xe000_8000;
/// Command register: decode memory.
const MEMORY: u16 = 2;

/// Fields of the common configuration.
mod field {
    pub const DEVICE_FEATURES_SELECT: u64 = 0x00;
    pub const DEVICE_FEATURES: u64 = 0x04;
    pub const DRIVER_FEATURES_SELECT: u64 = 0x08;
    pub const DRIVER_FEATURES: u64 = 0x0c;
    pub const STATUS: u64 = 0x14;
    pub const GENERATION: u64 = 0x15;
    pub const QUEUE_SELECT: u64 = 0x16;
    pub const QUEUE_SIZE: u64 = 0x18;
}

struct Bench {
    pci: PciTransport,
    counts: Arc<Counts>,
    events: Arc<FakeIoEvents>,
    sent: Vec<Arc<SentMessages>>,
}

fn bench() -> Bench {
    let (device, counts) = testing::device();
    let events = Arc::new(FakeIoEvents::default());
    let sent: Vec<_> = (0..3).map(|_| Arc::new(SentMessages::default())).collect();
    let lines = sent.iter().map(|sent| sent.clone() as Arc<dyn MessageLine>);
    let (memory, lines) = (testing::memory(), lines.collect());
    let pci = PciTransport::new(events.clone(), memory, device, BASE, WINDOW, lines);
    let pci = pci.expect("event descriptors");
    Bench {
        pci,
        counts,
        events,
        sent,
    }
}

impl Bench {
    fn config<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut data = [0; N];
        self.pci.read_config(at, &mut data);
        data
    }

    fn config32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.config(at))
    }

    fn set_command(&self, command: u16) {
        self.pci.write_config(4, &command.to_le_bytes());
    }

    fn move_bar(&self, base: u64) {
        self.pci.write_config(0x10, &(base as u32).to_le_bytes());
        let high = (base >> 32) as u32;
        self.pci.write_config(0x14, &high.to_le_bytes());
    }

    fn get(&self, offset: u64, width: usize) -> u64 {
        let mut bytes = [0; 8];
        self.pci.read(offset, &mut bytes[..width]);
        u64::from_le_bytes(bytes)
    }

    fn put(&self, offset: u64, width: usize, value: u64) {
        self.pci.write(offset, &value.to_le_bytes()[..width]);
    }

    fn bring_up(&self) {
        self.put(field::STATUS, 1, 0);
        self.put(field::STATUS, 1, 3);
        for half in 0..2 {
            self.put(field::DRIVER_FEATURES_SELECT, 4, half);
            self.put(field::DRIVER_FEATURES, 4, FEATURES >> (32 * half));
        }
        self.put(field::STATUS, 1, 0xb);
        for queue in 0..2 {
            self.put(field::QUEUE_SELECT, 2, queue);
            self.put(common::QUEUE_VECTOR, 2, queue + 1);
            self.put(common::QUEUE_DESCRIPTORS, 8, 0x1000);
            self.put(common::QUEUE_DRIVER, 4, 0x2000);
            self.put(common::QUEUE_DEVICE, 4, 0x3000);
            self.put(common::QUEUE_ENABLE, 2, 1);
        }
        self.put(field::STATUS, 1, 0xf);
    }

    /// Programs and unmasks every vector; the message of vector n has data n.
    fn enable_messages(&self) {
        for vector in 0..3 {
            let entry = structure::TABLE + vector * 16;
            self.put(entry, 8, 0xfee0_0000);
            self.put(entry + 8, 8, vector);
        }
        self.set_message_control(0x8000);
    }

    fn set_message_control(&self, value: u16) {
        let at = self.pci.capabilities.msix + layout::MSIX_CONTROL;
        self.pci.write_config(at, &value.to_le_bytes());
    }

    fn sent(&self) -> Vec<u32> {
        let lines = self.sent.iter().flat_map(|line| line.take());
        lines.map(|message: Message| message.data).collect()
    }
}

#[test]
fn capabilities_lead_to_every_structure() {
    let bench = bench();
    assert_eq!(bench.config32(0), 0x1042_1af4);
    assert_eq!(bench.config::<1>(8), [1], "modern only");
    let mut at = usize::from(bench.config::<1>(0x34)[0]);
    let mut found = Vec::new();
    while at != 0 {
        let [id, next] = bench.config(at);
        if id == 9 {
            let [kind, bar] = bench.config(at + 3);
            let place = bench.config32(at + 8);
            found.push((kind, bar, place, bench.config32(at + 12)));
        } else {
            assert_eq!((id, bench.config::<2>(at + 2)), (0x11, [2, 0]), "3 vectors");
            assert_eq!(bench.config32(at + 4), 0x3000);
            assert_eq!(bench.config32(at + 8), 0x3800);
        }
        assert!(found.len() < 10, "the list has no end");
        at = next.into();
    }
    let expected = [
        (1, 0, 0x0000, 0x3c),
        (2, 0, 0x4000, 8),
        (3, 0, 0x1000, 1),
        (4, 0, 0x2000, 5),
        (5, 0, 0, 0),
    ];
    assert_eq!(found, expected);
}

#[test]
fn a_driver_starts_the_device_and_stops_it() {
    let bench = bench();
    bench.set_command(MEMORY);
    bench.put(field::DEVICE_FEATURES_SELECT, 4, 1);
    assert_eq!(bench.get(field::DEVICE_FEATURES, 4), 1);
    assert_eq!(bench.get(common::QUEUE_COUNT, 2), 2);
    bench.put(field::QUEUE_SELECT, 2, 1);
    assert_eq!(bench.get(field::QUEUE_SIZE, 2), 16);
    assert_eq!(bench.get(common::QUEUE_NOTIFY_OFFSET, 2), 1);
    bench.put(field::QUEUE_SELECT, 2, 2);
    assert_eq!(bench.get(field::QUEUE_SIZE, 2), 0);
    bench.bring_up();
    assert_eq!(bench.get(field::STATUS, 1), 0xf);
    assert_eq!(bench.counts.started(), 2);
    let start = bench.counts.take_start().expect("queue 1 started last");
    assert_eq!(start.layout.size, 16);
    assert_eq!(start.layout.descriptor_table.0, 0x1000);
    bench.put(structure::NOTIFY + structure::NOTIFY_STRIDE, 2, 1);
    assert_eq!(start.kick.read().ok(), Some(1));

    bench.put(common::QUEUE_ENABLE, 2, 0);
    assert_eq!(bench.counts.stopped(), 0, "only a reset stops a queue");
    bench.put(field::STATUS, 1, 0);
    assert_eq!(bench.counts.stopped(), 2);
    bench.put(field::QUEUE_SELECT, 2, 1);
    assert_eq!(bench.get(common::QUEUE_ENABLE, 2), 0);
    assert_eq!(bench.get(common::QUEUE_VECTOR, 2), u64::from(NO_VECTOR));
}

/// Each field answers at its own offset and width, and at no other.
#[test]
fn fields_are_as_wide_as_they_are() {
    let bench = bench();
    bench.bring_up();
    bench.put(common::CONFIG_VECTOR, 2, 0);
    let widths = [
        (0x00, 4),
        (0x04, 4),
        (0x08, 4),
        (0x0c, 4),
        (0x10, 2),
        (0x12, 2),
        (0x14, 1),
        (0x15, 1),
        (0x16, 2),
        (0x18, 2),
        (0x1a, 2),
        (0x1c, 2),
        (0x1e, 2),
        (0x20, 4),
        (0x24, 4),
        (0x28, 4),
        (0x2c, 4),
        (0x30, 4),
        (0x34, 4),
    ];
    for offset in 0..0x1000 {
        for width in [1, 2, 3, 4, 5, 8] {
            let field = widths.contains(&(offset, width));
            let pair = width == 8 && matches!(offset, 0x20 | 0x28 | 0x30);
            let value = bench.get(offset, width);
            assert!(
                field || pair || value == 0,
                "{width} bytes at {offset:#x}: {value:#x}"
            );
        }
    }
    assert_eq!(bench.get(common::QUEUE_DESCRIPTORS, 8), 0x1000);
}

#[test]
fn a_vector_that_is_not_there_becomes_none() {
    let bench = bench();
    for (wanted, found) in [
        (2, 2),
        (3, 0xffff),
        (0xfffe, 0xffff),
        (0, 0),
        (0xffff, 0xffff),
    ] {
        bench.put(common::CONFIG_VECTOR, 2, wanted);
        assert_eq!(bench.get(common::CONFIG_VECTOR, 2), found);
        bench.put(common::QUEUE_VECTOR, 2, wanted);
        assert_eq!(bench.get(common::QUEUE_VECTOR, 2), found);
    }
    bench.put(field::QUEUE_SELECT, 2, 7);
    bench.put(common::QUEUE_VECTOR, 2, 1);
    assert_eq!(bench.get(common::QUEUE_VECTOR, 2), 0xffff);
}

#[test]
fn each_queue_interrupts_by_its_vector() {
    let bench = bench();
    bench.enable_messages();
    bench.bring_up();
    bench.put(common::CONFIG_VECTOR, 2, 0);
    let signals = bench.pci.control.signals();
    signals.queue_used(0);
    signals.queue_used(1);
    assert_eq!(bench.sent(), [1, 2]);
    assert_eq!(bench.get(structure::ISR, 1), 0, "messages say it all");
    signals.config_changed();
    assert_eq!(bench.sent(), [0]);
    assert_eq!(bench.get(structure::ISR, 1), u64::from(ISR_CONFIG));
    // Masked in the middle of it, then unmasked.
    bench.set_message_control(0xc000);
    signals.queue_used(1);
    assert_eq!(bench.sent(), [0u32; 0]);
    assert_eq!(bench.get(structure::PENDING, 4), 0b100);
    bench.set_message_control(0x8000);
    assert_eq!(bench.sent(), [2]);
    bench.put(field::STATUS, 1, 0);
    signals.queue_used(1);
    assert_eq!(
        bench.sent(),
        [0u32; 0],
        "a reset forgets which vector it was"
    );
}

#[test]
fn a_queue_that_is_served_elsewhere_interrupts_by_its_vector() {
    let bench = bench();
    let attached = |vector: usize| bench.sent[vector].attached().len();
    bench.enable_messages();
    bench.bring_up();
    let signals = bench.pci.control.signals();
    let first = signals.queue_call(1).unwrap();
    assert_eq!((attached(1), attached(2)), (0, 1));
    // One that takes its place, and what had not been told before.
    bench.set_message_control(0xc000);
    first.write(1).unwrap();
    let second = signals.queue_call(1).unwrap();
    assert_eq!(bench.get(structure::PENDING, 4), 0b100);
    first.write(1).unwrap();
    bench.set_message_control(0x8000);
    assert_eq!((bench.sent(), attached(2)), (vec![2], 1));
    // Another vector, none, and a reset.
    bench.put(field::QUEUE_SELECT, 2, 1);
    bench.put(common::QUEUE_VECTOR, 2, 0);
    assert_eq!((attached(0), attached(2)), (1, 0));
    bench.put(common::QUEUE_VECTOR, 2, 0xffff);
    assert_eq!(attached(0), 0);
    second.write(1).unwrap();
    bench.put(common::QUEUE_VECTOR, 2, 1);
    assert_eq!((bench.sent(), attached(1)), (vec![1], 1));
    bench.put(field::STATUS, 1, 0);
    assert_eq!(attached(1), 0);
    bench.bring_up();
    assert_eq!(
        attached(1),
        0,
        "who served the queue before the reset has no call"
    );
    assert!(signals.queue_call(2).is_none());
}

#[test]
fn without_messages_the_isr_tells_of_calls() {
    let bench = bench();
    bench.bring_up();
    let signals = bench.pci.control.signals();
    let call = signals.queue_call(0).unwrap();
    assert_eq!(bench.get(structure::ISR, 1), 0);
    call.write(1).unwrap();
    assert_eq!(bench.get(structure::ISR, 1), u64::from(ISR_QUEUE));
    assert_eq!(bench.get(structure::ISR, 1), 0);
}

#[test]
fn without_messages_the_isr_tells_once() {
    let bench = bench();
    bench.bring_up();
    let signals = bench.pci.control.signals();
    signals.queue_used(0);
    signals.config_changed();
    assert_eq!(bench.get(structure::ISR, 1), 3);
    assert_eq!(bench.get(structure::ISR, 1), 0);
    assert_eq!(bench.sent(), [0u32; 0]);
}

#[test]
fn doorbells_follow_the_bar() {
    let bench = bench();
    let places = |base: u64| vec![(base + 0x4000, None), (base + 0x4004, None)];
    bench.bring_up(); // by the configuration window: nothing is decoded yet
    assert_eq!(bench.events.places(), []);
    assert_eq!(bench.pci.claims(BASE), None);
    bench.set_command(MEMORY);
    assert_eq!(bench.events.places(), places(BASE));
    assert_eq!(bench.pci.claims(BASE), Some(0));
    assert_eq!(bench.pci.claims(BASE + BAR_SIZE), None);
    bench.move_bar(WINDOW.start + 0x1_0000);
    assert_eq!(bench.events.places(), places(WINDOW.start + 0x1_0000));
    bench.set_command(0);
    assert_eq!(bench.events.places(), []);
    bench.set_command(MEMORY);
    assert_eq!(bench.events.places().len(), 2);
}

#[test]
fn a_bar_outside_the_window_answers_nowhere() {
    let bench = bench();
    bench.set_command(MEMORY);
    bench.bring_up();
    // RAM, the ECAM, the local APICs, the window's edges, 4 GiB on, and sizing while enabled.
    for base in [
        0,
        0x10_0000,
        0xd800_0000,
        0xfee0_0000,
        WINDOW.start - BAR_SIZE,
        WINDOW.end,
        WINDOW.start + (1 << 32),
        u64::MAX,
    ] {
        bench.move_bar(base);
        let nowhere = |address: &u64| bench.pci.claims(*address).is_none();
        assert!([base, base & !(BAR_SIZE - 1), BASE].iter().all(nowhere));
        assert_eq!(bench.events.places(), [], "{base:#x}");
    }
    bench.move_bar(WINDOW.end - BAR_SIZE);
    assert_eq!(bench.pci.claims(WINDOW.end - 1), Some(BAR_SIZE - 1));
    assert_eq!(bench.events.places().len(), 2);
}

#[test]
fn the_bar_can_be_reached_through_configuration_space() {
    let bench = bench();
    let at = bench.pci.capabilities.window;
    let point_at = |bar: u8, offset: u32, length: u32| {
        bench.pci.write_config(at + CAPABILITY_BAR, &[bar]);
        let offset = offset.to_le_bytes();
        bench.pci.write_config(at + CAPABILITY_OFFSET, &offset);
        let length = length.to_le_bytes();
        bench.pci.write_config(at + CAPABILITY_LENGTH, &length);
    };
    point_at(0, field::STATUS as u32, 1);
    bench.pci.write_config(at + CAPABILITY_DATA, &[3, 9, 9, 9]);
    assert_eq!(bench.get(field::STATUS, 1), 3);
    assert_eq!(bench.config(at + CAPABILITY_DATA), [3u8]);
    point_at(0, field::QUEUE_SIZE as u32, 2);
    assert_eq!(bench.config(at + CAPABILITY_DATA), [0, 1, 0, 0]);
    // A BAR that is not there, and accesses that are none.
    for (bar, offset, length) in [
        (1, 0x14, 1),
        (0, 0x15, 2),
        (0, 0x14, 3),
        (0, 0x14, 0),
        (0, 0x14, u32::MAX),
        (0, BAR_SIZE as u32, 1),
        (0, u32::MAX, 1),
    ] {
        point_at(bar, offset, length);
        bench.pci.write_config(at + CAPABILITY_DATA, &[0; 4]);
        assert_eq!(bench.config(at + CAPABILITY_DATA), [0; 4]);
        assert_eq!(bench.get(field::STATUS, 1), 3, "{bar} {offset:#x} {length}");
    }
}

#[test]
fn the_configuration_ends_where_it_ends() {
    let bench = bench();
    assert_eq!(bench.get(structure::CONFIG + 3, 4), 0x0504);
    let generation = bench.get(field::GENERATION, 1);
    bench.put(structure::CONFIG, 1, 7);
    assert_ne!(bench.get(field::GENERATION, 1), generation);
    assert_eq!(bench.get(structure::CONFIG, 1), 7);
}

#[test]
fn garbage_at_any_offset_and_width_is_harmless() {
    let bench = bench();
    for round in 0..2 {
        for offset in (0..BAR_SIZE).chain([BAR_SIZE, u64::MAX]) {
            for width in [0, 1, 2, 3, 4, 8, 9] {
                let mut data = vec![0xff; width];
                bench.pci.write(offset, &data);
                bench.pci.read(offset, &mut data);
            }
        }
        for offset in 0..0x108 {
            for width in [0, 1, 2, 3, 4, 8] {
                let mut data = vec![if round == 0 { 0xff } else { 0 }; width];
                bench.pci.write_config(offset, &data);
                bench.pci.read_config(offset, &mut data);
            }
        }
        if round == 0 {
            bench.bring_up();
        }
    }
    bench.move_bar(BASE);
    bench.set_command(MEMORY);
    bench.enable_messages();
    bench.bring_up();
    assert_eq!(bench.get(field::STATUS, 1), 0xf, "a reset heals everything");
    bench.pci.control.signals().queue_used(0);
    assert_eq!(bench.sent(), [1]);
    assert_eq!(bench.events.places().len(), 2);
}
