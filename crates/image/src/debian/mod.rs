//! Debian's package archives: where they are, what is in them, and that it is really theirs.
//!
//! The chain of trust is apt's own: [`keyring`] holds the archive's keys, one of which signed
//! a suite's `InRelease`; that holds the hashes of the package indexes, and an index holds
//! the hash of each package.

pub(crate) mod archive;
pub(crate) mod control;
pub(crate) mod deb;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
pub(crate) mod keyring;
pub(crate) mod mirror;
pub(crate) mod policy;
pub(crate) mod release;
pub(crate) mod sources;

#[cfg(test)]
mod tests;
