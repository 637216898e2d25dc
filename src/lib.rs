//! red-envelope: hands out lucky money under burst load, to the last minor unit.
//!
//! The rooms, in reading order, and [`serve`], which joins them.
//!
//! # Shape
//! | phase of [`serve`] | what |
//! |---|---|
//! | open | probes answer from here on; both stores read what they have |
//! | serve | settlement and both gRPC listeners run; the ports are announced |
//! | watch | until shutdown, or until a store or a listener ends by itself |
//! | end | not ready; no new calls, the last ones finish; the outbox is drained once more |
//!
//! # Bounds
//! The end takes `shutdown.drain_max_ms` for calls and settlement together.
//!
//! # Ordering
//! Settlement ends after the listeners, so that what was won until the last moment is paid; the
//! stores end after both.
//!
//! # If it crashes here
//! Nothing of the end is needed: the next start finds every acknowledged grab in the hot store.
//!
//! # Not here
//! Signals, arguments, the choice of clock: `main` owns them, and tests bring their own.

pub mod domain;

pub mod hot;
pub mod ledger;

pub mod audit;
pub mod publish;
pub mod settle;

pub mod api;
pub mod cli;

pub mod reconciled;
pub mod restored;

pub mod clock;
pub mod config;
pub mod rules;
pub mod telemetry;

mod stores;

pub use stores::{Place, StoresError};

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rand::RngExt;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use config::folder::{Folder, Ports};
use config::role::Role;
use config::{Config, Transport};
use domain::ack::AckLevel;
use futures_util::FutureExt;
use hot::gate::{Gate, Gated};
use ledger::Ledger;
use settle::{Drain, Settlement};
use stores::Stores;
use telemetry::lag::Lag;
use telemetry::{metrics, probes};

/// Between two looks at whether the process is ready: a probe every second sees the truth.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Looks between two foldings of the metrics: 5 s.
const LOOKS_PER_UPKEEP: u64 = 20;

/// Why serving ended, other than by being asked to.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// A listener could not be bound.
    #[error("{key} can't listen on {address}: {why}. {advice}")]
    Bind {
        /// The setting.
        key: &'static str,
        /// Its value.
        address: SocketAddr,
        /// What the system says.
        why: std::io::Error,
        /// What to do.
        advice: String,
    },
    /// A store can't be opened, or has stopped for good.
    #[error(transparent)]
    Store(#[from] StoresError),
    /// Something that never ends has ended.
    #[error("{0}")]
    Ended(String),
}

/// The sockets, bound before anything is opened. The caller owns them, so that tests bind port 0.
#[derive(Debug)]
pub struct Listeners {
    grpc: Option<TcpListener>,
    admin: TcpListener,
    http: TcpListener,
}

impl Listeners {
    /// Binds what the configuration names.
    ///
    /// # Errors
    /// The first that can't be bound, by its setting.
    pub async fn bind(config: &Config) -> Result<Self, ServeError> {
        Ok(Self {
            grpc: match config.process.role.serves() {
                true => Some(bind("grpc.listen", config.grpc.listen).await?),
                false => None,
            },
            admin: bind("admin.listen", config.admin.listen).await?,
            http: bind("http.listen", config.http.listen).await?,
        })
    }

    fn ports(&self) -> std::io::Result<Ports> {
        Ok(Ports {
            grpc: match &self.grpc {
                Some(grpc) => Some(grpc.local_addr()?.port()),
                None => None,
            },
            admin: self.admin.local_addr()?.port(),
            http: self.http.local_addr()?.port(),
        })
    }
}

async fn bind(key: &'static str, address: SocketAddr) -> Result<TcpListener, ServeError> {
    TcpListener::bind(address).await.map_err(|why| {
        let flag = key.replace('.', "-");
        let host = address.ip();
        let advice = format!(
            "Stop what listens there, or choose another port: --{flag} {host}:0 takes a free one"
        );
        ServeError::Bind {
            key,
            address,
            why,
            advice,
        }
    })
}

/// Serves until `shutdown`.
///
/// # Errors
/// A store that can't be opened or has stopped, a listener that ended. The process must end then,
/// with a code other than 0.
pub async fn serve(
    config: Config,
    place: Place,
    listeners: Listeners,
    shutdown: CancellationToken,
) -> Result<(), ServeError> {
    let ports = listeners
        .ports()
        .map_err(|e| ServeError::Ended(format!("a listener has no address: {e}")))?;
    let readiness = probes::Readiness::not_yet("the stores are being opened");
    let probing = CancellationToken::new();
    let _stop_probing = probing.clone().drop_guard();
    tokio::spawn(probes::serve(listeners.http, readiness.clone(), probing));

    let (stores, folder, pepper) = Stores::open(place, &config).await?;
    stores.greet().await;
    let closing = CancellationToken::new();
    let joined = Joined::new(&config, &stores, pepper, closing.clone())?;
    let settling = CancellationToken::new();
    let mut running = Running {
        settlement: joined.settle(config.process.role, settling.clone()),
        grpc: match listeners.grpc {
            Some(grpc) => listen(
                grpc,
                "grpc",
                (joined.api.public_routes(), joined.api.prioritize()),
                &config.transport,
                &closing,
            ),
            None => tokio::spawn(closing.clone().cancelled_owned().map(Ok)),
        },
        admin: listen(
            listeners.admin,
            "admin",
            (joined.api.admin_routes(), joined.api.prioritize()),
            &config.transport,
            &closing,
        ),
    };
    look(&joined, &stores, &readiness, &config).await;
    folder
        .announce(ports)
        .map_err(|e| ServeError::Ended(format!("ports.json can't be written: {e}")))?;
    tell_where(&config, ports, &folder);

    let failed = tokio::select! {
        () = shutdown.cancelled() => None,
        ended = stores.watch(closing.clone()) => ended.err().map(ServeError::Store),
        failed = running.ended() => Some(failed),
        () = keep_looking(&joined, &stores, &readiness, &config, &folder) => None,
        () = keep_timing(&joined) => None,
    };

    folder.forget_ports();
    readiness.set(vec!["the server is shutting down".to_owned()]);
    joined.api.set_serving(false).await;
    closing.cancel();
    if let Some(failed) = failed {
        tracing::error!(why = %failed, "the server stops itself");
        settling.cancel();
        return Err(failed);
    }
    running.finish_within(&config, &joined, &settling).await;
    stores.shutdown().await;
    tracing::info!("ended");
    Ok(())
}

fn tell_where(config: &Config, ports: Ports, folder: &Folder) {
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        role = ?config.process.role,
        grpc = ports.grpc.map(|port| SocketAddr::new(config.grpc.listen.ip(), port).to_string()),
        admin = %SocketAddr::new(config.admin.listen.ip(), ports.admin),
        http = %SocketAddr::new(config.http.listen.ip(), ports.http),
        data = %folder.path().display(),
        "serving"
    );
}

/// The rooms between the stores and the sockets.
struct Joined {
    api: api::Services,
    settlement: Arc<Settlement>,
    clock: Arc<dyn Ledger>,
}

impl Joined {
    fn new(
        config: &Config,
        stores: &Stores,
        pepper: domain::audience::Pepper,
        closing: CancellationToken,
    ) -> Result<Self, ServeError> {
        let (hot, ledger) = (stores.hot(), stores.ledger());
        let amounts = Arc::new(publish::Amounts::new(Arc::clone(&ledger)));
        let publisher = Arc::new(publish::Publisher::new(
            Arc::clone(&hot),
            Arc::clone(&ledger),
            Arc::clone(&amounts),
        ));
        let settlement = Arc::new(Settlement::new(
            Arc::clone(&hot),
            Arc::clone(&ledger),
            Arc::clone(&publisher),
            Arc::clone(&amounts),
            format!("{:016x}", rand::rng().random::<u64>()),
        ));
        let currencies = config
            .currencies()
            .map_err(|e| ServeError::Ended(e.to_string()))?;
        let gate = (config.hot.ack.0 == Some(AckLevel::Ledger)).then(|| {
            let (hot, ledger) = (Arc::clone(&hot), Arc::clone(&ledger));
            Arc::new(Drain::new(hot, ledger, Arc::clone(&amounts))) as Arc<dyn Gate>
        });
        let stripe_above_shares = if hot.deals() {
            config.hot.stripe_above_shares
        } else {
            0
        };
        let api = api::Services::new(api::Deps {
            gated: Arc::new(Gated::new(Arc::clone(&hot), gate)),
            hot,
            ledger: Arc::clone(&ledger),
            publisher,
            amounts,
            currencies: Arc::new(currencies),
            pepper,
            sender_may_grab: config.envelope.sender_may_grab,
            stripe_above_shares,
            version: env!("CARGO_PKG_VERSION"),
            shutdown: closing,
        });
        Ok(Self {
            api,
            settlement,
            clock: ledger,
        })
    }

    fn settle(
        &self,
        role: Role,
        shutdown: CancellationToken,
    ) -> JoinHandle<Result<(), settle::SettleError>> {
        let settlement = Arc::clone(&self.settlement);
        tokio::spawn(async move {
            let jitter = |max| rand::rng().random_range(0..=max);
            match role.settles() {
                true => settlement.run(jitter, shutdown).await,
                false => settlement.look_on(jitter, shutdown).await,
            }
        })
    }

    /// Why the process does not want traffic now.
    fn reasons(&self, stores: &Stores, config: &Config) -> Vec<String> {
        let mut reasons = Vec::new();
        let hot = stores.hot().ready().err();
        metrics::not_ready("hot_store", hot.is_some());
        reasons.extend(hot);
        let ledger = stores.ledger().ready().err();
        metrics::not_ready("ledger", ledger.is_some());
        reasons.extend(ledger);
        let seen = self.settlement.vitals().seen();
        let age_ms = seen.oldest_unsettled_age_ms(self.clock.now());
        let behind = age_ms > config.ready.unsettled_age_max_ms;
        metrics::not_ready("settlement", behind);
        if behind {
            let why = seen
                .last_error
                .map_or_else(String::new, |e| format!(" ({e})"));
            reasons.push(format!(
                "the oldest of {} acknowledged grabs has waited {} s for its money{why}",
                seen.unsettled_records,
                age_ms / 1_000
            ));
        }
        reasons
    }
}

async fn look(joined: &Joined, stores: &Stores, readiness: &probes::Readiness, config: &Config) {
    let age_ms = joined.settlement.vitals().seen().oldest_age_ms;
    joined.api.settlement_is_behind(age_ms);
    let reasons = joined.reasons(stores, config);
    let ready = reasons.is_empty();
    let told = reasons.join("; ");
    if readiness.set(reasons) {
        joined.api.set_serving(ready).await;
        if ready {
            tracing::info!("ready");
        } else {
            tracing::warn!(why = told, "not ready");
        }
    }
}

/// Looks again and again; never ends.
async fn keep_looking(
    joined: &Joined,
    stores: &Stores,
    readiness: &probes::Readiness,
    config: &Config,
    folder: &Folder,
) {
    for looks in 1_u64.. {
        tokio::time::sleep(LOOK_EVERY).await;
        look(joined, stores, readiness, config).await;
        if looks.is_multiple_of(LOOKS_PER_UPKEEP) {
            metrics::upkeep();
            for (store, bytes) in stores.bytes(folder) {
                metrics::store_holds(store, bytes);
            }
        }
    }
}

/// Tells the services how late this process is; never ends.
async fn keep_timing(joined: &Joined) {
    let mut lag = Lag::default();
    loop {
        let late = lag.look().await;
        joined.api.runs_late(late);
    }
}

type Listening = JoinHandle<Result<(), String>>;

fn listen(
    listener: TcpListener,
    name: &'static str,
    (routes, prioritize): (api::listen::Routes, api::Prioritize),
    transport: &Transport,
    closing: &CancellationToken,
) -> Listening {
    let (transport, closing) = (*transport, closing.clone());
    tokio::spawn(async move {
        api::listen::serve(listener, name, routes, prioritize, &transport, closing)
            .await
            .map_err(|e| e.to_string())
    })
}

/// What runs while the process serves.
struct Running {
    settlement: JoinHandle<Result<(), settle::SettleError>>,
    grpc: Listening,
    admin: Listening,
}

impl Running {
    /// Waits until something ends that should not.
    async fn ended(&mut self) -> ServeError {
        let (which, how) = tokio::select! {
            end = &mut self.settlement => match end {
                Ok(Err(error)) => return StoresError::Stopped(error.to_string()).into(),
                end => ("settlement", format!("{end:?}")),
            },
            end = &mut self.grpc => ("the gRPC listener", format!("{end:?}")),
            end = &mut self.admin => ("the admin listener", format!("{end:?}")),
        };
        ServeError::Ended(format!("{which} has ended: {how}"))
    }

    /// As [`Running::finish`], for as long as the configuration allows.
    async fn finish_within(
        &mut self,
        config: &Config,
        joined: &Joined,
        settling: &CancellationToken,
    ) {
        let drain_max = Duration::from_millis(config.shutdown.drain_max_ms);
        let finished = tokio::time::timeout(
            drain_max,
            self.finish(config.process.role, joined, settling),
        );
        let finished = finished.await;
        if finished.is_err() {
            tracing::warn!(
                "calls or settlements outlived shutdown.drain_max_ms: clients repeat them, the \
                 next start settles"
            );
        }
    }

    /// Waits for the last calls, then for their money.
    async fn finish(&mut self, role: Role, joined: &Joined, settling: &CancellationToken) {
        // A listener that failed now has told its clients by closing their connections.
        let _calls = tokio::join!(&mut self.grpc, &mut self.admin);
        settling.cancel();
        let _loops = (&mut self.settlement).await;
        if !role.settles() {
            return;
        }
        if let Err(error) = joined.settlement.finish().await {
            tracing::warn!(%error, "the last settlement failed: the next start goes on");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use config::Sources;

    #[tokio::test]
    async fn a_port_in_use_is_told_by_its_setting_with_what_to_do() {
        let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = taken.local_addr().unwrap();
        let mut config = Config::load(&Sources::default()).unwrap().0;
        config.grpc.listen = "127.0.0.1:0".parse().unwrap();
        config.admin.listen = address;
        let why = Listeners::bind(&config).await.unwrap_err().to_string();
        let begins = format!("admin.listen can't listen on {address}: ");
        assert!(why.starts_with(&begins), "{why}");
        assert!(
            why.contains("--admin-listen 127.0.0.1:0 takes a free one"),
            "{why}"
        );
    }
}
