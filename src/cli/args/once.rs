//! Commands that an operator runs once, without a server: `migrate`, `restored`, `reconcile`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;

use crate::config::{Environment, Sources};

/// `migrate`, besides where the books are.
#[derive(Debug, Args)]
pub(super) struct Migrate {
    /// A file with settings
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// The role under which servers run: it is given the rights that they need, and no other
    #[arg(long, value_name = "ROLE")]
    pub(super) grant_to: Option<String>,
}

pub(super) const MIGRATE_EXAMPLE: &str = "\
Example:
  red-envelope migrate --ledger postgresql://owner@db.internal:5432/books --grant-to red_envelope
A server that may change the schema does the same when it starts.";

/// `restored`, besides where the stores are.
#[derive(Debug, Args)]
pub(super) struct Restored {
    /// A file with settings
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Who says so, for the record
    #[arg(long, value_name = "NAME")]
    pub(super) operator: String,
    /// Why, for the record
    #[arg(long, value_name = "WORDS")]
    pub(super) reason: String,
    /// Answer with JSON, for programs
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) const RESTORED_EXAMPLES: &str = "\
Examples:
  red-envelope restored --data-dir /var/lib/red-envelope --operator olga --reason 'disk lost'
  red-envelope restored --ledger postgresql://red_envelope@10.0.0.8/books --hot redis://10.0.0.7 \\
      --data-dir one --operator olga --reason 'disk lost' --json >> restored.json
Stop every server first. It lists what the hot store holds and the books don't know, with everybody who
was told of a share, before it takes that out: keep the list.";

/// `reconcile`, besides where the stores are.
#[derive(Debug, Args)]
pub(super) struct Reconcile {
    /// A file with settings
    #[arg(long, value_name = "FILE")]
    pub(super) config: Option<PathBuf>,
    /// Who asks, for the record
    #[arg(long, value_name = "NAME", default_value = "command-line")]
    pub(super) operator: String,
    /// Why, for the record
    #[arg(
        long,
        value_name = "WORDS",
        default_value = "asked on the command line"
    )]
    pub(super) reason: String,
    /// How long it may take, in seconds; what was done by then stands
    #[arg(long, value_name = "SECONDS", default_value_t = 3_600,
          value_parser = clap::value_parser!(u64).range(1..=86_400))]
    pub(super) timeout: u64,
    /// Answer with JSON, for programs
    #[arg(long)]
    pub(super) json: bool,
}

pub(super) const RECONCILE_EXAMPLES: &str = "\
Examples:
  red-envelope reconcile --data-dir /var/lib/red-envelope
  red-envelope reconcile --ledger postgresql://red_envelope@10.0.0.8/books --hot redis://10.0.0.7 \\
      --data-dir one --json
It settles and closes what is left, and then compares every unit. Ends with 0 if all is accounted for.";

/// Stores that are reconciled: where they are, and who asks.
#[derive(Debug)]
pub struct Reconciling {
    /// The configuration under which they are served.
    pub sources: Sources,
    /// Who.
    pub operator: String,
    /// Why.
    pub reason: String,
    /// How long it may take.
    pub timeout: Duration,
    /// The answer is for a program.
    pub json: bool,
}

/// The settings of `restored` and `reconcile` begin with one of these.
pub(super) const SETTINGS_OF_STORES: [&str; 5] = ["data.", "hot.", "redis.", "ledger.", "log."];

/// Books that were restored: where they are, and who says so.
#[derive(Debug)]
pub struct RestoredBooks {
    /// The configuration under which they are served.
    pub sources: Sources,
    /// Who.
    pub operator: String,
    /// Why.
    pub reason: String,
    /// The answer is for a program.
    pub json: bool,
}

type Flags = BTreeMap<String, String>;

impl Restored {
    pub(super) fn under(self, flags: Flags, environment: &Environment) -> RestoredBooks {
        RestoredBooks {
            sources: Sources {
                flags,
                file: self.config,
                environment: environment.clone(),
            },
            operator: self.operator,
            reason: self.reason,
            json: self.json,
        }
    }
}

impl Reconcile {
    pub(super) fn under(self, flags: Flags, environment: &Environment) -> Reconciling {
        Reconciling {
            sources: Sources {
                flags,
                file: self.config,
                environment: environment.clone(),
            },
            operator: self.operator,
            reason: self.reason,
            timeout: Duration::from_secs(self.timeout),
            json: self.json,
        }
    }
}
