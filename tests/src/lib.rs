//! The rig of the real-kernel tests.
