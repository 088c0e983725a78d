//! See `banger_proto::fuzz::requests`.
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| banger_proto::fuzz::requests(bytes));
