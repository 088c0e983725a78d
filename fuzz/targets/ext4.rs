//! See `banger_image::fuzz::ext4`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| banger_image::fuzz::ext4(bytes));
