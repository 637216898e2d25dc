//! Who may grab. To everybody else the envelope does not exist.

use red_envelope_proto::v1::audience::{Anyone, Audience as Rule, Group, Named};
use red_envelope_proto::v1::{
    Audience, CreateEnvelopeRequest, GetEnvelopeRequest, GrabOutcome, GrabRequest, RefusalReason,
};
use tonic::{Code, Status};

use crate::harness::world::grab_of;
use crate::harness::{Hot, World, cny, exclusive, lucky, on_both_stores};

on_both_stores! {
    anyone_with_the_id_may_grab_an_open_envelope,
    a_group_envelope_is_grabbed_through_its_group_only,
    a_named_envelope_is_grabbed_by_the_named_only_and_names_nobody,
    an_exclusive_envelope_gives_each_named_grabber_the_named_amount,
    a_passphrase_is_asked_and_five_wrong_tries_are_the_last,
    an_envelope_of_another_tenant_does_not_exist,
}

/// What cannot differ between unknown and forbidden, for a stranger must not tell them apart.
fn face(status: &Status) -> (Code, String, Vec<u8>) {
    (
        status.code(),
        status.message().to_owned(),
        status.details().to_vec(),
    )
}

fn for_whom(rule: Rule) -> CreateEnvelopeRequest {
    CreateEnvelopeRequest {
        audience: Some(Audience {
            audience: Some(rule),
        }),
        ..lucky("alice", cny(1_000), 10)
    }
}

async fn world(hot: Hot) -> World {
    let mut world = World::on(hot).await;
    world.fund("alice", cny(100_000)).await;
    world
}

async fn a_stranger_sees_nothing(world: &mut World, known: GrabRequest) {
    let unknown = GrabRequest {
        envelope_id: "aaaaaaaaaaaaaaaaaaaaaaaaaa".to_owned(),
        ..known.clone()
    };
    let forbidden = world.try_grab(known.clone()).await.unwrap_err();
    let missing = world.try_grab(unknown).await.unwrap_err();
    assert_eq!(forbidden.code(), Code::NotFound);
    assert_eq!(face(&forbidden), face(&missing));
    let look = GetEnvelopeRequest {
        envelope_id: known.envelope_id,
        viewer: known.grabber,
        group_id: known.group_id,
        ..GetEnvelopeRequest::default()
    };
    let unseen = world.envelopes.get_envelope(look).await.unwrap_err();
    assert_eq!(face(&unseen), face(&missing));
}

async fn anyone_with_the_id_may_grab_an_open_envelope(hot: Hot) {
    let mut world = world(hot).await;
    let envelope = world.send(for_whom(Rule::Anyone(Anyone {}))).await;
    let answer = world
        .grab(&envelope.envelope_id.to_uppercase(), "bob")
        .await;
    assert_eq!(answer.outcome(), GrabOutcome::Won);
    world.audit_when_quiet().await;
}

async fn a_group_envelope_is_grabbed_through_its_group_only(hot: Hot) {
    let mut world = world(hot).await;
    let group_id = "family".to_owned();
    let envelope = world.send(for_whom(Rule::Group(Group { group_id }))).await;
    let through = |group: &str| GrabRequest {
        group_id: group.to_owned(),
        ..grab_of(&envelope.envelope_id, "bob")
    };
    a_stranger_sees_nothing(&mut world, through("work")).await;
    a_stranger_sees_nothing(&mut world, through("")).await;
    let answer = world.try_grab(through("family")).await.unwrap();
    assert_eq!(answer.outcome(), GrabOutcome::Won);
    world.audit_when_quiet().await;
}

async fn a_named_envelope_is_grabbed_by_the_named_only_and_names_nobody(hot: Hot) {
    let mut world = world(hot).await;
    let grabbers = vec!["bob".to_owned(), "carol".to_owned()];
    let envelope = world
        .send(for_whom(Rule::Named(Named {
            grabbers: grabbers.clone(),
        })))
        .await;
    let id = envelope.envelope_id;
    a_stranger_sees_nothing(&mut world, grab_of(&id, "eve")).await;
    for grabber in &grabbers {
        assert_eq!(world.grab(&id, grabber).await.outcome(), GrabOutcome::Won);
    }
    let list_of = |audience: Option<Audience>| match audience.and_then(|a| a.audience) {
        Some(Rule::Named(named)) => named.grabbers,
        other => panic!("{other:?}"),
    };
    assert_eq!(list_of(world.look(&id, "alice").await.audience), grabbers);
    assert!(list_of(world.look(&id, "bob").await.audience).is_empty());
    world.audit_when_quiet().await;
}

async fn an_exclusive_envelope_gives_each_named_grabber_the_named_amount(hot: Hot) {
    let mut world = world(hot).await;
    let envelope = world
        .send(exclusive("alice", &[("bob", 520), ("carol", 1_314)]))
        .await;
    let id = envelope.envelope_id;
    assert_eq!(envelope.total, Some(cny(1_834)));
    a_stranger_sees_nothing(&mut world, grab_of(&id, "eve")).await;
    for (grabber, number, amount) in [("carol", 1, 1_314), ("bob", 0, 520)] {
        let share = world.grab(&id, grabber).await.share.unwrap();
        assert_eq!((share.number, share.amount), (number, Some(cny(amount))));
    }
    world.audit_when_quiet().await;
    assert_eq!(world.available("carol").await, 1_314);
}

async fn a_passphrase_is_asked_and_five_wrong_tries_are_the_last(hot: Hot) {
    let mut world = world(hot).await;
    let request = CreateEnvelopeRequest {
        passphrase: "恭喜发财".to_owned(),
        ..lucky("alice", cny(1_000), 10)
    };
    let envelope = world.send(request).await;
    assert!(envelope.passphrase_required);
    let with = |grabber: &str, phrase: &str| GrabRequest {
        passphrase: phrase.to_owned(),
        ..grab_of(&envelope.envelope_id, grabber)
    };
    for phrase in ["", "8888", "恭喜", "新年", "x"] {
        let answer = world.try_grab(with("bob", phrase)).await.unwrap();
        assert_eq!(answer.refusal(), RefusalReason::WrongPassphrase, "{phrase}");
    }
    // Even the right phrase comes too late now, also after a restart.
    let mut world = world.restarted(crate::harness::Start::on(hot)).await;
    let answer = world.try_grab(with("bob", "恭喜发财")).await.unwrap();
    assert_eq!(answer.outcome(), GrabOutcome::Refused);
    assert_eq!(answer.refusal(), RefusalReason::TooManyTries);
    let answer = world.try_grab(with("carol", "恭喜发财")).await.unwrap();
    assert_eq!(answer.outcome(), GrabOutcome::Won);
    // Who holds a share is told so, with or without the phrase.
    let answer = world.try_grab(with("carol", "")).await.unwrap();
    assert_eq!(answer.outcome(), GrabOutcome::AlreadyGrabbed);
    world.audit_when_quiet().await;
}

async fn an_envelope_of_another_tenant_does_not_exist(hot: Hot) {
    let mut world = world(hot).await;
    let envelope = world.send(lucky("alice", cny(1_000), 10)).await;
    let elsewhere = GrabRequest {
        tenant: "other".to_owned(),
        ..grab_of(&envelope.envelope_id, "bob")
    };
    let status = world.try_grab(elsewhere).await.unwrap_err();
    assert_eq!(status.code(), Code::NotFound);
}
