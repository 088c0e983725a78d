//! Pulls from registries: an ordinary one, and one that does what a test tells it.

mod hostile;
mod image;
mod real;
mod registry;
mod server;
