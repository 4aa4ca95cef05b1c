use std::io::Write;

use onggi_protocol::FailureKind;

use super::*;

fn judge_of(events: Vec<Event>) -> Result<u8, Failure> {
    let (sender, happened) = mpsc::channel();
    for event in events {
        sender.send(event).unwrap();
    }
    drop(sender);
    let mut console = Tail::default();
    console.write_all(b"Kernel panic\r\n").unwrap();
    judge(&happened, &console)
}

fn failed() -> Event {
    Event::Command(Err(agent::Error::Failed {
        kind: FailureKind::NotFound,
        message: "no program".to_owned(),
    }))
}

fn gone() -> Event {
    Event::Command(Err(agent::Error::Gone))
}

fn exited(code: u8) -> Event {
    Event::Command(Ok(ExitStatus::Code(code)))
}

#[test]
fn the_commands_end_decides() {
    assert_eq!(judge_of(vec![exited(3)]).unwrap(), 3);
    let killed = Event::Command(Ok(ExitStatus::Signal(9)));
    assert_eq!(judge_of(vec![killed]).unwrap(), 137);
    let late = vec![Event::Vm(Ok(Exit::Shutdown)), exited(4)];
    assert_eq!(
        judge_of(late).unwrap(),
        4,
        "even when the VM's end is seen first"
    );
    let failure = judge_of(vec![failed()]).unwrap_err();
    assert_eq!(
        (failure.status(), failure.to_string().as_str()),
        (127, "no program")
    );
    let late = vec![Event::Vm(Ok(Exit::Shutdown)), failed()];
    assert_eq!(judge_of(late).unwrap_err().status(), 127);
}

/// Whichever is noticed first, the message names the VM's reason and shows its last lines.
#[test]
fn a_guest_that_died() {
    for events in [
        vec![gone(), Event::Vm(Ok(Exit::Panicked))],
        vec![Event::Vm(Ok(Exit::Panicked)), gone()],
    ] {
        let failure = judge_of(events).unwrap_err();
        assert_eq!(failure.status(), 125);
        assert_eq!(
            failure.to_string(),
            "the VM ended before the command did: the guest's kernel panicked\n  \
             | Kernel panic\n\
             hint: ONGGI_LOG=guest=debug shows all that its kernel prints"
        );
    }
    let host = onggi_vmm::Error::MissingCapability("irqfd");
    let failure = judge_of(vec![gone(), Event::Vm(Err(host))]).unwrap_err();
    assert!(failure.to_string().contains("irqfd"));
}

#[test]
fn a_guest_that_is_there_but_does_not_talk() {
    let failure = judge_of(vec![gone()]).unwrap_err();
    assert_eq!(failure.status(), 125);
    assert!(
        failure
            .to_string()
            .starts_with("the VM can't be controlled: the guest has gone")
    );
}

#[test]
fn signals() {
    assert_eq!(judge_of(vec![Event::Interrupted(15)]).unwrap(), 143);
    assert_eq!(judge_of(vec![gone(), Event::Interrupted(2)]).unwrap(), 130);
    let stopped = vec![Event::Vm(Ok(Exit::Stopped)), Event::Interrupted(1)];
    assert_eq!(judge_of(stopped).unwrap(), 129);
}
