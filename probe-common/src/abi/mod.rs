//! What crosses the border between the kernel programs and user space: keys and
//! values of maps, records of iterators, read-only globals. All are `repr(C)`,
//! padded by hand, with their size asserted.

pub mod config;
pub mod conn;
pub mod drop;
pub mod flow;
pub mod iter;
pub mod listener;
pub mod owner;
pub mod series;
pub mod status;

/// The bytes of an address in network order, which keys of maps hold as two words.
pub fn address_bytes([first, second]: [u64; 2]) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&first.to_ne_bytes());
    bytes[8..].copy_from_slice(&second.to_ne_bytes());
    bytes
}

/// Marks a type as such that any bytes are a value of it. All of its members are
/// named, so that their sizes can be added up: there is no padding.
macro_rules! pod {
    ($($type:ident { $($member:ident),* $(,)? })*) => {
        $(
            const _: () = {
                const fn members(value: &$type) -> usize {
                    let $type { $($member),* } = value;
                    0 $(+ size_of_val($member))*
                }
                // SAFETY: the members are integers or arrays of them, of which zeros
                // are a value.
                let value = unsafe { core::mem::MaybeUninit::<$type>::zeroed().assume_init() };
                assert!(
                    members(&value) == size_of::<$type>(),
                    "there is padding: order the members by size, the largest first"
                );
            };
            // SAFETY: `repr(C)` and made of integers; the assertion above shows that
            // there is no padding between them.
            #[cfg(feature = "user")]
            unsafe impl aya::Pod for $type {}
        )*
    };
}
pub(crate) use pod;
