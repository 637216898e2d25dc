//! GrabStream: tags, bad messages, deadlines, streams that are not read.

use std::collections::HashMap;

use red_envelope_proto::v1::grab_stream_response::Result as Answer;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use super::*;
use crate::api::facts::UNKNOWN_FOR;
use crate::api::grab_stream::{BATCHES_MAX, IN_FLIGHT_MAX, TIMEOUT_MS_MAX};
use crate::clock::timer_now;
use crate::hot::VIEWS_PER_CALL_MAX;

/// Turns of the runtime in which a crowd's messages must have come.
const TURNS_MAX: usize = 1_000_000;

type Sending = mpsc::Sender<v1::GrabStreamRequest>;

async fn open(world: &World, queue: usize) -> (Sending, Streaming<v1::GrabStreamResponse>) {
    let (sending, messages) = mpsc::channel(queue);
    let stream = ReceiverStream::new(messages);
    let answers = world.envelopes.clone().grab_stream(stream).await.unwrap();
    (sending, answers.into_inner())
}

fn message(tag: u64, id: &str, grabber: &str) -> v1::GrabStreamRequest {
    v1::GrabStreamRequest {
        tag,
        timeout_ms: TIMEOUT_MS_MAX,
        grab: Some(v1::GrabRequest {
            envelope_id: id.into(),
            grabber: grabber.into(),
            ..Default::default()
        }),
    }
}

/// Every answer by its tag; a tag that comes twice fails the test.
async fn all(mut answers: Streaming<v1::GrabStreamResponse>) -> HashMap<u64, Answer> {
    let mut by_tag = HashMap::new();
    while let Some(answer) = answers.message().await.unwrap() {
        let twice = by_tag.insert(answer.tag, answer.result.unwrap());
        assert!(twice.is_none(), "tag {} was answered twice", answer.tag);
    }
    by_tag
}

fn outcome(answer: &Answer) -> v1::GrabOutcome {
    match answer {
        Answer::Outcome(outcome) => outcome.outcome(),
        Answer::Status(status) => panic!("{status:?}"),
    }
}

#[tokio::test]
async fn every_grab_of_a_stream_is_answered_once_under_its_tag() {
    let world = World::with_alice().await;
    let id = world.send(lucky("r1", 1_000, 10)).await;
    let (sending, answers) = open(&world, 4_000).await;
    for tag in 0..3_000 {
        let grabber = format!("g{}", tag % 1_000);
        sending.try_send(message(tag, &id, &grabber)).unwrap();
    }
    drop(sending);
    let answers = all(answers).await;
    assert_eq!(answers.len(), 3_000);
    let count = |wanted| answers.values().filter(|a| outcome(a) == wanted).count();
    assert_eq!(count(v1::GrabOutcome::Won), 10);
    assert_eq!(count(v1::GrabOutcome::AlreadyGrabbed), 20);
    assert_eq!(count(v1::GrabOutcome::Empty), 2_970);
}

#[tokio::test]
async fn a_bad_message_is_answered_with_a_status_and_the_stream_goes_on() {
    let world = World::with_alice().await;
    let id = world.send(lucky("r1", 1_000, 10)).await;
    let unknown = EnvelopeId::from_parts(20_000, [1; 14]).to_string();
    let (sending, answers) = open(&world, 10).await;
    let bad_timeout = v1::GrabStreamRequest {
        timeout_ms: TIMEOUT_MS_MAX + 1,
        ..message(4, &id, "bob")
    };
    let no_grab = v1::GrabStreamRequest {
        tag: 5,
        ..Default::default()
    };
    for message in [
        message(1, "no id", "bob"),
        message(2, &unknown, "bob"),
        message(3, &id, ""),
        bad_timeout,
        no_grab,
        message(6, &id, "bob"),
    ] {
        sending.send(message).await.unwrap();
    }
    drop(sending);
    let answers = all(answers).await;
    let code = |tag: u64| match &answers[&tag] {
        Answer::Status(status) => {
            assert!(!status.details.is_empty());
            Code::from_i32(status.code)
        }
        Answer::Outcome(_) => Code::Ok,
    };
    let codes: Vec<_> = (1..=6).map(code).collect();
    let invalid = Code::InvalidArgument;
    assert_eq!(
        codes,
        [invalid, Code::NotFound, invalid, invalid, invalid, Code::Ok]
    );
    assert_eq!(outcome(&answers[&6]), v1::GrabOutcome::Won);
}

#[tokio::test]
async fn a_stream_that_nobody_reads_stops_itself_and_nobody_else() {
    let world = World::with_alice().await;
    let id = world.send(lucky("r1", 1_000, 10)).await;
    let (sending, answers) = open(&world, 1).await;
    // More than is ever in flight, and more than the windows of HTTP/2 hold.
    let count = 40 * IN_FLIGHT_MAX as u64;
    let grabbed = id.clone();
    let pusher = tokio::spawn(async move {
        for tag in 0..count {
            let grabber = format!("{tag:064}");
            sending
                .send(message(tag, &grabbed, &grabber))
                .await
                .unwrap();
        }
    });
    for grabber in ["x", "y", "z"] {
        let outcome = world.grab(&id, grabber).await.unwrap().outcome();
        assert_ne!(outcome, v1::GrabOutcome::Unspecified);
    }
    assert!(!pusher.is_finished(), "the server read on without a reader");
    let answers = all(answers).await;
    pusher.await.unwrap();
    assert_eq!(answers.len() as u64, count);
}

#[tokio::test]
async fn an_unpublished_envelope_is_published_by_a_stream_too() {
    let world = World::with_alice().await;
    let template = world.send(lucky("r1", 1_000, 4)).await;
    let rows = world
        .ledger
        .envelopes(vec![template.parse().unwrap()])
        .await;
    let terms = rows.unwrap().remove(0).unwrap().terms;
    let fund = crate::ledger::Fund {
        request_id: crate::domain::id::PersonId::parse("died").unwrap(),
        request_hash: [1; 32],
        draft: terms.draft.clone(),
    };
    let id = world
        .ledger
        .fund(fund)
        .await
        .unwrap()
        .envelope
        .id
        .to_string();
    // Who meets the envelope while its shares are loaded is told to come again, and does.
    let mut asking: Vec<u64> = (0..100).collect();
    let mut won = 0;
    while !asking.is_empty() {
        let (sending, answers) = open(&world, 200).await;
        for tag in &asking {
            let grabber = format!("g{tag}");
            sending.send(message(*tag, &id, &grabber)).await.unwrap();
        }
        drop(sending);
        asking.clear();
        for (tag, answer) in all(answers).await {
            match answer {
                Answer::Status(status) => {
                    assert_eq!(Code::from_i32(status.code), Code::Unavailable, "{status:?}");
                    asking.push(tag);
                }
                Answer::Outcome(outcome) => {
                    won += u32::from(outcome.outcome() == v1::GrabOutcome::Won);
                }
            }
        }
    }
    assert_eq!(won, 4);
}

#[tokio::test]
async fn a_stream_ends_when_the_server_does() {
    let world = World::with_alice().await;
    let id = world.send(lucky("r1", 1_000, 4)).await;
    let (sending, mut answers) = open(&world, 10).await;
    sending.send(message(1, &id, "bob")).await.unwrap();
    assert_eq!(answers.message().await.unwrap().unwrap().tag, 1);
    world.shutdown.cancel();
    assert_eq!(answers.message().await.unwrap(), None);
}

#[tokio::test]
async fn a_grab_whose_time_is_over_says_so_and_takes_effect_once() {
    let world = World::with_alice().await;
    let id = world.send(lucky("r1", 1_000, 4)).await;
    let (sending, mut answers) = open(&world, 10).await;
    world.hot.set_open(false);
    let hurried = v1::GrabStreamRequest {
        timeout_ms: 20,
        ..message(7, &id, "bob")
    };
    sending.send(hurried).await.unwrap();
    let late = answers.message().await.unwrap().unwrap();
    let Some(Answer::Status(status)) = late.result else {
        panic!("{late:?}");
    };
    assert_eq!(
        (late.tag, Code::from_i32(status.code)),
        (7, Code::DeadlineExceeded)
    );
    world.hot.set_open(true);
    let repeated = world.grab(&id, "bob").await.unwrap();
    assert!(repeated.share.is_some(), "{repeated:?}");
    // The first attempt is through, too: the stream's next answer comes after it.
    sending.send(message(8, &id, "bob")).await.unwrap();
    let next = answers.message().await.unwrap().unwrap();
    let Some(Answer::Outcome(next)) = next.result else {
        panic!("{next:?}");
    };
    assert_eq!(next.outcome(), v1::GrabOutcome::AlreadyGrabbed);
    assert_eq!(next.share, repeated.share);
    drop(sending);
    assert_eq!(answers.message().await.unwrap(), None);
    let seen = world.get(&id, "alice").await.unwrap().envelope.unwrap();
    assert_eq!(seen.progress.unwrap().taken_count, 1);
}

/// One after the other, so that each is a call of its own, and none of them comes back.
#[tokio::test]
async fn who_comes_while_all_calls_hang_is_answered_when_his_time_is_over() {
    let world = World::with_alice().await;
    let id = world.send(lucky("r1", 1_000, 40)).await;
    let (sending, mut answers) = open(&world, 1).await;
    world.hot.set_open(false);
    for tag in 0..2 * BATCHES_MAX as u64 {
        let hurried = v1::GrabStreamRequest {
            timeout_ms: 20,
            ..message(tag, &id, &format!("grabber-{tag}"))
        };
        sending.send(hurried).await.unwrap();
        let late = answers.message().await.unwrap().unwrap();
        let Some(Answer::Status(status)) = late.result else {
            panic!("{late:?}");
        };
        let told = (late.tag, Code::from_i32(status.code));
        assert_eq!(told, (tag, Code::DeadlineExceeded));
    }
    world.hot.set_open(true);
    drop(sending);
    assert_eq!(answers.message().await.unwrap(), None);
}

#[tokio::test]
async fn random_ids_are_looked_up_by_the_hundred() {
    let world = World::with_alice().await;
    let (sending, answers) = open(&world, 2_000).await;
    let before = world.hot.views();
    for tag in 0..2_000_u64 {
        let mut random = [0; 14];
        random[..8].copy_from_slice(&tag.to_be_bytes());
        let id = EnvelopeId::from_parts(20_000, random).to_string();
        sending.try_send(message(tag, &id, "eve")).unwrap();
    }
    drop(sending);
    for answer in all(answers).await.into_values() {
        let Answer::Status(status) = answer else {
            panic!("{answer:?}");
        };
        assert_eq!(Code::from_i32(status.code), Code::NotFound);
    }
    let looks = world.hot.views() - before;
    assert!(looks <= 400, "{looks} look-ups for 2,000 ids");
}

/// Grabs of each of these ids by as many people, all of whom hear that there is no such envelope, though
/// nobody looks before nearly all have asked. Answers for how many ids the stores were asked, and in how
/// many of the times for which an id stays unknown.
async fn looked_up(world: &World, ids: &[EnvelopeId]) -> (u64, u64) {
    let (sending, answers) = open(world, ids.len()).await;
    let (before, begun) = (world.hot.viewed(), timer_now());
    world.hot.set_seeing(false);
    for (tag, id) in (0..).zip(ids) {
        let grabber = format!("eve-{tag}");
        sending
            .try_send(message(tag, &id.to_string(), &grabber))
            .unwrap();
    }
    drop(sending);
    let opening = async {
        // The first look waits before the store, and the others behind it.
        let facts = &world.services.api.facts;
        for _ in 0..TURNS_MAX {
            if facts.queued() + VIEWS_PER_CALL_MAX >= ids.len() {
                break;
            }
            tokio::task::yield_now().await;
        }
        assert!(facts.queued() + VIEWS_PER_CALL_MAX >= ids.len());
        world.hot.set_seeing(true);
    };
    let (answers, ()) = tokio::join!(all(answers), opening);
    assert_eq!(answers.len(), ids.len());
    for answer in answers.into_values() {
        let Answer::Status(status) = answer else {
            panic!("{answer:?}");
        };
        assert_eq!(Code::from_i32(status.code), Code::NotFound);
    }
    let times = (timer_now() - begun).as_millis() / UNKNOWN_FOR.as_millis();
    // What the hot store was asked for in vain is what the books are asked for.
    (
        world.hot.viewed() - before,
        1 + u64::try_from(times).unwrap(),
    )
}

#[tokio::test]
async fn an_id_that_nobody_knows_is_looked_up_once_for_all_who_ask() {
    let world = World::with_alice().await;
    let unknown = |tag: u16| EnvelopeId::from_parts(tag, [7; 14]);
    let (asked, times) = looked_up(&world, &vec![unknown(0); 1_000]).await;
    assert!(asked <= times, "asked {asked} times for one id");
    // Many ids, each by several.
    let many: Vec<_> = (0..1_000).map(|n| unknown(1 + n % 200)).collect();
    let (asked, times) = looked_up(&world, &many).await;
    assert!(asked <= 200 * times, "asked {asked} times for 200 ids");
    // One that is there is found all the same.
    let id = world.send(lucky("r1", 1_000, 4)).await;
    world.wins(&id, "bob").await;
}

#[tokio::test]
async fn while_settlement_is_far_behind_each_message_is_turned_away() {
    let world = World::with_alice().await;
    let id = world.send(lucky("r1", 1_000, 4)).await;
    let age_ms = crate::api::GRABS_SHED_AGE_MS + 1;
    world.services.settlement_is_behind(age_ms);
    let (sending, mut answers) = open(&world, 2).await;
    sending.send(message(1, &id, "bob")).await.unwrap();
    let answer = answers.message().await.unwrap().unwrap();
    let Some(Answer::Status(status)) = answer.result else {
        panic!("{answer:?}");
    };
    assert_eq!(Code::from_i32(status.code), Code::Unavailable);
    world.services.settlement_is_behind(0);
    sending.send(message(2, &id, "bob")).await.unwrap();
    let answer = answers.message().await.unwrap().unwrap();
    assert_eq!(outcome(&answer.result.unwrap()), v1::GrabOutcome::Won);
}
