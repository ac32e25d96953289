//! Addresses as the programs hold them: 16 bytes in network order, those of IPv4
//! mapped into `::ffff:0:0/96`.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// The address.
pub fn address(bytes: [u8; 16]) -> IpAddr {
    Ipv6Addr::from(bytes).to_canonical()
}

/// The address with a port, `address:port` or `[address]:port`.
pub fn endpoint(bytes: [u8; 16], port: u16) -> String {
    SocketAddr::new(address(bytes), port).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_lose_their_mapping() {
        let mapped = "192.0.2.1"
            .parse::<std::net::Ipv4Addr>()
            .unwrap()
            .to_ipv6_mapped()
            .octets();
        assert_eq!(address(mapped).to_string(), "192.0.2.1");
        assert_eq!(endpoint(mapped, 80), "192.0.2.1:80");
    }
}
