//! Properties of the limit of syncs, for random histories: never exceeded, never later than necessary, and fair.

use proptest::prelude::*;
use slotcast::sync::limit::PERMIT_LIFETIME;
use slotcast::sync::{Moment, SyncLimit, Ticket, Turn};
use std::time::Duration;

const SECOND: Duration = Duration::from_secs(1);

#[derive(Debug, Clone)]
enum Event {
    /// A stream polls for its turn, and sends if it has news.
    Look { stream: usize, has_news: bool },
    /// A stream leaves.
    Leave { stream: usize },
    /// The limit is changed.
    Set { per_second_max: u32 },
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        12 => (0..8_usize, prop::bool::weighted(0.8)).prop_map(|(stream, has_news)| Event::Look { stream, has_news }),
        1 => (0..8_usize).prop_map(|stream| Event::Leave { stream }),
        1 => (1..12_u32).prop_map(|per_second_max| Event::Set { per_second_max }),
    ]
}

/// Returns the number of permits granted within the second that ends at `now`, both edges included.
fn in_last_second(permits: &[Moment], now: Moment) -> usize {
    permits.iter().filter(|granted_at| **granted_at + SECOND >= now).count()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1_000))]

    #[test]
    fn no_second_contains_more_permits_than_the_limit(
        first_max in 1..12_u32,
        // Coarse times coincide with the edges of a second.
        is_coarse in any::<bool>(),
        events in prop::collection::vec((event(), 0..60_000_u64), 1..300),
    ) {
        let mut limit = SyncLimit::default();
        let mut per_second_max = first_max;
        limit.set_limit(per_second_max);
        let (mut now, mut permits, mut tickets) = (Moment::ZERO, Vec::new(), [None; 8]);
        for (event, pause_us) in events {
            now += Duration::from_micros(if is_coarse { pause_us % 4 * 50_000 } else { pause_us });
            match event {
                Event::Look { stream, has_news } => match limit.poll_turn(tickets[stream], now) {
                    Turn::Wait { ticket, until } => {
                        prop_assert!(now < until && until <= now + PERMIT_LIFETIME);
                        tickets[stream] = Some(ticket);
                    }
                    Turn::Now if has_news => {
                        limit.handle_sent(tickets[stream].take(), now);
                        permits.push(now);
                        prop_assert!(in_last_second(&permits, now) <= per_second_max as usize);
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
                    limit.set_limit(new_max);
                }
            }
        }
    }

    #[test]
    fn a_single_stream_waits_no_longer_than_necessary(
        per_second_max in 1..12_usize,
        pauses_ms in prop::collection::vec(0..400_u64, 1..100),
    ) {
        let mut limit = SyncLimit::default();
        limit.set_limit(per_second_max as u32);
        let (mut now, mut permits) = (Moment::ZERO, Vec::<Moment>::new());
        for pause_ms in pauses_ms {
            now += Duration::from_millis(pause_ms);
            let frees_it = permits.len().checked_sub(per_second_max);
            let earliest = frees_it.map_or(now, |index| now.max(permits[index] + PERMIT_LIFETIME));
            let mut waiting = None;
            if let Turn::Wait { ticket, until } = limit.poll_turn(None, now) {
                prop_assert_eq!(until, earliest);
                waiting = Some(ticket);
                now = until;
                prop_assert_eq!(limit.poll_turn(waiting, now), Turn::Now);
            }
            prop_assert_eq!(now, earliest);
            limit.handle_sent(waiting, now);
            permits.push(now);
        }
    }

    #[test]
    fn streams_take_turns_without_starvation_or_unused_permits(
        per_second_max in 1..12_usize,
        // For each stream, its start and the time from each of its frames to its next news.
        streams_ms in prop::collection::vec((0..300_u64, 0..200_u64), 1..10),
    ) {
        let mut limit = SyncLimit::default();
        limit.set_limit(per_second_max as u32);
        let mut looks: Vec<(Moment, Option<Ticket>)> =
            streams_ms.iter().map(|(begin_ms, _)| (Moment::from_millis(*begin_ms), None)).collect();
        let mut waits_since = vec![Moment::ZERO; looks.len()];
        let longest_wait = PERMIT_LIFETIME * looks.len().div_ceil(per_second_max) as u32;
        let (mut permits, mut last_ticket) = (Vec::<Moment>::new(), None);
        while permits.len() < 8 * per_second_max {
            let next = (0..looks.len()).min_by_key(|index| looks[*index]).unwrap();
            let (now, ticket) = looks[next];
            match limit.poll_turn(ticket, now) {
                Turn::Wait { ticket: given, until } => {
                    if ticket.is_none() {
                        waits_since[next] = now;
                    }
                    looks[next] = (until, Some(given));
                }
                Turn::Now => {
                    if ticket.is_some() {
                        prop_assert!(ticket > last_ticket, "tickets are served in their order");
                        prop_assert!(now - waits_since[next] <= longest_wait, "none starves");
                        prop_assert_eq!(now, permits[permits.len() - per_second_max] + PERMIT_LIFETIME, "as soon as it may");
                        last_ticket = ticket;
                    }
                    limit.handle_sent(ticket, now);
                    looks[next] = (now + Duration::from_millis(streams_ms[next].1), None);
                    permits.push(now);
                }
            }
        }
        prop_assert!(permits.windows(per_second_max + 1).all(|round| round[per_second_max] - round[0] >= PERMIT_LIFETIME));
    }
}
