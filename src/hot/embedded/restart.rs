//! Builds the index and the outbox from the files, or refuses with the place of the damage.
//!
//! # Shape
//! | pass | reads | for |
//! |---|---|---|
//! | 1 | every row | no gap, no damage; which envelopes were removed later, what is settled |
//! | 2 | every snapshot | envelopes as of the row that the snapshot covers |
//! | 3 | every row | what came after the snapshot; debts that are not settled |
//! | 4 | every envelope | uniqueness held on the way (`Envelope::give`), the end is where it must be |
//!
//! # Bounds
//! The log is kept below `LOG_BYTES_MAX` while the ledger keeps up: a few seconds.
//!
//! # If it crashes here
//! Nothing was changed but runs that no header counts: start again.

use std::collections::{HashMap, HashSet};

use super::index::{Batch, Index};
use super::log::{Log, OpenError};
use super::outbox::Outbox;
use super::record::{Row, What, decode};
use super::snapshot;
use crate::domain::envelope::HotState;
use crate::domain::id::EnvelopeId;

/// What the first pass found out.
#[derive(Default)]
struct Survey {
    removed_at: HashMap<EnvelopeId, u64>,
    settled: HashSet<u64>,
    sizes: Vec<(u64, usize)>,
}

/// Reads everything.
pub(super) fn restart(log: &mut Log) -> Result<(Index, Outbox), OpenError> {
    let survey = survey(log)?;
    for (seq, bytes) in &survey.sizes {
        log.found(*seq, *bytes);
    }
    let (mut index, covered) = snapshots(log, &survey)?;
    let outbox = replay(log, &survey, &covered, &mut index)?;
    check(&index)?;
    Ok((index, outbox))
}

fn damaged(place: String, what: impl ToString) -> OpenError {
    OpenError::Damaged {
        place,
        what: what.to_string(),
    }
}

fn read(seq: u64, body: &[u8]) -> Result<Row, OpenError> {
    decode(seq, body).map_err(|damage| damaged(format!("row {seq} of the log"), damage))
}

fn survey(log: &Log) -> Result<Survey, OpenError> {
    let mut survey = Survey::default();
    let mut next = log.floor()?;
    log.rows(|seq, body| {
        if seq != next {
            return Err(damaged(format!("row {next} of the log"), "it is missing"));
        }
        next = seq + 1;
        let row = read(seq, body)?;
        let removed = row.changes.iter().filter(|c| c.what == What::Removed);
        for change in removed {
            survey.removed_at.insert(change.envelope, seq);
        }
        survey.settled.extend(row.settled);
        survey.sizes.push((seq, body.len()));
        Ok(())
    })?;
    if survey.sizes.is_empty() && next != 1 {
        return Err(damaged(format!("row {next} of the log"), "it is missing"));
    }
    Ok(survey)
}

fn snapshots(log: &Log, survey: &Survey) -> Result<(Index, HashMap<EnvelopeId, u64>), OpenError> {
    let mut index = Index::default();
    let mut covered = HashMap::new();
    log.headers(|row| {
        let id = EnvelopeId::from_bytes(row.id);
        let place = || format!("the snapshot of envelope {id}");
        if row.through > log.last_seq() {
            return Err(damaged(place(), "the log ends before it"));
        }
        if survey
            .removed_at
            .get(&id)
            .is_some_and(|at| *at > row.through)
        {
            return Err(damaged(place(), "the envelope was removed after it"));
        }
        snapshot::restore(log, &mut index, &row)?;
        covered.insert(id, row.through);
        Ok(())
    })?;
    for born in log.orphans()? {
        while log.delete_parts(born, usize::MAX)? > 0 {}
    }
    Ok((index, covered))
}

fn replay(
    log: &Log,
    survey: &Survey,
    covered: &HashMap<EnvelopeId, u64>,
    index: &mut Index,
) -> Result<Outbox, OpenError> {
    let outbox = Outbox::default();
    log.rows(|seq, body| {
        let mut row = read(seq, body)?;
        let mut batch = Batch::new(seq, row.at);
        for change in &row.changes {
            let id = change.envelope;
            let removed_later = survey.removed_at.get(&id).is_some_and(|at| *at >= seq);
            let in_snapshot = covered.get(&id).is_some_and(|through| *through >= seq);
            if removed_later || in_snapshot {
                batch.skip_born(&change.what);
                continue;
            }
            let place = || format!("row {seq} of the log, envelope {id}");
            index
                .apply(&mut batch, change)
                .map_err(|broken| damaged(place(), broken))?;
        }
        let records = match survey.settled.contains(&seq) {
            true => Vec::new(),
            false => row.take_records(),
        };
        outbox.push(seq, row.nonce, records);
        Ok::<_, OpenError>(())
    })?;
    Ok(outbox)
}

fn check(index: &Index) -> Result<(), OpenError> {
    for id in index.ids_after(None, usize::MAX) {
        let Some(envelope) = index.get(id) else {
            continue;
        };
        let place = || format!("envelope {id}");
        if envelope.state == HotState::Live && envelope.all_taken() {
            return Err(damaged(place(), "every share is taken, and it is live"));
        }
        if envelope.state == HotState::Over(crate::domain::envelope::CloseReason::Empty)
            && !envelope.all_taken()
        {
            return Err(damaged(
                place(),
                "it is empty, and not every share is taken",
            ));
        }
    }
    Ok(())
}
