//! The designs that people would write instead, each a server that answers Grab as ours does.
//!
//! `burst-peers DESIGN URL`, started by `benches/burst`. It prints its port and serves until its standard
//! input ends. It is a program of its own, since our server and the yardstick T have different allocators.
//!
//! # Shape
//! | design | a grab is |
//! |---|---|
//! | `deadpool` | HGET, LPOP, HSETNX, LPUSH, one after the other on a pooled connection ([`pooled`]) |
//! | `lock` | the same under a lock that Redis keeps ([`locked`]) |
//! | `lua` | one EVALSHA on a pooled connection ([`scripted`]) |
//! | `row_lock` | a transaction that locks the envelope's row in PostgreSQL ([`rows`]) |
//!
//! No share goes to two, and nobody gets two; beyond that they keep nothing that our server promises.
//!
//! # Bounds
//! [`CONNECTIONS_MAX`] connections to the store. Who waits for one is bounded by the client's calls.

mod frame;
mod locked;
mod pooled;
mod rows;
mod scripted;

use std::process::ExitCode;

use anyhow::bail;

/// Connections of a pool.
const CONNECTIONS_MAX: usize = 16;

// As `src/main.rs`.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match run(&words) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("burst-peers: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(words: &[String]) -> anyhow::Result<()> {
    let [design, url] = words else {
        bail!("usage: burst-peers DESIGN URL");
    };
    // As `src/main.rs`: one worker a core, two at the least.
    let workers = std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2));
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers)
        .enable_all()
        .build()?;
    runtime.block_on(async {
        match design.as_str() {
            "deadpool" => frame::serve(pooled::Pooled::new(url)?).await,
            "lock" => frame::serve(locked::Locked::new(url).await?).await,
            "lua" => frame::serve(scripted::Scripted::new(url).await?).await,
            "row_lock" => frame::serve(rows::Rows::new(url)?).await,
            _ => bail!("there is no design {design}"),
        }
    })
}
