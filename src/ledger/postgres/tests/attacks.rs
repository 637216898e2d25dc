//! Attacks on the tables themselves: the schema refuses them, whatever the code would ask for.

use super::world;
use crate::domain::envelope::CloseReason;
use crate::domain::id::{EnvelopeId, Epoch, Partition};
use crate::ledger::Settled;
use crate::ledger::conformance::{World, decline, pay, unders};

/// The statements of a file, each with what its first line says after `-- ledger.word: `.
pub(super) fn statements(file: &str) -> Vec<(&str, &str)> {
    let named = |part| {
        let (name, sql): (&str, &str) = str::split_once(part, '\n').unwrap();
        (name.split_once(": ").unwrap().1, sql)
    };
    file.split("\n\n").skip(1).map(named).collect()
}

/// A closed envelope of two stripes, an open one that paid bob 40 of 100 and took 5 back, and of which
/// dave was made good the 40, and one that is gathered. Answers the second.
pub(super) async fn scene(world: &World) -> EnvelopeId {
    let closed = world.live_in(2, (100, 4), "e1").await;
    world.settle(vec![pay(closed, 0, "bob", 40)]).await;
    let ledger = &world.ledger;
    let begun = ledger.begin_close(closed, CloseReason::Expired).await;
    begun.unwrap();
    let both = unders(&[(0, 1), (1, 1)]);
    let finished = ledger
        .finish_close(both, closed, CloseReason::Expired, 1)
        .await;
    finished.unwrap();
    let open = world.live(100, 4, "e2").await;
    let paid = vec![pay(open, 0, "bob", 40), decline(open, 1, "carol", 5)];
    world.settle(paid).await;
    world.make_good_up_to(100, 10);
    let shown = world.settle(vec![pay(open, 0, "dave", 40)]).await;
    assert_eq!(shown, [Settled::MadeGood]);
    let act = crate::ledger::conformance::act("trace", open);
    ledger.record_act(act).await.unwrap();
    let layout = crate::ledger::HotLayout {
        store: "redis".to_owned(),
        layout: 1,
        partitions: 64,
    };
    ledger.hot_layout(layout).await.unwrap();
    let from = vec![(Partition::ZERO, Epoch::FIRST)];
    ledger
        .advance_epochs(from, "a server".to_owned())
        .await
        .unwrap();
    let gathered = world.live_in(2, (100, 4), "e3").await;
    assert!(ledger.gather(gathered).await.unwrap().gathered);
    open
}

#[tokio::test]
async fn direct_attacks_are_refused_by_the_schema() {
    let (world, place) = world().await;
    scene(&world).await;
    let attacks = place.scripted(include_str!("attacks.sql"));
    let attacks = statements(&attacks);
    assert_eq!(attacks.len(), 80);
    for (name, sql) in attacks {
        // Class 23: a constraint, or one of our triggers.
        let code = place.refusal(&format!("SET search_path = red_envelope; {sql}"));
        assert!(code.starts_with("23"), "{name}: {code}");
    }
    world.audit().await;
}
