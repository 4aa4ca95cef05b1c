use std::sync::Barrier;

use super::*;
use crate::state::record::{ImageName, LogLimits, NetworkMode, ProcessSpec, Restart};
use crate::state::{Home, new_id};

fn temporary() -> (tempfile::TempDir, Containers) {
    let directory = tempfile::tempdir().unwrap();
    let containers = Home::at(directory.path()).containers().unwrap();
    (directory, containers)
}

fn vm_record(id: &Id, name: Option<&str>) -> VmRecord {
    VmRecord {
        id: id.clone(),
        name: name.map(str::to_owned),
        created: Time::now(),
        cpus: 1,
        memory_bytes: 1 << 28,
        network: NetworkMode::None,
        ports: Vec::new(),
        fleeting: false,
    }
}

pub fn record(name: &str, vm: &Id) -> Record {
    Record {
        id: vm.clone(),
        name: name.to_owned(),
        created: Time::now(),
        vm: vm.clone(),
        image: ImageName {
            name: "debian".to_owned(),
            id: "sha256:0".to_owned(),
        },
        process: ProcessSpec {
            args: vec!["true".to_owned()],
            env: Vec::new(),
            cwd: String::new(),
            user: String::new(),
            tty: false,
            stdin: false,
            stdin_once: false,
        },
        hostname: "jar".to_owned(),
        labels: Default::default(),
        remove: false,
        restart: Restart::No,
        stop_signal: 15,
        stop_timeout: Some(10),
        health: None,
        mounts: Vec::new(),
        read_only: false,
        capabilities: Vec::new(),
        privileged: false,
        shm_bytes: 64 << 20,
        hosts: Vec::new(),
        resolver: Default::default(),
        log: LogLimits::default(),
    }
}

fn create(containers: &Containers, name: &str) -> Result<Container, Error> {
    let id = new_id().unwrap();
    containers.create(record(name, &id), Some(&vm_record(&id, None)))
}

fn run(container: &Container) {
    let status = Status {
        state: State::Running,
        ..Status::default()
    };
    container.save_status(&status).unwrap();
}

fn count(directory: &Path) -> usize {
    fs::read_dir(directory).unwrap().count()
}

#[test]
fn found_by_name_and_by_digits_and_gone_with_its_vm() {
    let (_directory, containers) = temporary();
    let container = create(&containers, "web").unwrap();
    let id = container.record.id.clone();
    for key in ["web", id.short(), &id.0[..1], &id.0] {
        assert_eq!(containers.find(key).unwrap().record.id, id, "{key}");
    }
    for key in ["", "we", "nobody", "../web", "zz"] {
        assert!(
            matches!(containers.find(key), Err(Error::NoContainer(_))),
            "{key}"
        );
    }
    containers.remove(&container).unwrap();
    containers.remove(&container).unwrap();
    for directory in [&containers.containers, &containers.vms, &containers.names] {
        assert_eq!(count(directory), 0);
    }
}

#[test]
fn a_name_is_one_containers_until_it_has_another() {
    let (_directory, containers) = temporary();
    let first = create(&containers, "jar").unwrap();
    let error = create(&containers, "jar").unwrap_err();
    assert!(matches!(error, Error::NameInUse(_, id) if id == first.record.id.short()));
    assert_eq!(
        (count(&containers.containers), count(&containers.vms)),
        (1, 1)
    );
    let unnamed = create(&containers, "").unwrap();
    assert!(check_name(&unnamed.record.name).is_ok());

    assert!(matches!(
        containers.rename(&unnamed, "jar"),
        Err(Error::NameInUse(..))
    ));
    assert!(matches!(
        containers.rename(&first, "a/b"),
        Err(Error::BadName(_))
    ));
    containers.rename(&first, "pot").unwrap();
    assert!(containers.find("jar").is_err());
    assert_eq!(containers.find("pot").unwrap().record.id, first.record.id);
    create(&containers, "jar").unwrap();
    // What the process that looks after it knew by its old name.
    containers.remove_own(&first).unwrap();
    assert!(containers.find("pot").is_err() && containers.find("jar").is_ok());
}

/// A process that was killed between two steps leaves a name that leads nowhere, or to a container of
/// another name.
#[test]
fn names_that_were_left_behind_are_free() {
    let (_directory, containers) = temporary();
    symlink("gone", containers.names.join("jar")).unwrap();
    let other = create(&containers, "other").unwrap();
    symlink(&other.record.id.0, containers.names.join("pot")).unwrap();
    assert!(containers.find("pot").is_err());
    create(&containers, "jar").unwrap();
    create(&containers, "pot").unwrap();
}

#[test]
fn one_of_many_wins_a_name() {
    let (_directory, containers) = temporary();
    const RACERS: usize = 8;
    for round in 0..10 {
        let name = format!("jar{round}");
        let start = Barrier::new(RACERS);
        let winners: usize = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..RACERS)
                .map(|_| {
                    scope.spawn(|| {
                        start.wait();
                        match create(&containers, &name) {
                            Ok(_) => 1,
                            Err(Error::NameInUse(..)) => 0,
                            Err(error) => panic!("{error:?}"),
                        }
                    })
                })
                .collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).sum()
        });
        assert_eq!(winners, 1);
    }
    assert_eq!(containers.list().unwrap().len(), 10);
}

#[test]
fn what_a_killed_process_left_is_put_right() {
    let (_directory, containers) = temporary();
    let container = create(&containers, "web").unwrap();
    let vm = containers.read_vm(&container.record.vm).unwrap();
    let guard = containers.look_after(&vm).unwrap().unwrap();
    assert!(containers.look_after(&vm).unwrap().is_none());
    run(&container);
    let now = containers.find("web").unwrap();
    assert!(now.is_live() && now.status.state == State::Running);
    assert_eq!(vm.holder(), Some(std::process::id()));
    assert!(matches!(
        containers.remove(&container),
        Err(Error::Running(_))
    ));

    drop(guard);
    let dead = containers.list().unwrap().remove(0);
    assert_eq!(
        (dead.status.state, dead.status.exit_code),
        (State::Exited, KILLED)
    );
    assert!(!dead.is_live() && dead.status.finished.is_some());
    containers.remove(&container).unwrap();
}

#[test]
fn one_that_is_to_go_goes_with_its_killed_process() {
    let (_directory, containers) = temporary();
    let id = new_id().unwrap();
    let record = Record {
        remove: true,
        ..record("brief", &id)
    };
    let container = containers
        .create(record, Some(&vm_record(&id, None)))
        .unwrap();
    run(&container);
    assert!(matches!(
        containers.find("brief"),
        Err(Error::NoContainer(_))
    ));
    assert_eq!(
        (count(&containers.containers), count(&containers.vms)),
        (0, 0)
    );
}

#[test]
fn a_vm_with_a_name_outlives_its_containers() {
    let (_directory, containers) = temporary();
    let vm_id = new_id().unwrap();
    let vm = containers
        .create_vm(&vm_record(&vm_id, Some("pod")))
        .unwrap();
    let twice = containers.create_vm(&vm_record(&new_id().unwrap(), Some("pod")));
    assert!(matches!(twice, Err(Error::VmNameInUse(_))));
    let inside = |name: &str| {
        let record = Record {
            id: new_id().unwrap(),
            ..record(name, &vm_id)
        };
        containers.create(record, None).unwrap()
    };
    let (one, two) = (inside("one"), inside("two"));
    assert_eq!(containers.of_vm(&vm_id).unwrap().len(), 2);
    assert_eq!(containers.find_vm("pod").unwrap().record.id, vm_id);
    assert_eq!(containers.find_vm("two").unwrap().record.id, vm_id);
    assert!(matches!(containers.remove_vm(&vm), Err(Error::VmInUse(_))));
    containers.remove(&one).unwrap();
    containers.remove(&two).unwrap();
    assert!(containers.find_vm("pod").is_ok());
    containers.remove_vm(&vm).unwrap();
    assert!(matches!(containers.find_vm("pod"), Err(Error::NoVm(_))));
}

#[test]
fn a_container_that_can_not_be_read_hides_no_other() {
    let (_directory, containers) = temporary();
    create(&containers, "good").unwrap();
    let broken = create(&containers, "broken").unwrap();
    fs::write(broken.directory().join("config.json"), "{\"id\": 1").unwrap();
    assert_eq!(containers.list().unwrap().len(), 1);
    assert!(containers.find("broken").is_err());
    let unfinished = create(&containers, "later").unwrap();
    fs::write(unfinished.directory().join("status.json"), "").unwrap();
    assert_eq!(containers.find("later").unwrap().status, Status::default());
}
