//! Asks a Redis or Valkey about itself. Features are probed, since versions lie: Valkey says 7.2.4.
//!
//! # Bounds
//! Two round trips of [`rights::COMMANDS`] and six more commands, none of which writes or takes
//! longer than it has lines to answer.

use std::collections::HashMap;

use redis::aio::ConnectionLike;
use redis::{Cmd, Pipeline, RedisError, Value};

use super::rights;
use super::{MissingRights, ServerFacts};

/// Why the facts are not known. The sentence says what to change.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CheckError {
    /// The connection broke, or nothing was answered in time.
    #[error("Redis did not answer: {0}")]
    Unreachable(String),
    /// Not even INFO is allowed.
    #[error(
        "the Redis user may not run INFO, so nothing is known of this Redis: give it the rights \
         that docs/RUNBOOK.md lists ({0})"
    )]
    Refused(String),
}

/// Each Sentinel that watches a server subscribes to this channel of it.
const SENTINEL_CHANNEL: &str = "__sentinel__:hello";

/// Asks for everything that `judge` wants to know.
///
/// # Errors
/// Nothing is known: nothing may be acknowledged.
pub async fn gather(connection: &mut impl ConnectionLike) -> Result<ServerFacts, CheckError> {
    let mut questions = Pipeline::new();
    questions.cmd("INFO");
    questions.cmd("CONFIG").arg("GET").arg("appendfsync");
    questions
        .cmd("CONFIG")
        .arg("GET")
        .arg("no-appendfsync-on-rewrite");
    questions.cmd("PUBSUB").arg("NUMSUB").arg(SENTINEL_CHANNEL);
    // Of a library that nobody has: the answer is short, or an error where functions are unknown.
    questions
        .cmd("FUNCTION")
        .arg("LIST")
        .arg("LIBRARYNAME")
        .arg("none");
    questions.cmd("ACL").arg("WHOAMI");
    questions.cmd("CONFIG").arg("GET").arg("save");
    questions
        .cmd("CONFIG")
        .arg("GET")
        .arg("stop-writes-on-bgsave-error");
    let answers = ask(connection, &questions).await?;
    let [info, fsync, pauses, sentinels, functions, user, save, stops] = eight(answers)?;
    if let Value::ServerError(error) = &info {
        return Err(CheckError::Refused(error.to_string()));
    }
    let mut facts = facts_of(&text(&info).unwrap_or_default());
    if facts.loading {
        return Ok(facts);
    }
    facts.appendfsync = last_text(&fsync);
    facts.fsync_pauses = last_text(&pauses).as_deref() == Some("yes");
    // Where nobody may ask, the refused writes say it.
    facts.snapshot_failed &= last_text(&save).is_some_and(|points| !points.is_empty())
        && last_text(&stops).as_deref() == Some("yes");
    facts.sentinels = last_number(&sentinels);
    facts.functions = !is_unknown_command(&functions);
    facts.user = text(&user);
    facts.missing_rights = match &facts.user {
        Some(user) => missing_rights(connection, user).await?,
        None if is_forbidden(&user) => MissingRights::MayNotAsk,
        None => MissingRights::Unanswered,
    };
    Ok(facts)
}

async fn missing_rights(
    connection: &mut impl ConnectionLike,
    user: &str,
) -> Result<MissingRights, CheckError> {
    let mut questions = Pipeline::with_capacity(rights::COMMANDS.len());
    for command in rights::COMMANDS {
        let mut question = Cmd::new();
        question.arg("ACL").arg("DRYRUN").arg(user);
        for word in rights::words(command) {
            question.arg(word);
        }
        questions.add_command(question);
    }
    let answers = ask(connection, &questions).await?;
    let mut missing = Vec::new();
    for (command, answer) in rights::COMMANDS.iter().zip(&answers) {
        match answer {
            Value::Okay => {}
            Value::ServerError(_) if is_forbidden(answer) => return Ok(MissingRights::MayNotAsk),
            // A command that this server does not know is not one of its rights.
            Value::ServerError(error)
                if error.details().is_some_and(|d| d.contains("not found")) => {}
            Value::ServerError(_) => return Ok(MissingRights::Unanswered),
            _ => missing.push(format!("+{}", rights::rule(command))),
        }
    }
    Ok(MissingRights::Known(missing))
}

async fn ask(
    connection: &mut impl ConnectionLike,
    questions: &Pipeline,
) -> Result<Vec<Value>, CheckError> {
    let answers = connection.req_packed_commands(questions, 0, questions.len());
    let unreachable = |error: RedisError| CheckError::Unreachable(error.to_string());
    answers.await.map_err(unreachable)
}

fn eight(answers: Vec<Value>) -> Result<[Value; 8], CheckError> {
    let wrong = |answers: Vec<Value>| {
        CheckError::Unreachable(format!("{} answers to eight questions", answers.len()))
    };
    answers.try_into().map_err(wrong)
}

fn facts_of(text: &str) -> ServerFacts {
    let lines = text.lines().filter_map(|line| line.split_once(':'));
    let fields: HashMap<&str, &str> = lines.collect();
    let word = |name: &str| fields.get(name).copied().unwrap_or_default();
    let number = |name: &str| word(name).parse::<u64>().unwrap_or(0);
    let yes = |name: &str| word(name) == "1";
    let version = match (word("valkey_version"), word("redis_version")) {
        ("", redis) => format!("Redis {redis}"),
        (valkey, _) => format!("Valkey {valkey}"),
    };
    let follows = format!("{}:{}", word("master_host"), word("master_port"));
    ServerFacts {
        version,
        loading: yes("loading"),
        follows: (word("role") != "master").then_some(follows),
        replicas: number("connected_slaves"),
        cluster: yes("cluster_enabled"),
        eviction: word("maxmemory_policy").to_owned(),
        // Buffers of replicas and of the AOF don't count against maxmemory.
        memory_used: number("used_memory").saturating_sub(number("mem_not_counted_for_evict")),
        memory_max: number("maxmemory"),
        aof: yes("aof_enabled"),
        aof_rewriting: yes("aof_rewrite_in_progress") || yes("aof_rewrite_scheduled"),
        aof_failed: word("aof_last_write_status") == "err",
        snapshot_failed: word("rdb_last_bgsave_status") == "err",
        run_id: word("run_id").to_owned(),
        ..ServerFacts::default()
    }
}

fn text(value: &Value) -> Option<String> {
    match value {
        Value::BulkString(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
        Value::SimpleString(text) | Value::VerbatimString { text, .. } => Some(text.clone()),
        _ => None,
    }
}

/// The value of the last pair, whichever way the protocol tells pairs.
fn last(value: &Value) -> Option<&Value> {
    match value {
        Value::Array(items) => items.last(),
        Value::Map(pairs) => pairs.last().map(|(_, value)| value),
        _ => None,
    }
}

fn last_text(value: &Value) -> Option<String> {
    last(value).and_then(text)
}

fn last_number(value: &Value) -> Option<u64> {
    match last(value)? {
        Value::Int(number) => u64::try_from(*number).ok(),
        other => text(other)?.parse().ok(),
    }
}

fn is_forbidden(value: &Value) -> bool {
    matches!(value, Value::ServerError(error) if error.code() == "NOPERM")
}

fn is_unknown_command(value: &Value) -> bool {
    match value {
        Value::ServerError(error) => {
            error.code() == "ERR"
                && error
                    .details()
                    .is_some_and(|d| d.contains("unknown command"))
        }
        _ => false,
    }
}
