//! Books in PostgreSQL with accounts and funded envelopes, and crowds that grab.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::{Context as _, bail, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
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
use red_envelope::ledger::postgres::PostgresLedger;
use red_envelope::ledger::postgres::server_under_test::{PostgresServer, Release};
use red_envelope::ledger::{Fund, Ledger, SETTLE_BATCH_MAX, SettleItem, Settled, Transfer, Under};

/// Shares of an envelope: a large group.
const SHARES: u32 = 100;
/// Envelopes that are funded at once.
const FUNDS_IN_FLIGHT: usize = 256;
/// Batches that are settled at once: as many partitions have a backlog.
const BATCHES_IN_FLIGHT: usize = 12;

/// Ledgers, as each process has one, that settle one envelope, and partitions that it lies in.
const DOORS: u16 = 4;
const PARTITIONS: u16 = 64;

/// Who grabs.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Crowd {
    /// Everybody as often.
    Uniform,
    /// The same, and each twentieth record stands in the books.
    Duplicates,
    /// One in a hundred makes half of the grabs.
    Skewed,
}

pub struct Stage {
    pub server: PostgresServer,
    url: String,
    pub database: String,
    ledger: PostgresLedger,
    accounts: u32,
    funded: AtomicU32,
}

const UNDER: Under = Under {
    partition: Partition::ZERO,
    epoch: Epoch::FIRST,
};

impl Stage {
    /// A new server whose books have so many accounts.
    pub async fn set(accounts: u32) -> anyhow::Result<Self> {
        let settings = [
            "shared_buffers=1GB",
            "max_wal_size=8GB",
            "checkpoint_timeout=30min",
        ];
        let server = tokio::task::spawn_blocking(move || {
            PostgresServer::start_on_disk(Release::Debian, &settings)
        });
        let server = server.await?;
        let url = server.database();
        let ledger = door(&url).await?;
        let database = url.rsplit('/').next().context("a database")?.to_owned();
        let stage = Self {
            server,
            url,
            database,
            ledger,
            accounts,
            funded: AtomicU32::new(0),
        };
        stage.sql(&format!(
            "INSERT INTO red_envelope.account (tenant, kind, owner, currency)
             SELECT 'default', 'owner', 'grabber-' || g, 'CNY' FROM generate_series(0, {}) g",
            accounts - 1
        ));
        stage.sql("VACUUM ANALYZE");
        let transfer = Transfer {
            tenant: TenantId::parse("")?,
            owner: PersonId::parse("sender")?,
            request_id: PersonId::parse("d")?,
            amount: Money {
                currency: Currency::from_code("CNY").context("a code")?,
                minor: 1_000_000_000,
            },
            reference: String::new(),
        };
        stage.ledger.deposit(transfer).await?;
        Ok(stage)
    }

    pub fn sql(&self, statement: &str) {
        self.server.sql(&self.database, statement);
    }

    async fn fund(&self, envelopes: u32, shares: u32) -> anyhow::Result<Vec<EnvelopeId>> {
        let first = self.funded.fetch_add(envelopes, Ordering::Relaxed);
        let draft = draft(shares)?;
        stream::iter(first..first + envelopes)
            .map(|number| {
                let draft = draft.clone();
                async move {
                    let fund = Fund {
                        request_id: PersonId::parse(&format!("f{number}"))?,
                        request_hash: [0; 32],
                        draft,
                    };
                    anyhow::Ok(self.ledger.fund(fund).await?.envelope.id)
                }
            })
            .buffered(FUNDS_IN_FLIGHT)
            .try_collect()
            .await
    }

    /// So many grabs of new envelopes, as an outbox has them: envelope after envelope.
    async fn grabs(&self, crowd: Crowd, count: u32) -> anyhow::Result<Vec<SettleItem>> {
        let envelopes = self.fund(count / SHARES, SHARES).await?;
        let mut items = Vec::new();
        let first = self.funded.load(Ordering::Relaxed) - count / SHARES;
        for (at, envelope) in (first..).zip(envelopes) {
            for share in 0..SHARES {
                let grabber = self.grabber(crowd, at, share);
                items.push(paid(envelope, grabber, share)?);
            }
        }
        Ok(items)
    }

    /// Another one for each share of an envelope, far from the one before in any index.
    fn grabber(&self, crowd: Crowd, envelope: u32, share: u32) -> u64 {
        let accounts = u64::from(self.accounts);
        let number = u64::from(envelope) * u64::from(SHARES) + u64::from(share);
        let few = accounts / 100;
        match crowd {
            Crowd::Skewed if share.is_multiple_of(2) => (number / 2 * 7_919) % few,
            Crowd::Skewed => few + number * 7_919 % (accounts - few),
            Crowd::Uniform | Crowd::Duplicates => number * 7_919 % accounts,
        }
    }

    /// Grabs a second, in full batches. Those who grab have grabbed before, as far as so many grabs before
    /// these reach: with more accounts than that most are met for the first time.
    pub async fn settle(&self, crowd: Crowd, count: u32) -> anyhow::Result<f64> {
        let before = self.grabs(crowd, count).await?;
        self.post(before, SETTLE_BATCH_MAX).await?;
        let items = self.grabs(crowd, count).await?;
        let mut before = Vec::new();
        if crowd == Crowd::Duplicates {
            before = items.iter().step_by(20).cloned().collect();
            self.post(before.clone(), SETTLE_BATCH_MAX).await?;
        }
        self.sql("CHECKPOINT");
        let started = Instant::now();
        let paid = self.post(items, SETTLE_BATCH_MAX).await?;
        let seconds = started.elapsed().as_secs_f64();
        ensure!(paid + before.len() == count as usize, "each is paid once");
        Ok(f64::from(count) / seconds)
    }

    /// Grabs a second, each in a transaction of its own.
    pub async fn settle_singly(&self, count: u32) -> anyhow::Result<f64> {
        let items = self.grabs(Crowd::Uniform, count).await?;
        let started = Instant::now();
        let paid = self.post(items, 1).await?;
        ensure!(paid == count as usize, "each is paid once");
        Ok(f64::from(count) / started.elapsed().as_secs_f64())
    }

    /// Grabs a second of one envelope whose records lie in as many outboxes as there are partitions, which
    /// several ledgers drain. Each of their transactions waits for the envelope's row.
    pub async fn settle_one_envelope(&self, count: u32) -> anyhow::Result<f64> {
        let mut doors = Vec::new();
        for _ in 0..DOORS {
            doors.push(door(&self.url).await?);
        }
        // The same people through the same doors before: as in the other figures they are known.
        self.settle_through(&doors, count).await?;
        self.settle_through(&doors, count).await
    }

    async fn settle_through(&self, doors: &[PostgresLedger], count: u32) -> anyhow::Result<f64> {
        let [envelope] = self.fund(1, count).await?[..] else {
            bail!("one envelope was asked for");
        };
        let a_partition = count / u32::from(PARTITIONS);
        let mut batches = Vec::new();
        for partition in (0..PARTITIONS).filter_map(Partition::new) {
            let first = u32::from(partition.index()) * a_partition;
            let shares = first..first + a_partition;
            let items = shares.map(|share| {
                let grabber = self.grabber(Crowd::Uniform, share / SHARES, share % SHARES);
                paid(envelope, grabber, share)
            });
            batches.push((partition, items.collect::<anyhow::Result<Vec<_>>>()?));
        }
        self.sql("CHECKPOINT");
        let started = Instant::now();
        let epoch = Epoch::FIRST;
        let settling = batches.into_iter().map(|(partition, items)| {
            let door = &doors[usize::from(partition.index() % DOORS)];
            async move {
                let verdicts = door.settle(Under { partition, epoch }, items).await?;
                let paid = verdicts.iter().filter(|v| **v == Settled::Paid).count();
                anyhow::Ok(paid)
            }
        });
        let paid: usize = futures_util::future::try_join_all(settling)
            .await?
            .iter()
            .sum();
        let seconds = started.elapsed().as_secs_f64();
        let all = a_partition * u32::from(PARTITIONS);
        ensure!(paid == all as usize, "{paid} of {all} were paid");
        Ok(f64::from(all) / seconds)
    }

    async fn post(&self, items: Vec<SettleItem>, batch: usize) -> anyhow::Result<usize> {
        let batches: Vec<Vec<SettleItem>> = items.chunks(batch).map(<[_]>::to_vec).collect();
        stream::iter(batches)
            .map(|batch| async {
                let verdicts = self.ledger.settle(UNDER, batch).await?;
                let paid = verdicts.iter().filter(|v| **v == Settled::Paid).count();
                anyhow::Ok(paid)
            })
            .buffer_unordered(BATCHES_IN_FLIGHT)
            .try_fold(0, |sum, paid| async move { Ok(sum + paid) })
            .await
    }

    /// That the books balance after all that. Answers microseconds a claim.
    pub async fn audit(&self) -> anyhow::Result<f64> {
        let count = "-- settle.count_claims\nSELECT count(*) FROM red_envelope.claim";
        let claims: f64 = self.server.sql(&self.database, count).parse()?;
        let started = Instant::now();
        let found = self.ledger.audit_totals(None).await?.discrepancies;
        ensure!(found.is_empty(), "the books must balance: {found:?}");
        Ok(started.elapsed().as_secs_f64() * 1e6 / claims)
    }
}

async fn door(url: &str) -> anyhow::Result<PostgresLedger> {
    let keys = SealKeys::new(vec![SealKey::new(1, [1; 32])])?;
    let rng = Box::new(StdRng::seed_from_u64(1));
    Ok(PostgresLedger::open(url, Arc::new(SystemClock), keys, rng).await?)
}

fn paid(envelope: EnvelopeId, grabber: u64, share: u32) -> anyhow::Result<SettleItem> {
    Ok(SettleItem::Pay(OutboxRecord {
        envelope,
        grabber: PersonId::parse(&format!("grabber-{grabber}"))?,
        grant: Grant {
            share,
            amount_minor: 1,
            at: UnixMs(1),
        },
        declined: false,
    }))
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
