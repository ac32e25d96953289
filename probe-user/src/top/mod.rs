//! The terminal view of snapshots, live or as plain text.
//!
//! The live view is state ([`app`]), changed by messages, and a pure function
//! that draws it ([`view`]). Live and plain output share the tables
//! ([`tables`]); rates come from the difference of two snapshots ([`crate::model::delta`]).

pub mod app;
mod ending;
pub mod health;
pub mod keys;
pub mod once;
pub mod poll;
#[cfg(test)]
mod screens;
pub mod tables;
pub mod terminal;
pub mod view;
