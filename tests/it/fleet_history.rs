//! What several servers tell of envelopes that are over, when Redis has nothing of them any more: all of it is in
//! the books, and it is the same.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::OnceLock;

use red_envelope_proto::v1::audience::{Audience as Rule, Group};
use red_envelope_proto::v1::{
    Audience, BatchGetEnvelopesRequest, CreateEnvelopeRequest, DeclineEnvelopeRequest,
    EnvelopeState, GetBalanceRequest, GetEnvelopeRequest, GetFairnessProofRequest,
    GetYearTotalsRequest, GrabOutcome, GrabRequest, ListEntriesRequest, ListGrabsRequest,
    ListReceivedSharesRequest, ListSentEnvelopesRequest, RecallEnvelopeRequest, Reveal,
    TraceEnvelopeRequest,
};
use tonic::{Response, Status};

use crate::harness::fleet::{Fleet, until};
use crate::harness::world::{World, grab_of};
use crate::harness::{cny, equal, exclusive, lucky};

/// What the sender has at first.
const FUNDS: i64 = 10_000_000;
/// Shares of an envelope whose grabbers Redis keeps in a list as well.
const LARGE: u32 = 1_001;
/// Of them, those that are grabbed: more than one page of them.
const GRABBED: usize = 40;
/// Every list here is read by pages of so many.
const PAGE: i32 = 15;
/// Envelopes that expire do so after so long, and the time at which all have.
const EXPIRES_IN_SECONDS: i64 = 60;
const EXPIRED_MS: i64 = 61_000;
/// By then Redis has been told to forget whatever closed before: ten minutes, and one.
const FORGOTTEN_MS: i64 = EXPIRED_MS + 660_000;
/// Who looks: the sender, winners, one who declined, one who came too late.
const PEOPLE: [&str; 5] = ["alice", "g0", "bob", "carol", "late"];
const GROUP: &str = "family";
const PHRASE: &str = "open sesame";

/// Envelopes of every kind that end in every way. The first is empty, the second expires, the others are
/// recalled.
fn requests() -> [CreateEnvelopeRequest; 5] {
    let in_a_minute = Some(prost_types::Duration {
        seconds: EXPIRES_IN_SECONDS,
        nanos: 0,
    });
    let group = Rule::Group(Group {
        group_id: GROUP.to_owned(),
    });
    [
        CreateEnvelopeRequest {
            greeting: "恭喜发财".to_owned(),
            cover_id: "a dragon".to_owned(),
            labels: [("branch".to_owned(), "7".to_owned())].into(),
            reveal: Reveal::AtEnd.into(),
            ..lucky("alice", cny(8_888), 6)
        },
        CreateEnvelopeRequest {
            expires_in: in_a_minute,
            ..equal("alice", cny(50), 10)
        },
        exclusive("alice", &[("bob", 600), ("carol", 400), ("dave", 200)]),
        CreateEnvelopeRequest {
            audience: Some(Audience {
                audience: Some(group),
            }),
            passphrase: PHRASE.to_owned(),
            ..lucky("alice", cny(1_000), 4)
        },
        equal("alice", cny(7), LARGE),
    ]
}

fn through_the_group(envelope_id: &str, grabber: &str) -> GrabRequest {
    GrabRequest {
        group_id: GROUP.to_owned(),
        passphrase: PHRASE.to_owned(),
        ..grab_of(envelope_id, grabber)
    }
}

fn decline_of(envelope_id: &str) -> DeclineEnvelopeRequest {
    DeclineEnvelopeRequest {
        envelope_id: envelope_id.to_owned(),
        grabber: "carol".to_owned(),
        request_id: "no-thanks".to_owned(),
        ..DeclineEnvelopeRequest::default()
    }
}

fn recall_of(envelope_id: &str) -> RecallEnvelopeRequest {
    RecallEnvelopeRequest {
        envelope_id: envelope_id.to_owned(),
        sender: "alice".to_owned(),
        request_id: "back".to_owned(),
        ..RecallEnvelopeRequest::default()
    }
}

/// Sends them, has each grabbed by some, and waits until all are closed.
async fn closed(fleet: &mut Fleet) -> Vec<String> {
    fleet.processes[0].fund("alice", cny(FUNDS)).await;
    let mut ids = Vec::new();
    for request in requests() {
        ids.push(fleet.processes[0].send(request).await.envelope_id);
    }
    for number in 0..GRABBED {
        let process = &mut fleet.processes[number % 2];
        let grabber = format!("g{number}");
        process.win(&ids[4], &grabber).await;
        if number < 6 {
            process.win(&ids[0], &grabber).await;
        }
        if number < 3 {
            process.win(&ids[1], &grabber).await;
        }
        if number < 2 {
            let won = process.try_grab(through_the_group(&ids[3], &grabber)).await;
            assert_eq!(won.unwrap().outcome(), GrabOutcome::Won);
        }
    }
    let process = &mut fleet.processes[1];
    process.win(&ids[2], "bob").await;
    let declined = process.envelopes.decline_envelope(decline_of(&ids[2]));
    declined.await.unwrap();
    for id in &ids[2..] {
        let recalled = process
            .record
            .recall(&mut process.envelopes, recall_of(id))
            .await;
        recalled.unwrap();
    }
    fleet.set_clock_ms(EXPIRED_MS);
    for id in &ids {
        let process = &mut fleet.processes[0];
        process.until(id, "alice", EnvelopeState::Closed).await;
    }
    ids
}

/// What was asked, and what was answered.
type Seen = BTreeMap<String, String>;

/// An answer, or how it was refused.
fn told(answer: Result<Response<impl Debug>, Status>) -> String {
    match answer {
        Ok(answer) => format!("{:#?}", answer.into_inner()),
        Err(status) => format!("{:?} {}", status.code(), status.message()),
    }
}

/// All that a process tells of these envelopes, to everybody.
async fn seen(process: &mut World, ids: &[String]) -> Seen {
    let mut seen = Seen::new();
    for person in PEOPLE {
        for (at, id) in ids.iter().enumerate() {
            of_an_envelope(process, (at, id), person, &mut seen).await;
        }
        of_a_person(process, ids, person, &mut seen).await;
    }
    for (at, id) in ids.iter().enumerate() {
        let trace = TraceEnvelopeRequest {
            envelope_id: id.clone(),
            operator: "olga".to_owned(),
            reason: "a test".to_owned(),
            ..TraceEnvelopeRequest::default()
        };
        let traced = process.admin.trace_envelope(trace).await;
        // Each look of an operator is an act of its own.
        let traced = traced.map(|answer| {
            let mut traced = answer.into_inner();
            traced.acts.clear();
            Response::new(traced)
        });
        seen.insert(format!("{at}: trace"), told(traced));
    }
    seen
}

async fn of_an_envelope(
    process: &mut World,
    (at, id): (usize, &String),
    person: &str,
    seen: &mut Seen,
) {
    let mut see = |what: &str, told: String| seen.insert(format!("{at}: {what}, {person}"), told);
    let get = GetEnvelopeRequest {
        envelope_id: id.clone(),
        viewer: person.to_owned(),
        group_id: GROUP.to_owned(),
        ..GetEnvelopeRequest::default()
    };
    see("get", told(process.envelopes.get_envelope(get).await));
    let mut list = ListGrabsRequest {
        envelope_id: id.clone(),
        viewer: person.to_owned(),
        group_id: GROUP.to_owned(),
        page_size: PAGE,
        ..ListGrabsRequest::default()
    };
    let mut shares = Vec::new();
    loop {
        match process.envelopes.list_grabs(list.clone()).await {
            Ok(page) => {
                let page = page.into_inner();
                shares.extend(page.shares);
                list.page_token = page.next_page_token;
            }
            Err(status) => {
                see("grabs refused", told(Err::<Response<()>, _>(status)));
                break;
            }
        }
        if list.page_token.is_empty() {
            break;
        }
    }
    see("grabs", format!("{shares:#?}"));
    let again = process.try_grab(through_the_group(id, person)).await;
    see("grab", told(again.map(Response::new)));
    let proof = GetFairnessProofRequest {
        envelope_id: id.clone(),
        viewer: person.to_owned(),
        group_id: GROUP.to_owned(),
        ..GetFairnessProofRequest::default()
    };
    let proof = process.envelopes.get_fairness_proof(proof).await;
    see("proof", told(proof));
    if person == "alice" {
        let recalled = process.envelopes.recall_envelope(recall_of(id)).await;
        see("recall", told(recalled));
        let declined = process.envelopes.decline_envelope(decline_of(id)).await;
        see("decline", told(declined));
    }
}

/// The year of the first question, for all others too: they are to have the same answers.
fn this_year() -> i16 {
    static YEAR: OnceLock<i16> = OnceLock::new();
    *YEAR.get_or_init(|| {
        let now = jiff::Timestamp::now();
        jiff::tz::Offset::UTC.to_datetime(now).year()
    })
}

async fn of_a_person(process: &mut World, ids: &[String], person: &str, seen: &mut Seen) {
    let mut see = |what: &str, told: String| seen.insert(format!("{what} of {person}"), told);
    let chat = BatchGetEnvelopesRequest {
        envelope_ids: ids.to_vec(),
        viewer: person.to_owned(),
        ..BatchGetEnvelopesRequest::default()
    };
    let chat = process.envelopes.batch_get_envelopes(chat).await;
    see("chat", told(chat));
    let sent = ListSentEnvelopesRequest {
        sender: person.to_owned(),
        ..ListSentEnvelopesRequest::default()
    };
    let sent = process.envelopes.list_sent_envelopes(sent).await;
    see("sent", told(sent));
    let received = ListReceivedSharesRequest {
        grabber: person.to_owned(),
        ..ListReceivedSharesRequest::default()
    };
    let received = process.envelopes.list_received_shares(received).await;
    see("received", told(received));
    let totals = GetYearTotalsRequest {
        person: person.to_owned(),
        year: i32::from(this_year()),
        ..GetYearTotalsRequest::default()
    };
    let totals = process.envelopes.get_year_totals(totals).await;
    see("totals", told(totals));
    let balance = GetBalanceRequest {
        owner: person.to_owned(),
        ..GetBalanceRequest::default()
    };
    let balance = process.accounts.get_balance(balance).await;
    see("balance", told(balance));
    let mut entries = Vec::new();
    let mut list = ListEntriesRequest {
        owner: person.to_owned(),
        currency_code: "CNY".to_owned(),
        page_size: PAGE,
        ..ListEntriesRequest::default()
    };
    loop {
        let page = process.accounts.list_entries(list.clone()).await.unwrap();
        let page = page.into_inner();
        entries.extend(page.entries);
        list.page_token = page.next_page_token;
        if list.page_token.is_empty() {
            break;
        }
    }
    see("entries", format!("{entries:#?}"));
}

/// Everything that Redis has of these envelopes, by key.
fn keys_of(fleet: &Fleet, ids: &[String]) -> Vec<Vec<u8>> {
    let mut keys = Vec::new();
    for id in ids {
        let pattern = format!("re1:*:?:{id}");
        match fleet.redis.command(&[b"KEYS", pattern.as_bytes()]) {
            redis::Value::Array(found) => keys.extend(found.into_iter().map(|key| match key {
                redis::Value::BulkString(key) => key,
                other => panic!("a key is text: {other:?}"),
            })),
            other => panic!("KEYS answers a list: {other:?}"),
        }
    }
    keys
}

fn same(before: &Seen, after: &Seen, how: &str) {
    assert!(before.keys().eq(after.keys()), "{how}");
    for (asked, told) in before {
        assert_eq!(&after[asked], told, "{asked}, {how}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_told_of_closed_envelopes_is_the_same_when_redis_has_nothing_of_them() {
    let mut fleet = Fleet::of(2).await;
    let ids = closed(&mut fleet).await;
    let before = seen(&mut fleet.processes[0], &ids).await;
    let answer = &before["0: grab, g0"];
    assert!(answer.contains("AlreadyGrabbed"), "{answer}");
    same(
        &before,
        &seen(&mut fleet.processes[1], &ids).await,
        "by the other",
    );

    // Each envelope has at least its shares, grabs and terms.
    let keys = keys_of(&fleet, &ids);
    assert!(keys.len() >= 3 * ids.len(), "{}", keys.len());
    for key in keys {
        fleet.redis.command(&[b"DEL", &key]);
    }
    for place in [0, 1] {
        let after = seen(&mut fleet.processes[place], &ids).await;
        same(&before, &after, "deleted");
        fleet.processes[place].audit_when_quiet().await;
    }

    // A process that has seen nothing of it finds it in the books, too.
    fleet.processes[1].server.kill();
    fleet.again(1, crate::harness::Start::default()).await;
    fleet.processes[1].until_ready().await;
    same(
        &before,
        &seen(&mut fleet.processes[1], &ids).await,
        "restarted",
    );

    // What is told does not depend on the time, either: Redis forgets, as it does with all.
    fleet.set_clock_ms(FORGOTTEN_MS);
    let gone = async || keys_of(&fleet, &ids).is_empty();
    until("Redis forgot", gone).await;
    for place in [0, 1] {
        let after = seen(&mut fleet.processes[place], &ids).await;
        same(&before, &after, "forgotten");
        fleet.processes[place].audit_when_quiet().await;
    }
}
