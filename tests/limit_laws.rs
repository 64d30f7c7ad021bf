//! Properties of the sync limit over random histories: never above the limit, never later than necessary, and in order.

#![allow(clippy::unwrap_used, reason = "a test may fail where it stands")]

use proptest::prelude::*;
use slotcast::sync::limit::GRANT_LIFE;
use slotcast::sync::{Moment, SyncLimit, Ticket, Turn};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
enum Event {
    /// A stream polls for a permit, and may have a frame to send.
    Poll { stream: usize, has_news: bool },
    /// A stream ends.
    Leave { stream: usize },
    /// The limit is changed.
    Set { per_second_max: u32 },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => (0..8_usize, prop::bool::weighted(0.8)).prop_map(|(stream, has_news)| Event::Poll { stream, has_news }),
        1 => (0..8_usize).prop_map(|stream| Event::Leave { stream }),
        1 => (1..12_u32).prop_map(|per_second_max| Event::Set { per_second_max }),
    ]
}

/// Returns the number of grants within the second that ends at `now`, both endpoints included.
fn in_last_second(grants: &[Moment], now: Moment) -> usize {
    grants.iter().filter(|grant| **grant + SECOND >= now).count()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn no_interval_of_one_second_contains_more_grants_than_the_limit(
        first_max in 1..12_u32,
        // Coarse times often coincide with the endpoints of a second.
        is_coarse in any::<bool>(),
        events in prop::collection::vec((event(), 0..60_000_u64), 1..300),
    ) {
        let mut limit = SyncLimit::default();
        let mut per_second_max = first_max;
        limit.handle_setting(per_second_max);
        let (mut now, mut grants, mut tickets) = (Moment::ZERO, Vec::new(), [None; 8]);
        for (event, pause_us) in events {
            now += Duration::from_micros(if is_coarse { pause_us % 4 * 50_000 } else { pause_us });
            match event {
                Event::Poll { stream, has_news } => match limit.poll_turn(tickets[stream], now) {
                    Turn::Wait { ticket, until } => {
                        prop_assert!(now < until && until <= now + GRANT_LIFE);
                        tickets[stream] = Some(ticket);
                    }
                    Turn::Now if has_news => {
                        limit.handle_sent(tickets[stream].take(), now);
                        grants.push(now);
                        prop_assert!(in_last_second(&grants, now) <= per_second_max as usize);
                    }
                    Turn::Now => {
                        limit.handle_left(tickets[stream].take());
                    }
                },
                Event::Leave { stream } => {
                    limit.handle_left(tickets[stream].take());
                }
                Event::Set { per_second_max: new_max } => {
                    per_second_max = new_max;
                    limit.handle_setting(new_max);
                }
            }
        }
    }

    #[test]
    fn a_single_stream_waits_no_longer_than_the_limit_requires(
        per_second_max in 1..12_usize,
        pauses_ms in prop::collection::vec(0..400_u64, 1..100),
    ) {
        let mut limit = SyncLimit::default();
        limit.handle_setting(per_second_max as u32);
        let (mut now, mut grants) = (Moment::ZERO, Vec::<Moment>::new());
        for pause_ms in pauses_ms {
            now += Duration::from_millis(pause_ms);
            let oldest = grants.len().checked_sub(per_second_max);
            let earliest = oldest.map_or(now, |index| now.max(grants[index] + GRANT_LIFE));
            let mut waiting = None;
            if let Turn::Wait { ticket, until } = limit.poll_turn(None, now) {
                prop_assert_eq!(until, earliest);
                waiting = Some(ticket);
                now = until;
                prop_assert_eq!(limit.poll_turn(waiting, now), Turn::Now);
            }
            prop_assert_eq!(now, earliest);
            limit.handle_sent(waiting, now);
            grants.push(now);
        }
    }

    #[test]
    fn streams_are_served_in_order_without_starvation_and_no_permit_is_unused_while_one_waits(
        per_second_max in 1..12_usize,
        // For each stream, the time of its first frame, and the delay of each next frame.
        streams_ms in prop::collection::vec((0..300_u64, 0..200_u64), 1..10),
    ) {
        let mut limit = SyncLimit::default();
        limit.handle_setting(per_second_max as u32);
        let mut polls: Vec<(Moment, Option<Ticket>)> =
            streams_ms.iter().map(|(begin_ms, _)| (Moment::from_millis(*begin_ms), None)).collect();
        let mut waits_since = vec![Moment::ZERO; polls.len()];
        let longest_wait = GRANT_LIFE * polls.len().div_ceil(per_second_max) as u32;
        let (mut grants, mut last_ticket) = (Vec::<Moment>::new(), None);
        while grants.len() < 8 * per_second_max {
            let next = (0..polls.len()).min_by_key(|index| polls[*index]).unwrap();
            let (now, ticket) = polls[next];
            match limit.poll_turn(ticket, now) {
                Turn::Wait { ticket: new_ticket, until } => {
                    if ticket.is_none() {
                        waits_since[next] = now;
                    }
                    polls[next] = (until, Some(new_ticket));
                }
                Turn::Now => {
                    if ticket.is_some() {
                        prop_assert!(ticket > last_ticket, "tickets are served in order");
                        prop_assert!(now - waits_since[next] <= longest_wait, "no stream starves");
                        prop_assert_eq!(now, grants[grants.len() - per_second_max] + GRANT_LIFE, "as soon as the limit permits");
                        last_ticket = ticket;
                    }
                    limit.handle_sent(ticket, now);
                    polls[next] = (now + Duration::from_millis(streams_ms[next].1), None);
                    grants.push(now);
                }
            }
        }
        prop_assert!(grants.windows(per_second_max + 1).all(|round| round[per_second_max] - round[0] >= GRANT_LIFE));
    }
}
