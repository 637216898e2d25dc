//! Who may grant, and in which epoch.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use super::{Scripted, books};
use crate::domain::id::{Epoch, Partition};
use crate::hot::{HotStore, Standing};
use crate::ledger::conformance::World;
use crate::ledger::{HotLayout, PartitionRow};
use crate::publish::{Registered, Registrar, RegistrarError};

fn registrar(hot: &Arc<Scripted>, world: &World) -> Registrar {
    let door: Arc<dyn HotStore> = Arc::clone(hot) as _;
    Registrar::new(door, Arc::clone(&world.ledger))
}

fn stands(hot: &Scripted, server: &str, epochs: &[Option<u64>]) {
    hot.said.lock().standing = Some(Standing {
        server: server.to_owned(),
        epochs: epochs.iter().map(|epoch| epoch.map(Epoch)).collect(),
    });
}

fn done(server: &str, kept: usize, advanced: usize) -> Registered {
    Registered::Done {
        server: server.to_owned(),
        kept,
        advanced,
    }
}

/// What was registered last, as numbers.
fn registered(hot: &Scripted) -> Vec<(u16, u64)> {
    let said = hot.said.lock();
    let (_, epochs) = said.registered.last().unwrap();
    epochs.iter().map(|(p, e)| (p.index(), e.0)).collect()
}

#[tokio::test]
async fn a_store_that_nothing_replaces_is_not_registered() {
    let (world, _folder) = books();
    let hot = Scripted::new(1);
    let once = registrar(&hot, &world).once().await;
    assert_eq!(once.unwrap(), Registered::NotNeeded);
    assert_eq!(world.ledger.partitions().await.unwrap(), []);
}

#[tokio::test]
async fn a_new_store_advances_once_and_keeps_its_epochs_afterwards() {
    let (world, _folder) = books();
    let hot = Scripted::new(2);
    stands(&hot, "a", &[None, None]);
    let registrar = registrar(&hot, &world);
    assert_eq!(registrar.once().await.unwrap(), done("a", 0, 2));
    assert_eq!(registered(&hot), [(0, 2), (1, 2)]);
    // A process that starts beside it, or a function library that was replaced.
    assert_eq!(registrar.once().await.unwrap(), done("a", 2, 0));
    assert_eq!(registered(&hot), [(0, 2), (1, 2)]);
}

#[tokio::test]
async fn a_store_that_restarted_or_lost_its_data_advances() {
    let (world, _folder) = books();
    let hot = Scripted::new(2);
    stands(&hot, "a", &[None, None]);
    let registrar = registrar(&hot, &world);
    registrar.once().await.unwrap();
    // Another process on the same data.
    stands(&hot, "b", &[Some(2), Some(2)]);
    assert_eq!(registrar.once().await.unwrap(), done("b", 0, 2));
    // The same process: one partition is empty. It is another loss than the one before.
    for (lost, epoch) in [(None, 4), (None, 5), (Some(3), 6)] {
        stands(&hot, "b", &[Some(3), lost]);
        assert_eq!(registrar.once().await.unwrap(), done("b", 1, 1));
        assert_eq!(registered(&hot), [(0, 3), (1, epoch)]);
    }
}

#[tokio::test]
async fn an_epoch_that_was_advanced_and_not_registered_is_skipped() {
    let (world, _folder) = books();
    let hot = Scripted::new(1);
    stands(&hot, "a", &[None]);
    // The process died between the two calls.
    let from = vec![(Partition::ZERO, Epoch::FIRST)];
    let advanced = world.ledger.advance_epochs(from, "a".to_owned()).await;
    assert_eq!(advanced.unwrap()[0].epoch, Epoch(2));
    let registrar = registrar(&hot, &world);
    assert_eq!(registrar.once().await.unwrap(), done("a", 0, 1));
    assert_eq!(registered(&hot), [(0, 3)]);
    assert_eq!(registrar.once().await.unwrap(), done("a", 1, 0));
}

#[tokio::test]
async fn two_processes_that_register_one_server_take_its_epoch_on_once() {
    let (world, _folder) = books();
    let hot = Scripted::new(2);
    stands(&hot, "a", &[Some(1), None]);
    // The other process is between the two calls, and is done after the first look.
    let all = [Partition::ZERO, Partition::new(1).unwrap()];
    let all = all.map(|partition| (partition, Epoch::FIRST)).to_vec();
    let advanced = world.ledger.advance_epochs(all, "a".to_owned()).await;
    assert_eq!(advanced.unwrap().len(), 2);
    let registrar = registrar(&hot, &world);
    let other = async {
        while hot.said.lock().looks == 0 {
            tokio::task::yield_now().await;
        }
        stands(&hot, "a", &[Some(2), Some(2)]);
    };
    let (once, ()) = tokio::join!(registrar.once(), other);
    assert_eq!(once.unwrap(), done("a", 2, 0));
    assert_eq!(registered(&hot), [(0, 2), (1, 2)]);
}

#[tokio::test]
async fn two_servers_that_race_never_grant_in_one_epoch() {
    let (world, _folder) = books();
    let (a, b) = (Scripted::new(8), Scripted::new(8));
    stands(&a, "a", &[None; 8]);
    stands(&b, "b", &[None; 8]);
    let (of_a, of_b) = (registrar(&a, &world), registrar(&b, &world));
    let (once_a, once_b) = tokio::join!(of_a.once(), of_b.once());
    assert!(once_a.is_ok() && once_b.is_ok(), "{once_a:?} {once_b:?}");
    let granted = |hot: &Scripted| {
        let said = hot.said.lock();
        let all = said
            .registered
            .iter()
            .flat_map(|(_, epochs)| epochs.clone());
        all.collect::<std::collections::BTreeSet<_>>()
    };
    assert!(granted(&a).is_disjoint(&granted(&b)));
    let rows: Vec<PartitionRow> = world.ledger.partitions().await.unwrap();
    for row in rows {
        let of = if row.server == "a" { &a } else { &b };
        assert!(granted(of).contains(&(row.partition, row.epoch)), "{row:?}");
    }
}

#[tokio::test]
async fn books_of_another_store_are_named_in_a_sentence() {
    let (world, _folder) = books();
    let registrar = registrar(&Scripted::new(1), &world);
    let layout = |store: &str, layout, partitions| HotLayout {
        store: store.to_owned(),
        layout,
        partitions,
    };
    registrar
        .check_layout(layout("embedded", 1, 1))
        .await
        .unwrap();
    registrar
        .check_layout(layout("embedded", 1, 1))
        .await
        .unwrap();
    let says = async |asked| match registrar.check_layout(asked).await {
        Err(RegistrarError::Layout(says)) => says,
        other => panic!("{other:?}"),
    };
    assert_eq!(
        says(layout("redis", 1, 64)).await,
        "the books belong to a hot store of kind embedded with 1 partition, not of kind redis with 64 \
         partitions: start with that store, or name other books (--data-dir for another folder, \
         --ledger for another database)"
    );
    let other_rows = says(layout("embedded", 2, 1)).await;
    assert!(other_rows.contains("in layout 1, not of"), "{other_rows}");
}

#[tokio::test]
async fn the_loop_registers_when_the_store_asks_and_ends_at_shutdown() {
    let (world, _folder) = books();
    let hot = Scripted::new(1);
    stands(&hot, "a", &[None]);
    hot.unregistered.notify_one();
    let registrar = registrar(&hot, &world);
    let shutdown = CancellationToken::new();
    let asked = async {
        while hot.said.lock().registered.is_empty() {
            tokio::task::yield_now().await;
        }
        shutdown.cancel();
    };
    let (ran, ()) = tokio::join!(registrar.run(|max| max, shutdown.clone()), asked);
    ran.unwrap();
    assert_eq!(registered(&hot), [(0, 2)]);
}
