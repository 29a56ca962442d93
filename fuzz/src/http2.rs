//! HTTP/2 frames from any peer.
#![no_main]

#[path = "../targets/choices.rs"]
mod choices;
#[path = "../targets/http2.rs"]
mod http2;
#[path = "../../tests/it/pki.rs"]
mod pki;

libfuzzer_sys::fuzz_target!(|data: &[u8]| http2::run(data));
