//! What can be typed. Names of server settings come from the manual, so they are listed there only.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::{Arg, ArgMatches, Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use super::EXIT_USAGE;
use crate::config::{self, Environment, Sources};
use once::{
    MIGRATE_EXAMPLE, Migrate, RECONCILE_EXAMPLES, RESTORED_EXAMPLES, Reconcile, Restored,
    SETTINGS_OF_STORES,
};

pub use once::{Reconciling, RestoredBooks};

mod once;

/// Hands out red envelopes (lucky money) under burst load, to the last minor unit.
///
/// Without a command it serves.
#[derive(Debug, Parser)]
#[command(name = "red-envelope", version, after_help = AFTER_HELP)]
struct Typed {
    #[command(subcommand)]
    command: Option<Command>,
}

const AFTER_HELP: &str = "\
Exit codes: 0 done, 1 the answer is no, 3 no share, 64 wrong usage or configuration, 66 a file
can't be read, 69 the server can't be reached, 70 the server failed.

Client commands talk to http://127.0.0.1:50051 unless --server or RED_ENVELOPE_SERVER says
otherwise; audit talks to http://127.0.0.1:50052 (--admin, RED_ENVELOPE_ADMIN).";

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve: gRPC for clients, gRPC for operators, HTTP for probes
    Serve(Serve),
    /// Bring the schema of the books in PostgreSQL up to date, and end
    #[command(after_help = MIGRATE_EXAMPLE)]
    Migrate(Migrate),
    /// After books were restored from a backup: begin anew, before anything is served
    #[command(after_help = RESTORED_EXAMPLES)]
    Restored(Restored),
    /// Without a server: settle what is left, and audit both stores
    #[command(after_help = RECONCILE_EXAMPLES)]
    Reconcile(Reconcile),
    #[command(flatten)]
    Ask(Ask),
}

/// `serve`, besides the settings of the manual.
#[derive(Debug, Args)]
struct Serve {
    /// A file with settings
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Print the manual of all settings with their defaults, and end
    #[arg(long)]
    print_default_config: bool,
}

/// The client commands.
#[derive(Debug, Subcommand)]
pub enum Ask {
    /// Bring money in from outside
    Deposit(Transfer),
    /// Take money out
    Withdraw(Transfer),
    /// Show what somebody has
    Balance(Balance),
    /// Send an envelope
    #[command(after_help = SEND_EXAMPLES)]
    Send(Box<SendEnvelope>),
    /// Grab a share of an envelope
    Grab(Grab),
    /// Decline the share that an EXCLUSIVE envelope holds for you
    Decline(Act),
    /// Show an envelope and who got what
    Show(See),
    /// Follow an envelope until it is closed
    Watch(See),
    /// End your own envelope early; what nobody took comes back
    Recall(Act),
    /// Print the fairness proof of a closed envelope, as JSON
    Proof(See),
    /// Check a fairness proof offline
    Verify(Verify),
    /// Check that every unit of money is accounted for
    Audit(Audit),
    /// Show what the server is and promises
    Info(About),
}

const SEND_EXAMPLES: &str = "\
Examples:
  red-envelope send alice --total 88.88 CNY --shares 10 --greeting 恭喜发财
  red-envelope send alice --kind equal --each 5 CNY --shares 3 --group family
  red-envelope send alice --kind exclusive --to bob=8.88 --to carol=6.66 --currency CNY";

/// Whom to ask, and how to answer.
#[derive(Clone, Debug, Default, Args)]
pub struct At {
    /// The server's address [default: http://127.0.0.1:50051]
    #[arg(long, value_name = "URL", help_heading = "Connection")]
    pub server: Option<String>,
    /// Whose books [default: default]
    #[arg(long, value_name = "NAME", help_heading = "Connection")]
    pub tenant: Option<String>,
    /// How long one try may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 10, help_heading = "Connection",
          value_parser = clap::value_parser!(u64).range(1..=600))]
    pub timeout: u64,
    /// Answer with JSON, for programs
    #[arg(long)]
    pub json: bool,
}

/// `deposit` and `withdraw`.
#[derive(Debug, Args)]
pub struct Transfer {
    /// Whose account
    pub owner: String,
    /// How much, such as 100 CNY
    #[arg(num_args = 1..=2, required = true, value_names = ["AMOUNT", "CURRENCY"])]
    pub amount: Vec<String>,
    /// The payment's name outside, for the record
    #[arg(long, default_value = "")]
    pub reference: String,
    /// Repeat an earlier request [default: a new random one]
    #[arg(long, value_name = "ID")]
    pub request_id: Option<String>,
    #[command(flatten)]
    #[expect(
        missing_docs,
        reason = "clap would print it as the help of the first flag"
    )]
    pub at: At,
}

/// `balance`.
#[derive(Debug, Args)]
pub struct Balance {
    /// Whose account
    pub owner: String,
    /// Only this currency
    #[arg(long, value_name = "CODE", default_value = "")]
    pub currency: String,
    #[command(flatten)]
    #[expect(
        missing_docs,
        reason = "clap would print it as the help of the first flag"
    )]
    pub at: At,
}

/// How a LUCKY envelope is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SplitName {
    /// Each share uniform up to twice the mean of what remains
    DoubleMean,
    /// The total broken at random points
    BrokenStick,
    /// The same for everybody
    Even,
    /// Amounts × counts, given with --tier
    Tiers,
}

/// What an envelope does with its money.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum KindName {
    /// Random shares
    Lucky,
    /// The same amount for everybody
    Equal,
    /// Named grabbers with amounts, given with --to
    Exclusive,
}

/// `send`.
#[derive(Debug, Args)]
pub struct SendEnvelope {
    /// Who pays
    pub sender: String,
    /// What it does with its money [default: lucky, or exclusive with --to]
    #[arg(long)]
    pub kind: Option<KindName>,
    /// All shares together, such as 88.88 CNY
    #[arg(long, num_args = 1..=2, value_names = ["AMOUNT", "CURRENCY"], conflicts_with = "each")]
    pub total: Vec<String>,
    /// Each share of an equal envelope, such as 5 CNY
    #[arg(long, num_args = 1..=2, value_names = ["AMOUNT", "CURRENCY"])]
    pub each: Vec<String>,
    /// How many shares
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub shares: u32,
    /// A share of an exclusive envelope, such as bob=8.88 (repeat it)
    #[arg(long, value_name = "GRABBER=AMOUNT")]
    pub to: Vec<String>,
    /// The currency of --to
    #[arg(long, value_name = "CODE", requires = "to")]
    pub currency: Option<String>,
    /// How a lucky envelope is cut [default: double-mean]
    #[arg(long)]
    pub split: Option<SplitName>,
    /// A tier, such as 8.88x3: three shares of 8.88 (repeat it)
    #[arg(long, value_name = "AMOUNTxCOUNT")]
    pub tier: Vec<String>,
    /// The smallest share, such as 0.10
    #[arg(long, value_name = "AMOUNT")]
    pub min: Option<String>,
    /// The largest share, such as 20
    #[arg(long, value_name = "AMOUNT")]
    pub max: Option<String>,
    /// Words on the envelope
    #[arg(long, default_value = "", hide_default_value = true)]
    pub greeting: String,
    /// The picture on the envelope
    #[arg(long, value_name = "ID", default_value = "", hide_default_value = true)]
    pub cover: String,
    /// Only for members of this group
    #[arg(long, value_name = "GROUP", conflicts_with = "named")]
    pub group: Option<String>,
    /// Only for these grabbers, separated by commas
    #[arg(long, value_name = "GRABBER", value_delimiter = ',')]
    pub named: Vec<String>,
    /// Ask every grabber for the passphrase in this file (its first line)
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_prompt")]
    pub passphrase_file: Option<PathBuf>,
    /// Ask every grabber for a passphrase, read from the terminal now
    #[arg(long)]
    pub passphrase_prompt: bool,
    /// How long it can be grabbed, such as 24h, 30m, 7d [default: 24h]
    #[arg(long, value_name = "TIME")]
    pub expires: Option<String>,
    /// From when on it can be grabbed: in 10m, or 2026-02-17T00:00:00+08:00 [default: at once]
    #[arg(long, value_name = "WHEN")]
    pub open: Option<String>,
    /// Show the amounts of others only when the envelope is over
    #[arg(long)]
    pub reveal_at_end: bool,
    /// A label, such as campaign=spring (repeat it)
    #[arg(long, value_name = "KEY=VALUE")]
    pub label: Vec<String>,
    /// Repeat an earlier request [default: a new random one]
    #[arg(long, value_name = "ID")]
    pub request_id: Option<String>,
    #[command(flatten)]
    #[expect(
        missing_docs,
        reason = "clap would print it as the help of the first flag"
    )]
    pub at: At,
}

/// `grab`.
#[derive(Debug, Args)]
pub struct Grab {
    /// The envelope's id
    pub envelope: String,
    /// Who grabs
    #[arg(long = "as", value_name = "GRABBER")]
    pub grabber: String,
    /// The group through which the grab comes
    #[arg(long, default_value = "", hide_default_value = true)]
    pub group: String,
    /// The passphrase is the first line of this file
    #[arg(long, value_name = "FILE", conflicts_with = "passphrase_prompt")]
    pub passphrase_file: Option<PathBuf>,
    /// Read the passphrase from the terminal
    #[arg(long)]
    pub passphrase_prompt: bool,
    #[command(flatten)]
    #[expect(
        missing_docs,
        reason = "clap would print it as the help of the first flag"
    )]
    pub at: At,
}

/// `recall` and `decline`.
#[derive(Debug, Args)]
pub struct Act {
    /// The envelope's id
    pub envelope: String,
    /// Who does it
    #[arg(long = "as", value_name = "NAME")]
    pub person: String,
    #[command(flatten)]
    #[expect(
        missing_docs,
        reason = "clap would print it as the help of the first flag"
    )]
    pub at: At,
}

/// `show`, `watch`, `proof`.
#[derive(Debug, Args)]
pub struct See {
    /// The envelope's id
    pub envelope: String,
    /// Who looks: the sender sees more than a stranger
    #[arg(long = "as", value_name = "NAME", default_value = "guest")]
    pub viewer: String,
    /// The group through which the viewer looks
    #[arg(long, default_value = "", hide_default_value = true)]
    pub group: String,
    #[command(flatten)]
    #[expect(
        missing_docs,
        reason = "clap would print it as the help of the first flag"
    )]
    pub at: At,
}

/// `verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// The proof, as `red-envelope proof` printed it; - reads it from stdin
    pub file: PathBuf,
    /// Answer with JSON, for programs
    #[arg(long)]
    pub json: bool,
}

/// `audit`.
#[derive(Debug, Args)]
pub struct Audit {
    /// The operators' address [default: http://127.0.0.1:50052]
    #[arg(long, value_name = "URL", help_heading = "Connection")]
    pub admin: Option<String>,
    /// Only this tenant [default: all]
    #[arg(long, value_name = "NAME")]
    pub tenant: Option<String>,
    /// Only the envelopes that the hot store holds, and no account: cheap enough for every minute. One that the hot
    /// store has lost is not seen
    #[arg(long)]
    pub hot_only: bool,
    /// Who asks, for the record
    #[arg(long, value_name = "NAME", default_value = "command-line")]
    pub operator: String,
    /// Why, for the record
    #[arg(
        long,
        value_name = "WORDS",
        default_value = "asked on the command line"
    )]
    pub reason: String,
    /// How long the audit may take, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 600, help_heading = "Connection",
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub timeout: u64,
    /// Answer with JSON, for programs
    #[arg(long)]
    pub json: bool,
}

/// `info`.
#[derive(Debug, Args)]
pub struct About {
    #[command(flatten)]
    #[expect(
        missing_docs,
        reason = "clap would print it as the help of the first flag"
    )]
    pub at: At,
}

impl Ask {
    /// Whether the answer is for a program.
    pub(super) fn wants_json(&self) -> bool {
        match self {
            Self::Deposit(args) | Self::Withdraw(args) => args.at.json,
            Self::Balance(args) => args.at.json,
            Self::Send(args) => args.at.json,
            Self::Grab(args) => args.at.json,
            Self::Decline(args) | Self::Recall(args) => args.at.json,
            Self::Show(args) | Self::Watch(args) | Self::Proof(args) => args.at.json,
            Self::Verify(args) => args.json,
            Self::Audit(args) => args.json,
            Self::Info(args) => args.at.json,
        }
    }
}

/// What the program was asked to do.
#[derive(Debug)]
pub enum Invocation {
    /// Serve under this configuration.
    Serve(Sources),
    /// Bring the schema of the books up to date, and give this role the rights of a server.
    Migrate(Sources, Option<String>),
    /// Begin anew after a restore.
    Restored(RestoredBooks),
    /// Settle what is left, and audit.
    Reconcile(Reconciling),
    /// Print the manual.
    PrintDefaultConfig,
    /// Ask a server.
    Ask(Ask),
    /// Print this, to stdout if the code is 0, and end with the code.
    Say(String, u8),
}

/// Settings that a command line names often, and the shorter flag.
const SHORT_FLAGS: [(&str, &str); 4] = [
    ("hot.url", "hot"),
    ("hot.ack", "ack"),
    ("ledger.url", "ledger"),
    ("process.role", "role"),
];

fn command() -> clap::Command {
    let all = || config::settings().iter();
    let is_of_stores = |setting: &&config::Setting| {
        let mut begin = SETTINGS_OF_STORES.iter();
        begin.any(|prefix| setting.key.starts_with(prefix))
    };
    let of_stores = || all().filter(is_of_stores).map(flag_of);
    Typed::command()
        .mut_subcommand("serve", |serve| serve.args(all().map(flag_of)))
        .mut_subcommand("migrate", |migrate| {
            let of_the_books = all().filter(|setting| setting.key == "ledger.url");
            migrate.args(of_the_books.map(flag_of))
        })
        .mut_subcommand("restored", |restored| restored.args(of_stores()))
        .mut_subcommand("reconcile", |reconcile| reconcile.args(of_stores()))
}

fn flag_of(setting: &'static config::Setting) -> Arg {
    let short = SHORT_FLAGS.iter().find(|(key, _)| *key == setting.key);
    Arg::new(setting.key.as_str())
        .long(setting.flag_name.as_str())
        .visible_aliases(short.map(|(_, flag)| *flag))
        .value_name("VALUE")
        .help(format!("{} [default: {}]", setting.help, setting.default))
        .help_heading("Settings")
}

/// Reads the command line.
pub fn parse(words: impl IntoIterator<Item = OsString>, environment: &Environment) -> Invocation {
    let matches = match command().try_get_matches_from(words) {
        Ok(matches) => matches,
        Err(told) => {
            let code = if told.use_stderr() { EXIT_USAGE } else { 0 };
            let text = if environment.colours {
                told.render().ansi().to_string()
            } else {
                told.render().to_string()
            };
            return Invocation::Say(text, code);
        }
    };
    let typed = Typed::from_arg_matches(&matches).expect("the same definition made the matches");
    match typed.command {
        Some(Command::Ask(ask)) => Invocation::Ask(ask),
        Some(Command::Serve(serve)) if serve.print_default_config => Invocation::PrintDefaultConfig,
        Some(Command::Serve(serve)) => Invocation::Serve(Sources {
            flags: flags(&matches, "serve"),
            file: serve.config,
            environment: environment.clone(),
        }),
        Some(Command::Migrate(migrate)) => Invocation::Migrate(
            Sources {
                flags: flags(&matches, "migrate"),
                file: migrate.config,
                environment: environment.clone(),
            },
            migrate.grant_to,
        ),
        Some(Command::Restored(restored)) => {
            let flags = flags(&matches, "restored");
            Invocation::Restored(restored.under(flags, environment))
        }
        Some(Command::Reconcile(reconcile)) => {
            let flags = flags(&matches, "reconcile");
            Invocation::Reconcile(reconcile.under(flags, environment))
        }
        None => Invocation::Serve(Sources {
            environment: environment.clone(),
            ..Sources::default()
        }),
    }
}

fn flags(matches: &ArgMatches, of: &str) -> std::collections::BTreeMap<String, String> {
    let typed = matches.subcommand_matches(of);
    let given = |setting: &config::Setting| {
        let text = typed?.try_get_one::<String>(&setting.key).ok().flatten()?;
        Some((setting.key.clone(), text.clone()))
    };
    config::settings().iter().filter_map(given).collect()
}

#[cfg(test)]
mod tests;
