//! Arguments → configuration → role.
//!
//! # Shape
//! | step | what can go wrong | exit code |
//! |---|---|---|
//! | read the environment and the arguments | wrong usage | 64 |
//! | one configuration | a setting that can't be | 64 |
//! | claim the data folder, read its keys | in use, readable by others | 64 |
//! | bind the listeners | a port in use | 64 |
//! | open the stores | books of another hot store | 64 |
//! | serve until SIGTERM or SIGINT | a store stops | 70 |
//!
//! A client command goes from the first step to `cli::run`, which has the other codes.

use std::io::Write;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use rand::Rng;
use red_envelope::api::audit_answer;
use red_envelope::cli::args::{self, Invocation, Reconciling, RestoredBooks};
use red_envelope::cli::{self, EXIT_SOFTWARE, EXIT_USAGE};
use red_envelope::clock::{Clock, SystemClock};
use red_envelope::config::folder::Folder;
use red_envelope::config::open_files::{self, Room};
use red_envelope::config::stores::BooksUrl;
use red_envelope::config::{self, Config, ConfigError, Environment, LogFormat, Sources};
use red_envelope::ledger::postgres;
use red_envelope::reconciled::{self, ReconcileError};
use red_envelope::restored::{self, Order, Report, RestoredError};
use red_envelope::telemetry::{logs, metrics};
use red_envelope::{Listeners, Place, ServeError, StoresError, serve};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

// A server at full load spends 6 to 20 % less time with it than with the system's allocator.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// For tasks that are still there when serving has ended: connections whose calls outlived the
/// drain limit.
const LEFTOVERS_MAX: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    let environment = Environment::read();
    match args::parse(std::env::args_os(), &environment) {
        Invocation::Ask(ask) => {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build();
            match runtime {
                Ok(runtime) => ExitCode::from(runtime.block_on(cli::run(ask, &environment))),
                Err(why) => told(
                    &format!("the system gives no event queue: {why}"),
                    EXIT_SOFTWARE,
                ),
            }
        }
        Invocation::PrintDefaultConfig => {
            print!("{}", config::DEFAULTS);
            ExitCode::SUCCESS
        }
        Invocation::Say(text, 0) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Invocation::Say(text, code) => {
            eprint!("{text}");
            ExitCode::from(code)
        }
        Invocation::Migrate(sources, role) => match migrate(&sources, role.as_deref()) {
            Ok(said) => {
                println!("{said}");
                ExitCode::SUCCESS
            }
            Err(error) if error.is::<ConfigError>() => told(&error.to_string(), EXIT_USAGE),
            Err(error) => told(&error.to_string(), EXIT_SOFTWARE),
        },
        Invocation::Restored(books) => match restored(&books) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => told_why(&error),
        },
        Invocation::Reconcile(stores) => match reconcile(&stores) {
            Ok(code) => ExitCode::from(code),
            Err(error) => told_why(&error),
        },
        Invocation::Serve(sources) => match run(&sources) {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => told_why(&error),
        },
    }
}

fn told(sentence: &str, code: u8) -> ExitCode {
    eprintln!("red-envelope: {sentence}");
    ExitCode::from(code)
}

/// Whether it is a mistake of whoever started this.
fn is_usage(error: &anyhow::Error) -> bool {
    let stores = match error.downcast_ref() {
        Some(ServeError::Bind { .. }) => return true,
        Some(ServeError::Store(error)) => Some(error),
        _ => None,
    };
    let stores = match error.downcast_ref() {
        Some(RestoredError::Serving) => return true,
        Some(RestoredError::Store(error)) => Some(error),
        _ => stores,
    };
    let stores = match error.downcast_ref() {
        Some(ReconcileError::Store(error)) => Some(error),
        _ => stores,
    };
    let of_stores = |error| matches!(error, &StoresError::Layout(_) | &StoresError::Setting(_));
    stores.is_some_and(of_stores) || error.is::<ConfigError>()
}

fn told_why(error: &anyhow::Error) -> ExitCode {
    let code = match is_usage(error) {
        true => EXIT_USAGE,
        false => EXIT_SOFTWARE,
    };
    told(&error.to_string(), code)
}

/// Brings the schema of the books in PostgreSQL up to date, and gives a role the rights of a server.
fn migrate(sources: &Sources, role: Option<&str>) -> anyhow::Result<String> {
    let BooksUrl::Postgres(url) = Config::books(sources)? else {
        return Ok(
            "books in the data folder are brought up to date when serving starts".to_owned(),
        );
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let applied = match runtime.block_on(postgres::migrate(url.expose(), role)) {
        Err(postgres::OpenError::Ledger(error)) => {
            anyhow::bail!("ledger.url can't be opened: {error}");
        }
        Err(error) => return Err(ConfigError(error.to_string()).into()),
        Ok(applied) => applied,
    };
    Ok(match applied {
        0 => "the schema is up to date".to_owned(),
        1 => "1 migration was applied".to_owned(),
        many => format!("{many} migrations were applied"),
    })
}

/// Everything that can be refused before a port is bound, then serving.
fn run(sources: &Sources) -> anyhow::Result<()> {
    let (config, unread) = Config::load(sources)?;
    #[cfg(feature = "test-hooks")]
    let _crash_points = crash_points(&sources.environment)?;
    tell_by_log(&config, &sources.environment)?;
    metrics::install();
    for name in unread {
        tracing::warn!(variable = name, "this environment variable has no effect");
    }
    tell_of_open_files(open_files::make_room(&config.transport));
    let place = claim(&config, &sources.environment)?;
    let runtime = threads(&config)?;
    let served = runtime.block_on(async {
        let listeners = Listeners::bind(&config).await?;
        serve(config, place, listeners, signalled()?).await?;
        Ok(())
    });
    runtime.shutdown_timeout(LEFTOVERS_MAX);
    served
}

/// Begins anew after a restore. The list is written out before anything leaves the hot store.
fn restored(books: &RestoredBooks) -> anyhow::Result<()> {
    let order = Order::parse(&books.operator, &books.reason).map_err(ConfigError)?;
    let (config, _) = Config::load(&books.sources)?;
    #[cfg(feature = "test-hooks")]
    let _crash_points = crash_points(&books.sources.environment)?;
    tell_by_log(&config, &books.sources.environment)?;
    let currencies = config.currencies()?;
    let place = claim(&config, &books.sources.environment)?;
    let tell = |report: &Report| {
        let mut out = std::io::stdout().lock();
        match books.json {
            true => writeln!(out, "{}", report.json())?,
            false => write!(out, "{}", report.words(&currencies))?,
        }
        out.flush()
    };
    let runtime = threads(&config)?;
    let taken = runtime.block_on(restored::restored(place, &config, order, tell))?;
    eprintln!("red-envelope: unknown envelopes taken out of the hot store: {taken}");
    Ok(())
}

/// Settles what is left, and audits both stores.
fn reconcile(stores: &Reconciling) -> anyhow::Result<u8> {
    let order = Order::parse(&stores.operator, &stores.reason).map_err(ConfigError)?;
    let (config, _) = Config::load(&stores.sources)?;
    tell_by_log(&config, &stores.sources.environment)?;
    let place = claim(&config, &stores.sources.environment)?;
    let runtime = threads(&config)?;
    let done = runtime.block_on(async {
        let all = reconciled::reconcile(place, &config, &order);
        tokio::time::timeout(stores.timeout, all).await
    });
    let (healed, report) = done.map_err(|_| {
        let seconds = stores.timeout.as_secs();
        anyhow::anyhow!("it was not done within {seconds} s: what was done stands. Repeat this")
    })??;
    let environment = &stores.sources.environment;
    let report = audit_answer(report);
    let (text, code) = cli::reconciled(&healed.named(), &report, stores.json, environment);
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(code)
}

fn tell_by_log(config: &Config, environment: &Environment) -> anyhow::Result<()> {
    let json = match config.log.format {
        LogFormat::Auto => !environment.terminal,
        LogFormat::Human => false,
        LogFormat::Json => true,
    };
    Ok(logs::install(&config.log.level, json)?)
}

fn tell_of_open_files(room: Room) {
    match room {
        Room::Enough => {}
        Room::Raised { from, to } => tracing::info!(from, to, "the limit of open files is raised"),
        Room::TooLittle { limit, needed } => tracing::warn!(
            limit,
            needed,
            "the limit of open files is below transport.connections_max: connections beyond it wait. Raise \
             the hard limit (ulimit -Hn, LimitNOFILE), or lower transport.connections_max"
        ),
    }
}

/// The data folder with its keys, and the sources of time and chance.
fn claim(config: &Config, environment: &Environment) -> Result<Place, ConfigError> {
    let clock = clock(environment)?;
    let folder = Folder::claim(&config.data.dir)?;
    let keys = folder.keys(config.data.keys(), |buffer| rand::rng().fill_bytes(buffer))?;
    Ok(Place {
        folder,
        keys,
        clock,
        entropy: Box::new(rand::make_rng::<rand::rngs::StdRng>()),
    })
}

fn threads(config: &Config) -> std::io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(workers(config))
        .enable_all()
        .build()
}

/// What FAILPOINTS orders, and an abort at the point that RED_ENVELOPE_TEST_ABORT_AT names: the
/// process is gone as by kill -9, at that line.
#[cfg(feature = "test-hooks")]
fn crash_points(environment: &Environment) -> Result<fail::FailScenario<'static>, ConfigError> {
    let scenario = fail::FailScenario::setup();
    if let Some(point) = environment.get("TEST_ABORT_AT") {
        fail::cfg_callback(point, || std::process::abort())
            .map_err(|e| ConfigError(format!("RED_ENVELOPE_TEST_ABORT_AT: {e}")))?;
    }
    Ok(scenario)
}

/// One worker a core; two at the least, so that one that computes (a large envelope's shares, an
/// audit) leaves one for grabs.
fn workers(config: &Config) -> usize {
    match config.runtime.workers {
        0 => std::thread::available_parallelism().map_or(2, |cores| cores.get().max(2)),
        workers => workers,
    }
}

fn clock(environment: &Environment) -> Result<Arc<dyn Clock>, ConfigError> {
    match environment.test_clock()? {
        None => Ok(Arc::new(SystemClock)),
        #[cfg(feature = "test-hooks")]
        Some(file) => red_envelope::clock::OffsetClock::open(file)
            .map(|clock| Arc::new(clock) as Arc<dyn Clock>)
            .map_err(|e| ConfigError(format!("RED_ENVELOPE_TEST_CLOCK: {e}"))),
        #[cfg(not(feature = "test-hooks"))]
        Some(_) => Err(ConfigError("this build has no clock that moves".to_owned())),
    }
}

/// Cancelled by the first SIGTERM or SIGINT. A second one is not waited for: kill -9 loses
/// nothing that was acknowledged.
fn signalled() -> std::io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = CancellationToken::new();
    let token = shutdown.clone();
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "shutting down");
        token.cancel();
    });
    Ok(shutdown)
}
