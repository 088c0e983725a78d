//! Objects as text for people.

pub(crate) mod catalog;
pub(crate) mod doctor;
pub(crate) mod engine;
pub(crate) mod error;
pub(crate) mod event;
pub(crate) mod lists;
pub(crate) mod operation;
pub(crate) mod ports;
pub(crate) mod stats;
pub(crate) mod style;
pub(crate) mod table;
pub(crate) mod time;
pub(crate) mod vm;
