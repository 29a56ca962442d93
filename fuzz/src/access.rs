//! Access rules, and names of certificates.
#![no_main]

#[path = "../targets/access.rs"]
mod access;
#[path = "../targets/choices.rs"]
mod choices;

libfuzzer_sys::fuzz_target!(|data: &[u8]| access::run(data));
