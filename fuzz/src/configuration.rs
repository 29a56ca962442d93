//! The configuration.
#![no_main]

#[path = "../targets/configuration.rs"]
mod configuration;

libfuzzer_sys::fuzz_target!(|data: &[u8]| configuration::run(data));
