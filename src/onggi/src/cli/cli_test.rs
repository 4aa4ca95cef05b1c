use clap::CommandFactory;

use onggi_storage::Access;

use super::*;

fn parse(line: &[&str]) -> Result<Command, UsageError> {
    let words: Vec<String> = std::iter::once("onggi")
        .chain(line.iter().copied())
        .map(str::to_owned)
        .collect();
    Cli::try_parse_from(&words)
        .map(|cli| cli.command)
        .map_err(|error| UsageError::new(&error, &words))
}

fn run(line: &[&str]) -> RunArgs {
    let words: Vec<_> = std::iter::once("run").chain(line.iter().copied()).collect();
    match parse(&words) {
        Ok(Command::Run(args)) => *args,
        other => panic!("{other:?}"),
    }
}

#[test]
fn definitions_are_sound() {
    Cli::command().debug_assert();
}

/// As with Docker, flags end at the image: what follows is the command's, whatever it looks like.
#[test]
fn flags_after_the_image_are_the_commands() {
    let args = run(&[
        "-it", "-e", "A=b", "debian", "ls", "-i", "--name", "-la", "--", "-x",
    ]);
    let args = &args.container;
    assert!(args.interactive && args.tty && args.name.is_none());
    assert_eq!(args.image(), "debian");
    assert_eq!(args.command(), ["ls", "-i", "--name", "-la", "--", "-x"]);

    let args = run(&["debian", "-t", "--bogus"]);
    assert!(!args.container.tty);
    assert_eq!(args.container.command(), ["-t", "--bogus"]);
    assert!(run(&["debian"]).container.command().is_empty());
    let Ok(Command::Exec(args)) = parse(&["exec", "-it", "web", "ls", "-d", "--user"]) else {
        panic!();
    };
    assert_eq!((args.container(), args.detach), ("web", false));
    assert_eq!(args.command(), ["ls", "-d", "--user"]);
}

#[test]
fn defaults() {
    let args = run(&["debian"]);
    assert!(args.sig_proxy && !args.detach);
    assert_eq!(args.detach_keys.0, [16, 17]);
    assert_eq!((args.container.cpus, args.container.memory), (None, None));
    assert_eq!(args.container.pull, PullPolicy::Missing);
    assert!(!run(&["--sig-proxy=false", "debian"]).sig_proxy);
    let Ok(Command::Boot(args)) = parse(&["boot", "-k", "vmlinux", "-d", "a,ro", "-d", "b"]) else {
        panic!();
    };
    assert_eq!((args.cpus, args.memory), (1, MemorySize(128 << 20)));
    let access = args.disk.iter().map(|disk| match disk {
        DiskSpec::File(file) => Some(file.access),
        DiskSpec::VhostUser(_) => None,
    });
    let both = [Some(Access::ReadOnly), Some(Access::ReadWrite)];
    assert!(access.eq(both));
    assert_eq!(args.console, None);
}

#[test]
fn wrong_flags_in_one_sentence() {
    for (line, message, hint) in [
        (
            &["run"][..],
            "the name of an image is missing",
            "see 'onggi run --help'",
        ),
        (
            &["pull"],
            "the name of an image is missing",
            "see 'onggi pull --help'",
        ),
        (
            &["run", "--frob", "i"],
            "unknown flag: --frob",
            "see 'onggi run --help'",
        ),
        (
            &["run", "--nam", "x", "i"],
            "unknown flag: --nam",
            "did you mean '--name'?",
        ),
        (
            &["image", "pulll", "x"],
            "there is no command 'pulll'",
            "did you mean 'pull'?",
        ),
        (
            &["image", "ls", "--frob"],
            "unknown flag: --frob",
            "see 'onggi image ls --help'",
        ),
        (
            &["frobnicate"],
            "there is no command 'frobnicate'",
            "see 'onggi --help'",
        ),
        (
            &["run", "-m", "lots", "i"],
            "invalid value 'lots' for '--memory <SIZE>': a size is a number with a suffix b, k, m \
             or g, such as 256m",
            "see 'onggi run --help'",
        ),
        (
            &["run", "--cpus", "1.5", "i"],
            "invalid value '1.5' for '--cpus <N>': a VM has from 1 to 32 whole vCPUs",
            "see 'onggi run --help'",
        ),
        (
            &["run", "--rm", "--restart", "always", "i"],
            "the argument '--rm' cannot be used with '--restart <POLICY>'",
            "see 'onggi run --help'",
        ),
        (
            &["run", "--restart", "often", "i"],
            "invalid value 'often' for '--restart <POLICY>': a restart policy is no, always, \
             unless-stopped or on-failure[:N], not 'often'",
            "see 'onggi run --help'",
        ),
        (
            &["exec", "web"],
            "2 values required by '<CONTAINER> <COMMAND>...'; only 1 was provided",
            "see 'onggi exec --help'",
        ),
        (
            &["boot"],
            "--kernel <FILE> is missing",
            "see 'onggi boot --help'",
        ),
        (
            &["boot", "-k", "k", "--config", "c"],
            "the argument '--kernel <FILE>' cannot be used with '--config <FILE>'",
            "see 'onggi boot --help'",
        ),
    ] {
        let error = parse(line).unwrap_err();
        assert_eq!(
            (error.to_string().as_str(), error.hint.as_str()),
            (message, hint)
        );
    }
}
