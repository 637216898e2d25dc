//! A PostgreSQL whose disk is full: nothing can be written to the books, and they can be read. A trigger says
//! what PostgreSQL says when a table can't grow (53100). Where its log can't grow either it ends itself, as
//! if it was killed: see `together` for that.

use red_envelope_proto::v1::{DepositRequest, EnvelopeState, RecallEnvelopeRequest};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::harness::fleet::{Fleet, until};
use crate::harness::world::{World, grab_of};
use crate::harness::{cny, equal};

/// What the sender has at first, and what each share is worth.
const FUNDS: i64 = 1_000_000;
const SHARE: i64 = 10;
/// Those who grab after each turn of the clock.
const CROWD: usize = 300;
/// From where on new envelopes, and from where on grabs, are turned away: half a minute and two.
const CREATES_SHED_MS: i64 = 32_000;
const GRABS_SHED_MS: i64 = 125_000;
const BEHIND: &str = "SETTLEMENT_BEHIND";

/// No table has room for a row, and all have it again.
const NO_ROOM: &str = "
    CREATE FUNCTION red_envelope.no_room() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE disk_full; END $$;
    DO $$ DECLARE its name; BEGIN
        FOR its IN SELECT tablename FROM pg_tables WHERE schemaname = 'red_envelope' LOOP
            EXECUTE format('CREATE TRIGGER no_room BEFORE INSERT OR UPDATE ON red_envelope.%I
                FOR EACH STATEMENT EXECUTE FUNCTION red_envelope.no_room()', its);
        END LOOP;
    END $$";
const ROOM: &str = "DROP FUNCTION red_envelope.no_room() CASCADE";

/// Told to repeat, and why.
fn reason(status: &Status) -> String {
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    let details = status.get_error_details();
    assert!(details.retry_info().is_some(), "{status}");
    let info = details.error_info();
    info.map(|info| info.reason.clone()).unwrap_or_default()
}

fn recall_of(id: &str) -> RecallEnvelopeRequest {
    RecallEnvelopeRequest {
        envelope_id: id.to_owned(),
        sender: "alice".to_owned(),
        request_id: "back".to_owned(),
        ..RecallEnvelopeRequest::default()
    }
}

/// What is told to whoever needs the books.
async fn refusals(process: &mut World, id: &str) -> [String; 3] {
    let sent = process.envelopes.create_envelope(equal("alice", cny(1), 1));
    let sent = sent.await.unwrap_err();
    let deposit = DepositRequest {
        owner: "alice".to_owned(),
        request_id: "meanwhile".to_owned(),
        amount: Some(cny(7)),
        ..DepositRequest::default()
    };
    let paid_in = process.accounts.deposit(deposit).await.unwrap_err();
    let recalled = process.envelopes.recall_envelope(recall_of(id)).await;
    let recalled = recalled.unwrap_err();
    [sent, paid_in, recalled].map(|status| reason(&status))
}

async fn all_win(fleet: &Fleet, id: &str, part: &str) {
    let crowd = (0..CROWD).map(|number| format!("{part}-{number}"));
    let won = fleet.rush(id, crowd).await;
    assert!(won.iter().all(|(_, answer)| answer.share.is_some()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_the_disk_of_the_books_is_full_grabs_go_on_and_all_is_paid_when_it_has_room() {
    let mut fleet = Fleet::of(2).await;
    fleet.processes[0].fund("alice", cny(FUNDS)).await;
    let sent = fleet.processes[0].send(equal("alice", cny(SHARE), 1_000));
    let id = sent.await.envelope_id;
    for place in [0, 1] {
        // Each process has met the envelope: it needs no book to grant from it.
        let process = &mut fleet.processes[place];
        process.win(&id, &format!("first-{place}")).await;
    }
    fleet.processes[0].audit_when_quiet().await;

    fleet.ask_the_books(NO_ROOM);
    all_win(&fleet, &id, "at-first").await;
    for place in [0, 1] {
        let told = refusals(&mut fleet.processes[place], &id).await;
        assert!(told.iter().all(|reason| reason != BEHIND), "{told:?}");
    }
    fleet.set_clock_ms(CREATES_SHED_MS);
    for place in [0, 1] {
        until("envelopes are turned away", async || {
            let told = refusals(&mut fleet.processes[place], &id).await;
            told[0] == BEHIND
        })
        .await;
    }
    all_win(&fleet, &id, "later").await;
    fleet.set_clock_ms(GRABS_SHED_MS);
    for place in [0, 1] {
        until("grabs are turned away", async || {
            let late = grab_of(&id, &format!("late-{place}"));
            let told = fleet.processes[place].try_grab(late).await;
            told.is_err_and(|status| reason(&status) == BEHIND)
        })
        .await;
        assert_eq!(fleet.processes[place].available("at-first-0").await, 0);
    }

    fleet.ask_the_books(ROOM);
    for part in ["at-first", "later"] {
        for number in (0..CROWD).step_by(50) {
            let process = &mut fleet.processes[number % 2];
            let grabber = format!("{part}-{number}");
            process.until_available(&grabber, SHARE).await;
        }
    }
    for process in &fleet.processes {
        process.until_ready().await;
    }
    all_win(&fleet, &id, "after").await;
    let recall = async || {
        let mut client = fleet.processes[1].envelopes.clone();
        let recalled = fleet.record.recall(&mut client, recall_of(&id));
        recalled.await.is_ok()
    };
    until("the rest is recalled", recall).await;
    let process = &mut fleet.processes[0];
    let closed = process.until(&id, "alice", EnvelopeState::Closed).await;
    let settled = closed.progress.unwrap().settled.unwrap().minor_units;
    // Some who were turned away may have won before.
    let least = i64::try_from(3 * CROWD + 2).unwrap() * SHARE;
    assert!(settled >= least, "{settled}");
    assert_eq!(process.available("alice").await, FUNDS - settled);
    for process in &mut fleet.processes {
        process.audit_when_quiet().await;
    }
}
