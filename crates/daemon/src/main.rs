//! `bangerd`.

fn main() {}
