//! Measures how fast the books settle, in grabs a second, at small and at full batches.
//!
//! `make bench` or `cargo bench --bench ledger`. Every batch is a call through the door, so it
//! includes the queue, the fsync of its commit and both unique keys, two entries and the balances.
//!
//! Every grabber is somebody else, so balances are the worst case. One hot envelope is the best case
//! for claims; in many envelopes at once each grab of a small batch touches pages of its own.
//!
//! **Bounds**: each row of the table settles [`GRABS`] grabs.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use red_envelope::clock::SystemClock;
use red_envelope::domain::audience::Audience;
use red_envelope::domain::envelope::{Draft, Kind, Reveal};
use red_envelope::domain::fairness::{SealKey, SealKeys};
use red_envelope::domain::grab::{Grant, OutboxRecord};
use red_envelope::domain::id::{EnvelopeId, Epoch, Partition, PersonId, TenantId, UnixMs};
use red_envelope::domain::money::{Currency, Money};
use red_envelope::domain::split::Split;
use red_envelope::domain::stripes::StripeCount;
use red_envelope::ledger::sqlite::SqliteLedger;
use red_envelope::ledger::{Fund, Ledger, SettleItem, Settled, Transfer, Under};

/// Enough for a second or more of work.
const GRABS: u32 = 40_000;
/// (Records a batch, envelopes): a drain that keeps up and one that catches up, on one hot
/// envelope and on 200 groups that grab in turn.
const CASES: [(usize, u32); 4] = [(200, 1), (5_000, 1), (200, 200), (5_000, 200)];

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    println!(
        "{:>8} {:>10} {:>10} {:>12}",
        "a batch", "envelopes", "grabs/s", "ms a batch"
    );
    for (batch, envelopes) in CASES {
        let (grabs_per_s, batch_ms) = measure(batch, envelopes).await?;
        println!("{batch:>8} {envelopes:>10} {grabs_per_s:>10.0} {batch_ms:>12.2}");
    }
    Ok(())
}

async fn measure(batch: usize, envelope_count: u32) -> anyhow::Result<(f64, f64)> {
    let folder = tempfile::tempdir()?;
    let keys = SealKeys::new(vec![SealKey::new(1, [1; 32])])?;
    let ledger = SqliteLedger::open(
        &folder.path().join("ledger.sqlite"),
        Arc::new(SystemClock),
        keys,
        Box::new(StdRng::seed_from_u64(1)),
    )?;
    let envelopes = fund(&ledger, envelope_count).await?;
    let items = grabs(&envelopes)?;
    let under = Under {
        partition: Partition::ZERO,
        epoch: Epoch::FIRST,
    };
    let started = Instant::now();
    let mut batches = 0_u32;
    for chunk in items.chunks(batch) {
        let verdicts = ledger.settle(under, chunk.to_vec()).await?;
        ensure!(verdicts.iter().all(|v| *v == Settled::Paid), "all are paid");
        batches += 1;
    }
    let seconds = started.elapsed().as_secs_f64();
    let found = ledger.audit_totals(None).await?.discrepancies;
    ensure!(found.is_empty(), "the books must balance: {found:?}");
    Ok((
        f64::from(GRABS) / seconds,
        seconds * 1_000.0 / f64::from(batches),
    ))
}

async fn fund(ledger: &SqliteLedger, envelope_count: u32) -> anyhow::Result<Vec<EnvelopeId>> {
    let draft = draft(GRABS / envelope_count)?;
    let transfer = Transfer {
        tenant: draft.tenant.clone(),
        owner: draft.sender.clone(),
        request_id: PersonId::parse("d")?,
        amount: Money {
            currency: draft.currency,
            minor: i64::from(GRABS),
        },
        reference: String::new(),
    };
    ledger.deposit(transfer).await?;
    let mut envelopes = Vec::new();
    for number in 0..envelope_count {
        let funded = ledger.fund(Fund {
            request_id: PersonId::parse(&format!("f{number}"))?,
            request_hash: [0; 32],
            draft: draft.clone(),
        });
        let id = funded.await?.envelope.id;
        ledger.mark_live(id).await?;
        envelopes.push(id);
    }
    Ok(envelopes)
}

/// Consecutive grabs are of different envelopes, and of grabbers who are strangers in the index.
fn grabs(envelopes: &[EnvelopeId]) -> anyhow::Result<Vec<SettleItem>> {
    let mut items = Vec::new();
    let mut turns = envelopes.iter().cycle();
    for number in 0..GRABS {
        let envelope = *turns.next().context("there is an envelope")?;
        // 7,919 is prime to the number of grabs, so every grabber is another one.
        let stranger = u64::from(number) * 7_919 % u64::from(GRABS);
        items.push(SettleItem::Pay(OutboxRecord {
            envelope,
            grabber: PersonId::parse(&format!("grabber-{stranger:06}"))?,
            grant: Grant {
                share: number / u32::try_from(envelopes.len())?,
                amount_minor: 1,
                at: UnixMs(1),
            },
            declined: false,
        }));
    }
    Ok(items)
}

fn draft(share_count: u32) -> anyhow::Result<Draft> {
    Ok(Draft {
        tenant: TenantId::parse("")?,
        sender: PersonId::parse("sender")?,
        kind: Kind::Equal,
        currency: Currency::from_code("CNY").context("a code")?,
        total_minor: i64::from(share_count),
        share_count,
        min_minor: 1,
        max_minor: 1,
        split: Some(Split::Even),
        exclusive: Vec::new(),
        audience: Audience::Anyone,
        passphrase: None,
        greeting: String::new(),
        cover_id: String::new(),
        reveal: Reveal::AfterGrab,
        labels: BTreeMap::new(),
        opens_at: None,
        expires_in_ms: 3_600_000,
        client_nonce: Vec::new(),
        stripes: StripeCount::ONE,
    })
}
