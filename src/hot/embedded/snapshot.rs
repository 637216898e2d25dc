//! Copies envelopes out of the log, so that its old rows can go.
//!
//! # Shape
//! | on disk | content | written |
//! |---|---|---|
//! | part `Terms` | the terms | once |
//! | part `Amounts` | a run of amounts | once each: a loaded share never changes |
//! | part `Holders` | a run of holders | once each; EXCLUSIVE (≤ 1,000) all together, each time |
//! | header | state, marks, tries, how many amounts and holders count, up to which row | each time |
//!
//! # Bounds
//! A slice ends at about [`SLICE_BYTES`]. Since runs are written once, a grab costs the disk its
//! row and its place in a run, however often its envelope is copied.
//!
//! # Ordering
//! Runs may be written over several transactions; they count only once the header says so, and
//! the header is written when the runs have caught up with memory.
//!
//! # If it crashes here
//! Runs that no header counts are deleted at start; the log still has what they held.

use std::sync::Arc;

use super::envelope::{Envelope, Saved};
use super::index::Index;
use super::log::{HeaderRow, Log, OpenError, PartKind};
use super::record::{
    Damage, Reader, put_amounts, put_count, put_number, put_text, reason_code, seal,
};
use crate::domain::envelope::HotState;
use crate::domain::grab::Grant;
use crate::domain::id::{EnvelopeId, UnixMs};
use crate::hot::Mark;

/// Bytes of snapshots that ride on one batch: 1–2 ms of a slice of 5.
pub(super) const SLICE_BYTES: usize = 256 * 1024;
/// What a header and its place in a page cost at least; bounds the headers of a slice.
const HEADER_BYTES: usize = 512;
/// Shares of one run: 32 KiB of amounts, up to 300 KiB of holders with the longest names.
const RUN_SHARES_MAX: usize = 4_096;
/// The layout of headers and parts.
const VERSION: u8 = 1;

/// Writes the next slice, in the transaction that is open. `through` is the newest row, `below`
/// the first row that has to stay anyway: copying envelopes beyond it would free nothing.
pub(super) fn save_slice(
    index: &mut Index,
    log: &Log,
    through: u64,
    below: u64,
) -> rusqlite::Result<()> {
    let mut left = SLICE_BYTES;
    let mut body = Vec::new();
    while index.oldest_dirty().is_some_and(|oldest| oldest < below) {
        let Some((id, envelope)) = index.dirtiest() else {
            return Ok(());
        };
        while let Some(spent) = save_run(envelope, log, &mut body)? {
            left = left.saturating_sub(spent);
            if left == 0 {
                return Ok(());
            }
        }
        let holders = save_exclusive(envelope, log, &mut body)?;
        header(envelope, holders, &mut body);
        log.put_header(&HeaderRow {
            born: envelope.born,
            id: id.to_bytes(),
            through,
            body: body.clone(),
        })?;
        index.cleaned(id);
        left = left.saturating_sub(body.len().max(HEADER_BYTES));
        if left == 0 {
            return Ok(());
        }
    }
    Ok(())
}

/// Writes one run that is not written yet. `None`: they have caught up.
fn save_run(
    envelope: &mut Envelope,
    log: &Log,
    body: &mut Vec<u8>,
) -> rusqlite::Result<Option<usize>> {
    let Saved {
        terms,
        amounts,
        holders,
    } = envelope.saved;
    let (kind, first) = if !terms {
        begin(body, PartKind::Terms, 0);
        put_text(body, &envelope.terms.to_json());
        envelope.saved.terms = true;
        (PartKind::Terms, 0)
    } else if let Some(fresh @ [_, ..]) = envelope.amounts.get(amounts..) {
        let run = &fresh[..fresh.len().min(RUN_SHARES_MAX)];
        begin(body, PartKind::Amounts, amounts);
        put_amounts(body, run);
        envelope.saved.amounts += run.len();
        (PartKind::Amounts, amounts)
    } else if !envelope.exclusive() && envelope.holders.len() > holders {
        let end = envelope.holders.len().min(holders + RUN_SHARES_MAX);
        begin(body, PartKind::Holders, holders);
        put_holders(body, envelope, holders..end);
        envelope.saved.holders = end;
        (PartKind::Holders, holders)
    } else {
        return Ok(None);
    };
    seal(envelope.born, body);
    log.put_part(envelope.born, kind, first, body)?;
    Ok(Some(body.len()))
}

/// Writes the holders of an EXCLUSIVE envelope, all together. Answers how many holders count.
fn save_exclusive(envelope: &Envelope, log: &Log, body: &mut Vec<u8>) -> rusqlite::Result<usize> {
    if !envelope.exclusive() {
        return Ok(envelope.saved.holders);
    }
    let count = usize::try_from(envelope.taken_count).expect("usize holds a u32");
    if count > 0 {
        begin(body, PartKind::Holders, 0);
        put_holders(body, envelope, 0..envelope.holders.len());
        seal(envelope.born, body);
        log.put_part(envelope.born, PartKind::Holders, 0, body)?;
    }
    Ok(count)
}

fn begin(body: &mut Vec<u8>, kind: PartKind, first: usize) {
    body.clear();
    body.extend_from_slice(&[VERSION, kind as u8]);
    put_count(body, first);
}

fn put_holders(body: &mut Vec<u8>, envelope: &Envelope, places: std::ops::Range<usize>) {
    let held = places
        .filter_map(|place| u32::try_from(place).ok())
        .filter_map(|share| envelope.held(share));
    let held: Vec<_> = held.collect();
    put_count(body, held.len());
    for share in held {
        put_number(
            body,
            u64::from(share.grant.share) << 1 | u64::from(share.declined),
        );
        body.extend_from_slice(&share.grant.at.0.to_le_bytes());
        put_text(body, share.grabber.as_str());
    }
}

/// Bits of a header's marks, beside 1: the opening was seen.
const BOOKS: u8 = 2;
const BROKEN: u8 = 4;

fn header(envelope: &Envelope, holders: usize, body: &mut Vec<u8>) {
    body.clear();
    body.push(VERSION);
    match envelope.state {
        HotState::Funding => body.push(0),
        HotState::Live => body.push(1),
        HotState::Over(reason) => body.extend_from_slice(&[2, reason_code(reason)]),
    }
    let marked = match envelope.frozen {
        None => 0,
        Some(Mark::Books) => BOOKS,
        Some(Mark::Broken) => BROKEN,
    };
    body.push(u8::from(envelope.opening_seen) | marked);
    put_count(body, envelope.saved.amounts);
    put_count(body, holders);
    put_number(body, envelope.last_debt_seq);
    put_number(body, u64::from(envelope.tries.total));
    put_count(body, envelope.tries.by_grabber.len());
    for (grabber, tries) in &envelope.tries.by_grabber {
        put_text(body, grabber.as_str());
        put_number(body, u64::from(*tries));
    }
    seal(envelope.born, body);
}

// ── start ───────────────────────────────────────────────────────────────────────────────────

/// Brings an envelope back from its snapshot and deletes the runs that its header does not count.
pub(super) fn restore(log: &Log, index: &mut Index, row: &HeaderRow) -> Result<(), OpenError> {
    let id = EnvelopeId::from_bytes(row.id);
    if index.get(id).is_some() {
        return Err(damaged(id, "it has two snapshots"));
    }
    let read = |damage: Damage| damaged(id, &damage.to_string());
    let mut body = Reader::unseal(row.born, &row.body).map_err(read)?;
    if body.byte().map_err(read)? != VERSION {
        return Err(damaged(id, "another release wrote its snapshot"));
    }
    let mut terms = None;
    log.parts(row.born, PartKind::Terms, 1, |first, bytes| {
        let mut part = part(row.born, PartKind::Terms, first, bytes).map_err(read)?;
        terms = Some(part.terms().map_err(read)?);
        Ok::<_, OpenError>(())
    })?;
    let terms = terms.ok_or_else(|| damaged(id, "its terms are missing"))?;
    let mut envelope = Envelope::created(Arc::clone(&terms), row.born);
    let holders = restore_header(&mut body, &mut envelope).map_err(read)?;
    restore_amounts(log, id, &mut envelope)?;
    envelope.restore(envelope.state);
    restore_holders(log, id, index, &mut envelope, holders)?;
    envelope.restored();
    log.delete_uncovered(row.born, PartKind::Amounts, envelope.saved.amounts)?;
    log.delete_uncovered(row.born, PartKind::Holders, holders)?;
    index.insert(id, envelope);
    Ok(())
}

fn damaged(id: EnvelopeId, what: &str) -> OpenError {
    OpenError::Damaged {
        place: format!("the snapshot of envelope {id}"),
        what: what.to_owned(),
    }
}

fn part(born: u64, kind: PartKind, first: usize, bytes: &[u8]) -> Result<Reader<'_>, Damage> {
    let mut body = Reader::unseal(born, bytes)?;
    let same = body.byte()? == VERSION && body.byte()? == kind as u8;
    match same && usize::try_from(body.number()?) == Ok(first) {
        true => Ok(body),
        false => Err(Damage::Content("a part stands in another's place")),
    }
}

/// Reads what the header has; how many holders count is the answer.
fn restore_header(body: &mut Reader<'_>, envelope: &mut Envelope) -> Result<usize, Damage> {
    let too_large = Damage::Content("a count is too large");
    envelope.state = match body.byte()? {
        0 => HotState::Funding,
        1 => HotState::Live,
        2 => HotState::Over(body.reason()?),
        _ => return Err(Damage::Content("an unknown state")),
    };
    let marks = body.byte()?;
    envelope.opening_seen = marks & 1 != 0;
    envelope.frozen = match marks & (BOOKS | BROKEN) {
        0 => None,
        BOOKS => Some(Mark::Books),
        _ => Some(Mark::Broken),
    };
    let mut count = || usize::try_from(body.number()?).map_err(|_| too_large.clone());
    let (amounts, holders) = (count()?, count()?);
    envelope.last_debt_seq = body.number()?;
    envelope.tries.total = body.share()?;
    for _ in 0..body.count()? {
        let grabber = body.person()?;
        envelope.tries.by_grabber.insert(grabber, body.share()?);
    }
    envelope.saved = Saved {
        terms: true,
        amounts,
        holders: if envelope.exclusive() { 0 } else { holders },
    };
    Ok(holders)
}

fn restore_amounts(log: &Log, id: EnvelopeId, envelope: &mut Envelope) -> Result<(), OpenError> {
    let (born, count) = (envelope.born, envelope.saved.amounts);
    log.parts(born, PartKind::Amounts, count, |first, bytes| {
        let read = |damage: Damage| damaged(id, &damage.to_string());
        let mut part = part(born, PartKind::Amounts, first, bytes).map_err(read)?;
        let run = part.amounts(RUN_SHARES_MAX).map_err(read)?;
        let offset = u32::try_from(first).map_err(|_| damaged(id, "a run is out of place"))?;
        let put = envelope.put_amounts(offset, &run);
        put.map(drop).map_err(|broken| damaged(id, broken))
    })?;
    match envelope.amounts.len() == count {
        true => Ok(()),
        false => Err(damaged(id, "some of its amounts are missing")),
    }
}

fn restore_holders(
    log: &Log,
    id: EnvelopeId,
    index: &Index,
    envelope: &mut Envelope,
    count: usize,
) -> Result<(), OpenError> {
    let born = envelope.born;
    log.parts(born, PartKind::Holders, count, |first, bytes| {
        let read = |damage: Damage| damaged(id, &damage.to_string());
        let mut part = part(born, PartKind::Holders, first, bytes).map_err(read)?;
        for _ in 0..part.count().map_err(read)? {
            let number = part.number().map_err(read)?;
            let at = UnixMs(i64::from_le_bytes(part.array().map_err(read)?));
            let grabber = part.person().map_err(read)?;
            let share = u32::try_from(number >> 1).map_err(|_| damaged(id, "no such share"))?;
            let place = usize::try_from(share).expect("usize holds a u32");
            let amount_minor = *envelope
                .amounts
                .get(place)
                .ok_or_else(|| damaged(id, "a holder has a share that is not loaded"))?;
            let grant = Grant {
                share,
                amount_minor,
                at,
            };
            envelope
                .give(index.hasher(), &grabber, grant, number & 1 != 0)
                .map_err(|broken| damaged(id, broken))?;
        }
        Ok::<_, OpenError>(())
    })?;
    match usize::try_from(envelope.taken_count) == Ok(count) {
        true => Ok(()),
        false => Err(damaged(id, "some of its holders are missing")),
    }
}
