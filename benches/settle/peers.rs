//! What others do: an envelope's row locked for each grab; and what PostgreSQL takes without keys.

use std::pin::pin;
use std::time::Instant;

use anyhow::{Context as _, ensure};
use bytes::Bytes;
use futures_util::{SinkExt as _, future};
use tokio_postgres::{Client, NoTls};

use super::stage::Stage;

/// Connections of the peer.
const CLIENTS: u32 = 16;
/// Rows of a COPY.
const COPY_ROWS: u32 = 20_000;

async fn connect(stage: &Stage) -> anyhow::Result<Client> {
    let url = stage.server.url(&stage.database);
    let (client, connection) = tokio_postgres::connect(&url, NoTls).await?;
    tokio::spawn(connection);
    Ok(client)
}

/// Grabs a second of one envelope, each in a transaction that locks its row.
pub async fn row_lock(stage: &Stage, count: u32) -> anyhow::Result<f64> {
    stage.sql(
        "CREATE TABLE peer_envelope (row bigint PRIMARY KEY, taken integer NOT NULL);
         CREATE TABLE peer_grab (envelope bigint, share integer, grabber text,
             UNIQUE (envelope, share), UNIQUE (envelope, grabber));
         CREATE TABLE peer_account (owner text PRIMARY KEY, minor bigint NOT NULL);
         INSERT INTO peer_envelope VALUES (1, 0);
         INSERT INTO peer_account SELECT 'grabber-' || g, 0 FROM generate_series(0, 199999) g",
    );
    let mut clients = Vec::new();
    for _ in 0..CLIENTS {
        clients.push(connect(stage).await?);
    }
    let started = Instant::now();
    let each = count / CLIENTS;
    let grabbing = clients.into_iter().zip(0..).map(|(mut client, number)| {
        tokio::spawn(async move {
            for turn in 0..each {
                let grabber = format!("grabber-{}", (number * each + turn) * 7_919 % 200_000);
                grab(&mut client, &grabber).await?;
            }
            anyhow::Ok(())
        })
    });
    for done in future::join_all(grabbing).await {
        done??;
    }
    Ok(f64::from(each * CLIENTS) / started.elapsed().as_secs_f64())
}

async fn grab(client: &mut Client, grabber: &str) -> anyhow::Result<()> {
    let tx = client.transaction().await?;
    let lock = "SELECT taken FROM peer_envelope WHERE row = 1 FOR UPDATE";
    let taken: i32 = tx.query_one(lock, &[]).await?.get(0);
    let claim = "INSERT INTO peer_grab VALUES (1, $1, $2)";
    tx.execute(claim, &[&taken, &grabber]).await?;
    let credit = "UPDATE peer_account SET minor = minor + 1 WHERE owner = $1";
    let credited = tx.execute(credit, &[&grabber]).await?;
    ensure!(credited == 1, "there is an account");
    let next = "UPDATE peer_envelope SET taken = taken + 1 WHERE row = 1";
    tx.execute(next, &[]).await?;
    Ok(tx.commit().await?)
}

/// Rows a second, as wide as a claim, of a table without a key, one COPY after the other.
pub async fn raw_copy(stage: &Stage, count: u32) -> anyhow::Result<f64> {
    stage.sql(
        "CREATE TABLE peer_copy (row bigint, envelope bigint, share integer, posting bigint,
             account bigint, amount bigint, declined boolean, granted bigint)",
    );
    let client = connect(stage).await?;
    let started = Instant::now();
    for from in (0..count).step_by(COPY_ROWS as usize) {
        let mut text = String::new();
        for row in from..from + COPY_ROWS {
            let line = format!(
                "{row}\t{}\t{}\t{row}\t{row}\t1\tf\t1\n",
                row / 100,
                row % 100
            );
            text.push_str(&line);
        }
        let mut sink = pin!(client.copy_in("COPY peer_copy FROM STDIN").await?);
        sink.send(Bytes::from(text)).await.context("a COPY")?;
        let copied = sink.finish().await?;
        ensure!(copied == u64::from(COPY_ROWS), "all rows are copied");
    }
    Ok(f64::from(count) / started.elapsed().as_secs_f64())
}
