//! Operators: freeze, trace, audit, and the record of every act.

use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use super::*;
use crate::ledger::conformance;

fn freeze(id: &str) -> v1::FreezeEnvelopeRequest {
    v1::FreezeEnvelopeRequest {
        envelope_id: id.into(),
        operator: "olga".into(),
        reason: "ticket 7".into(),
        ..Default::default()
    }
}

fn unfreeze(id: &str) -> v1::UnfreezeEnvelopeRequest {
    v1::UnfreezeEnvelopeRequest {
        envelope_id: id.into(),
        operator: "olga".into(),
        reason: "all is well".into(),
        ..Default::default()
    }
}

async fn trace(world: &World, id: &str) -> v1::TraceEnvelopeResponse {
    let request = v1::TraceEnvelopeRequest {
        envelope_id: id.into(),
        operator: "oscar".into(),
        reason: "ticket 9".into(),
        ..Default::default()
    };
    let traced = world.operators.clone().trace_envelope(request).await;
    traced.unwrap().into_inner()
}

#[tokio::test]
async fn a_frozen_envelope_stands_still_and_goes_on_where_it_stood() {
    let world = World::with_alice().await;
    let id = world.send(lucky("r1", 1_000, 4)).await;
    let mut operators = world.operators.clone();
    let frozen = operators
        .freeze_envelope(freeze(&id))
        .await
        .unwrap()
        .into_inner();
    assert!(!frozen.replayed);
    assert_eq!(frozen.envelope.unwrap().state(), v1::EnvelopeState::Frozen);
    let again = operators.freeze_envelope(freeze(&id)).await.unwrap();
    assert!(again.into_inner().replayed);
    let grab = world.grab(&id, "bob").await;
    let told = grab.as_ref().unwrap_err().get_details_retry_info();
    assert!(told.is_some());
    let unavailable = (Code::Unavailable, "ENVELOPE_FROZEN".to_owned());
    assert_eq!(failure(grab), unavailable);
    assert_eq!(failure(world.recall(&id, "alice").await), unavailable);
    let thawed = operators
        .unfreeze_envelope(unfreeze(&id))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(thawed.envelope.unwrap().state(), v1::EnvelopeState::Live);
    world.wins(&id, "bob").await;
}

#[tokio::test]
async fn every_act_is_on_record_also_a_refused_one() {
    let world = World::with_alice().await;
    let id = world.send(lucky("r1", 1_000, 1)).await;
    world.wins(&id, "bob").await;
    world.close(&id).await;
    let closed = world.operators.clone().freeze_envelope(freeze(&id)).await;
    assert_eq!(failure(closed), refused("ALREADY_OVER"));
    trace(&world, &id).await;
    let acts = trace(&world, &id).await.acts;
    let told: Vec<_> = acts
        .iter()
        .map(|act| {
            let who_and_why = (act.operator.as_str(), act.reason.as_str());
            (act.act.as_str(), who_and_why, act.result.as_str())
        })
        .collect();
    let oscar = ("oscar", "ticket 9");
    assert_eq!(
        told,
        [
            ("freeze", ("olga", "ticket 7"), "ALREADY_OVER"),
            ("trace", oscar, "done"),
            ("trace", oscar, "done"),
        ]
    );
}

/// What stands in the record of acts that are of no one envelope: act, operator, reason, result.
async fn acts_of_none(world: &World) -> Vec<[String; 4]> {
    let acts = world.ledger.acts(None, 10).await.unwrap().into_iter();
    acts.map(|act| [act.act, act.operator.to_string(), act.reason, act.result])
        .collect()
}

#[tokio::test]
async fn a_look_is_an_act_too_and_says_who_and_why() {
    let world = World::new().await;
    let mut operators = world.operators.clone();
    let nameless = operators.audit(v1::AuditRequest::default()).await;
    assert_eq!(nameless.unwrap_err().code(), Code::InvalidArgument);
    let nameless = v1::ListDeadLettersRequest::default();
    let nameless = operators.list_dead_letters(nameless).await;
    assert_eq!(nameless.unwrap_err().code(), Code::InvalidArgument);
    assert!(acts_of_none(&world).await.is_empty());

    let (operator, reason) = ("olga".to_owned(), "the evening's".to_owned());
    let audit = v1::AuditRequest {
        operator: operator.clone(),
        reason: reason.clone(),
        ..Default::default()
    };
    operators.audit(audit).await.unwrap();
    let letters = v1::ListDeadLettersRequest {
        operator,
        reason,
        ..Default::default()
    };
    operators.list_dead_letters(letters).await.unwrap();
    let replay = v1::ReplayDeadLetterRequest {
        dead_letter_id: "5".into(),
        operator: "olga".into(),
        reason: "ticket 8".into(),
        correct_amount: false,
    };
    operators.replay_dead_letter(replay).await.unwrap_err();
    let told = acts_of_none(&world).await;
    let told: Vec<_> = told
        .iter()
        .map(|act| act.each_ref().map(String::as_str))
        .collect();
    assert_eq!(
        told,
        [
            ["audit", "olga", "the evening's", "done"],
            ["list_dead_letters", "olga", "the evening's", "done"],
            [
                "replay_dead_letter",
                "olga",
                "ticket 8",
                "DEAD_LETTER_NOT_FOUND"
            ],
        ]
    );
}

#[tokio::test]
async fn a_replay_whose_amount_cannot_be_looked_up_is_on_record_as_refused() {
    let world = World::with_alice().await;
    // Funded behind the service, so that nobody remembers what its shares are worth.
    let fund = conformance::fund(conformance::draft("alice", 100, 2), "f1");
    let envelope = world.ledger.fund(fund).await.unwrap().envelope.id;
    let record = conformance::record(envelope, 0, "bob", 7);
    let aside = vec![SettleItem::SetAside(record, "poison")];
    world
        .ledger
        .settle(conformance::FIRST, aside)
        .await
        .unwrap();
    let letters = world.ledger.dead_letters(None, 0, 1).await.unwrap();
    // Without its secret nothing says what the share is worth.
    world.ledger.damage_secrets().await.unwrap();
    let replay = v1::ReplayDeadLetterRequest {
        dead_letter_id: letters[0].row.to_string(),
        operator: "olga".into(),
        reason: "ticket 8".into(),
        correct_amount: false,
    };
    let refused = world.operators.clone().replay_dead_letter(replay).await;
    assert_eq!(failure(refused).1, "INTERNAL");
    let acts = world.ledger.acts(Some(envelope), 10).await.unwrap();
    let told: Vec<_> = acts
        .iter()
        .map(|a| (&*a.act, &*a.reason, &*a.result))
        .collect();
    assert_eq!(told, [("replay_dead_letter", "ticket 8", "INTERNAL")]);
}

#[tokio::test]
async fn an_act_says_who_and_why() {
    let world = World::new().await;
    let nameless = v1::FreezeEnvelopeRequest::default();
    let status = world
        .operators
        .clone()
        .freeze_envelope(nameless)
        .await
        .unwrap_err();
    let named = status.get_details_bad_request().unwrap().field_violations;
    let fields: Vec<_> = named.into_iter().map(|v| v.field).collect();
    assert_eq!(fields, ["envelope_id", "reason", "operator"]);
    let unknown = EnvelopeId::from_parts(20_000, [1; 14]).to_string();
    let missing = world
        .operators
        .clone()
        .freeze_envelope(freeze(&unknown))
        .await;
    assert_eq!(failure(missing), not_found());
}

#[tokio::test]
async fn a_trace_follows_the_money_from_the_hold_to_the_last_entry() {
    let world = World::with_alice().await;
    let id = world.send(lucky("r1", 1_000, 3)).await;
    world.wins(&id, "bob").await;
    world.recall(&id, "alice").await.unwrap();
    world.close(&id).await;
    let traced = trace(&world, &id).await;
    let kinds: Vec<_> = traced.postings.iter().map(|p| p.kind.as_str()).collect();
    assert_eq!(kinds, ["fund", "settle", "refund"]);
    let moved: i64 = traced.postings.iter().map(|p| p.amount_minor).sum();
    assert_eq!(moved, 0);
    assert_eq!(traced.shares.len(), 1);
    assert!(traced.shares[0].settled && traced.shares[0].amount.is_some());
    assert!(!traced.truncated);
}

#[tokio::test]
async fn an_audit_of_what_is_hot_has_a_turn_beside_one_of_everything() {
    let world = World::with_alice().await;
    let mut operators = world.operators.clone();
    let mut audit = async |hot_only| {
        let request = v1::AuditRequest {
            operator: "olga".into(),
            reason: "every minute".into(),
            hot_only,
            ..Default::default()
        };
        operators.audit(request).await
    };
    let api = &world.services.api;
    for (taken, hot_only) in [(&api.audits, false), (&api.audits_of_hot, true)] {
        let turn = taken.try_acquire().unwrap();
        let refused = audit(hot_only).await.unwrap_err();
        assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
        let other = audit(!hot_only).await.unwrap().into_inner();
        assert!(other.clean && other.hot_only != hot_only);
        drop(turn);
        assert!(audit(hot_only).await.unwrap().into_inner().clean);
    }
}

#[tokio::test]
async fn an_audit_of_sound_books_is_clean() {
    let world = World::with_alice().await;
    let id = world.send(lucky("r1", 1_000, 3)).await;
    world.wins(&id, "bob").await;
    let audit = || v1::AuditRequest {
        operator: "olga".into(),
        reason: "the evening's".into(),
        ..Default::default()
    };
    let mut operators = world.operators.clone();
    let live = operators.audit(audit()).await.unwrap().into_inner();
    assert!(live.clean && !live.quiet, "{live:?}");
    assert_eq!(live.in_flight_count, 1);
    world.settle().await;
    let quiet = operators.audit(audit()).await.unwrap().into_inner();
    assert!(quiet.clean && quiet.quiet, "{quiet:?}");
    assert_eq!(quiet.totals[0].funded_minor, 1_000);
    let letters = v1::ListDeadLettersRequest {
        operator: "olga".into(),
        reason: "the evening's".into(),
        ..Default::default()
    };
    let letters = operators.list_dead_letters(letters).await.unwrap();
    assert_eq!(letters.into_inner().dead_letters, []);
    let replay = v1::ReplayDeadLetterRequest {
        dead_letter_id: "5".into(),
        operator: "olga".into(),
        reason: "ticket 8".into(),
        correct_amount: false,
    };
    let none = operators.replay_dead_letter(replay).await;
    let told = (Code::NotFound, "DEAD_LETTER_NOT_FOUND".to_owned());
    assert_eq!(failure(none), told);
}

#[tokio::test]
async fn what_operators_may_do_is_not_on_the_public_listener() {
    let world = World::new().await;
    let public = world.public.clone();
    let mut strayed = AdminServiceClient::new(public.clone());
    let answer = strayed.audit(v1::AuditRequest::default()).await;
    assert_eq!(answer.unwrap_err().code(), Code::Unimplemented);
    assert_eq!(
        listed(public).await,
        [
            "grpc.health.v1.Health",
            "redenvelope.v1.AccountService",
            "redenvelope.v1.EnvelopeService",
            "redenvelope.v1.InfoService",
        ]
    );
    assert_eq!(
        listed(world.admin.clone()).await,
        ["grpc.health.v1.Health", "redenvelope.v1.AdminService"]
    );
}

#[tokio::test]
async fn reflection_describes_the_details_of_errors() {
    let world = World::new().await;
    let symbol = "google.rpc.ErrorInfo".to_owned();
    let asked = MessageRequest::FileContainingSymbol(symbol);
    let told = reflect(world.public.clone(), asked).await;
    let Some(MessageResponse::FileDescriptorResponse(files)) = told.message_response else {
        panic!("{told:?}");
    };
    let text = String::from_utf8_lossy(&files.file_descriptor_proto[0]).into_owned();
    assert!(text.contains("google/rpc/error_details.proto"));
}

async fn reflect(channel: Channel, asked: MessageRequest) -> ServerReflectionResponse {
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(asked),
    };
    let mut client = ServerReflectionClient::new(channel);
    let stream = client
        .server_reflection_info(tokio_stream::once(request))
        .await;
    stream
        .unwrap()
        .into_inner()
        .message()
        .await
        .unwrap()
        .unwrap()
}

async fn listed(channel: Channel) -> Vec<String> {
    let told = reflect(channel, MessageRequest::ListServices(String::new())).await;
    let Some(MessageResponse::ListServicesResponse(list)) = told.message_response else {
        panic!("{told:?}");
    };
    let mut names: Vec<_> = list.service.into_iter().map(|s| s.name).collect();
    names.sort();
    names
}
