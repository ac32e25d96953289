//! Packets: the parser that XDP and the drop program share, and the table of an
//! interface's flows.

pub mod flow_table;
pub mod parser;
