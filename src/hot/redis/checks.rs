//! Whether a real Redis keeps what the acknowledgement level promises, in sentences that say what to
//! change.
//!
//! # Shape
//! | step | what |
//! |---|---|
//! | [`gather`](gather::gather) | asks the server: two round trips, no write |
//! | [`judge`] | pure: the level in force, or every reason why nothing may be acknowledged |
//!
//! # Bounds
//! Both are done at the start and every few seconds: a setting that is wrong for shorter may go unseen.
//!
//! # Ordering
//! AOF that was switched on while Redis runs is not there before its first rewrite has ended; until
//! then a crash forgets everything, while INFO calls it enabled. An ordinary rewrite looks the
//! same. So `fsync` comes into force only while no rewrite runs, and may stay in force during one.
//!
//! # Not here
//! Asking again, and stopping the grabs: whoever owns the store.

pub mod gather;
pub mod rights;

use std::borrow::Borrow;
use std::fmt;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::domain::ack::AckLevel;
use crate::telemetry::metrics;

/// How long what a look found counts where those after it came to no end. Settings may change meanwhile.
const LOOK_KEPT: Duration = Duration::from_secs(30);

/// Above this part of maxmemory nothing is granted: 90 %. Who has a share is still told so.
const MEMORY_TENTHS_MAX: u64 = 9;

/// What a server says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServerFacts {
    /// Which process it is.
    pub run_id: String,
    /// "Redis 7.0.15", "Valkey 9.1.2".
    pub version: String,
    /// It knows functions.
    pub functions: bool,
    /// It still reads its files: nothing else is known.
    pub loading: bool,
    /// The primary that it follows, if it is a replica.
    pub follows: Option<String>,
    /// Replicas that follow it.
    pub replicas: u64,
    /// Sentinels that watch it; `None` where the user may not ask.
    pub sentinels: Option<u64>,
    /// It is a node of a Cluster.
    pub cluster: bool,
    /// What happens when memory is full.
    pub eviction: String,
    /// Bytes that count against `memory_max`.
    pub memory_used: u64,
    /// `maxmemory`; 0: no bound.
    pub memory_max: u64,
    /// AOF is on, or about to be.
    pub aof: bool,
    /// AOF is being rewritten, or about to be.
    pub aof_rewriting: bool,
    /// The last write of the AOF failed.
    pub aof_failed: bool,
    /// The last snapshot failed, and it refuses writes because of that.
    pub snapshot_failed: bool,
    /// When AOF is synced; `None` where the user may not ask.
    pub appendfsync: Option<String>,
    /// `no-appendfsync-on-rewrite yes`: while a child saves, nothing is synced.
    pub fsync_pauses: bool,
    /// Who is connected; `None` where the server does not tell.
    pub user: Option<String>,
    /// Rights that are missing, as rules of an ACL.
    pub missing_rights: MissingRights,
}

/// What the connected user may not do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MissingRights {
    /// These; none: all is well.
    Known(Vec<String>),
    /// The user may not ask.
    MayNotAsk,
    /// The server has no such question, as managed ones: the registration of the library tries.
    Unanswered,
}

impl Default for MissingRights {
    fn default() -> Self {
        Self::Known(Vec::new())
    }
}

/// What is wrong, for programs: the label `reason` of `red_envelope_not_ready`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// It does not answer, or has not been asked yet.
    Unreachable,
    /// No level can be had of this server: too old, loading, a node of a Cluster, a replica.
    Server,
    /// It throws keys away when memory is full.
    Eviction,
    /// Its memory is full.
    Memory,
    /// It can't write its AOF.
    Aof,
    /// It refuses writes since its last snapshot failed.
    Snapshot,
    /// The user lacks rights.
    Rights,
    /// It is not synced before an acknowledgement.
    Fsync,
    /// A failover would lose what was acknowledged.
    Failover,
    /// The level that was asked for is none of Redis'.
    Level,
}

impl Trouble {
    const ALL: [Self; 10] = [
        Self::Unreachable,
        Self::Server,
        Self::Eviction,
        Self::Memory,
        Self::Aof,
        Self::Snapshot,
        Self::Rights,
        Self::Fsync,
        Self::Failover,
        Self::Level,
    ];

    fn label(self) -> &'static str {
        match self {
            Self::Unreachable => "redis_unreachable",
            Self::Server => "redis_server",
            Self::Eviction => "redis_eviction",
            Self::Memory => "redis_memory",
            Self::Aof => "redis_aof",
            Self::Snapshot => "redis_snapshot",
            Self::Rights => "redis_rights",
            Self::Fsync => "redis_fsync",
            Self::Failover => "redis_failover",
            Self::Level => "redis_level",
        }
    }

    /// The sentence for people.
    pub fn says(self, sentence: impl Into<String>) -> Reason {
        Reason {
            trouble: self,
            sentence: sentence.into(),
        }
    }
}

/// Why nothing may be acknowledged, and what to change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reason {
    /// For programs.
    pub trouble: Trouble,
    /// For people.
    pub sentence: String,
}

impl Borrow<str> for Reason {
    fn borrow(&self) -> &str {
        &self.sentence
    }
}

impl From<gather::CheckError> for Reason {
    fn from(error: gather::CheckError) -> Self {
        let trouble = match error {
            gather::CheckError::Unreachable(_) => Trouble::Unreachable,
            gather::CheckError::Refused(_) => Trouble::Rights,
        };
        trouble.says(error.to_string())
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.sentence)
    }
}

/// Tells the metrics which of the troubles there are; none: all is well.
pub fn measure(reasons: &[Reason]) {
    for trouble in Trouble::ALL {
        let there = reasons.iter().any(|reason| reason.trouble == trouble);
        metrics::not_ready(trouble.label(), there);
    }
}

/// The level in force. `wanted` was asked for by name; `before` is what was in force at the last
/// look at this server process, if there was one.
///
/// # Errors
/// Every reason why nothing may be acknowledged, each with what to change.
pub fn judge(
    facts: &ServerFacts,
    wanted: Option<AckLevel>,
    before: Option<AckLevel>,
) -> Result<AckLevel, Vec<Reason>> {
    if let Some(why) = out_of_the_question(facts) {
        return Err(vec![Trouble::Server.says(why)]);
    }
    let mut reasons = Vec::new();
    reasons.extend(of_memory(facts));
    reasons.extend(of_rights(facts));
    let level = match wanted {
        // What Redis loses, the books have.
        Some(level @ (AckLevel::Memory | AckLevel::Ledger)) => level,
        None | Some(AckLevel::Fsync) => {
            reasons.extend(of_fsync(facts, wanted.is_some(), before));
            AckLevel::Fsync
        }
        Some(AckLevel::Embedded) => {
            reasons.push(Trouble::Level.says("embedded is no level of Redis: leave hot.ack out"));
            AckLevel::Embedded
        }
    };
    if reasons.is_empty() {
        Ok(level)
    } else {
        Err(reasons)
    }
}

/// What was found when a process of Redis was looked at last.
#[derive(Debug, Default)]
pub struct Looked(Mutex<Option<(String, AckLevel, Instant)>>);

impl Looked {
    /// The level that this process kept lately. A look that came to no end in between changes nothing.
    pub fn before(&self, run_id: &str, now: Instant) -> Option<AckLevel> {
        let looked = self.0.lock();
        let (whose, level, at) = looked.as_ref()?;
        let lately = now.saturating_duration_since(*at) <= LOOK_KEPT;
        (whose == run_id && lately).then_some(*level)
    }

    /// This process keeps a level, or none.
    pub fn note(&self, run_id: String, level: Option<AckLevel>, now: Instant) {
        *self.0.lock() = level.map(|level| (run_id, level, now));
    }
}

/// Whether memory is all that is lacking: with more of it there would be a level in force.
pub fn is_full(facts: &ServerFacts, wanted: Option<AckLevel>, before: Option<AckLevel>) -> bool {
    let roomy = ServerFacts {
        memory_max: 0,
        ..facts.clone()
    };
    judge(facts, wanted, before).is_err() && judge(&roomy, wanted, before).is_ok()
}

/// What makes every other question pointless.
fn out_of_the_question(facts: &ServerFacts) -> Option<String> {
    if facts.loading {
        return Some("Redis is loading its files: wait".to_owned());
    }
    if !facts.functions {
        return Some(format!(
            "{} has no functions: use Redis 7.0 or later, or Valkey",
            facts.version
        ));
    }
    if facts.cluster {
        return Some(
            "this Redis is a node of a Cluster, which is not served yet: name a Redis with \
             cluster-enabled no in hot.url"
                .to_owned(),
        );
    }
    facts.follows.as_ref().map(|primary| {
        format!(
            "this Redis is a replica of {primary}: name the primary in hot.url, or make this one a \
             primary with REPLICAOF NO ONE"
        )
    })
}

fn of_memory(facts: &ServerFacts) -> Vec<Reason> {
    let mut reasons = Vec::new();
    if facts.eviction != "noeviction" {
        reasons.push(Trouble::Eviction.says(format!(
            "maxmemory-policy is {}, which throws shares and acknowledged grabs away when memory is \
             full: CONFIG SET maxmemory-policy noeviction, and the same in redis.conf",
            facts.eviction
        )));
    }
    let bound = facts.memory_max / 10 * MEMORY_TENTHS_MAX;
    if facts.memory_max > 0 && facts.memory_used > bound {
        reasons.push(Trouble::Memory.says(format!(
            "Redis holds {} MB of the {} MB that maxmemory allows, above 90 %: raise maxmemory, or \
             wait until settled envelopes are removed",
            facts.memory_used >> 20,
            facts.memory_max >> 20
        )));
    }
    if facts.aof_failed {
        reasons.push(Trouble::Aof.says(
            "Redis could not write its AOF and refuses writes: make room on its disk, or mend it",
        ));
    }
    if facts.snapshot_failed {
        reasons.push(Trouble::Snapshot.says(
            "Redis could not write its last snapshot and refuses writes (MISCONF): make room on its disk, or \
             mend it; or do without snapshots: CONFIG SET save \"\", and the same in redis.conf",
        ));
    }
    reasons
}

fn of_rights(facts: &ServerFacts) -> Option<Reason> {
    let user = facts.user.as_deref().unwrap_or("default");
    let why = match &facts.missing_rights {
        MissingRights::Known(missing) if missing.is_empty() => None,
        MissingRights::Known(missing) => Some(format!(
            "the Redis user {user} may not do what is needed: ACL SETUSER {user} ~{}* {}, and the \
             same in the ACL file",
            rights::KEYS,
            missing.join(" ")
        )),
        MissingRights::MayNotAsk => Some(format!(
            "the Redis user {user} may not ask what it may do: ACL SETUSER {user} +acl|whoami \
             +acl|dryrun, and the same in the ACL file"
        )),
        MissingRights::Unanswered => None,
    };
    why.map(|why| Trouble::Rights.says(why))
}

/// Why an acknowledged grab might not be on disk, or might not stay.
fn of_fsync(facts: &ServerFacts, by_name: bool, before: Option<AckLevel>) -> Vec<Reason> {
    let failover = of_failover(facts).into_iter();
    let mut reasons: Vec<_> = failover.map(|why| Trouble::Failover.says(why)).collect();
    let unsynced = of_disk(facts, by_name, before);
    reasons.extend(unsynced.map(|why| Trouble::Fsync.says(why)));
    reasons
}

/// Why it might not be on disk when it is acknowledged.
fn of_disk(facts: &ServerFacts, by_name: bool, before: Option<AckLevel>) -> Option<String> {
    let user = facts.user.as_deref().unwrap_or("default");
    match (facts.aof, facts.appendfsync.as_deref()) {
        (true, Some("always")) if facts.fsync_pauses => Some(
            "this Redis has no-appendfsync-on-rewrite yes, so nothing is synced while it saves or \
             writes its AOF anew: CONFIG SET no-appendfsync-on-rewrite no, and the same in redis.conf"
                .to_owned(),
        ),
        (true, Some("always")) if facts.aof_rewriting && before != Some(AckLevel::Fsync) => {
            Some(
                "Redis is writing its AOF anew, and a crash before that has ended may lose what is \
                 acknowledged: wait"
                    .to_owned(),
            )
        }
        (true, Some("always")) => None,
        (true, None) => Some(format!(
            "nobody can see whether appendfsync is always, since CONFIG GET is refused to the \
             Redis user {user}: ACL SETUSER {user} +config|get; where Redis is managed and CONFIG \
             is blocked, start with --ack memory (a crash may lose about 2 s of acknowledged \
             grabs) or --hot embedded"
        )),
        (aof, policy) => {
            let found = match policy {
                _ if !aof => "no AOF".to_owned(),
                Some(policy) => format!("appendfsync {policy}"),
                None => "an unknown appendfsync".to_owned(),
            };
            Some(not_synced(&found, by_name))
        }
    }
}

/// A failover would go on with a replica that lacks acknowledged grabs.
fn of_failover(facts: &ServerFacts) -> Vec<String> {
    const LOSES: &str = "a failover would lose acknowledged grabs, so level fsync is refused";
    const WAY_OUT: &str = "or start with --ack memory, which accepts that";
    let mut reasons = Vec::new();
    if facts.replicas > 0 {
        reasons.push(format!(
            "this Redis has replicas ({}), and {LOSES}: take them away (REPLICAOF NO ONE on each), \
             {WAY_OUT}",
            facts.replicas
        ));
    }
    match facts.sentinels {
        Some(0) => {}
        Some(count) => reasons.push(format!(
            "this Redis is watched by Sentinels ({count}), and {LOSES}: SENTINEL REMOVE it on each, \
             {WAY_OUT}"
        )),
        None => reasons.push(format!(
            "nobody can see whether Sentinels watch this Redis, since PUBSUB NUMSUB is refused, and \
             {LOSES}: ACL SETUSER {} +pubsub|numsub, {WAY_OUT}",
            facts.user.as_deref().unwrap_or("default")
        )),
    }
    reasons
}

fn not_synced(found: &str, by_name: bool) -> String {
    let asked = if by_name {
        "level fsync was asked for, and "
    } else {
        ""
    };
    format!(
        "{asked}this Redis has {found}, so a crash may lose acknowledged grabs: CONFIG SET appendonly \
         yes and CONFIG SET appendfsync always, and the same in redis.conf; or start with --ack \
         ledger; or with --ack memory, which accepts that a crash forgets about 2 s of acknowledged grabs \
         (without AOF, all that is not in the books yet); or with --hot embedded"
    )
}

#[cfg(test)]
mod tests;
