use super::*;

const LONG: Duration = Duration::from_millis(5);

#[test]
fn an_idle_worker_does_not_look() {
    let mut polling = Polling::default();
    assert_eq!(polling.window(), None);
    polling.woken_after(LONG);
    assert_eq!(polling.window(), None);
}

#[test]
fn a_worker_that_is_woken_at_once_looks_longer_and_longer() {
    let mut polling = Polling::default();
    let mut before = Duration::ZERO;
    for _ in 0..10 {
        polling.woken_after(Duration::from_micros(1));
        let now = polling.window().unwrap();
        assert!(now > before || now == Polling::LONGEST);
        before = now;
    }
    assert_eq!(before, Polling::LONGEST);
    polling.woken_after(LONG);
    assert_eq!(polling.window(), Some(Polling::LONGEST));
}

#[test]
fn a_worker_that_looks_in_vain_soon_gives_up() {
    let mut polling = Polling::default();
    (0..10).for_each(|_| polling.woken_after(Duration::ZERO));
    let mut spent = Duration::ZERO;
    while let Some(window) = polling.window() {
        spent += window;
        polling.in_vain();
    }
    assert!(spent < 2 * Polling::LONGEST);
}
