//! Whether the kernel preempts programs on tracepoints.

use super::btf::Btf;

/// The guard in which the kernel runs what is on a tracepoint where it may be preempted
/// there (`include/linux/tracepoint.h:__DECLARE_TRACE_CALL`, from 7.0 on). Before, it
/// is one that switches preemption off.
const GUARD: &str = "class_srcu_fast_notrace_t";

/// Whether a kernel with these types preempts programs on tracepoints. The release does
/// not tell: distributions take such changes to older ones.
pub fn preempts_programs(btf: &Btf) -> bool {
    btf.has_typedef(GUARD)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn from_7_0_on_a_kernel_preempts_them() {
        let Ok(btf) = Btf::from_sys_fs() else {
            println!("SKIPPED: from_7_0_on_a_kernel_preempts_them: no BTF here");
            return;
        };
        let release = crate::kernel::clocks::kernel_release();
        let major: u32 = release.split('.').next().unwrap().parse().unwrap();
        if major < 7 {
            // It may have been given the change, or not.
            println!("SKIPPED: from_7_0_on_a_kernel_preempts_them: this is {release}");
            return;
        }
        assert!(preempts_programs(&btf), "{release}");
    }
}
