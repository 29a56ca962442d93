//! The engine, and the connection objects around it.
#![no_main]

#[path = "../targets/choices.rs"]
mod choices;
#[path = "../targets/engine.rs"]
mod engine;
#[path = "../../tests/it/pki.rs"]
mod pki;

libfuzzer_sys::fuzz_target!(|data: &[u8]| engine::run(data));
