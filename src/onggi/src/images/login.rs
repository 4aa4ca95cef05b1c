//! `onggi login` and `onggi logout`.

use std::io::{self, BufRead, Read, Write};

use onggi_image::{Account, Login};

use crate::cli::{LoginArgs, LogoutArgs};
use crate::error::{Explain, Failure};
use crate::output::print;
use crate::terminal;

/// More than any password has.
const MAX_PASSWORD: u64 = 64 << 10;
/// What a terminal sends for the keys that mean something while a password is typed.
const INTERRUPT: u8 = 3;
const END: u8 = 4;
const BACKSPACES: [u8; 2] = [8, 127];

/// Why nobody could be logged in or out.
#[derive(Debug, thiserror::Error)]
enum LoginError {
    /// The name of a registry that is none.
    #[error("'{0}' is not the name of a registry")]
    Registry(String, #[source] onggi_image::ParseReferenceError),
    /// There is nobody to ask.
    #[error("there is no terminal to ask for the {0}")]
    NoTerminal(&'static str),
    /// The input can't be read.
    #[error("the {0} can't be read")]
    Input(&'static str, #[source] io::Error),
    /// Nothing was given.
    #[error("the {0} is empty")]
    Empty(&'static str),
}

impl Explain for LoginError {
    fn hint(&self) -> Option<String> {
        match self {
            LoginError::NoTerminal(_) => {
                Some("give --username, and the password with --password-stdin".to_owned())
            }
            _ => None,
        }
    }
}

/// `onggi login`.
pub fn login(args: &LoginArgs) -> Result<u8, Failure> {
    let account = account(args.registry.as_deref())?;
    if args.password.is_some() {
        let _ = writeln!(
            io::stderr(),
            "onggi: a password on the command line is seen by others; --password-stdin is safer"
        );
    }
    let given = args.username.is_some() || args.password.is_some() || args.password_stdin;
    let login = match account.kept().map_err(onggi_image::Error::from) {
        Ok(Some(kept)) if !given => kept,
        // Credentials that can't be used are about to be replaced.
        _ => ask(args)?,
    };
    let result = account.log_in(&login);
    result.map_err(onggi_image::Error::from)?;
    print("Login Succeeded\n")?;
    Ok(0)
}

/// `onggi logout`.
pub fn logout(args: &LogoutArgs) -> Result<u8, Failure> {
    let account = account(args.registry.as_deref())?;
    let was_there = account.log_out().map_err(onggi_image::Error::from)?;
    let registry = account.registry();
    print(&match was_there {
        true => format!("Removing login credentials for {registry}\n"),
        false => format!("Not logged in to {registry}\n"),
    })?;
    Ok(0)
}

fn account(registry: Option<&str>) -> Result<Account, LoginError> {
    let registry = registry.unwrap_or_default();
    Account::of(registry).map_err(|source| LoginError::Registry(registry.to_owned(), source))
}

/// Gets the credentials from where they are said to be, or from the user.
fn ask(args: &LoginArgs) -> Result<Login, LoginError> {
    let user = match &args.username {
        Some(user) => user.clone(),
        None => ask_user()?,
    };
    let password = match &args.password {
        Some(password) => password.clone(),
        None if args.password_stdin => read_password(io::stdin().lock())?,
        None => ask_password()?,
    };
    for (what, text) in [("user name", &user), ("password", &password)] {
        if text.is_empty() {
            return Err(LoginError::Empty(what));
        }
    }
    Ok(Login { user, password })
}

fn ask_user() -> Result<String, LoginError> {
    const WHAT: &str = "user name";
    if terminal::input().is_none() {
        return Err(LoginError::NoTerminal(WHAT));
    }
    let _ = write!(io::stderr(), "Username: ");
    let mut line = String::new();
    let read = io::stdin().lock().read_line(&mut line);
    read.map_err(|error| LoginError::Input(WHAT, error))?;
    Ok(line.trim().to_owned())
}

/// Reads a password that is all of the input but the end of its line.
fn read_password(input: impl Read) -> Result<String, LoginError> {
    let mut text = String::new();
    let read = input.take(MAX_PASSWORD).read_to_string(&mut text);
    read.map_err(|error| LoginError::Input("password", error))?;
    Ok(text.trim_end_matches(['\r', '\n']).to_owned())
}

/// Has the user type a password, which does not show.
fn ask_password() -> Result<String, LoginError> {
    const WHAT: &str = "password";
    let input = terminal::input().ok_or(LoginError::NoTerminal(WHAT))?;
    let _ = write!(io::stderr(), "Password: ");
    // Raw, so that Ctrl-C comes as a byte: a signal would leave the terminal without an echo.
    terminal::make_raw(input).map_err(|error| LoginError::Input(WHAT, error))?;
    let typed = typed(io::stdin().lock());
    terminal::restore();
    let _ = writeln!(io::stderr());
    typed.map_err(|error| LoginError::Input(WHAT, error))
}

fn typed(input: impl BufRead) -> io::Result<String> {
    let mut text = Vec::new();
    for byte in input.take(MAX_PASSWORD).bytes() {
        match byte? {
            b'\r' | b'\n' | END => break,
            INTERRUPT => return Err(io::ErrorKind::Interrupted.into()),
            byte if BACKSPACES.contains(&byte) => {
                // The whole of a character that is several bytes.
                while text.pop().is_some_and(|byte: u8| byte & 0xc0 == 0x80) {}
            }
            byte => text.push(byte),
        }
    }
    String::from_utf8(text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passwords() {
        for (input, password) in [
            ("a b\n", "a b"),
            ("x\r\n", "x"),
            ("x", "x"),
            (" y \n", " y "),
        ] {
            assert_eq!(read_password(input.as_bytes()).unwrap(), password);
        }
        for (keys, password) in [
            ("secret\rmore", "secret"),
            ("abc\u{7f}d\n", "abd"),
            ("aé\u{8}b\u{4}", "ab"),
            ("\u{7f}x\r", "x"),
        ] {
            assert_eq!(typed(keys.as_bytes()).unwrap(), password);
        }
        assert!(typed(&b"se\x03"[..]).is_err());
        assert!(typed(&b"\xff\r"[..]).is_err());
    }
}
