//! The command line: a client of the public contract, like any other.
//!
//! # Shape
//! | part | what |
//! |---|---|
//! | `args` | what can be typed |
//! | `call` | the connection, deadlines, repeating, errors as sentences |
//! | `send`, `grab`, `see`, `money`, `fair`, `operate` | the commands, by who needs them |
//! | `words`, `shapes` | answers for people, answers for programs |
//!
//! A command returns what it has to say as a [`Told`]; [`run`] prints it. People read stdout,
//! diagnostics go to stderr; `--json` prints one document (`watch`: one a line) on stdout.
//!
//! # Exit codes
//! | code | means |
//! |---|---|
//! | 0 | done |
//! | 1 | the answer is no: refused by a rule, not found, an audit with discrepancies, a proof that does not hold |
//! | 3 | no share: the envelope is empty, over, not open yet, or refuses this grabber |
//! | 64 | the command or the configuration is wrong, and says how to write it |
//! | 66 | a file can't be read |
//! | 69 | the server can't be reached, or is too busy after every try |
//! | 70 | the server failed, or stopped itself to protect the money |
//!
//! # Not here
//! Serving: `main` does that. Money rules: the server judges, this only asks.

pub mod args;

mod call;
mod fair;
mod grab;
mod money;
mod operate;
mod see;
mod send;
mod shapes;
mod words;

use std::io::Write;

use red_envelope_proto::v1;
use serde_json::Value;

use crate::config::Environment;
use args::Ask;

/// Done.
pub const EXIT_OK: u8 = 0;
/// The answer is no.
pub const EXIT_NO: u8 = 1;
/// No share for this grabber.
pub const EXIT_NO_SHARE: u8 = 3;
/// Wrong usage or configuration.
pub const EXIT_USAGE: u8 = 64;
/// A file can't be read.
pub const EXIT_NO_INPUT: u8 = 66;
/// The server can't be reached.
pub const EXIT_UNAVAILABLE: u8 = 69;
/// The server failed.
pub const EXIT_SOFTWARE: u8 = 70;

/// What a command has to say.
#[derive(Debug)]
struct Told {
    /// For people: whole lines.
    words: String,
    /// For programs.
    json: Value,
    exit: u8,
}

impl Told {
    fn ok(words: String, json: Value) -> Self {
        Self {
            words,
            json,
            exit: EXIT_OK,
        }
    }

    fn ending(self, exit: u8) -> Self {
        Self { exit, ..self }
    }
}

/// A failure as a sentence that says what to do.
#[derive(Debug)]
pub struct Failed {
    sentence: String,
    /// Stable name for programs.
    reason: String,
    exit: u8,
    /// What an account has and what was asked of it, in minor units, where that is the failure.
    short: Option<(i64, i64)>,
}

impl Failed {
    fn usage(sentence: impl Into<String>) -> Self {
        Self {
            sentence: sentence.into(),
            reason: "USAGE".to_owned(),
            exit: EXIT_USAGE,
            short: None,
        }
    }

    fn no_input(sentence: String) -> Self {
        Self {
            sentence,
            reason: "NO_INPUT".to_owned(),
            exit: EXIT_NO_INPUT,
            short: None,
        }
    }
}

/// What `reconcile` tells, in words or for programs, and the code with which it ends.
pub fn reconciled(
    healed: &[(&str, usize)],
    report: &v1::AuditResponse,
    json: bool,
    environment: &Environment,
) -> (String, u8) {
    let style = words::Style {
        colours: environment.colours && !json,
    };
    operate::reconciled(healed, report, json, style)
}

/// Runs one client command to its end and answers the exit code.
pub async fn run(ask: Ask, environment: &Environment) -> u8 {
    let json = ask.wants_json();
    let style = words::Style {
        colours: environment.colours && !json,
    };
    let told = match ask {
        Ask::Deposit(args) => money::deposit(args, environment).await,
        Ask::Withdraw(args) => money::withdraw(args, environment).await,
        Ask::Balance(args) => money::balance(args, environment, style).await,
        Ask::Send(args) => send::send(*args, environment, style).await,
        Ask::Grab(args) => grab::grab(args, environment, style).await,
        Ask::Decline(args) => grab::decline(args, environment).await,
        Ask::Show(args) => see::show(args, environment, style).await,
        Ask::Watch(args) => see::watch(args, environment, style).await,
        Ask::Recall(args) => send::recall(args, environment, style).await,
        Ask::Proof(args) => fair::proof(args, environment).await,
        Ask::Verify(args) => fair::verify(&args, style),
        Ask::Audit(args) => operate::audit(args, environment, style).await,
        Ask::Info(args) => operate::about(args, environment).await,
    };
    match told {
        Ok(told) => {
            print(json, &told.words, &told.json);
            told.exit
        }
        Err(failed) => {
            if json {
                let error = serde_json::json!({
                    "error": { "reason": failed.reason, "message": failed.sentence }
                });
                print(true, "", &error);
            } else {
                eprintln!("red-envelope: {}", failed.sentence);
            }
            failed.exit
        }
    }
}

/// One document on stdout. A reader that went away (`| head`) ends the printing, not the program.
fn print(json: bool, words: &str, document: &Value) {
    let mut out = std::io::stdout().lock();
    let _reader_left = if json {
        writeln!(out, "{document}")
    } else {
        write!(out, "{words}")
    };
    let _reader_left = out.flush();
}
