//! A client of the API: what it sends in one connection, and what it may expect for that.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use onggi_api::VmConfig;
use onggi_api::http::{Limits, Method, Request, Response, Server, Service};
use onggi_api::rest::{ActionType, Answer, Api, Balloons, Call, Fault, Vmm};
use serde_json::Value;

/// Small, so that short inputs are too long.
const LIMITS: Limits = Limits {
    payload: 1024,
    head: 512,
    connections: 2,
};
/// Never sent: what is before it and what is after it are sent apart.
const PAUSE: u8 = 0xfe;

/// Sends `input` to an API, and reads what that answers.
///
/// # Panics
/// An answer is not one, or there are more or fewer than requests.
pub fn rest(input: &[u8]) {
    let folder = tempfile::tempdir_in("/dev/shm").expect("a folder in memory");
    let path = folder.path().join("s");
    let listener = UnixListener::bind(&path).expect("a listener");
    let server = Server::new(listener, LIMITS).expect("a server");
    let stopper = server.stopper();
    let mut client = UnixStream::connect(&path).expect("a connection");
    let thread = thread::spawn(move || {
        let mut service = Counting {
            api: Api(Description::default()),
            served: 0,
        };
        server.run(&mut service).expect("the server stays");
        service
    });
    for piece in input.split(|byte| *byte == PAUSE) {
        // It may have been told to go by now.
        let _ = client.write_all(piece);
        thread::yield_now();
    }
    let _ = client.shutdown(Shutdown::Write);
    let patience = Some(Duration::from_secs(10));
    client.set_read_timeout(patience).expect("a timeout");
    let mut said = Vec::new();
    // What the server has not read when it hangs up makes this an error, after all that it said.
    let end = client.read_to_end(&mut said);
    let slow = end.is_err_and(|error| error.kind() == std::io::ErrorKind::WouldBlock);
    assert!(!slow, "the server never came to an end");
    stopper.stop();
    let service = thread.join().expect("the server does not panic");
    let answers = Answers(&said).count();
    // One more is for what was no request.
    let expected = service.served..=service.served + 1;
    assert!(expected.contains(&answers), "{answers} for {expected:?}");
    can_be_said_again(&service.api.0.config);
}

/// Whoever copies a VM by what its API says of it gets the same one.
fn can_be_said_again(config: &VmConfig) {
    let mut copy = Api(Description::default());
    let mut put = |path: String, said: &Value| {
        let request = Request {
            method: Method::Put,
            body: said.to_string().into_bytes(),
            path,
        };
        let answer = copy.serve(&request);
        let why = String::from_utf8_lossy(&answer.body);
        assert_eq!(answer.status.code(), 204, "{said}: {why}");
    };
    let said = serde_json::to_value(config).expect("a description is JSON");
    for (part, said) in said.as_object().expect("an object") {
        match said {
            Value::Null => {}
            Value::Array(list) => {
                for said in list {
                    let id = said.get("drive_id").or(said.get("iface_id"));
                    let id = id.and_then(Value::as_str).expect("a name");
                    put(format!("/{part}/{id}"), said);
                }
            }
            said if part == "mmds-config" => put("/mmds/config".to_owned(), said),
            said => put(format!("/{part}"), said),
        }
    }
    assert_eq!(copy.0.config, *config);
}

struct Counting {
    api: Api<Description>,
    served: usize,
}

impl Service for Counting {
    fn serve(&mut self, request: &Request) -> Response {
        assert!(request.body.len() <= LIMITS.payload && request.path.len() <= LIMITS.head);
        self.served += 1;
        self.api.serve(request)
    }
}

/// A VM that is only ever described.
#[derive(Default)]
struct Description {
    config: VmConfig,
    started: bool,
}

impl Vmm for Description {
    fn is_started(&self) -> bool {
        self.started
    }

    fn call(&mut self, call: Call) -> Result<Answer, Fault> {
        let config = &mut self.config;
        match call {
            Call::Config => {
                let config = serde_json::to_value(config).map_err(|error| Fault::of(&error));
                return Ok(Answer::Value(config?));
            }
            Call::SetMetadata(value) => return Ok(Answer::Value(value)),
            Call::Action(ActionType::InstanceStart) => self.started = true,
            Call::BootSource(source) => config.boot_source = Some(source),
            Call::SetMachine(machine) => config.machine_config = machine,
            Call::UpdateMachine(update) => {
                config.machine_config = config.machine_config.updated(update)?;
            }
            Call::CpuConfig(cpu) => config.cpu_config = Some(cpu),
            Call::Drive(drive) => config.set_drive(*drive)?,
            Call::NetworkInterface(interface) => config.set_network_interface(*interface)?,
            Call::Vsock(vsock) => config.vsock = Some(vsock),
            Call::Entropy(entropy) => config.entropy = Some(entropy),
            Call::Serial(serial) => config.serial = Some(serial),
            Call::Logger(logger) => config.logger = Some(logger),
            Call::Metrics(metrics) => config.metrics = Some(metrics),
            Call::Balloon(Balloons::Set(balloon)) => config.balloon = Some(balloon),
            Call::MmdsConfig(mmds) => config.mmds_config = Some(mmds),
            _ => {}
        }
        Ok(Answer::Done)
    }
}

/// The answers in what a server said. Each is looked at as a client would.
struct Answers<'a>(&'a [u8]);

impl Iterator for Answers<'_> {
    type Item = ();

    fn next(&mut self) -> Option<()> {
        const LEAVE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";
        while let Some(rest) = self.0.strip_prefix(LEAVE) {
            self.0 = rest;
        }
        if self.0.is_empty() {
            return None;
        }
        let end = self.0.windows(4).position(|four| four == b"\r\n\r\n");
        let (head, rest) = self.0.split_at(end.expect("a head has an end") + 4);
        let head = std::str::from_utf8(head).expect("a head is text");
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|it| it.get(..3));
        let field = |name| head.split("\r\n").find_map(|line| line.strip_prefix(name));
        let length = field("Content-Length: ").map(|it| it.parse().expect("a length"));
        assert_eq!(length.is_none(), status == Some("204"), "{head}");
        let (body, rest) = rest.split_at(length.unwrap_or(0));
        match status {
            Some("204") => {}
            Some("200") => drop(serde_json::from_slice::<Value>(body).expect("JSON")),
            Some("400" | "413") => {
                let body: Value = serde_json::from_slice(body).expect("JSON");
                let body = body.as_object().expect("an object");
                assert!(body.len() == 1 && body["fault_message"].is_string());
            }
            _ => panic!("no answer: {head}"),
        }
        let goes_on = field("Connection: ") == Some("keep-alive");
        assert!(goes_on || rest.is_empty(), "something after the end");
        self.0 = rest;
        Some(())
    }
}
