//! Progress of a pull or a push: a bar per layer on a terminal, nothing elsewhere.

use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::sync::{Mutex, MutexGuard, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use onggi_image::{Digest, Event, Progress};

/// Which way an image goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// From a registry.
    Pull,
    /// To a registry.
    Push,
}

/// Shows events on standard error.
struct Bars {
    direction: Direction,
    all: MultiProgress,
    layers: Mutex<HashMap<String, ProgressBar>>,
}

/// What is right for this command: bars where a person sees them and wants them, else nothing.
pub fn choose(quiet: bool, direction: Direction) -> Box<dyn Progress> {
    if !visible(quiet) {
        Box::new(())
    } else {
        Box::new(Bars {
            direction,
            all: MultiProgress::new(),
            layers: Mutex::new(HashMap::new()),
        })
    }
}

/// Whether a person sees bars, and wants them.
pub fn visible(quiet: bool) -> bool {
    !quiet && io::stderr().is_terminal()
}

impl Bars {
    fn layers(&self) -> MutexGuard<'_, HashMap<String, ProgressBar>> {
        self.layers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets `change` have the bar of a layer, which is made where there is none.
    fn layer(&self, diff_id: &Digest, change: impl FnOnce(&ProgressBar)) {
        let mut layers = self.layers();
        let bar = layers.entry(diff_id.hex()).or_insert_with(|| {
            let bar = self.all.add(ProgressBar::no_length());
            bar.set_style(style("{prefix} {msg}"));
            bar.set_prefix(diff_id.short());
            bar
        });
        change(bar);
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}

impl Progress for Bars {
    fn event(&self, event: Event<'_>) {
        match event {
            Event::Resolving(reference) => {
                let _ = self.all.println(format!("Fetching {reference}"));
            }
            Event::LayerCached(id) => {
                let there = match self.direction {
                    Direction::Pull => "already here",
                    Direction::Push => "already there",
                };
                self.layer(id, |bar| bar.finish_with_message(there));
            }
            Event::LayerMounted { id, from } => {
                let taken = format!("taken from {from}");
                self.layer(id, |bar| bar.finish_with_message(taken));
            }
            Event::LayerWaiting(id) => {
                self.layer(id, |bar| bar.set_message("waiting for another onggi"));
            }
            Event::LayerStarted { diff_id, total } => self.layer(diff_id, |bar| {
                bar.set_style(style(
                    "{prefix} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {msg}",
                ));
                bar.set_message("");
                bar.set_position(0);
                bar.set_length(total);
            }),
            Event::LayerBytes { diff_id, bytes } => self.layer(diff_id, |bar| bar.inc(bytes)),
            Event::LayerUnpacking(id) => self.layer(id, |bar| bar.set_message("finishing")),
            Event::LayerDone(id) => self.layer(id, |bar| {
                bar.set_style(style("{prefix} {msg}"));
                bar.finish_with_message("done");
            }),
            Event::Done(_) => self.layers().clear(),
            // What layers there are shows when they are begun.
            _ => {}
        }
    }
}
