//! A process's environment: what Docker adds to that of the image and the user.

use onggi_protocol::Process;

/// Where programs are, if nobody says otherwise.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The value of a variable.
#[must_use]
pub fn get<'a>(environment: &'a [String], name: &str) -> Option<&'a str> {
    environment
        .iter()
        .find_map(|entry| entry.strip_prefix(name)?.strip_prefix('='))
}

/// The environment of `process`: each name once, the last one's value in the first one's place.
/// `HOME` is also replaced where it's empty.
#[must_use]
pub fn of(process: &Process, hostname: &str, home: &str) -> Vec<String> {
    let mut environment = vec![format!("PATH={PATH}"), format!("HOSTNAME={hostname}")];
    if process.terminal.is_some() {
        environment.push("TERM=xterm".into());
    }
    for entry in &process.env {
        // Without a name there's nothing to set; the kernel would take it, programs would not.
        if let Some((name, _)) = entry.split_once('=').filter(|(name, _)| !name.is_empty()) {
            set(&mut environment, name, entry.clone());
        }
    }
    if get(&environment, "HOME").is_none_or(str::is_empty) {
        set(&mut environment, "HOME", format!("HOME={home}"));
    }
    environment
}

fn set(environment: &mut Vec<String>, name: &str, entry: String) {
    let same = |old: &&mut String| old.split_once('=').is_some_and(|(old, _)| old == name);
    match environment.iter_mut().find(same) {
        Some(old) => *old = entry,
        None => environment.push(entry),
    }
}

#[cfg(test)]
mod tests {
    use onggi_protocol::WindowSize;

    use super::*;

    fn environment(env: &[&str], terminal: bool) -> Vec<String> {
        let process = Process {
            args: vec!["true".into()],
            env: env.iter().map(ToString::to_string).collect(),
            cwd: String::new(),
            user: String::new(),
            terminal: terminal.then_some(WindowSize {
                rows: 0,
                columns: 0,
            }),
            stdin: false,
        };
        of(&process, "jar", "/root")
    }

    #[test]
    fn what_is_absent_is_added() {
        assert_eq!(
            environment(&["A=1"], true),
            [
                &format!("PATH={PATH}"),
                "HOSTNAME=jar",
                "TERM=xterm",
                "A=1",
                "HOME=/root"
            ]
        );
        assert_eq!(get(&environment(&[], false), "TERM"), None);
    }

    #[test]
    fn what_is_there_wins_and_the_last_of_a_name_most() {
        let got = environment(
            &["PATH=/bin", "HOME=/a", "PATH=/sbin", "TERM=vt100", "A==x"],
            true,
        );
        assert_eq!(
            got,
            [
                "PATH=/sbin",
                "HOSTNAME=jar",
                "TERM=vt100",
                "HOME=/a",
                "A==x"
            ]
        );
    }

    #[test]
    fn an_empty_home_is_no_home_and_an_empty_name_no_variable() {
        let got = environment(&["HOME=", "=x", "y", "PATHS=z", "PATH="], false);
        assert_eq!(got, ["PATH=", "HOSTNAME=jar", "HOME=/root", "PATHS=z"]);
    }
}
