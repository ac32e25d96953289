//! `cgroup_mkdir`, `cgroup_release`: control groups that come and go. A group
//! gets its owner before the first process is in it, so that a service that is
//! started again has its name from its first connection on.

use core::ffi::c_void;

use probe_common::{
    abi::owner::{self, NAME_LEN, Name},
    hooks::Loss,
    loss,
};

use crate::{
    globals::global,
    kernel::{
        arg,
        cgroup::{Cgroup, text},
    },
    lost,
    maps::{OWNER_BY, OWNER_OF, PATH_OF},
};

const FULL: Loss = loss!(cgroup_mkdir, MapFull);

/// A folder is made.
#[inline(always)]
pub fn cgroup_mkdir(ctx: *const c_void) {
    if let Some(cgroup) = Cgroup::new(arg(ctx, 0) as *const c_void)
        && cgroup.is_v2()
    {
        let mut owner = 0;
        let mut path: Name = [0; NAME_LEN];
        if text(arg(ctx, 1), &mut path) {
            owner |= owner_by(&path);
            if global!(CONFIG.key_owner) == owner::BY_NAME
                && PATH_OF.insert(&cgroup.id(), &path, 0).is_err()
            {
                lost::count(FULL, cgroup.id());
            }
        }
        if global!(CONFIG.key_owner) == owner::BY_SERVICE {
            let mut name: Name = [0; NAME_LEN];
            if cgroup.name(&mut name) {
                owner |= owner_by(&name);
            }
            // What is below a service is the service.
            owner |= cgroup.parent().map_or(0, |parent| owner_of(parent.id()));
        }
        if owner != 0 && OWNER_OF.insert(&cgroup.id(), &owner, 0).is_err() {
            lost::count(FULL, cgroup.id());
        }
    }
}

#[inline(always)]
fn owner_by(name: &Name) -> u64 {
    // SAFETY: the value is copied at once.
    unsafe { OWNER_BY.get(name) }.copied().unwrap_or(0)
}

#[inline(always)]
fn owner_of(cgroup: u64) -> u64 {
    // SAFETY: the value is copied at once.
    unsafe { OWNER_OF.get(&cgroup) }.copied().unwrap_or(0)
}

/// The folder is gone, and the last socket that belonged to the group.
#[inline(always)]
pub fn cgroup_release(ctx: *const c_void) {
    if let Some(cgroup) = Cgroup::new(arg(ctx, 0) as *const c_void)
        && cgroup.is_v2()
    {
        let _ = OWNER_OF.remove(&cgroup.id());
    }
}
