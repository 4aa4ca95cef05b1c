//! Firecracker's REST API: which requests there are, when they may come, and what they mean.
//!
//! [`Api`] turns requests into [`Call`]s for a [`Vmm`], and what that says into answers.

mod call;

pub use call::{
    ActionType, BalloonUpdate, Balloons, Call, Hinting, StatisticsUpdate, VmState, When,
};

use serde_json::Value;

use crate::config::Error;
use crate::http::{Request, Response, Service, Status};

/// What came of a call.
#[derive(Debug, Clone, PartialEq)]
pub enum Answer {
    /// It is done.
    Done,
    /// What was asked for.
    Value(Value),
}

/// Why a call was not carried out; nothing has changed.
#[derive(Debug, thiserror::Error)]
pub enum Fault {
    /// There is nothing at the path for that method.
    #[error("there is no {method} of '{path}'")]
    NoSuchCall {
        /// The request's.
        method: &'static str,
        /// The request's.
        path: String,
    },
    /// The body is not JSON, or JSON with a missing, unknown or ill-typed field.
    #[error("the request's body is not valid: {0}")]
    Body(serde_json::Error),
    /// The path names something else than the body.
    #[error("the path names '{path}', and the body '{body}'")]
    OtherId {
        /// The path's.
        path: String,
        /// The body's.
        body: String,
    },
    /// The value of a field is out of its range.
    #[error(transparent)]
    Value(#[from] Error),
    /// It has to be said before the VM starts.
    #[error("this is only possible before the microVM is started")]
    Started,
    /// It needs a VM that runs.
    #[error("this is only possible once the microVM has been started")]
    NotStarted,
    /// A part of Firecracker that onggi doesn't have.
    #[error("{0} is not supported yet")]
    NotSupported(&'static str),
    /// More metadata than is allowed.
    #[error("the metadata would take {len} bytes, more than the {limit} that are allowed")]
    TooMuchMetadata {
        /// What it would take.
        len: usize,
        /// What it may.
        limit: usize,
    },
    /// Anything else.
    #[error("{0}")]
    Other(String),
}

impl Fault {
    /// A fault that says an error and what is behind it.
    pub fn of(error: &dyn std::error::Error) -> Self {
        Fault::Other(chain(error))
    }

    fn response(&self) -> Response {
        let status = match self {
            Fault::TooMuchMetadata { .. } => Status::PayloadTooLarge,
            _ => Status::BadRequest,
        };
        Response::fault(status, &chain(self))
    }
}

/// An error and its sources, in a line.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}

/// What carries calls out.
pub trait Vmm {
    /// Whether there is a VM by now.
    fn is_started(&self) -> bool;

    /// Carries out a call that may come now.
    ///
    /// # Errors
    /// See [`Fault`]; nothing has changed then.
    fn call(&mut self, call: Call) -> Result<Answer, Fault>;
}

/// The API of a [`Vmm`].
pub struct Api<V>(pub V);

impl<V: Vmm> Api<V> {
    fn answer(&mut self, request: &Request) -> Result<Answer, Fault> {
        let call = Call::parse(request)?;
        match (call.when(), self.0.is_started()) {
            (When::BeforeStart, true) => Err(Fault::Started),
            (When::AfterStart, false) => Err(Fault::NotStarted),
            _ => self.0.call(call),
        }
    }
}

impl<V: Vmm> Service for Api<V> {
    fn serve(&mut self, request: &Request) -> Response {
        let (method, path) = (request.method.name(), request.path.as_str());
        match self.answer(request) {
            Ok(answer) => {
                tracing::info!("{method} {path}: done");
                match answer {
                    Answer::Done => Response::done(),
                    Answer::Value(value) => Response::json(&value),
                }
            }
            Err(fault) => {
                let response = fault.response();
                let said = String::from_utf8_lossy(&response.body);
                tracing::error!("{method} {path}: {said}");
                response
            }
        }
    }
}

#[cfg(test)]
#[path = "rest_test.rs"]
mod tests;
