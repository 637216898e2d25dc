//! What the connected user must be allowed to do, and nothing else.
//!
//! # Shape
//! [`COMMANDS`] is the list: asked of the server by `gather`, and written down for operators as
//! [`acl_line`], which the RUNBOOK repeats.
//!
//! # Not here
//! Whether a command works: the registration of the library tries.

/// Every key begins with it.
pub const KEYS: &str = "re1:";

/// Each command that is sent, or that the library calls, with arguments of its arity; KEY stands
/// for a key of ours.
pub const COMMANDS: &[&str] = &[
    // What is sent.
    "PING",
    "INFO",
    "CONFIG GET appendfsync",
    "PUBSUB NUMSUB __sentinel__:hello",
    "FUNCTION LIST",
    "FUNCTION LOAD x",
    "FCALL x 1 KEY",
    "FCALL_RO x 1 KEY",
    "HGETALL KEY",
    "HSCAN KEY 0",
    "ZRANGE KEY 0 0",
    // What the library calls.
    "TIME",
    "EXISTS KEY",
    "TYPE KEY",
    "UNLINK KEY",
    "GET KEY",
    "SET KEY x",
    "GETRANGE KEY 0 0",
    "SETRANGE KEY 0 x",
    "STRLEN KEY",
    "HGET KEY x",
    "HSET KEY x x",
    "HMGET KEY x",
    "HDEL KEY x",
    "HLEN KEY",
    "RPUSH KEY x",
    "LRANGE KEY 0 0",
    "LLEN KEY",
    "XADD KEY * x x",
    "XDEL KEY 0-1",
    "XLEN KEY",
    "XRANGE KEY - +",
    "XINFO STREAM KEY",
    "ZADD KEY 0 x",
    "ZREM KEY x",
    "ZCARD KEY",
];

/// The words of a command as `ACL DRYRUN` wants them.
pub fn words(command: &str) -> impl Iterator<Item = String> {
    command.split(' ').map(|word| match word {
        "KEY" => format!("{KEYS}rights"),
        word => word.to_owned(),
    })
}

/// A command as a rule of an ACL has it: `hset`, `function|load`.
pub fn rule(command: &str) -> String {
    let mut words = command.split(' ').map(str::to_lowercase);
    let name = words.next().unwrap_or_default();
    match (name.as_str(), words.next()) {
        ("config" | "pubsub" | "function" | "xinfo", Some(sub)) => format!("{name}|{sub}"),
        _ => name,
    }
}

/// The line of an ACL file that allows this user what is needed and nothing else.
pub fn acl_line(user: &str) -> String {
    // What clients do by themselves, and the two questions that find out about rights. CLIENT
    // SETINFO, which a client may do without, is unknown to Redis 7.0, which would not start.
    let mut line = format!(
        "user {user} on >PASSWORD resetchannels ~{KEYS}* -@all +select +unwatch \
         +acl|whoami +acl|dryrun"
    );
    for command in COMMANDS {
        line.push_str(" +");
        line.push_str(&rule(command));
    }
    line
}
