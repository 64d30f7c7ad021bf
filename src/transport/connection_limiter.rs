//! Limits the number of open connections, in total and from one address.

use super::{ConnectionRefusal, TransportSettings, TransportStatistics};
use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[derive(Debug)]
pub(super) struct ConnectionLimiter {
    connections_max: u32,
    per_address_max: u32,
    /// Number of open connections by address; empty if there is no limit for one address.
    by_address: Mutex<HashMap<IpAddr, u32>>,
    statistics: Arc<TransportStatistics>,
}

/// An open connection. The connection counts until this value is dropped.
#[derive(Debug)]
pub(super) struct ConnectionPermit {
    limiter: Arc<ConnectionLimiter>,
    address: IpAddr,
}

impl ConnectionLimiter {
    pub fn new(settings: &TransportSettings, statistics: Arc<TransportStatistics>) -> Arc<Self> {
        let (connections_max, per_address_max) = (settings.connections_max, settings.connections_per_address_max);
        Arc::new(Self { connections_max, per_address_max, by_address: Mutex::default(), statistics })
    }

    /// Counts a connection as open if the limits allow; otherwise, logs the refusal. Only the accept loop calls this, so
    /// no connection is opened between the check and the count.
    pub fn try_acquire(self: &Arc<Self>, peer: SocketAddr) -> Result<ConnectionPermit, ConnectionRefusal> {
        let refuse = |reason, problem| {
            self.statistics.record_refusal(reason, peer, problem);
            Err(reason)
        };
        if self.connections_max > 0 && self.statistics.connections() >= u64::from(self.connections_max) {
            return refuse(ConnectionRefusal::Limit, "too many open connections (limits.connections)");
        }
        let address = network(peer.ip());
        if self.per_address_max > 0 {
            let mut counts = self.lock();
            let open = counts.entry(address).or_default();
            if *open >= self.per_address_max {
                drop(counts);
                return refuse(
                    ConnectionRefusal::AddressLimit,
                    "too many open connections from this address (limits.connections_per_address)",
                );
            }
            *open += 1;
        }
        self.statistics.add_opened();
        Ok(ConnectionPermit { limiter: self.clone(), address })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<IpAddr, u32>> {
        self.by_address.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for ConnectionPermit {
    fn drop(&mut self) {
        if self.limiter.per_address_max > 0 {
            let mut counts = self.limiter.lock();
            match counts.get_mut(&self.address) {
                Some(open) if *open > 1 => *open -= 1,
                Some(_) | None => {
                    counts.remove(&self.address);
                }
            }
        }
        self.limiter.statistics.add_closed();
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

    fn limiter(connections_max: u32, connections_per_address_max: u32) -> Arc<ConnectionLimiter> {
        let settings =
            TransportSettings { connections_max, connections_per_address_max, ..TransportSettings::default() };
        ConnectionLimiter::new(&settings, Arc::default())
    }

    fn peer(ip: &str) -> SocketAddr {
        SocketAddr::new(ip.parse().expect("an address"), 1)
    }

    #[test]
    fn connections_are_limited_per_address_and_in_total_until_others_close() {
        let limiter = limiter(3, 2);
        let acquire = |ip: &str| limiter.try_acquire(peer(ip));
        let first = acquire("10.0.0.1").expect("the first connection");
        let second = acquire("::ffff:10.0.0.1").expect("the second connection");
        assert_eq!(acquire("10.0.0.1").err(), Some(ConnectionRefusal::AddressLimit), "both have the same address");
        let third = acquire("10.0.0.2").expect("another address");
        assert_eq!(acquire("10.0.0.3").err(), Some(ConnectionRefusal::Limit));
        drop(first);
        let fourth = acquire("10.0.0.1").expect("a connection was closed");
        drop((second, third, fourth));
        assert!(limiter.lock().is_empty(), "no address without connections is kept");
        assert_eq!(limiter.statistics.connections(), 0);
        let refused = [ConnectionRefusal::Limit, ConnectionRefusal::AddressLimit];
        assert_eq!(refused.map(|reason| limiter.statistics.refused(reason)), [1, 1]);
    }

    #[test]
    fn an_ipv6_network_of_64_bits_counts_as_one_address() {
        let limiter = limiter(0, 1);
        let _first = limiter.try_acquire(peer("2001:db8:1:2::1")).expect("the first connection");
        let same_network = limiter.try_acquire(peer("2001:db8:1:2:ffff::9"));
        assert_eq!(same_network.err(), Some(ConnectionRefusal::AddressLimit));
        assert!(limiter.try_acquire(peer("2001:db8:1:3::1")).is_ok());
    }
}
