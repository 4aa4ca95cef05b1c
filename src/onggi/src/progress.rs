//! Progress of a pull: a bar per layer on a terminal, nothing elsewhere.

use std::collections::HashMap;
use std::io::{self, IsTerminal};
use std::sync::{Mutex, MutexGuard, PoisonError};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use onggi_image::{Digest, Event, Progress};

/// Shows the events of a pull on standard error.
pub struct Bars {
    all: MultiProgress,
    layers: Mutex<HashMap<String, ProgressBar>>,
}

/// What is right for this command: bars where a person sees them and wants them, else nothing.
pub fn choose(quiet: bool) -> Box<dyn Progress> {
    if quiet || !io::stderr().is_terminal() {
        Box::new(())
    } else {
        Box::new(Bars {
            all: MultiProgress::new(),
            layers: Mutex::new(HashMap::new()),
        })
    }
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
            Event::LayerCached(id) => self.layer(id, |bar| bar.finish_with_message("already here")),
            Event::LayerWaiting(id) => {
                self.layer(id, |bar| bar.set_message("waiting for another onggi"));
            }
            Event::LayerStarted { diff_id, total } => self.layer(diff_id, |bar| {
                bar.set_style(style(
                    "{prefix} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {msg}",
                ));
                bar.set_message("");
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
