//! Times within the life of a connection, told by its segments, sends and reads.

pub mod accept_queue;
pub mod first_byte;
pub mod tls;
