//! Every request message, on a live service.
#![no_main]

#[path = "../targets/choices.rs"]
mod choices;
#[path = "../../tests/it/pki.rs"]
mod pki;
#[path = "../targets/requests.rs"]
mod requests;

libfuzzer_sys::fuzz_target!(|data: &[u8]| requests::run(data));
