//! The whole way, through a real server on Redis and PostgreSQL: envelopes sent, grabs in the books.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use parking_lot::Mutex;
use red_envelope::hot::redis::server_under_test::{Flavour, RedisServer};
use red_envelope::ledger::postgres::server_under_test::{PostgresServer, Release};
use red_envelope_proto::v1;
use red_envelope_proto::v1::account_service_client::AccountServiceClient;
use red_envelope_proto::v1::create_envelope_request::Amount;
use red_envelope_proto::v1::envelope_service_client::EnvelopeServiceClient;
use red_envelope_proto::v1::grab_stream_response::Result as Told;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

use crate::server::ServerProcess;

/// Envelopes that are sent, and calls on their way.
const CREATES: u32 = 6_000;
const CREATES_IN_FLIGHT: usize = 256;
/// Shares of an envelope.
const SHARES: u32 = 100;
/// Connections of the senders, and streams of the grabbers.
const CONNECTIONS: u32 = 4;
/// Accounts that grab, each once.
const ACCOUNTS: u32 = 200_000;
/// Grabs a second, for so long.
const RATE: u32 = 10_000;
const GRABBING: Duration = Duration::from_secs(20);
/// Envelopes that are grabbed from at the same time: each is empty after two seconds, as in a group that
/// saw it arrive.
const ENVELOPES_AT_ONCE: u32 = 200;
/// Grabs leave in bundles, each due at its instant.
const BUNDLE_EVERY: Duration = Duration::from_millis(10);
/// Of each bundle one grab's way into the books is watched.
const LOOK_EVERY: Duration = Duration::from_millis(4);
/// Between two looks whether all is quiet.
const QUIET_EVERY: Duration = Duration::from_millis(200);
/// How long the last one may take.
const LAST_MAX: Duration = Duration::from_secs(30);
/// And then the quiet: an audit of so many envelopes takes seconds.
const QUIET_MAX: Duration = Duration::from_secs(120);

/// What was measured.
pub struct Whole {
    pub create_per_s: f64,
    /// From the instant at which a grab was due.
    pub grab_to_books_p50_ms: f64,
    pub grab_to_books_p99_ms: f64,
    /// Of 100 shares, a third of them claimed: everything, and what the hot store holds, by the envelope.
    pub audit_us_per_envelope: f64,
    pub audit_hot_us_per_envelope: f64,
}

/// Who was due when, and is not in the books yet; then how long each took.
#[derive(Default)]
struct Watched {
    waiting: Mutex<HashMap<String, Instant>>,
    took: Mutex<Vec<Duration>>,
}

/// Sends envelopes, then has them grabbed at a steady rate.
pub async fn measure() -> anyhow::Result<Whole> {
    let settings = ["shared_buffers=1GB", "max_wal_size=8GB"];
    let books = tokio::task::spawn_blocking(move || {
        PostgresServer::start_on_disk(Release::Debian, &settings)
    });
    let books = books.await?;
    let redis = RedisServer::start_on_disk(Flavour::Debian, &[]);
    let folder = tempfile::tempdir()?;
    let (hot, url) = (redis.url(), books.database());
    let flags = ["--hot", &hot, "--ledger", &url];
    let server = ServerProcess::start(folder.path(), &flags).await?;
    let database = url.rsplit('/').next().context("a database")?;
    let accounts = format!(
        "INSERT INTO red_envelope.account (tenant, kind, owner, currency)
         SELECT 'default', 'owner', 'grabber-' || g, 'CNY' FROM generate_series(0, {}) g",
        ACCOUNTS - 1
    );
    books.sql(database, &accounts);
    books.sql(database, "VACUUM ANALYZE red_envelope.account");
    let mut channels = Vec::new();
    for _ in 0..CONNECTIONS {
        channels.push(server.connect().await?);
    }
    let (ids, create_per_s) = create(&channels).await?;

    let watched = Arc::new(Watched::default());
    let looking = tokio::spawn(look(url.clone(), Arc::clone(&watched)));
    let grabbed = grab(&channels, ids, &watched).await?;
    ensure!(
        grabbed == RATE * u32::try_from(GRABBING.as_secs())?,
        "each grab wins, {grabbed} did"
    );
    looking.await??;
    let mut took = std::mem::take(&mut *watched.took.lock());
    took.sort_unstable();
    let at = |share: usize| took[took.len() * share / 100].as_secs_f64() * 1_000.0;
    // The last entries of the outbox go when their claims can be read already.
    let began = Instant::now();
    while let Err(error) = server.audit().await {
        ensure!(began.elapsed() < QUIET_MAX, "{error}");
        tokio::time::sleep(QUIET_EVERY).await;
    }
    let mut audit_us = [0.0; 2];
    for (hot_only, us) in [false, true].into_iter().zip(&mut audit_us) {
        let began = Instant::now();
        let audited = server.audited(hot_only).await?;
        let envelopes = u32::try_from(audited.envelope_count)?;
        ensure!(envelopes == CREATES, "{envelopes} envelopes were audited");
        *us = began.elapsed().as_secs_f64() * 1e6 / f64::from(envelopes);
    }
    server.stop()?;
    Ok(Whole {
        create_per_s,
        grab_to_books_p50_ms: at(50),
        grab_to_books_p99_ms: at(99),
        audit_us_per_envelope: audit_us[0],
        audit_hot_us_per_envelope: audit_us[1],
    })
}

/// Ids of new envelopes, each Live when its call was answered; how many a second.
async fn create(channels: &[Channel]) -> anyhow::Result<(Vec<String>, f64)> {
    let deposit = v1::DepositRequest {
        owner: "sender".into(),
        request_id: "d".into(),
        amount: Some(cny(i64::from(CREATES * SHARES) * 10)),
        ..Default::default()
    };
    AccountServiceClient::new(channels[0].clone())
        .deposit(deposit)
        .await?;
    let started = Instant::now();
    let ids: Vec<String> = stream::iter(0..CREATES)
        .map(|number| {
            let channel = &channels[number as usize % channels.len()];
            let mut client = EnvelopeServiceClient::new(channel.clone());
            async move {
                let request = v1::CreateEnvelopeRequest {
                    sender: "sender".into(),
                    request_id: format!("r{number}"),
                    kind: v1::EnvelopeKind::Lucky.into(),
                    amount: Some(Amount::Total(cny(i64::from(SHARES) * 10))),
                    share_count: SHARES,
                    ..Default::default()
                };
                let created = client.create_envelope(request).await?.into_inner();
                let envelope = created.envelope.context("an envelope")?;
                ensure!(envelope.state() == v1::EnvelopeState::Live, "it is live");
                Ok(envelope.envelope_id)
            }
        })
        .buffer_unordered(CREATES_IN_FLIGHT)
        .try_collect()
        .await?;
    let per_s = f64::from(CREATES) / started.elapsed().as_secs_f64();
    Ok((ids, per_s))
}

/// Grabs on streams, open loop; answers how many won.
async fn grab(
    channels: &[Channel],
    ids: Vec<String>,
    watched: &Arc<Watched>,
) -> anyhow::Result<u32> {
    let ids = Arc::new(ids);
    let won = Arc::new(AtomicU32::new(0));
    let mut streams = Vec::new();
    for (stream, channel) in (0_u32..).zip(channels) {
        let (sender, requests) = mpsc::channel(RATE as usize);
        let mut client = EnvelopeServiceClient::new(channel.clone());
        let mut answers = client
            .grab_stream(ReceiverStream::new(requests))
            .await?
            .into_inner();
        let won = Arc::clone(&won);
        streams.push(tokio::spawn(async move {
            while let Some(answer) = answers.message().await? {
                let told = answer.result.context("an answer")?;
                match told {
                    Told::Outcome(outcome) if outcome.outcome() == v1::GrabOutcome::Won => {
                        won.fetch_add(1, Ordering::Relaxed);
                    }
                    other => bail!("a grab that can win did not: {other:?}"),
                }
            }
            anyhow::Ok(())
        }));
        let (ids, watched) = (Arc::clone(&ids), Arc::clone(watched));
        streams.push(tokio::spawn(send(stream, sender, ids, watched)));
    }
    for stream in streams {
        stream.await??;
    }
    Ok(won.load(Ordering::Relaxed))
}

/// One stream's bundles, each at its instant.
async fn send(
    stream: u32,
    sender: mpsc::Sender<v1::GrabStreamRequest>,
    ids: Arc<Vec<String>>,
    watched: Arc<Watched>,
) -> anyhow::Result<()> {
    let bundles = u32::try_from(GRABBING.as_millis() / BUNDLE_EVERY.as_millis())?;
    let each = RATE * u32::try_from(GRABBING.as_secs())? / bundles / CONNECTIONS;
    let began = Instant::now();
    let mut ticks = tokio::time::interval(BUNDLE_EVERY);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Burst);
    for bundle in 0..bundles {
        ticks.tick().await;
        let due = began + BUNDLE_EVERY * bundle;
        for place in 0..each {
            let number = (bundle * each + place) * CONNECTIONS + stream;
            let round = number / (ENVELOPES_AT_ONCE * SHARES);
            let envelope = &ids[(round * ENVELOPES_AT_ONCE + number % ENVELOPES_AT_ONCE) as usize];
            let grabber = format!(
                "grabber-{}",
                u64::from(number) * 7_919 % u64::from(ACCOUNTS)
            );
            if stream == 0 && place == 0 {
                watched.waiting.lock().insert(grabber.clone(), due);
            }
            let grab = v1::GrabRequest {
                envelope_id: envelope.clone(),
                grabber,
                ..Default::default()
            };
            let request = v1::GrabStreamRequest {
                tag: number.into(),
                grab: Some(grab),
                ..Default::default()
            };
            sender.send(request).await.context("the stream ended")?;
        }
    }
    Ok(())
}

/// Looks who is in the books, until nobody is left.
async fn look(url: String, watched: Arc<Watched>) -> anyhow::Result<()> {
    let (client, connection) = tokio_postgres::connect(&url, tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    let question = client
        .prepare(
            "SELECT a.owner FROM unnest($1::text[]) u (owner)
             JOIN red_envelope.account a ON a.owner = u.owner AND a.currency = 'CNY'
                 AND a.tenant = 'default' AND a.kind = 'owner'
             WHERE EXISTS (SELECT 1 FROM red_envelope.claim c WHERE c.account_row = a.row)",
        )
        .await?;
    let began = Instant::now();
    let mut ticks = tokio::time::interval(LOOK_EVERY);
    loop {
        ticks.tick().await;
        let asked: Vec<String> = watched.waiting.lock().keys().cloned().collect();
        if asked.is_empty() && began.elapsed() > GRABBING {
            return Ok(());
        }
        ensure!(
            began.elapsed() < GRABBING + LAST_MAX,
            "{} grabs never came",
            asked.len()
        );
        for row in client.query(&question, &[&asked]).await? {
            let owner: String = row.get(0);
            let due = watched.waiting.lock().remove(&owner);
            let due = due.context("an account that was asked for")?;
            watched.took.lock().push(due.elapsed());
        }
    }
}

fn cny(minor_units: i64) -> v1::Money {
    v1::Money {
        currency_code: "CNY".into(),
        minor_units,
    }
}
