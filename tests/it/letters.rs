//! Dead letters on Redis: of an envelope that it lost, of a grant whose amount somebody has edited.

use red_envelope::settle::CLOSED_KEPT_MS;
use red_envelope_proto::v1::{
    DismissDeadLetterRequest, EnvelopeState, ReplayDeadLetterRequest, ReplayDeadLetterResponse,
};
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::harness::World;
use crate::redis_faults::{
    ALL_OF_IT, forged, keys_like, recall, the_outbox_of, until_set_aside, with_twenty_winners,
};

/// How long a test polls before it gives up: 60 s.
const POLLS_MAX: usize = 1_200;

async fn a_moment() {
    let moment = std::time::Duration::from_millis(50);
    let at = tokio::time::Instant::now() + moment;
    tokio::time::interval_at(at, moment).tick().await;
}

/// Repeats what a server may not answer that is registering its store.
macro_rules! until_answered {
    ($ask:expr) => {{
        let mut answer = $ask.await;
        for _ in 0..POLLS_MAX {
            if !matches!(&answer, Err(status) if status.code() == Code::Unavailable) {
                break;
            }
            a_moment().await;
            answer = $ask.await;
        }
        answer
    }};
}

/// The reason with which the letter stands now.
async fn dismiss(world: &mut World, letter: &str) -> Result<String, Status> {
    let request = DismissDeadLetterRequest {
        dead_letter_id: letter.to_owned(),
        operator: "olga".to_owned(),
        reason: "forged".to_owned(),
    };
    let dismissed = until_answered!(world.admin.dismiss_dead_letter(request.clone()))?;
    Ok(dismissed.into_inner().dead_letter.unwrap().reason)
}

async fn replay(world: &mut World, letter: &str, correct_amount: bool) -> ReplayDeadLetterResponse {
    let request = ReplayDeadLetterRequest {
        dead_letter_id: letter.to_owned(),
        operator: "olga".to_owned(),
        reason: "the amount was edited".to_owned(),
        correct_amount,
    };
    let tried = world.admin.replay_dead_letter(request).await;
    tried.unwrap().into_inner()
}

/// Plants an entry of the right form that promises mallory the wrong amount, and has it set aside.
async fn with_a_forged_letter() -> (World, String, String, i64) {
    let (mut world, id, held) = with_twenty_winners().await;
    world.audit_when_quiet().await;
    let outbox = the_outbox_of(world.redis(), &id);
    let entry = forged(&id, 59, ALL_OF_IT, "mallory");
    world
        .redis()
        .command(&[b"XADD", &outbox, b"9-*", b"r", &entry]);
    assert_eq!(until_set_aside(&mut world, 1).await, ["amount_mismatch"]);
    let letter = world.dead_letters().await.remove(0).dead_letter_id;
    let won = held.values().map(|(_, amount)| amount).sum();
    (world, id, letter, won)
}

/// Closed, the rest is back, and the audit finds nothing.
async fn ends(world: &mut World, id: &str, won: i64) {
    world.until(id, "alice", EnvelopeState::Closed).await;
    assert_eq!(world.available("mallory").await, 0);
    assert_eq!(world.available("alice").await, 100_000 - won);
    world.audit_when_quiet().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_letter_keeps_no_envelope_from_coming_back_that_redis_has_lost() {
    let (mut world, id, letter, won) = with_a_forged_letter().await;
    world.redis().command(&[b"FLUSHALL"]);
    // It is grabbed as if there were no letter, by the first who asks.
    let bob = world.win(&id, "bob").await.amount.unwrap().minor_units;
    world.until_available("bob", bob).await;
    until_answered!(recall(&mut world, &id)).unwrap();
    // The close waits for an operator. Redis loses all of it once more.
    world.redis().command(&[b"FLUSHALL"]);
    let state = until_answered!(world.try_look(&id, "alice"))
        .unwrap()
        .state();
    assert_ne!(state, EnvelopeState::Closed);
    assert_eq!(dismiss(&mut world, &letter).await.unwrap(), "dismissed");
    ends(&mut world, &id, won + bob).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_forged_letter_of_an_envelope_that_redis_lost_is_dismissed_whoever_touched_it() {
    let (mut world, id, letter, won) = with_a_forged_letter().await;
    world.redis().command(&[b"FLUSHALL"]);
    // Nobody has: the dismissal brings it back, and it says that nothing was granted to mallory.
    assert_eq!(dismiss(&mut world, &letter).await.unwrap(), "dismissed");
    world.server.set_clock_ms(25 * 3_600_000);
    ends(&mut world, &id, won).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_was_told_an_amount_that_was_edited_in_redis_is_paid_what_the_seed_says() {
    let (mut world, id, held) = with_twenty_winners().await;
    world.audit_when_quiet().await;
    // The amount of the next share, two bytes, becomes another one.
    let shares = keys_like(&mut world, &format!("re1:*:s:{id}")).remove(0);
    let next = held.len() * 2;
    let (from, to) = (next.to_string(), (next + 1).to_string());
    let range: [&[u8]; 4] = [b"GETRANGE", &shares, from.as_bytes(), to.as_bytes()];
    let redis::Value::BulkString(bytes) = world.redis().command(&range) else {
        panic!("a range is text");
    };
    let right = u16::from_le_bytes([bytes[0], bytes[1]]);
    let edited = (right + 1).to_le_bytes();
    let edit: [&[u8]; 4] = [b"SETRANGE", &shares, from.as_bytes(), &edited];
    world.redis().command(&edit);

    let told = world.win(&id, "bob").await.amount.unwrap().minor_units;
    assert_eq!(told, i64::from(right) + 1);
    assert_eq!(until_set_aside(&mut world, 1).await, ["amount_mismatch"]);
    let letter = world.dead_letters().await.remove(0).dead_letter_id;
    until_answered!(recall(&mut world, &id)).unwrap();
    // He was told so, so it is not dismissed, and not paid as he was told.
    let refused = dismiss(&mut world, &letter).await.unwrap_err();
    let reason = refused.get_details_error_info().unwrap().reason;
    assert_eq!(reason, "DEAD_LETTER_STANDS");
    assert!(!replay(&mut world, &letter, false).await.settled);
    for _ in 0..2 {
        let corrected = replay(&mut world, &letter, true).await;
        assert!(corrected.settled);
        assert_eq!(corrected.dead_letter.unwrap().reason, "corrected");
    }
    world.until(&id, "alice", EnvelopeState::Closed).await;
    let won: i64 = held.values().map(|(_, amount)| amount).sum();
    let right = i64::from(right);
    assert_eq!(world.available("bob").await, right);
    assert_eq!(world.available("alice").await, 100_000 - won - right);
    // Redis shows what was edited until it forgets the envelope, and the audit says so.
    assert!(!world.audit().await.clean);
    world.server.set_clock_ms(CLOSED_KEPT_MS + 60_000);
    for _ in 0..POLLS_MAX {
        if world.audit().await.clean {
            break;
        }
        a_moment().await;
    }
    world.audit_when_quiet().await;
}
