//! Limits the number of open connections, in total and from one address.

use super::{ConnectionRefusal, TransportSettings, TransportStatistics};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Debug)]
pub(super) struct Doorkeeper {
    connections_max: u32,
    per_address_max: u32,
    /// Number of open connections by address; empty if there is no limit for one address.
    from: Mutex<HashMap<IpAddr, u32>>,
    statistics: Arc<TransportStatistics>,
}

/// An open connection. The connection counts until this value is dropped.
#[derive(Debug)]
pub(super) struct Admitted {
    keeper: Arc<Doorkeeper>,
    from: IpAddr,
}

impl Doorkeeper {
    pub fn new(settings: &TransportSettings, statistics: Arc<TransportStatistics>) -> Arc<Self> {
        let (connections_max, per_address_max) = (settings.connections_max, settings.connections_per_address_max);
        Arc::new(Self { connections_max, per_address_max, from: Mutex::default(), statistics })
    }

    /// Admits a connection if the limits allow. Only the accept loop calls this, so no connection is admitted between
    /// the check and the count.
    pub fn admit(self: &Arc<Self>, peer: SocketAddr) -> Result<Admitted, ConnectionRefusal> {
        let refused = |reason, problem| {
            self.statistics.refuse(reason, peer, problem);
            Err(reason)
        };
        if self.connections_max > 0 && self.statistics.connections() >= u64::from(self.connections_max) {
            return refused(ConnectionRefusal::Limit, "as many connections are open as limits.connections allows");
        }
        let from = network(peer.ip());
        if self.per_address_max > 0 {
            let mut counts = self.lock();
            let open = counts.entry(from).or_default();
            if *open >= self.per_address_max {
                drop(counts);
                return refused(
                    ConnectionRefusal::AddressLimit,
                    "as many are open from this address as limits.connections_per_address allows",
                );
            }
            *open += 1;
        }
        self.statistics.add_opened();
        Ok(Admitted { keeper: self.clone(), from })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, u32>> {
        self.from.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if self.keeper.per_address_max > 0 {
            let mut counts = self.keeper.lock();
            match counts.get_mut(&self.from) {
                Some(open) if *open > 1 => *open -= 1,
                Some(_) | None => {
                    counts.remove(&self.from);
                }
            }
        }
        self.keeper.statistics.add_closed();
    }
}

/// Returns what counts as one address: an IPv4 address, or an IPv6 network of 64 bits, because the owner of one IPv6
/// address usually has its whole network.
pub(super) fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(address) => IpAddr::V4(address),
        IpAddr::V6(address) => IpAddr::V6(Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keeper(connections_max: u32, connections_per_address_max: u32) -> Arc<Doorkeeper> {
        let settings =
            TransportSettings { connections_max, connections_per_address_max, ..TransportSettings::default() };
        Doorkeeper::new(&settings, Arc::default())
    }

    fn address(text: &str) -> IpAddr {
        text.parse().expect("an address")
    }

    #[test]
    fn an_address_has_its_limit_and_all_have_one_together_and_both_recover() {
        let keeper = keeper(3, 2);
        let admit = |text: &str| keeper.admit(SocketAddr::new(address(text), 1));
        let first = admit("10.0.0.1").expect("the first");
        let second = admit("::ffff:10.0.0.1").expect("the second");
        assert_eq!(admit("10.0.0.1").err(), Some(ConnectionRefusal::AddressLimit), "both were the same address");
        let third = admit("10.0.0.2").expect("another address");
        assert_eq!(admit("10.0.0.3").err(), Some(ConnectionRefusal::Limit));
        drop(first);
        let again = admit("10.0.0.1").expect("there is room again");
        drop((second, third, again));
        assert!(keeper.lock().is_empty(), "nothing is remembered of who is gone");
        assert_eq!(keeper.statistics.connections(), 0);
        assert_eq!(
            [ConnectionRefusal::Limit, ConnectionRefusal::AddressLimit].map(|why| keeper.statistics.refused(why)),
            [1, 1]
        );
    }

    #[test]
    fn all_of_an_ipv6_network_counts_as_one_address() {
        let keeper = keeper(0, 1);
        let _held = keeper.admit(SocketAddr::new(address("2001:db8:1:2::1"), 1)).expect("the first");
        assert_eq!(
            keeper.admit(SocketAddr::new(address("2001:db8:1:2:ffff::9"), 1)).err(),
            Some(ConnectionRefusal::AddressLimit)
        );
        assert!(keeper.admit(SocketAddr::new(address("2001:db8:1:3::1"), 1)).is_ok());
    }
}
