//! The fuzz targets without a fuzzer: they replay the corpus that `make fuzz` keeps, and the inputs
//! that once failed.

use std::{fs, path::Path};

#[path = "../../fuzz/targets/access.rs"]
mod access;
#[path = "../../fuzz/targets/choices.rs"]
mod choices;
#[path = "../../fuzz/targets/client_hello.rs"]
mod client_hello;
#[path = "../../fuzz/targets/configuration.rs"]
mod configuration;
#[path = "../../fuzz/targets/engine.rs"]
mod engine;
#[path = "../../fuzz/targets/http2.rs"]
mod http2;
#[path = "../../fuzz/targets/reload.rs"]
mod reload;
#[path = "../../fuzz/targets/requests.rs"]
mod requests;

/// Replays all inputs of a target. It prints the name of each first, so that the output of a
/// failure names the input.
fn replay(target: &str, run: fn(&[u8])) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/corpus")
        .join(target);
    let mut inputs: Vec<_> = fs::read_dir(&folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    inputs.sort();
    assert!(inputs.len() >= 10, "{} has no corpus", folder.display());
    for input in inputs {
        println!("{}", input.display());
        run(&fs::read(input).unwrap());
    }
}

#[test]
fn corpus_of_client_hello_is_read_by_all_parsers_alike() {
    replay("client_hello", client_hello::run);
}

#[test]
fn corpus_of_configuration_loads_or_is_refused_with_its_line() {
    replay("configuration", configuration::run);
}

#[test]
fn corpus_of_engine_keeps_the_close_rule() {
    replay("engine", engine::run);
}

#[test]
fn corpus_of_access_finds_one_spelling_of_each_name() {
    replay("access", access::run);
}

#[test]
fn corpus_of_http2_never_panics_and_the_next_call_works() {
    replay("http2", http2::run);
}

#[test]
fn corpus_of_reload_loosens_nothing_by_omission() {
    replay("reload", reload::run);
}

#[test]
fn corpus_of_requests_is_answered_or_refused_with_a_reason() {
    replay("requests", requests::run);
}

/// Replays an input that once made a target fail.
fn found(target: &str, name: &str, run: fn(&[u8])) {
    let input = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("fuzz/found")
        .join(target)
        .join(name);
    run(&fs::read(input).unwrap());
}

#[test]
fn malformed_message_on_a_stream_has_its_reason() {
    found(
        "requests",
        "malformed_message_on_a_stream_has_its_reason",
        requests::run,
    );
}
