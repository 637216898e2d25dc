//! How much of the embedded store may wait and grow.

/// Grabs that may wait for the writer: a third of a second at 200,000/s, which is what a caller
/// with a deadline of one second still has a use for; 8 MiB.
pub const QUEUED_GRABS_MAX: usize = 65_536;
/// Records that may wait for the ledger before grabs are shed: 64 bytes each in memory, 256 MiB,
/// and a log of 120 MiB; the ledger's 100,000/s work it off in 40 s.
pub const UNSETTLED_RECORDS_MAX: usize = 4_000_000;
/// The log grows to this before snapshots let it be cut: 2 M grabs, which a start replays in
/// one to four seconds, by how busy the machine is. It grows beyond while the ledger is behind, and with many envelopes.
pub const LOG_BYTES_MAX: u64 = 64 << 20;
/// With many envelopes the log grows to so much for each before snapshots pay: a header dirties
/// its share of a page.
pub const LOG_BYTES_PER_ENVELOPE: u64 = 256;

/// How much may wait and grow. The defaults are the constants above; tests take less.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// See [`QUEUED_GRABS_MAX`].
    pub queued_grabs_max: usize,
    /// See [`UNSETTLED_RECORDS_MAX`].
    pub unsettled_records_max: usize,
    /// See [`LOG_BYTES_MAX`].
    pub log_bytes_max: u64,
    /// See [`LOG_BYTES_PER_ENVELOPE`].
    pub log_bytes_per_envelope: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            queued_grabs_max: QUEUED_GRABS_MAX,
            unsettled_records_max: UNSETTLED_RECORDS_MAX,
            log_bytes_max: LOG_BYTES_MAX,
            log_bytes_per_envelope: LOG_BYTES_PER_ENVELOPE,
        }
    }
}
