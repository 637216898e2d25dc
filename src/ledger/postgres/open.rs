//! Connects, brings the schema up to date, and founds the books.
//!
//! *Ordering.* One process at a time migrates and founds, by an advisory lock: the others wait and
//! find it done.
//!
//! *If it crashes here.* Each migration is one transaction with its number.

use std::time::Duration;

use deadpool_postgres::{
    ClientWrapper, Hook, HookError, Manager, ManagerConfig, Metrics, Object, Pool, PoolError,
    RecyclingMethod, Runtime,
};
use tokio_postgres::NoTls;
use tokio_postgres::config::{LoadBalanceHosts, SslMode, TargetSessionAttrs};

use crate::domain::id::{TENANT_DEFAULT, TenantId};
use crate::ledger::LedgerError;

use super::leaves::commit_to;
use super::sql::{self, Fault};
use super::{Desk, books, leaves};

/// Forward only: the number of one is its place.
pub(super) const MIGRATIONS: [&str; 8] = [
    include_str!("migrations/0001_books.sql"),
    include_str!("migrations/0002_settle_rate.sql"),
    include_str!("migrations/0003_serving.sql"),
    include_str!("migrations/0004_claims_by_week.sql"),
    include_str!("migrations/0005_make_good.sql"),
    include_str!("migrations/0006_parked.sql"),
    include_str!("migrations/0007_gathered.sql"),
    include_str!("migrations/0008_gathered_apart.sql"),
];
/// The schema of the tables.
const SCHEMA: &str = "red_envelope";
/// The oldest release that is served.
const SERVER_VERSION_MIN: i32 = 150_000;
/// The advisory lock of who migrates and founds.
const LOCK_OF_FOUNDING: (i32, i32) = (3, 0);

/// Who migrates may need minutes, and the others wait for it.
const WITHOUT_LIMITS: &str = "SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0";

/// Connections of one process: three settle, one funds, one marks, sixteen close, and there are readers beside
/// them.
pub const CONNECTIONS_MAX: usize = 32;
/// For a connection, and for one from the pool.
const CONNECT_WAIT: Duration = Duration::from_secs(2);
/// The longest statement, but for the audit's.
const STATEMENT_MS_MAX: u32 = 15_000;
/// The longest wait for a lock. A batch takes milliseconds; this is for a process that stopped in one.
const LOCK_MS_MAX: u32 = 10_000;
/// A transaction that says nothing for so long is of a process that hangs: it must not keep its locks.
const IDLE_MS_MAX: u32 = 10_000;
/// A connection that was used so recently is used again without asking whether it lives: in a burst each
/// call would pay a round trip for it.
const UNASKED_MAX: Duration = Duration::from_millis(100);
/// How long the other host may leave sent bytes unacknowledged.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(5);
/// Prepared statements stay with a connection; a connection that is lost takes them with it.
const KEEPALIVE: Duration = Duration::from_secs(5);

/// Why the books can't be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No address of a PostgreSQL.
    #[error("ledger.url: {0}")]
    Address(String),
    /// Too old a server.
    #[error("PostgreSQL is of version {0}, and the ledger needs 15 or later")]
    Version(String),
    /// A later release of this program has been here.
    #[error(
        "the ledger's schema is number {found}, and this release knows up to {known}: start the \
         release that made it, or a later one"
    )]
    UnknownSchema {
        /// In the database.
        found: i32,
        /// Of this release.
        known: i32,
    },
    /// Commits would be acknowledged before they are on disk, or can't be made.
    #[error("{0}")]
    Forgetful(String),
    /// The seal keys do not open the newest commitment.
    #[error(
        "the seal keys are not those of this ledger: {0}. Every process needs the key file of the \
         one that founded the books: name it with --data-keys"
    )]
    SealKeys(String),
    /// Out of reach, or not as it must be.
    #[error(transparent)]
    Ledger(#[from] LedgerError),
}

impl From<Fault> for OpenError {
    fn from(fault: Fault) -> Self {
        Self::Ledger(fault.into())
    }
}

/// How long a connection keeps its plans. A plan stands for as long as a table's statistics do, also those
/// that look after foreign keys: one that was made while a table was empty would read all of it for each
/// row, and a burst fills an empty table in seconds. Planning again takes a few milliseconds.
const PLANS_KEPT: Duration = Duration::from_secs(2);

/// How often a connection of an age has forgotten its plans.
fn refreshes(age: Duration) -> u64 {
    age.as_secs() / PLANS_KEPT.as_secs()
}

/// A pool of connections that are set up alike.
pub(super) fn pool(url: &str) -> Result<Pool, OpenError> {
    let mut config: tokio_postgres::Config = url
        .parse()
        .map_err(|_| OpenError::Address("it can't be read as an address of PostgreSQL".into()))?;
    if !matches!(config.get_ssl_mode(), SslMode::Disable | SslMode::Prefer) {
        let why = "connections to PostgreSQL don't speak TLS yet: leave sslmode out on a network \
                   that nobody else can read";
        return Err(OpenError::Address(why.to_owned()));
    }
    if config.get_dbname().is_none() || config.get_user().is_none() {
        let why = "name a user and a database, as in postgresql://user@host:5432/database";
        return Err(OpenError::Address(why.to_owned()));
    }
    if config.get_hosts().len() > 1 {
        // Whichever is the primary. In turn, since a host that hangs takes all the time that a try has.
        config
            .target_session_attrs(TargetSessionAttrs::ReadWrite)
            .load_balance_hosts(LoadBalanceHosts::Random);
    }
    // Those of the address stand, and ours after them. Each question of a call has an index, but for those of
    // tables as small as the leases: these look so dear that they would be compiled.
    let own = config.get_options().unwrap_or_default().to_owned();
    config
        .application_name("red-envelope")
        .connect_timeout(CONNECT_WAIT)
        .keepalives(true)
        .keepalives_idle(KEEPALIVE)
        .keepalives_interval(KEEPALIVE)
        .keepalives_retries(2)
        .tcp_user_timeout(UNACKNOWLEDGED_MAX)
        .options(format!(
            "{own} -c search_path={SCHEMA} -c statement_timeout={STATEMENT_MS_MAX} \
             -c lock_timeout={LOCK_MS_MAX} \
             -c idle_in_transaction_session_timeout={IDLE_MS_MAX} \
             -c plan_cache_mode=force_generic_plan -c enable_seqscan=off -c jit=off \
             -c default_transaction_isolation=read\\ committed"
        ));
    let recycling = ManagerConfig {
        recycling_method: RecyclingMethod::Fast,
    };
    Pool::builder(Manager::from_config(config, NoTls, recycling))
        .max_size(CONNECTIONS_MAX)
        .wait_timeout(Some(CONNECT_WAIT))
        .create_timeout(Some(CONNECT_WAIT))
        .recycle_timeout(Some(CONNECT_WAIT))
        .pre_recycle(Hook::async_fn(|client, metrics| {
            Box::pin(still_serves(client, metrics))
        }))
        // A session keeps the settings of its role and database that stood when it began.
        .post_create(Hook::async_fn(|client, _| {
            Box::pin(async move {
                let settings = client.query_one(books::SETTINGS, &[]).await;
                let row = settings.map_err(HookError::Backend)?;
                match books::why_forgetful(&row).map_err(HookError::Backend)? {
                    None => Ok(()),
                    Some(why) => Err(HookError::message(why)),
                }
            })
        }))
        .runtime(Runtime::Tokio1)
        .build()
        .map_err(|error| OpenError::Address(error.to_string()))
}

/// Whether a connection may be used again, with the plans that it has; asked where that may have changed.
async fn still_serves(client: &ClientWrapper, metrics: &Metrics) -> Result<(), HookError> {
    let (age, unused_for) = (metrics.age(), metrics.last_used());
    let question = match refreshes(age) > refreshes(age.saturating_sub(unused_for)) {
        true => "DISCARD PLANS",
        false if unused_for > UNASKED_MAX => "",
        false => return Ok(()),
    };
    // The pool's own limits don't hold here.
    let asked = tokio::time::timeout(CONNECT_WAIT, client.simple_query(question)).await;
    let answer = asked.map_err(|_| HookError::message("it gives no answer"))?;
    answer.map(drop).map_err(HookError::Backend)
}

/// A first connection.
pub(super) async fn connect(pool: &Pool) -> Result<Object, OpenError> {
    match pool.get().await {
        Err(PoolError::PostCreateHook(HookError::Message(why))) => {
            Err(OpenError::Forgetful(why.into_owned()))
        }
        connected => Ok(connected.map_err(Fault::from)?),
    }
}

/// Brings the schema up to date, and gives `role` what a server needs and nothing else. Answers how many
/// migrations were applied.
///
/// # Errors
/// A server that is too old, a schema that is too new, no such role, or no right to do it.
pub async fn migrate(url: &str, role: Option<&str>) -> Result<usize, OpenError> {
    let pool = pool(url)?;
    let mut client = connect(&pool).await?;
    let applied = migrate_on(&mut client).await?;
    if let Some(role) = role {
        let granted = client.batch_execute(&grants(role)).await;
        granted.map_err(Fault::from)?;
    }
    Ok(applied)
}

/// Whether somebody founded books there. Writes nothing.
///
/// # Errors
/// The server is out of reach, too old or forgetful.
pub async fn has_books(url: &str) -> Result<bool, OpenError> {
    let client = connect(&pool(url)?).await?;
    check_server(&client).await?;
    let table = sql::row(
        &client,
        "-- ledger.has_schema
         SELECT 1 FROM pg_tables WHERE schemaname = $1 AND tablename = 'leaf_batch'",
        &[&SCHEMA],
    )
    .await?;
    if table.is_none() {
        return Ok(false);
    }
    let batch = "-- ledger.has_books\nSELECT 1 FROM leaf_batch LIMIT 1";
    Ok(sql::row(&client, batch, &[]).await?.is_some())
}

/// The rights of a server: it adds to history and can't change it. What it updates, the triggers narrow
/// down to sums and states.
fn grants(role: &str) -> String {
    let role = format!("\"{}\"", role.replace('"', "\"\""));
    format!(
        "-- ledger.grants
         BEGIN;
         REVOKE ALL ON ALL TABLES IN SCHEMA {SCHEMA} FROM {role};
         REVOKE ALL ON ALL SEQUENCES IN SCHEMA {SCHEMA} FROM {role};
         GRANT USAGE ON SCHEMA {SCHEMA} TO {role};
         GRANT SELECT, INSERT ON ALL TABLES IN SCHEMA {SCHEMA} TO {role};
         REVOKE INSERT ON migration FROM {role};
         GRANT UPDATE ON account, envelope, dead_letter, hot_partition, settle_lease, serve_lease
             TO {role};
         GRANT DELETE ON parked, settle_lease, serve_lease TO {role};
         GRANT USAGE ON ALL SEQUENCES IN SCHEMA {SCHEMA} TO {role};
         GRANT EXECUTE ON FUNCTION {SCHEMA}.claims_of_day TO {role};
         COMMIT"
    )
}

pub(super) async fn migrate_on(client: &mut Object) -> Result<usize, OpenError> {
    migrate_to(client, &MIGRATIONS).await
}

/// As a release does that knows these.
pub(super) async fn migrate_to(
    client: &mut Object,
    migrations: &[&str],
) -> Result<usize, OpenError> {
    check_server(client).await?;
    let known = i32::try_from(migrations.len()).expect("migrations are few");
    let tx = client.transaction().await.map_err(Fault::from)?;
    tx.batch_execute(WITHOUT_LIMITS)
        .await
        .map_err(Fault::from)?;
    let (class, number) = LOCK_OF_FOUNDING;
    sql::row(
        &tx,
        "-- ledger.lock_founding\nSELECT pg_advisory_xact_lock($1, $2)",
        &[&class, &number],
    )
    .await?;
    let is_new = sql::row(
        &tx,
        "-- ledger.schema_exists\nSELECT 1 FROM pg_namespace WHERE nspname = $1",
        &[&SCHEMA],
    )
    .await?;
    if is_new.is_none() {
        let found = format!(
            "-- ledger.found_schema
             CREATE SCHEMA {SCHEMA};
             CREATE TABLE {SCHEMA}.migration (
                 number integer NOT NULL PRIMARY KEY,
                 applied_at timestamptz NOT NULL DEFAULT now());"
        );
        tx.batch_execute(&found).await.map_err(Fault::from)?;
    }
    let found = schema_of(&tx).await?;
    if found > known {
        return Err(OpenError::UnknownSchema { found, known });
    }
    let mut applied = 0;
    for (number, migration) in (1..).zip(migrations) {
        if number <= found {
            continue;
        }
        tx.batch_execute(migration).await.map_err(Fault::from)?;
        let note = "-- ledger.note_migration\nINSERT INTO migration (number) VALUES ($1)";
        sql::run(&tx, note, &[&number]).await?;
        applied += 1;
    }
    tx.commit().await.map_err(Fault::from)?;
    Ok(applied)
}

async fn schema_of(db: &impl deadpool_postgres::GenericClient) -> Result<i32, Fault> {
    let found = sql::row(
        db,
        "-- ledger.schema_number\nSELECT coalesce(max(number), 0) FROM migration",
        &[],
    )
    .await?;
    Ok(match found {
        Some(row) => row.try_get(0)?,
        None => 0,
    })
}

async fn check_server(client: &Object) -> Result<(), OpenError> {
    let found = sql::row(
        client,
        "-- ledger.server
         SELECT current_setting('server_version_num')::integer, current_setting('server_version')",
        &[],
    )
    .await?;
    let Some(row) = found else {
        return Err(sql::broken("the server has no version").into());
    };
    let number: i32 = row.try_get(0).map_err(Fault::from)?;
    if number < SERVER_VERSION_MIN {
        let version: String = row.try_get(1).map_err(Fault::from)?;
        return Err(OpenError::Version(version));
    }
    Ok(())
}

/// Commits to the default tenant's first seeds, before anybody can ask for an envelope; looks whether
/// the keys open the newest commitment; answers which books these are.
pub(super) async fn found(client: &mut Object, desk: &Desk) -> Result<String, OpenError> {
    let tx = client.transaction().await.map_err(Fault::from)?;
    tx.batch_execute(WITHOUT_LIMITS)
        .await
        .map_err(Fault::from)?;
    let (class, number) = LOCK_OF_FOUNDING;
    sql::row(
        &tx,
        "-- ledger.lock_founding\nSELECT pg_advisory_xact_lock($1, $2)",
        &[&class, &number],
    )
    .await?;
    let newest = sql::row(
        &tx,
        "-- ledger.newest_commitment
         SELECT tenant, batch_number FROM leaf_batch
         ORDER BY committed_at DESC, batch_number DESC LIMIT 1",
        &[],
    )
    .await?;
    if let Some(row) = newest {
        let wrong = OpenError::SealKeys;
        let tenant = TenantId::parse(row.try_get(0).map_err(Fault::from)?);
        let tenant = tenant.map_err(|error| wrong(error.to_string()))?;
        let number: i64 = row.try_get(1).map_err(Fault::from)?;
        match leaves::open_batch(&tx, desk, &tenant, number.unsigned_abs()).await {
            Ok(_) => {}
            Err(Fault::Told(LedgerError::Broken(why))) => return Err(wrong(why)),
            Err(fault) => return Err(fault.into()),
        }
    }
    let tenant = TenantId::parse(TENANT_DEFAULT).expect("the default tenant has a good name");
    commit_to(&tx, desk, &tenant, 0).await?;
    let root = sql::row(
        &tx,
        "-- ledger.identity
         SELECT batch_root FROM leaf_batch WHERE tenant = $1 AND batch_number = 0",
        &[&TENANT_DEFAULT],
    )
    .await?;
    let Some(row) = root else {
        return Err(sql::broken("the first commitment is missing").into());
    };
    let root = super::rows::hash(&row, 0)?;
    tx.commit().await.map_err(Fault::from)?;
    Ok(data_encoding::HEXLOWER.encode(&root[..16]))
}
