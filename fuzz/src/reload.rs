//! Reloads from one configuration to another.
#![no_main]

#[path = "../targets/reload.rs"]
mod reload;

libfuzzer_sys::fuzz_target!(|data: &[u8]| reload::run(data));
