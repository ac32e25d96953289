//! What the running kernel is and has.

pub mod address;
pub mod btf;
pub mod caps;
pub mod cgroup;
pub mod clocks;
pub mod drop_class;
pub mod kfuncs;
pub mod layout;
pub mod limits;
pub mod memory;
pub mod netns;
pub mod netstat;
pub mod perf;
pub mod preemption;
pub mod process;
pub mod reasons;
pub mod shield;
