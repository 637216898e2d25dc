//! Errors that are planted into the books of a real server, between the last close and the audit: the run
//! must fail and say what is wrong.
//!
//! Both are planted as a careful thief would: every posting adds up, every balance is the sum of its
//! entries, and no constraint is broken.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{Folder, LOADTEST};

/// The first claim that is not its envelope's best luck, with its posting and accounts. A claim has the row
/// of the entry that credits its grabber.
const CHOOSE: &str = "
PRAGMA busy_timeout = 30000;
BEGIN IMMEDIATE;
CREATE TEMP TABLE it AS
    SELECT claim.row, claim.envelope_row, claim.share, claim.amount_minor, claim.grabber,
        entry.account_row, entry.posting_row, sender.row AS sender_row
    FROM claim
    JOIN entry ON entry.row = claim.row
    JOIN envelope ON envelope.row = claim.envelope_row
    JOIN account AS sender ON sender.owner = envelope.sender AND sender.currency = envelope.currency
        AND sender.tenant = envelope.tenant AND sender.kind = 'owner'
    WHERE envelope.state = 'closed' AND envelope.best_claim <> claim.row
    ORDER BY claim.row LIMIT 1;";

/// The same share once more, out of the envelope's escrow and into its grabber's account.
const PAID_TWICE: &str = "
INSERT INTO posting (tenant, kind, currency, envelope_row, share_count, reference, posted_at)
    SELECT tenant, kind, currency, posting.envelope_row, 1, reference, posted_at
    FROM posting JOIN it ON posting.row = it.posting_row;
INSERT INTO entry (posting_row, envelope_row, amount_minor)
    SELECT (SELECT max(row) FROM posting), envelope_row, -amount_minor FROM it;
INSERT INTO entry (posting_row, account_row, amount_minor, share)
    SELECT (SELECT max(row) FROM posting), account_row, amount_minor, share FROM it;
UPDATE account SET available_minor = available_minor + (SELECT amount_minor FROM it)
    WHERE row = (SELECT account_row FROM it);";

/// The share was never paid: the sender has its money back, and the envelope's row says so.
const LOST: &str = "
DROP TRIGGER claim_is_not_deleted;
DROP TRIGGER entry_is_not_deleted;
DROP TRIGGER envelope_stays_closed;
DELETE FROM claim WHERE row = (SELECT row FROM it);
DELETE FROM entry WHERE row = (SELECT row FROM it);
INSERT INTO entry (posting_row, account_row, amount_minor)
    SELECT posting_row, sender_row, amount_minor FROM it;
UPDATE account SET available_minor = available_minor - (SELECT amount_minor FROM it)
    WHERE row = (SELECT account_row FROM it);
UPDATE account SET available_minor = available_minor + (SELECT amount_minor FROM it)
    WHERE row = (SELECT sender_row FROM it);
UPDATE envelope SET settled_count = settled_count - 1,
    settled_minor = settled_minor - (SELECT amount_minor FROM it),
    refunded_minor = refunded_minor + (SELECT amount_minor FROM it)
    WHERE row = (SELECT envelope_row FROM it);";

/// The same in PostgreSQL, where a share's claim is the credit of its grabber. Triggers and foreign keys are off, as a
/// thief who owns the database has them.
const CHOOSE_IN_POSTGRES: &str = "
BEGIN;
SET LOCAL search_path = red_envelope;
SET LOCAL session_replication_role = replica;
CREATE TEMP TABLE it AS
    SELECT c.row, c.envelope_row, c.share, c.amount_minor, c.account_row, c.posting_row, g.owner AS grabber,
        s.row AS sender_row, (SELECT max(row) + 1 FROM posting) AS new_posting,
        (SELECT greatest((SELECT max(row) FROM entry), (SELECT max(row) FROM claim)) + 1) AS new_entry
    FROM claim c JOIN envelope n ON n.row = c.envelope_row
        JOIN posting p ON p.row = c.posting_row
        JOIN account g ON g.row = c.account_row
        JOIN account s ON s.tenant = n.tenant AND s.kind = 'owner' AND s.owner = n.sender
            AND s.currency = n.currency
    WHERE n.state = 'closed' AND n.best_share <> c.share AND p.share_count > 1 AND NOT c.declined
    ORDER BY c.row LIMIT 1;";

const PAID_TWICE_IN_POSTGRES: &str = "
INSERT INTO posting (row, tenant, kind, currency, envelope_row, share_count, reference, posted_at)
    SELECT new_posting, tenant, kind, currency, p.envelope_row, 1, reference, posted_at
    FROM posting p JOIN it ON p.row = it.posting_row;
INSERT INTO entry (row, posting_row, envelope_row, amount_minor)
    SELECT new_entry, new_posting, envelope_row, -amount_minor FROM it;
INSERT INTO entry (row, posting_row, account_row, amount_minor)
    SELECT new_entry + 1, new_posting, account_row, amount_minor FROM it;
UPDATE account SET available_minor = available_minor + (SELECT amount_minor FROM it)
    WHERE row = (SELECT account_row FROM it);";

const LOST_IN_POSTGRES: &str = "
DELETE FROM claim c USING it WHERE c.envelope_row = it.envelope_row AND c.share = it.share;
UPDATE posting p SET share_count = p.share_count - 1 FROM it WHERE p.row = it.posting_row;
UPDATE entry e SET amount_minor = e.amount_minor + it.amount_minor FROM it
    WHERE e.posting_row = it.posting_row AND e.envelope_row IS NOT NULL;
INSERT INTO posting (row, tenant, kind, currency, envelope_row, share_count, reference, posted_at)
    SELECT new_posting, tenant, 'refund', currency, p.envelope_row, 0, reference, posted_at
    FROM posting p JOIN it ON p.row = it.posting_row;
INSERT INTO entry (row, posting_row, envelope_row, amount_minor)
    SELECT new_entry, new_posting, envelope_row, -amount_minor FROM it;
INSERT INTO entry (row, posting_row, account_row, amount_minor)
    SELECT new_entry + 1, new_posting, sender_row, amount_minor FROM it;
UPDATE account a SET available_minor = a.available_minor - it.amount_minor FROM it
    WHERE a.row = it.account_row;
UPDATE account a SET available_minor = a.available_minor + it.amount_minor FROM it
    WHERE a.row = it.sender_row;
UPDATE envelope n SET settled_count = n.settled_count - 1,
    settled_minor = n.settled_minor - it.amount_minor,
    refunded_minor = n.refunded_minor + it.amount_minor
    FROM it WHERE n.row = it.envelope_row;";

/// What a run leaves behind.
struct Failed {
    words: String,
    report: serde_json::Value,
    /// Whose share it is.
    grabber: String,
}

/// A run whose books are edited when all envelopes have closed.
fn edited(name: &str, stack: &str, edit: &str) -> Failed {
    let folder = Folder::new(&format!("{name}-{stack}"));
    let json = folder.0.join("report.json");
    let mut run = Command::new(LOADTEST)
        .arg(folder.profile())
        .args(["--stack", stack, "--json"])
        .arg(&json)
        // It waits for a line, which comes when the edit is done; if this test panics, its input ends.
        .args([
            "--meanwhile",
            "closed=echo closed $RED_ENVELOPE_LOADTEST_FOLDER $RED_ENVELOPE_LOADTEST_STORES; read -r done",
        ])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut told = BufReader::new(run.stdout.take().unwrap());
    let mut line = String::new();
    told.read_line(&mut line).unwrap();
    let told_at = line.strip_prefix("closed ").map(str::split_whitespace);
    let mut told_at = told_at.unwrap_or_else(|| panic!("it did not come to a close: {line}"));
    let kept = PathBuf::from(told_at.next().unwrap());
    let grabber = match told_at.skip_while(|word| *word != "--ledger").nth(1) {
        Some(books) => plant_in_postgres(books, edit),
        None => plant(&kept.join("data/ledger.sqlite"), edit),
    };
    run.stdin.take().unwrap().write_all(b"done\n").unwrap();
    let mut words = String::new();
    told.read_to_string(&mut words).unwrap();
    let status = run.wait().unwrap();
    // A run that failed keeps what it is about.
    std::fs::remove_dir_all(kept).unwrap();

    assert_eq!(status.code(), Some(1), "{words}");
    assert!(words.ends_with("FAILED\n"), "{words}");
    let report = serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap();
    Failed {
        words,
        report,
        grabber,
    }
}

fn plant(books: &Path, edit: &str) -> String {
    let books = rusqlite::Connection::open(books).unwrap();
    books.execute_batch(&format!("{CHOOSE}{edit}")).unwrap();
    let grabber = books.query_row("SELECT grabber FROM it", [], |row| row.get(0));
    books.execute_batch("COMMIT").unwrap();
    grabber.unwrap()
}

/// The programs are those of the tests (`scripts/with-servers`), or on the path.
fn plant_in_postgres(books: &str, edit: &str) -> String {
    let script = format!("{CHOOSE_IN_POSTGRES}{edit}\nSELECT grabber FROM it; COMMIT");
    let psql = r#"exec "${RED_ENVELOPE_POSTGRES:+$RED_ENVELOPE_POSTGRES/}psql" "$@""#;
    let done = Command::new("sh")
        .args(["-c", psql, "sh"])
        .args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align"])
        .args(["--set", "ON_ERROR_STOP=1", "--command", &script])
        .arg(books)
        .output()
        .unwrap();
    let wrong = String::from_utf8_lossy(&done.stderr);
    assert!(done.status.success(), "{wrong}");
    let grabber = String::from_utf8(done.stdout).unwrap().trim().to_owned();
    assert!(!grabber.is_empty(), "no claim could be chosen");
    grabber
}

impl Failed {
    /// The audit by itself names it, and so does the comparison with what people were told.
    fn tells(&self, discrepancy: &str) {
        let Self {
            words,
            report,
            grabber,
        } = self;
        assert_eq!(report["passed"], false, "{report:#}");
        assert_eq!(report["audit"]["clean"], false, "{report:#}");
        let found = report["audit"]["discrepancies"].as_array().unwrap();
        let mut found = found.iter().map(|it| it.as_str().unwrap());
        assert!(found.any(|it| it.contains(discrepancy)), "{report:#}");
        let mut wrong = words.lines().filter(|line| line.starts_with("WRONG"));
        let account = format!("{grabber} has ");
        assert!(wrong.any(|line| line.contains(&account)), "{words}");
        assert!(words.contains(discrepancy), "{words}");
    }
}

#[test]
fn a_payment_that_is_made_twice_fails_the_run_and_is_named() {
    let failed = edited("paid-twice", "embedded", PAID_TWICE);
    failed.tells("entries out of the escrow: found");
    let failed = edited("paid-twice", "redis+postgres", PAID_TWICE_IN_POSTGRES);
    failed.tells("its claims are 0 over 0");
}

#[test]
fn an_acknowledged_grab_that_is_lost_fails_the_run_and_is_named() {
    for stack in ["embedded", "redis"] {
        edited("lost", stack, LOST).tells("GRANT_WITHOUT_CLAIM");
    }
    let failed = edited("lost", "redis+postgres", LOST_IN_POSTGRES);
    failed.tells("GRANT_WITHOUT_CLAIM");
}
