//! Money in, money out, and creates that are repeated.

use super::*;

#[tokio::test]
async fn a_deposit_is_made_once_however_often_it_is_repeated() {
    let world = World::new().await;
    let request = |minor| v1::DepositRequest {
        owner: "alice".into(),
        request_id: "d1".into(),
        amount: Some(cny(minor)),
        reference: "bank 7".into(),
        ..Default::default()
    };
    let mut accounts = world.accounts.clone();
    let first = accounts.deposit(request(500)).await.unwrap().into_inner();
    let again = accounts.deposit(request(500)).await.unwrap().into_inner();
    assert!(!first.replayed && again.replayed);
    assert_eq!(first.posting_id, again.posting_id);
    assert_eq!(world.balance("alice").await, (500, 0, 0));
    let other = accounts.deposit(request(501)).await;
    assert_eq!(failure(other), refused("REQUEST_ID_REUSED"));
}

#[tokio::test]
async fn nobody_withdraws_more_than_there_is() {
    let world = World::with_alice().await;
    let request = |minor: i64| v1::WithdrawRequest {
        owner: "alice".into(),
        request_id: format!("w{minor}"),
        amount: Some(cny(minor)),
        ..Default::default()
    };
    let mut accounts = world.accounts.clone();
    let too_much = accounts.withdraw(request(10_001)).await;
    assert_eq!(failure(too_much), refused("INSUFFICIENT_FUNDS"));
    accounts.withdraw(request(4_000)).await.unwrap();
    assert_eq!(world.balance("alice").await, (6_000, 0, 0));
}

#[tokio::test]
async fn a_won_share_is_pending_until_it_is_settled() {
    let world = World::with_alice().await;
    let id = world.send(lucky("r1", 1_000, 4)).await;
    assert_eq!(world.balance("alice").await, (9_000, 0, 1_000));
    let won = world.wins(&id, "bob").await;
    assert_eq!(world.balance("bob").await, (0, won, 0));
    world.settle().await;
    assert_eq!(world.balance("bob").await, (won, 0, 0));
    assert_eq!(world.balance("alice").await, (9_000, 0, 1_000 - won));
}

#[tokio::test]
async fn entries_page_from_the_newest_and_tokens_belong_to_their_listing() {
    let world = World::new().await;
    for minor in 1..=5 {
        world.deposit("alice", minor).await;
    }
    let page = |token: &str, owner: &str| v1::ListEntriesRequest {
        owner: owner.into(),
        page_size: 2,
        page_token: token.into(),
        ..Default::default()
    };
    let mut accounts = world.accounts.clone();
    let (mut token, mut seen) = (String::new(), Vec::new());
    loop {
        let answer = accounts.list_entries(page(&token, "alice")).await.unwrap();
        let answer = answer.into_inner();
        seen.extend(
            answer
                .entries
                .into_iter()
                .map(|e| e.amount.unwrap().minor_units),
        );
        if answer.next_page_token.is_empty() {
            break;
        }
        token = answer.next_page_token;
    }
    assert_eq!(seen, [5, 4, 3, 2, 1]);
    let stolen = accounts
        .list_entries(page(&token, "bob"))
        .await
        .unwrap_err();
    assert_eq!(stolen.code(), Code::InvalidArgument);
    let named = stolen.get_details_bad_request().unwrap().field_violations;
    assert_eq!(named[0].field, "page_token");
}

#[tokio::test]
async fn a_create_that_is_repeated_answers_the_same_envelope() {
    let world = World::with_alice().await;
    let first = world.create(lucky("r1", 1_000, 4)).await.unwrap();
    let again = world.create(lucky("r1", 1_000, 4)).await.unwrap();
    assert!(!first.replayed && again.replayed);
    assert_eq!(first.envelope, again.envelope);
    let state = first.envelope.unwrap().state();
    assert_eq!(state, v1::EnvelopeState::Live);
    assert_eq!(world.balance("alice").await, (9_000, 0, 1_000));
    let other = world.create(lucky("r1", 1_000, 5)).await;
    assert_eq!(failure(other), refused("REQUEST_ID_REUSED"));
}

#[tokio::test]
async fn a_create_that_cannot_be_paid_or_served_writes_nothing() {
    let world = World::with_alice().await;
    let poor = world.create(lucky("r1", 10_001, 4)).await;
    assert_eq!(failure(poor), refused("INSUFFICIENT_FUNDS"));
    let wrong = world.create(lucky("r2", 1_000, 1_001)).await.unwrap_err();
    assert_eq!(wrong.code(), Code::InvalidArgument);
    let named = wrong.get_details_bad_request().unwrap().field_violations;
    assert_eq!(named[0].field, "total.minor_units");
    assert_eq!(world.balance("alice").await, (10_000, 0, 0));
    let sent = v1::ListSentEnvelopesRequest {
        sender: "alice".into(),
        ..Default::default()
    };
    let sent = world.envelopes.clone().list_sent_envelopes(sent).await;
    assert_eq!(sent.unwrap().into_inner().envelopes, []);
}

#[tokio::test]
async fn the_server_tells_its_level_limits_and_batches() {
    let world = World::new().await;
    let request = v1::GetServiceInfoRequest::default();
    let told = world.about.clone().get_service_info(request).await;
    let told = told.unwrap().into_inner();
    assert_eq!(told.ack_level(), v1::AckLevel::Embedded);
    assert_eq!(told.partition_count, 1);
    assert_eq!(told.limits.unwrap().share_count_max, 10_000_000);
    assert_eq!(told.declared_units[0].code, "POINTS");
    assert_eq!(told.fairness_batches[0].batch_root.len(), 32);
    assert!(told.sender_may_grab);
    let made_up = v1::GetServiceInfoRequest {
        tenant: "made-up".into(),
    };
    for _ in 0..2 {
        let told = world.about.clone().get_service_info(made_up.clone()).await;
        assert_eq!(told.unwrap().into_inner().fairness_batches, []);
    }
}
