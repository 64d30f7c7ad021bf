//! How many syncs a player gets: in any sliding second at most so many, over all streams of the player, and the streams
//! in turn.
//!
//! Exact, because it remembers the times of the last grants. A window that starts anew each second lets twice the limit
//! through around its edge, and so does a token bucket: its burst, and what flows in during the second after it.

use super::pacer::Moment;
use std::collections::VecDeque;
use std::time::Duration;

/// A grant counts for this long: 50 ms more than a second, so that a reader finds no more than the limit in any second
/// either, while the time that frames take to reach it varies by less than that.
pub const GRANT_LIFE: Duration = Duration::from_millis(1_050);
/// A waiter that does not come this long after it was told to keeps its place in the row, but holds up nobody behind it:
/// a reader that stalls must not keep a permit from the others.
const PATIENCE: Duration = Duration::from_millis(100);

/// A place in the row of those that wait; the smaller is the earlier.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// Whether a stream may send now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    Now,
    /// Not before another look at this time, at most [`GRANT_LIFE`] from now: by then the limit may have changed.
    Wait {
        ticket: Ticket,
        until: Moment,
    },
}

#[derive(Debug, Default)]
pub struct SyncLimit {
    /// Syncs in any sliding second at most; 0 is no limit.
    per_second_max: u32,
    /// Grants that still count, oldest first.
    grants: VecDeque<Moment>,
    /// In the order of their tickets.
    waiters: VecDeque<Waiter>,
    tickets: u64,
}

#[derive(Debug)]
struct Waiter {
    ticket: Ticket,
    told: Moment,
}

impl SyncLimit {
    /// At most so many in any sliding second from now on; 0 is no limit. What was sent without a limit does not count
    /// against a later one.
    pub fn handle_setting(&mut self, per_second_max: u32) {
        self.per_second_max = per_second_max;
        if per_second_max == 0 {
            self.grants.clear();
        }
    }

    /// Whether a stream may send now. Without a ticket it goes to the end of the row, behind all who wait; whoever is at
    /// position p of the row may go only when p + 1 permits are free.
    pub fn poll_turn(&mut self, ticket: Option<Ticket>, now: Moment) -> Turn {
        self.forget_grants(now);
        let due = self.due(self.ahead(ticket, now), now);
        if due <= now {
            return Turn::Now;
        }
        let until = due.min(now + GRANT_LIFE);
        Turn::Wait { ticket: self.told(ticket, until), until }
    }

    /// The stream has sent; it no longer waits.
    pub fn handle_sent(&mut self, ticket: Option<Ticket>, now: Moment) {
        self.handle_left(ticket);
        if self.per_second_max > 0 {
            self.grants.push_back(now);
        }
    }

    /// The stream had nothing to send after all, or is gone. Whether it waited: those behind it move up then, and may
    /// look again.
    pub fn handle_left(&mut self, ticket: Option<Ticket>) -> bool {
        let place = ticket.and_then(|ticket| self.place(ticket));
        place.and_then(|place| self.waiters.remove(place)).is_some()
    }

    /// Nobody waits and no grant counts any more: one that is new would do the same.
    pub fn is_idle(&self, now: Moment) -> bool {
        self.waiters.is_empty() && self.grants.back().is_none_or(|last| *last + GRANT_LIFE <= now)
    }

    fn forget_grants(&mut self, now: Moment) {
        while self.grants.front().is_some_and(|first| *first + GRANT_LIFE <= now) {
            self.grants.pop_front();
        }
    }

    /// How many stand before this one in the row.
    fn ahead(&self, ticket: Option<Ticket>, now: Moment) -> usize {
        let before = |waiter: &&Waiter| ticket.is_none_or(|ticket| waiter.ticket < ticket);
        let in_time = |waiter: &&Waiter| now <= waiter.told + PATIENCE;
        self.waiters.iter().take_while(before).filter(in_time).count()
    }

    /// When whoever has so many before it may go, if each of those takes a permit as soon as it can.
    fn due(&self, ahead: usize, now: Moment) -> Moment {
        let limit = self.per_second_max as usize;
        if limit == 0 {
            return now;
        }
        // Each further `limit` of those ahead take a round of permits, and a round comes back as it was given.
        let (rounds, ahead) = (ahead / limit, ahead % limit);
        let counting = self.grants.len() + ahead + 1;
        let free = match counting.checked_sub(limit + 1) {
            None => now,
            Some(frees_it) => self.grants[frees_it] + GRANT_LIFE,
        };
        free + GRANT_LIFE * rounds as u32
    }

    fn told(&mut self, ticket: Option<Ticket>, until: Moment) -> Ticket {
        if let Some(place) = ticket.and_then(|ticket| self.place(ticket)) {
            self.waiters[place].told = until;
            return self.waiters[place].ticket;
        }
        let ticket = Ticket(self.tickets);
        self.tickets += 1;
        self.waiters.push_back(Waiter { ticket, told: until });
        ticket
    }

    fn place(&self, ticket: Ticket) -> Option<usize> {
        self.waiters.binary_search_by_key(&ticket, |waiter| waiter.ticket).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(per_second_max: u32) -> SyncLimit {
        let mut limit = SyncLimit::default();
        limit.handle_setting(per_second_max);
        limit
    }

    fn at_ms(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    /// Sends if it may.
    fn sends(limit: &mut SyncLimit, now: Moment) -> bool {
        match limit.poll_turn(None, now) {
            Turn::Now => limit.handle_sent(None, now),
            Turn::Wait { ticket, .. } => {
                limit.handle_left(Some(ticket));
                return false;
            }
        }
        true
    }

    fn waits(limit: &mut SyncLimit, ticket: Option<Ticket>, now: Moment) -> (Ticket, Moment) {
        match limit.poll_turn(ticket, now) {
            Turn::Wait { ticket, until } => (ticket, until),
            Turn::Now => panic!("it may go already"),
        }
    }

    #[test]
    fn around_the_edge_of_a_second_there_is_no_second_helping() {
        // With a window that starts anew each second, ten at 990 ms and ten at 1,010 ms pass: twenty in 20 ms.
        let mut limit = limit(10);
        assert!((0..10).all(|_| sends(&mut limit, at_ms(990))));
        assert!((1_000..2_040).all(|ms| !sends(&mut limit, at_ms(ms))));
        assert!((0..10).all(|_| sends(&mut limit, at_ms(2_040))));
    }

    #[test]
    fn a_grant_counts_for_a_little_more_than_a_second() {
        let mut limit = limit(1);
        assert!(sends(&mut limit, at_ms(5)));
        assert!(!sends(&mut limit, at_ms(1_054)));
        assert!(sends(&mut limit, at_ms(1_055)));
    }

    #[test]
    fn permits_come_back_one_by_one_as_they_were_given() {
        let mut limit = limit(3);
        for ms in [0, 100, 100] {
            assert!(sends(&mut limit, at_ms(ms)));
        }
        let (first, until) = waits(&mut limit, None, at_ms(200));
        assert_eq!(until, at_ms(1_050));
        let (second, until) = waits(&mut limit, None, at_ms(200));
        assert_eq!(until, at_ms(1_150));
        assert_eq!(limit.poll_turn(Some(first), at_ms(1_050)), Turn::Now);
        limit.handle_sent(Some(first), at_ms(1_050));
        assert_eq!(waits(&mut limit, Some(second), at_ms(1_149)).1, at_ms(1_150));
        assert_eq!(limit.poll_turn(Some(second), at_ms(1_150)), Turn::Now);
    }

    #[test]
    fn a_newcomer_takes_no_permit_from_one_who_waits() {
        let mut limit = limit(1);
        assert!(sends(&mut limit, at_ms(0)));
        let (first, _) = waits(&mut limit, None, at_ms(1));
        assert!(!sends(&mut limit, at_ms(1_050)), "the permit belongs to the one who waits");
        assert_eq!(limit.poll_turn(Some(first), at_ms(1_050)), Turn::Now);
    }

    #[test]
    fn one_who_leaves_lets_the_others_move_up() {
        let mut limit = limit(1);
        assert!(sends(&mut limit, at_ms(0)));
        let (first, _) = waits(&mut limit, None, at_ms(1));
        let (second, _) = waits(&mut limit, None, at_ms(1));
        assert!(limit.handle_left(Some(first)));
        assert!(!limit.handle_left(Some(first)), "it waits no longer");
        assert_eq!(waits(&mut limit, Some(second), at_ms(2)).1, at_ms(1_050));
        assert_eq!(limit.poll_turn(Some(second), at_ms(1_050)), Turn::Now);
    }

    #[test]
    fn one_who_does_not_come_in_time_holds_nobody_up_and_keeps_its_place() {
        let mut limit = limit(1);
        assert!(sends(&mut limit, at_ms(0)));
        let (stalled, _) = waits(&mut limit, None, at_ms(1));
        let (second, _) = waits(&mut limit, None, at_ms(1));
        waits(&mut limit, Some(second), at_ms(1_150));
        assert_eq!(limit.poll_turn(Some(second), at_ms(1_151)), Turn::Now);
        limit.handle_sent(Some(second), at_ms(1_151));
        let (third, _) = waits(&mut limit, None, at_ms(1_200));
        waits(&mut limit, Some(stalled), at_ms(1_300));
        waits(&mut limit, Some(third), at_ms(2_201));
        assert_eq!(limit.poll_turn(Some(stalled), at_ms(2_201)), Turn::Now, "its ticket is the older");
    }

    #[test]
    fn a_changed_limit_holds_from_then_on() {
        let mut limit = limit(4);
        assert!((0..4).all(|_| sends(&mut limit, at_ms(0))));
        limit.handle_setting(6);
        assert!((0..2).all(|_| sends(&mut limit, at_ms(1))) && !sends(&mut limit, at_ms(1)));
        limit.handle_setting(2);
        assert!(!sends(&mut limit, at_ms(1_050)), "two of the last second are all there may be");
        assert!(sends(&mut limit, at_ms(1_051)));
        limit.handle_setting(0);
        assert!((0..100).all(|_| sends(&mut limit, at_ms(1_052))));
    }

    #[test]
    fn it_is_idle_only_once_it_could_be_forgotten() {
        let mut limit = limit(1);
        assert!(limit.is_idle(at_ms(0)));
        assert!(sends(&mut limit, at_ms(0)));
        assert!(!limit.is_idle(at_ms(1_049)) && limit.is_idle(at_ms(1_050)));
        let (ticket, _) = waits(&mut limit, None, at_ms(1));
        assert!(!limit.is_idle(at_ms(5_000)));
        limit.handle_left(Some(ticket));
        assert!(limit.is_idle(at_ms(5_000)));
    }
}
