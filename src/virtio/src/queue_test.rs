use super::*;
use crate::testing::{Driver, Guest, Used};

fn queue(driver: &Driver, features: u64) -> Queue {
    let size = driver.layout().size;
    let (queue, _kick) = Queue::new(0, size, driver.start(features)).unwrap();
    queue
}

#[test]
fn a_chain_goes_round() {
    let guest = Guest::new();
    let mut driver = guest.queue(8);
    let mut queue = queue(&driver, 0);
    assert!(queue.pop().is_none());

    let input = guest.put(b"hello");
    let output = guest.room(4);
    let head = driver.add(&[input], &[output]);
    let chain = queue.pop().unwrap();
    assert_eq!(chain.head(), head);
    let mut text = [0; 5];
    chain.reader().read_exact(&mut text).unwrap();
    assert_eq!(&text, b"hello");
    chain.writer().write_all(b"ok").unwrap();
    queue.complete(chain, 2);
    queue.notify();
    assert_eq!(driver.wait_used(), Used { head, len: 2 });
    assert_eq!(guest.read(output), b"ok\xaa\xaa");
    assert_eq!(driver.used(), None);
}
