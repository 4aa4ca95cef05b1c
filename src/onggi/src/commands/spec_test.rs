use clap::Parser;

use super::*;
use crate::cli::{Cli, Command};

fn args(line: &[&str]) -> ContainerArgs {
    let words = ["onggi", "run"].iter().chain(line);
    match Cli::try_parse_from(words).unwrap().command {
        Command::Run(args) => args.container,
        other => panic!("{other:?}"),
    }
}

fn strings(list: &[&str]) -> Vec<String> {
    list.iter().map(|&text| text.to_owned()).collect()
}

fn image() -> ImageDefaults {
    ImageDefaults {
        entrypoint: strings(&["/entry", "-x"]),
        cmd: strings(&["serve"]),
        env: strings(&["PATH=/bin", "LANG=C"]),
        working_dir: "/srv".to_owned(),
        user: "app:app".to_owned(),
    }
}

fn run(line: &[&str], image: &ImageDefaults) -> Result<ProcessSpec, Error> {
    let args = args(line);
    let environment = Environment::read(&args.env_file, &args.env)?;
    process(&args, &environment, image)
}

/// The table of Docker's reference, "Understand how CMD and ENTRYPOINT interact", and what
/// `--entrypoint` does to it.
#[test]
fn entrypoint_and_command() {
    let no_entrypoint = ImageDefaults {
        entrypoint: Vec::new(),
        ..image()
    };
    for (line, image, expected) in [
        (&["i"][..], &image(), &["/entry", "-x", "serve"][..]),
        (&["i", "a", "-b"], &image(), &["/entry", "-x", "a", "-b"]),
        (&["i"], &no_entrypoint, &["serve"]),
        (&["i", "sh"], &no_entrypoint, &["sh"]),
        (&["--entrypoint", "sh", "i"], &image(), &["sh"]),
        (
            &["--entrypoint", "sh", "i", "-c", "x"],
            &image(),
            &["sh", "-c", "x"],
        ),
        (&["--entrypoint", "", "i", "ls"], &image(), &["ls"]),
    ] {
        assert_eq!(run(line, image).unwrap().args, expected, "{line:?}");
    }
    assert!(matches!(
        run(&["--entrypoint", "", "i"], &image()),
        Err(Error::NoCommand)
    ));
    let nothing = ImageDefaults::default();
    assert!(matches!(run(&["i"], &nothing), Err(Error::NoCommand)));
}

#[test]
fn the_image_says_what_the_flags_do_not() {
    let process = run(&["i"], &image()).unwrap();
    assert_eq!(process.cwd, "/srv");
    assert_eq!(process.user, "app:app");
    assert_eq!(process.env, ["PATH=/bin", "LANG=C"]);
    assert!(!process.stdin && !process.tty);

    let process = run(&["-it", "-w", "/tmp", "-u", "0", "i"], &image()).unwrap();
    assert_eq!(process.cwd, "/tmp");
    assert_eq!(process.user, "0");
    assert!(process.stdin && process.tty);
}

#[test]
fn environment() {
    let own = |name: &str| (name == "OWN").then(|| "mine".to_owned());
    let mut variables = Vec::new();
    let file = "# comment\n\n  A=from file\nOWN\nUNSET\nQ=\"as is\" # this too\r\nE=\n";
    parse_file(Path::new("f"), file, own, &mut variables).unwrap();
    for flag in ["B=1=2", "A=from flag", "LANG", "OWN"] {
        variables.push(parse_flag(flag, own).unwrap());
    }
    assert_eq!(
        Environment(variables).apply(&strings(&["PATH=/bin", "LANG=C", "B=0"])),
        [
            "PATH=/bin",
            "B=1=2",
            "A=from flag",
            "OWN=mine",
            "Q=\"as is\" # this too",
            "E="
        ]
    );
}

#[test]
fn bad_environment() {
    assert!(matches!(
        run(&["-e", "=x", "i"], &image()),
        Err(Error::Variable(_))
    ));
    assert!(matches!(
        run(&["-e", "", "i"], &image()),
        Err(Error::Variable(_))
    ));
    assert!(matches!(
        run(&["--env-file", "/nonexistent", "i"], &image()),
        Err(Error::EnvFile(..))
    ));
    for bad in ["A=1\n=x", "A=1\nB C=x", "A=1\nB C"] {
        let result = parse_file(Path::new("f"), bad, |_| None, &mut Vec::new());
        assert!(
            matches!(result, Err(Error::EnvFileLine { line: 2, .. })),
            "{bad}"
        );
    }
}

#[test]
fn bad_values() {
    assert!(matches!(
        run(&["-w", "tmp", "i"], &image()),
        Err(Error::RelativeWorkdir(_))
    ));
    for bad in ["", "a b", "a/b", &"x".repeat(65)] {
        assert!(matches!(hostname(bad), Err(Error::Hostname(_))));
    }
    let nul = ImageDefaults {
        cmd: strings(&["a\0b"]),
        ..image()
    };
    assert!(matches!(run(&["i"], &nul), Err(Error::Nul)));
    let relative = ImageDefaults {
        working_dir: "srv".to_owned(),
        ..image()
    };
    assert_eq!(run(&["i"], &relative).unwrap().cwd, "/srv");
}

#[test]
fn what_a_command_of_exec_takes_from_its_container() {
    let container = run(&["i"], &image()).unwrap();
    let exec = |line: &[&str]| {
        let words = ["onggi", "exec"].iter().chain(line);
        match Cli::try_parse_from(words).unwrap().command {
            Command::Exec(args) => {
                let environment = Environment::read(&args.env_file, &args.env).unwrap();
                super::exec(&args, &environment, &container, None)
            }
            other => panic!("{other:?}"),
        }
    };
    let process = exec(&["-e", "A=b", "c", "ls", "-l"]).unwrap();
    assert_eq!(process.args, ["ls", "-l"]);
    assert_eq!(process.env, ["PATH=/bin", "LANG=C", "A=b"]);
    assert_eq!(
        (process.cwd.as_str(), process.user.as_str()),
        ("/srv", "app:app")
    );
    let process = exec(&["-i", "-u", "root", "-w", "/", "c", "id"]).unwrap();
    assert_eq!((process.cwd.as_str(), process.user.as_str()), ("/", "root"));
    assert!(process.stdin);
    assert!(exec(&["-w", "tmp", "c", "id"]).is_err());
}

#[test]
fn capabilities_are_dockers_with_changes() {
    let of = |add: &[&str], drop: &[&str]| {
        super::capabilities(&strings(add), &strings(drop), false).unwrap()
    };
    let has = |list: &[String], name: &str| list.iter().any(|it| it == name);
    assert_eq!(of(&[], &[]).len(), 14);
    assert!(has(&of(&["net_admin"], &[]), "CAP_NET_ADMIN"));
    assert!(!has(&of(&[], &["CAP_CHOWN"]), "CAP_CHOWN"));
    assert_eq!(of(&["KILL"], &["all"]), ["CAP_KILL"]);
    assert_eq!(of(&["ALL"], &[]).len(), 41);
    let most = of(&["ALL"], &["SYS_ADMIN"]);
    assert!(most.len() == 40 && !has(&most, "CAP_SYS_ADMIN"));
    assert_eq!(super::capabilities(&[], &[], true).unwrap().len(), 41);
    let unknown = super::capabilities(&strings(&["FLY"]), &[], false);
    assert!(matches!(unknown, Err(Error::Capability(name)) if name == "FLY"));
}

#[test]
fn health_checks_of_flags_and_images() {
    let check = |line: &[&str], image| {
        let words: Vec<&str> = line.iter().copied().chain(["i"]).collect();
        super::health(&args(&words).health, image)
    };
    assert_eq!(check(&[], None), None);
    assert_eq!(check(&["--health-interval", "1s"], None), None);
    let own = check(
        &["--health-cmd", "test -e /up", "--health-retries", "5"],
        None,
    )
    .unwrap();
    assert_eq!(own.test, ["/bin/sh", "-c", "test -e /up"]);
    assert_eq!((own.interval, own.retries), (30_000, 5));
    let changed = check(&["--health-timeout", "2s"], Some(own.clone())).unwrap();
    assert_eq!(
        (changed.timeout, changed.test.clone()),
        (2000, own.test.clone())
    );
    assert_eq!(check(&["--no-healthcheck"], Some(own)), None);
}

#[test]
fn labels_of_images_files_and_flags() {
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "# no\nfile=1\nboth=file\n").unwrap();
    let image = BTreeMap::from([("image".to_owned(), "1".to_owned())]);
    let labels = super::labels(
        &[file.path().to_owned()],
        &strings(&["both=flag", "bare"]),
        &image,
    )
    .unwrap();
    let expected = [
        ("bare", ""),
        ("both", "flag"),
        ("file", "1"),
        ("image", "1"),
    ];
    assert!(
        labels
            .iter()
            .map(|(k, v)| (k.as_str(), v.as_str()))
            .eq(expected)
    );
    assert!(super::labels(&[], &strings(&["=x"]), &image).is_err());
}
