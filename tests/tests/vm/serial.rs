//! The guest's console.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;

use onggi_tests::guest::Guest;

#[test]
fn everything_arrives_in_order() {
    let outcome = Guest::new("fill").with("lines=50").run().all_well();
    let lines = outcome
        .said
        .lines()
        .filter(|line| *line == "x".repeat(64))
        .count();
    assert_eq!(lines, 50);
}

#[test]
fn a_string_written_in_one_instruction_arrives() {
    let outcome = Guest::new("string").run().all_well();
    assert!(
        outcome.said.contains("a string in one instruction\n"),
        "{}",
        outcome.said
    );
}

#[test]
fn what_is_typed_reaches_the_guest() {
    let (reader, mut writer) = io::pipe().unwrap();
    let running = Guest::new("echo")
        .input(File::from(OwnedFd::from(reader)))
        .start();
    running.wait_for("echo: ready");
    // More than the port's FIFO holds at once.
    let words = "the quick brown fox jumps over the lazy dog ".repeat(8);
    writer.write_all(words.as_bytes()).unwrap();
    writer.write_all(b".").unwrap();
    let outcome = running.end().all_well();
    assert!(outcome.said.contains(&words), "{}", outcome.said);
}

#[test]
fn the_end_of_the_input_does_no_harm() {
    let (reader, writer) = io::pipe().unwrap();
    drop(writer);
    Guest::new("fill,hello")
        .input(File::from(OwnedFd::from(reader)))
        .run()
        .all_well();
}

#[test]
fn odd_port_accesses_do_no_harm() {
    Guest::new("ports,hello").run().all_well();
}
