//! See `banger_image::fuzz::catalog`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| banger_image::fuzz::catalog(bytes));
