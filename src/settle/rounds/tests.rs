//! Partitions that end as a script says, on a timer that nothing but their rests moves.

use futures_util::FutureExt;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::*;
use crate::settle::BACKOFF_MS_MAX;

const PARTITIONS: u16 = 64;
const POISONED: u16 = 5;

/// What was drained, and when.
#[derive(Default)]
struct Log(Mutex<Vec<(u16, Instant)>>);

impl Log {
    fn begun(&self, partition: Partition) {
        self.0.lock().push((partition.index(), timer_now()));
    }

    /// When a partition was drained, in milliseconds since `began`.
    fn of(&self, partition: u16, began: Instant) -> Vec<u64> {
        let log = self.0.lock();
        let own = log.iter().filter(|(index, _)| *index == partition);
        let ms = own.map(|(_, at)| u64::try_from((*at - began).as_millis()).unwrap());
        ms.collect()
    }
}

fn one_record() -> Drained {
    Drained {
        records: 1,
        paid: 1,
        ..Drained::default()
    }
}

fn refused() -> Drained {
    Drained {
        records: 1,
        refused: 1,
        refusal: Some("poison".to_owned()),
        ..Drained::default()
    }
}

/// Runs rounds for so long. The jitter is always the largest.
async fn run_for<'a>(
    ms: u64,
    vitals: &'a Vitals,
    has: &'a (dyn Fn(Partition) -> bool + Sync),
    drain: &'a (dyn Fn(Partition) -> BoxFuture<'a, Result<Drained, SettleError>> + Sync),
) -> Result<(), SettleError> {
    run_asking(ms, vitals, has, &|| std::future::ready(None).boxed(), drain).await
}

/// The same, with an answer to which outboxes may hold something.
async fn run_asking<'a>(
    ms: u64,
    vitals: &'a Vitals,
    has: &'a (dyn Fn(Partition) -> bool + Sync),
    owing: &'a (dyn Fn() -> BoxFuture<'a, Option<Vec<Partition>>> + Sync),
    drain: &'a (dyn Fn(Partition) -> BoxFuture<'a, Result<Drained, SettleError>> + Sync),
) -> Result<(), SettleError> {
    let partitions = PartitionCount::new(PARTITIONS).unwrap();
    let rounds = Rounds {
        partitions,
        has,
        owing,
        drain,
        vitals,
    };
    let shutdown = CancellationToken::new();
    let ends = async {
        tokio::time::sleep(Duration::from_millis(ms)).await;
        shutdown.cancel();
    };
    tokio::join!(rounds.run(&|max| max, &shutdown), ends).0
}

fn longest_gap(instants: &[u64]) -> u64 {
    instants.windows(2).map(|w| w[1] - w[0]).max().unwrap()
}

/// The others are drained as often as if it were not there, and it less and less.
async fn delays_nobody(poison: fn() -> BoxFuture<'static, Result<Drained, SettleError>>) {
    let (log, vitals, began) = (Log::default(), Vitals::default(), timer_now());
    let drain = |partition: Partition| {
        log.begun(partition);
        match partition.index() {
            POISONED => poison(),
            _ => async { Ok(one_record()) }.boxed(),
        }
    };
    run_for(60_000, &vitals, &|_| true, &drain).await.unwrap();
    for other in (0..PARTITIONS).filter(|index| *index != POISONED) {
        let instants = log.of(other, began);
        // The first round may wait for it, once.
        let later: Vec<_> = instants[1..].to_vec();
        assert!(later[0] <= STRAGGLE_MS + FILL_MS, "{other}: {later:?}");
        assert!(longest_gap(&later) <= FILL_MS, "{other}");
    }
    let tried = log.of(POISONED, began);
    assert!((10..30).contains(&tried.len()), "{tried:?}");
    assert!(longest_gap(&tried) >= BACKOFF_MS_MAX, "{tried:?}");
    let why = vitals.seen().last_error.unwrap();
    assert!(why.starts_with("drain: partition 5: "), "{why}");
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_the_books_refuse_delays_nobody() {
    delays_nobody(|| async { Ok(refused()) }.boxed()).await;
}

#[tokio::test(start_paused = true)]
async fn a_partition_whose_store_fails_delays_nobody() {
    delays_nobody(|| async { Err(SettleError::Unavailable("away".to_owned())) }.boxed()).await;
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_hangs_before_it_fails_delays_nobody() {
    delays_nobody(|| {
        let hangs = async {
            tokio::time::sleep(Duration::from_secs(2)).await;
            Err(SettleError::Unavailable("timed out".to_owned()))
        };
        hangs.boxed()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn partitions_that_hang_once_and_again_delay_nobody() {
    let (log, vitals, began) = (Log::default(), Vitals::default(), timer_now());
    // More of them than are drained at once.
    let hung = u16::try_from(DRAINS_IN_FLIGHT_MAX).unwrap() * 2;
    let drain = |partition: Partition| {
        log.begun(partition);
        let hangs = partition.index() >= PARTITIONS - hung;
        async move {
            if hangs {
                tokio::time::sleep(Duration::from_secs(30)).await;
                return Err(SettleError::Unavailable("timed out".to_owned()));
            }
            Ok(one_record())
        }
        .boxed()
    };
    run_for(90_000, &vitals, &|_| true, &drain).await.unwrap();
    for other in 0..PARTITIONS - hung {
        let instants = log.of(other, began);
        // They were in its way until the last of them had failed once.
        let later: Vec<_> = instants.into_iter().filter(|ms| *ms > 60_000).collect();
        assert!(longest_gap(&later) <= FILL_MS, "{other}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_goes_well_again_is_drained_as_the_others_and_told_no_more() {
    let (log, vitals, began) = (Log::default(), Vitals::default(), timer_now());
    let drain = |partition: Partition| {
        log.begun(partition);
        let fails = partition.index() == POISONED && log.of(POISONED, began).len() <= 7;
        let ended = match fails {
            true => Err(SettleError::Unavailable("away".to_owned())),
            false => Ok(Drained::default()),
        };
        async { ended }.boxed()
    };
    run_for(60_000, &vitals, &|_| true, &drain).await.unwrap();
    assert_eq!(vitals.seen().last_error, None);
    let tried = log.of(POISONED, began);
    let rests: Vec<_> = tried.windows(2).map(|w| w[1] - w[0]).collect();
    // Each rest is its own, and the next round begins it.
    for (rest, least) in rests.iter().zip([50, 100, 200, 400, 800, 1_600, 3_200]) {
        assert!((least..=least + IDLE_MS).contains(rest), "{rests:?}");
    }
    assert!(rests[7..].iter().all(|ms| *ms <= IDLE_MS), "{rests:?}");
}

#[tokio::test(start_paused = true)]
async fn a_partition_that_became_another_processes_is_left_to_it() {
    let (log, vitals, began) = (Log::default(), Vitals::default(), timer_now());
    let drain = |partition: Partition| {
        log.begun(partition);
        async { Err(SettleError::Unavailable("away".to_owned())) }.boxed()
    };
    let has =
        |partition: Partition| partition.index() == POISONED && log.of(POISONED, began).len() < 3;
    run_for(60_000, &vitals, &has, &drain).await.unwrap();
    assert_eq!(log.of(POISONED, began).len(), 3);
    assert_eq!(log.0.lock().len(), 3);
    assert_eq!(vitals.seen().last_error, None);
}

#[tokio::test(start_paused = true)]
async fn a_drain_that_holds_what_the_question_waits_for_goes_on_while_it_is_asked() {
    // One connection for both, as a pool may have it: a drain of the first partition takes it for longer
    // than a round waits.
    let (vitals, connection) = (Vitals::default(), Semaphore::new(1));
    let (asked, drained) = (Mutex::new(0), Mutex::new(0));
    let owing = || {
        async {
            let _held = connection.acquire().await.unwrap();
            *asked.lock() += 1;
            Some(vec![Partition::ZERO])
        }
        .boxed()
    };
    let drain = |_| {
        async {
            let _held = connection.acquire().await.unwrap();
            tokio::time::sleep(Duration::from_millis(2 * STRAGGLE_MS)).await;
            *drained.lock() += 1;
            Ok(one_record())
        }
        .boxed()
    };
    let run = run_asking(10_000, &vitals, &|_| true, &owing, &drain);
    let ended = tokio::time::timeout(Duration::from_secs(60), run).await;
    ended.expect("neither waits for the other").unwrap();
    let (asked, drained) = (*asked.lock(), *drained.lock());
    assert!(drained >= 10 && asked >= drained, "{asked}, {drained}");
}

#[tokio::test(start_paused = true)]
async fn at_shutdown_what_is_under_way_ends_and_what_rests_does_not_begin() {
    let (log, vitals, began) = (Log::default(), Vitals::default(), timer_now());
    let ended = Mutex::new(false);
    let drain = |partition: Partition| {
        log.begun(partition);
        let ended = &ended;
        async move {
            if partition.index() == POISONED {
                return Err(SettleError::Unavailable("away".to_owned()));
            }
            if partition.index() == 0 {
                tokio::time::sleep(Duration::from_secs(5)).await;
                *ended.lock() = true;
            }
            Ok(Drained::default())
        }
        .boxed()
    };
    run_for(1_000, &vitals, &|_| true, &drain).await.unwrap();
    assert!(*ended.lock());
    assert!(log.of(POISONED, began).iter().all(|ms| *ms <= 1_000));
}

#[tokio::test(start_paused = true)]
async fn a_store_that_has_stopped_ends_the_rounds() {
    let vitals = Vitals::default();
    let drain = |_| async { Err(SettleError::Stopped("the disk".to_owned())) }.boxed();
    let ended = run_for(1_000, &vitals, &|_| true, &drain).await;
    assert!(matches!(ended, Err(SettleError::Stopped(_))), "{ended:?}");
    assert_eq!(vitals.seen().last_error, Some("drain: the disk".to_owned()));
}
