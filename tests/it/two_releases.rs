//! Two releases at once, as a rolling restart has them for a while: their libraries of functions have other
//! texts, and one Redis holds one of them.

use crate::harness::fleet::{Fleet, until};
use crate::harness::{cny, equal};

const LIBRARY: &str = include_str!("../../src/hot/redis/library.lua");
const REVISION: &str = "-- revision ";
/// What releases before this one bring: one whose texts had no number yet, and the last text of revision 1.
const UNNUMBERED: &str = "-- a text without a number\n";
const REVISION_1: &str = include_str!("fixtures/library_1.lua");
/// What a later one brings.
const LATER: &str = "-- revision 1000000\n";
/// Those who grab while a library comes.
const CROWD: usize = 400;
/// How often the library of another release comes.
const TURNS: usize = 5;

fn text(first_line: &str) -> String {
    let numbered = |line: &&str| line.starts_with(REVISION);
    let own = LIBRARY
        .lines()
        .find(numbered)
        .expect("the text has a number");
    LIBRARY.replacen(&format!("{own}\n"), first_line, 1)
}

fn bring(fleet: &Fleet, text: &str) {
    let loaded = fleet
        .redis
        .command(&[b"FUNCTION", b"LOAD", b"REPLACE", text.as_bytes()]);
    assert!(matches!(loaded, redis::Value::BulkString(_)), "{loaded:?}");
}

/// Whether this text is on Redis.
fn stands(fleet: &Fleet, text: &str) -> bool {
    let listed = fleet.redis.command(&[b"FUNCTION", b"LIST", b"WITHCODE"]);
    let held = format!("{listed:?}");
    // As the reply shows it, line by line.
    let first_lines: String = text.lines().take(3).collect::<Vec<_>>().join("\\n");
    held.contains(&first_lines)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_library_of_a_later_release_stays_and_one_of_an_older_is_replaced_while_grabs_go_on() {
    let mut fleet = Fleet::of(2).await;
    fleet.processes[0].fund("alice", cny(1_000_000)).await;
    let crowds = 2 * TURNS + 1;
    let shares = u32::try_from(CROWD * crowds).unwrap();
    let sent = fleet.processes[0].send(equal("alice", cny(10), shares));
    let id = sent.await.envelope_id;
    assert!(REVISION_1.contains("\n-- revision 1\n"));
    let epochs = "SELECT string_agg(epoch::text, ',') FROM red_envelope.hot_partition";
    let before = fleet.ask_the_books(epochs);
    for turn in 0..crowds {
        // Older ones come again and again, then the later one once, and stays.
        let foreign = match turn {
            0..TURNS if turn % 2 == 0 => Some(REVISION_1.to_owned()),
            0..TURNS => Some(text(UNNUMBERED)),
            TURNS => Some(text(LATER)),
            _ => None,
        };
        let grabbers = (0..CROWD).map(|number| format!("g{turn}-{number}"));
        let comes = async {
            if let Some(foreign) = &foreign {
                tokio::task::block_in_place(|| bring(&fleet, foreign));
            }
        };
        let (won, ()) = tokio::join!(fleet.rush(&id, grabbers), comes);
        assert!(won.iter().all(|(_, answer)| answer.share.is_some()));
        let expected = match turn {
            0..TURNS => LIBRARY.to_owned(),
            _ => text(LATER),
        };
        // The crowd may be over before somebody has seen what came: a call sees it.
        until("the library is the one that should be there", async || {
            fleet.processes[turn % 2]
                .grab_until_answered(&id, "g0-0")
                .await;
            stands(&fleet, &expected)
        })
        .await;
    }
    fleet.processes[0]
        .until(&id, "alice", red_envelope_proto::v1::EnvelopeState::Closed)
        .await;
    // It is the same server with the same data.
    assert_eq!(fleet.ask_the_books(epochs), before);
    assert!(stands(&fleet, &text(LATER)));
    for number in (0..CROWD).step_by(40) {
        let grabber = format!("g{}-{number}", crowds - 1);
        assert_eq!(fleet.processes[1].available(&grabber).await, 10);
    }
    for process in &mut fleet.processes {
        process.audit_when_quiet().await;
    }
}
