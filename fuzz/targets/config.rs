//! See `banger_config::fuzz::config`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| banger_config::fuzz::config(bytes));
