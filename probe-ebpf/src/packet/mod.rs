//! Packets of an interface.

pub mod flow_table;
