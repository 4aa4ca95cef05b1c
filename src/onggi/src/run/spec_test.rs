use clap::Parser;

use super::*;
use crate::cli::{Cli, Command};

fn args(line: &[&str]) -> RunArgs {
    let words = ["onggi", "run"].iter().chain(line);
    match Cli::try_parse_from(words).unwrap().command {
        Command::Run(args) => *args,
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

fn run(line: &[&str], image: &ImageDefaults) -> Result<Run, Error> {
    let args = args(line);
    let environment = Environment::read(&args.env_file, &args.env)?;
    request(&args, &environment, image, 3, "0123456789ab", None)
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
        assert_eq!(run(line, image).unwrap().process.args, expected, "{line:?}");
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
    let request = run(&["i"], &image()).unwrap();
    assert_eq!(request.process.cwd, "/srv");
    assert_eq!(request.process.user, "app:app");
    assert_eq!(request.process.env, ["PATH=/bin", "LANG=C"]);
    assert_eq!(request.container.hostname, "0123456789ab");
    assert_eq!(request.container.layers, 3);
    assert!(!request.process.stdin && request.process.terminal.is_none());

    let request = run(&["-i", "-w", "/tmp", "-u", "0", "-h", "jar", "i"], &image()).unwrap();
    assert_eq!(request.process.cwd, "/tmp");
    assert_eq!(request.process.user, "0");
    assert_eq!(request.container.hostname, "jar");
    assert!(request.process.stdin);
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
        assert!(matches!(
            run(&["-h", bad, "i"], &image()),
            Err(Error::Hostname(_))
        ));
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
    assert_eq!(run(&["i"], &relative).unwrap().process.cwd, "/srv");
}
