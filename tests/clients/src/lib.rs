//! What the programs that drive a client share: where the files are, and how the guest is asked
//! over its network. The guest is `guest.py`.

use std::env;
use std::error::Error;
use std::path::PathBuf;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

/// Whatever goes wrong ends the program, and its words are for a person.
pub type Outcome<T> = Result<T, Box<dyn Error>>;

/// The address of the guest, which it gets from the kernel's command line.
pub const GUEST: &str = "10.9.0.2";

/// What every client's guest is started with.
pub const BOOT_ARGS: &str =
    "console=ttyS0 quiet reboot=k panic=-1 ip=10.9.0.2::10.9.0.1:255.255.255.0::eth0:off";

/// Enough for a hang to be one, on a slow machine too.
pub const PATIENCE: Duration = Duration::from_secs(90);

/// A file that the test names in its environment.
pub fn file(variable: &str) -> Outcome<PathBuf> {
    let path = env::var_os(variable).ok_or_else(|| format!("{variable} is not set"))?;
    Ok(PathBuf::from(path))
}

/// An error unless the claim holds.
pub fn expect(holds: bool, claim: &str) -> Outcome<()> {
    if holds {
        println!("{claim}");
        Ok(())
    } else {
        Err(format!("not so: {claim}").into())
    }
}

/// What the guest's server answers to a `GET` by the network, once it does.
pub async fn get(path: &str) -> Outcome<String> {
    let ask = async {
        loop {
            match try_get(path).await {
                Ok(answer) => return answer,
                Err(_) => sleep(Duration::from_millis(200)).await,
            }
        }
    };
    Ok(timeout(PATIENCE, ask).await?)
}

/// Whether the guest answers by the network within a second.
pub async fn answers() -> bool {
    let answer = timeout(Duration::from_secs(1), try_get("/cmdline")).await;
    matches!(answer, Ok(Ok(_)))
}

async fn try_get(path: &str) -> Outcome<String> {
    let mut stream = TcpStream::connect((GUEST, 80)).await?;
    let request = format!("GET {path} HTTP/1.0\r\n\r\n");
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").ok_or("half an answer")?;
    expect(head.contains(" 200 "), "the guest's answer is good")?;
    Ok(body.to_owned())
}
