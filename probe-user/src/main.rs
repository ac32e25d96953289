//! The `edgeprobe` command.

fn main() {}
