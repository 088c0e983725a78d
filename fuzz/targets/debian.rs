//! See `banger_image::fuzz::debian`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| banger_image::fuzz::debian(bytes));
