//! The sync limit: a maximum number of syncs for a player in any sliding second, across all its streams, which take
//! turns.
//!
//! The limit is exact because it stores the times of the last permits. A fixed window of one second allows twice the
//! limit around its edge, and so does a token bucket: its burst plus the tokens that arrive in the following second.

use super::pacer::Moment;
use std::collections::VecDeque;
use std::time::Duration;

/// How long a permit counts: 50 ms more than a second, so that the reader, too, receives no more than the limit in any
/// second, as long as the network delay varies by less than 50 ms.
pub const PERMIT_LIFETIME: Duration = Duration::from_millis(1_050);
/// How long a waiter's permit is reserved after its turn. A waiter that does not poll by then keeps its place in the
/// queue but no longer delays the waiters behind it: a stalled reader must not withhold a permit from the others.
const PERMIT_RESERVATION: Duration = Duration::from_millis(100);

/// Identifies a waiting stream in the queue; the smallest ticket is first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// Whether a stream may send now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    Now,
    /// Poll again at `until`, at most [`PERMIT_LIFETIME`] from now, because the limit may have changed by then.
    Wait {
        ticket: Ticket,
        until: Moment,
    },
}

/// The sync limit of one player.
#[derive(Debug, Default)]
pub struct SyncLimit {
    /// Maximum number of syncs in any sliding second; 0 disables the limit.
    per_second_max: u32,
    /// When each permit that still counts was granted, oldest first.
    permits: VecDeque<Moment>,
    /// Waiting streams, in the order of their tickets.
    waiters: VecDeque<Waiter>,
    /// Number of tickets issued so far.
    tickets: u64,
}

#[derive(Debug)]
struct Waiter {
    ticket: Ticket,
    /// When the waiter should poll again.
    retry_at: Moment,
}

impl SyncLimit {
    /// Sets the maximum number of syncs in any sliding second; 0 disables the limit. Syncs sent without a limit do not
    /// count against a later limit.
    pub fn set_limit(&mut self, per_second_max: u32) {
        self.per_second_max = per_second_max;
        if per_second_max == 0 {
            self.permits.clear();
        }
    }

    /// Returns whether a stream may send now. A stream without a ticket joins the end of the queue. The stream at
    /// position p of the queue may send only when p + 1 permits are free.
    pub fn poll_turn(&mut self, ticket: Option<Ticket>, now: Moment) -> Turn {
        self.expire_permits(now);
        let due = self.due(self.ahead(ticket, now), now);
        if due <= now {
            return Turn::Now;
        }
        let until = due.min(now + PERMIT_LIFETIME);
        Turn::Wait { ticket: self.enqueue(ticket, until), until }
    }

    /// Records that the stream has sent, and removes it from the queue.
    pub fn handle_sent(&mut self, ticket: Option<Ticket>, now: Moment) {
        self.handle_left(ticket);
        if self.per_second_max > 0 {
            self.permits.push_back(now);
        }
    }

    /// Removes a stream that has nothing to send or was dropped. Returns whether it was waiting: the streams behind it
    /// then move up and should poll again.
    pub fn handle_left(&mut self, ticket: Option<Ticket>) -> bool {
        let position = ticket.and_then(|ticket| self.position(ticket));
        position.and_then(|position| self.waiters.remove(position)).is_some()
    }

    /// Returns whether no stream waits and no permit counts, so that a new [`SyncLimit`] would behave the same.
    pub fn is_idle(&self, now: Moment) -> bool {
        self.waiters.is_empty() && self.permits.back().is_none_or(|last| *last + PERMIT_LIFETIME <= now)
    }

    fn expire_permits(&mut self, now: Moment) {
        while self.permits.front().is_some_and(|first| *first + PERMIT_LIFETIME <= now) {
            self.permits.pop_front();
        }
    }

    /// Returns how many streams are ahead of this one in the queue and hold a permit reservation.
    fn ahead(&self, ticket: Option<Ticket>, now: Moment) -> usize {
        let before = |waiter: &&Waiter| ticket.is_none_or(|ticket| waiter.ticket < ticket);
        let in_time = |waiter: &&Waiter| now <= waiter.retry_at + PERMIT_RESERVATION;
        self.waiters.iter().take_while(before).filter(in_time).count()
    }

    /// Returns when a stream with `ahead` streams before it may send, if each of them takes a permit as soon as
    /// possible.
    fn due(&self, ahead: usize, now: Moment) -> Moment {
        let limit = self.per_second_max as usize;
        if limit == 0 {
            return now;
        }
        // Every `limit` streams ahead use one round of permits, and permits return in the rhythm in which they were
        // granted.
        let (rounds, ahead) = (ahead / limit, ahead % limit);
        let counting = self.permits.len() + ahead + 1;
        let free = match counting.checked_sub(limit + 1) {
            None => now,
            Some(index) => self.permits[index] + PERMIT_LIFETIME,
        };
        free + PERMIT_LIFETIME * rounds as u32
    }

    fn enqueue(&mut self, ticket: Option<Ticket>, until: Moment) -> Ticket {
        if let Some(position) = ticket.and_then(|ticket| self.position(ticket)) {
            self.waiters[position].retry_at = until;
            return self.waiters[position].ticket;
        }
        let ticket = Ticket(self.tickets);
        self.tickets += 1;
        self.waiters.push_back(Waiter { ticket, retry_at: until });
        ticket
    }

    fn position(&self, ticket: Ticket) -> Option<usize> {
        self.waiters.binary_search_by_key(&ticket, |waiter| waiter.ticket).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(per_second_max: u32) -> SyncLimit {
        let mut limit = SyncLimit::default();
        limit.set_limit(per_second_max);
        limit
    }

    fn at_ms(ms: u64) -> Moment {
        Moment::from_millis(ms)
    }

    /// Sends if the limit allows; returns whether it did.
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
            Turn::Now => panic!("the stream may send already"),
        }
    }

    #[test]
    fn the_limit_is_not_exceeded_around_the_edge_of_a_second() {
        // A fixed window would allow ten at 990 ms and ten at 1,010 ms: twenty in 20 ms.
        let mut limit = limit(10);
        assert!((0..10).all(|_| sends(&mut limit, at_ms(990))));
        assert!((1_000..2_040).all(|ms| !sends(&mut limit, at_ms(ms))));
        assert!((0..10).all(|_| sends(&mut limit, at_ms(2_040))));
    }

    #[test]
    fn a_permit_counts_for_slightly_more_than_a_second() {
        let mut limit = limit(1);
        assert!(sends(&mut limit, at_ms(5)));
        assert!(!sends(&mut limit, at_ms(1_054)));
        assert!(sends(&mut limit, at_ms(1_055)));
    }

    #[test]
    fn permits_return_one_by_one_as_they_were_granted() {
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
    fn a_new_stream_does_not_take_the_permit_of_a_waiting_stream() {
        let mut limit = limit(1);
        assert!(sends(&mut limit, at_ms(0)));
        let (first, _) = waits(&mut limit, None, at_ms(1));
        assert!(!sends(&mut limit, at_ms(1_050)), "the permit belongs to the waiting stream");
        assert_eq!(limit.poll_turn(Some(first), at_ms(1_050)), Turn::Now);
    }

    #[test]
    fn waiting_streams_move_up_when_a_stream_leaves_the_queue() {
        let mut limit = limit(1);
        assert!(sends(&mut limit, at_ms(0)));
        let (first, _) = waits(&mut limit, None, at_ms(1));
        let (second, _) = waits(&mut limit, None, at_ms(1));
        assert!(limit.handle_left(Some(first)));
        assert!(!limit.handle_left(Some(first)), "the stream is no longer in the queue");
        assert_eq!(waits(&mut limit, Some(second), at_ms(2)).1, at_ms(1_050));
        assert_eq!(limit.poll_turn(Some(second), at_ms(1_050)), Turn::Now);
    }

    #[test]
    fn a_stalled_stream_delays_no_other_stream_and_keeps_its_place() {
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
        assert_eq!(limit.poll_turn(Some(stalled), at_ms(2_201)), Turn::Now, "its ticket is older");
    }

    #[test]
    fn a_changed_limit_applies_immediately() {
        let mut limit = limit(4);
        assert!((0..4).all(|_| sends(&mut limit, at_ms(0))));
        limit.set_limit(6);
        assert!((0..2).all(|_| sends(&mut limit, at_ms(1))) && !sends(&mut limit, at_ms(1)));
        limit.set_limit(2);
        assert!(!sends(&mut limit, at_ms(1_050)), "two syncs of the last second still count");
        assert!(sends(&mut limit, at_ms(1_051)));
        limit.set_limit(0);
        assert!((0..100).all(|_| sends(&mut limit, at_ms(1_052))));
    }

    #[test]
    fn the_limit_is_idle_only_without_waiters_and_permits() {
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
