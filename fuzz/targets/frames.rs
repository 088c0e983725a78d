//! See `banger_proto::fuzz::frames`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| banger_proto::fuzz::frames(bytes));
