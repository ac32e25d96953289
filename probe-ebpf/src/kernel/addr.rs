//! IP addresses as the programs hold them.

/// An address as 16 bytes in network order, in two words; IPv4 is mapped into
/// `::ffff:0:0/96`.
pub type Address = [u64; 2];

/// The IPv4-mapped form of an address in network order.
#[inline(always)]
pub fn mapped(v4: u32) -> Address {
    [0, 0xffff_0000 | u64::from(v4) << 32]
}

/// An address as its bytes.
#[inline(always)]
pub fn bytes(address: Address) -> [u8; 16] {
    // SAFETY: both are 16 bytes, of which any are a value.
    unsafe { core::mem::transmute::<Address, [u8; 16]>(address) }
}
