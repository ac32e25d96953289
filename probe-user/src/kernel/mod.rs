//! What the running kernel is and has.

pub mod btf;
pub mod caps;
pub mod cgroup;
pub mod kfuncs;
pub mod layout;
pub mod netns;
pub mod reasons;
