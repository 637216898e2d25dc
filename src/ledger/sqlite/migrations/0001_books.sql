-- ledger.migrate_0001: the books.
--
-- Why: the first release needs accounts, postings, envelopes and claims.
-- What the previous release sees meanwhile: there is none.
--
-- The schema is the last line: it refuses what the code must not ask for. Nobody is paid twice
-- (claim_of_share, claim_of_grabber), nobody is overdrawn (account_in_bounds), no envelope gives
-- out more than was put in (envelope_not_overdrawn), and history is never changed (the triggers).
-- A mistake is corrected by another posting.

-- How this file was made. One row.
CREATE TABLE book (
    row             INTEGER NOT NULL PRIMARY KEY CHECK (row = 1),
    partition_count INTEGER NOT NULL CHECK (partition_count BETWEEN 1 AND 1024),
    created_at      INTEGER NOT NULL
) STRICT;

-- Whose money. An owner has at least nothing and at most AMOUNT_MINOR_MAX (9.0e15). The outside
-- (what was brought in, as a negative number) and the reserve may be negative; 9.0e18 is the most
-- whose sums still fit an integer of 64 bits, so all accounts of a currency together fit it too.
CREATE TABLE account (
    row             INTEGER NOT NULL PRIMARY KEY,
    tenant          TEXT    NOT NULL,
    kind            TEXT    NOT NULL CHECK (kind IN ('owner', 'outside', 'reserve')),
    owner           TEXT    NOT NULL,
    currency        TEXT    NOT NULL,
    available_minor INTEGER NOT NULL DEFAULT 0,
    CONSTRAINT account_is_one UNIQUE (tenant, kind, owner, currency),
    CONSTRAINT account_is_named CHECK ((kind = 'owner') = (owner <> '')),
    CONSTRAINT account_in_bounds CHECK (
        CASE kind
            WHEN 'owner' THEN available_minor BETWEEN 0 AND 9000000000000000
            ELSE available_minor BETWEEN -9000000000000000000 AND 9000000000000000000
        END)
) STRICT;

-- An envelope and its escrow.
CREATE TABLE envelope (
    row               INTEGER NOT NULL PRIMARY KEY,
    id                BLOB    NOT NULL UNIQUE CHECK (length(id) = 16),
    day               INTEGER NOT NULL CHECK (day BETWEEN 0 AND 65535),
    tenant            TEXT    NOT NULL,
    sender            TEXT    NOT NULL,
    currency          TEXT    NOT NULL,
    terms             TEXT    NOT NULL,
    leaf_number       INTEGER NOT NULL CHECK (leaf_number >= 0),
    share_count       INTEGER NOT NULL CHECK (share_count > 0),
    funded_minor      INTEGER NOT NULL CHECK (funded_minor BETWEEN 1 AND 9000000000000000),
    settled_count     INTEGER NOT NULL DEFAULT 0 CHECK (settled_count >= 0),
    settled_minor     INTEGER NOT NULL DEFAULT 0 CHECK (settled_minor >= 0),
    declined_count    INTEGER NOT NULL DEFAULT 0 CHECK (declined_count >= 0),
    refunded_minor    INTEGER NOT NULL DEFAULT 0 CHECK (refunded_minor >= 0),
    made_good_minor   INTEGER NOT NULL DEFAULT 0 CHECK (made_good_minor >= 0),
    best_claim        INTEGER,
    dead_letter_count INTEGER NOT NULL DEFAULT 0 CHECK (dead_letter_count >= 0),
    parked_count      INTEGER NOT NULL DEFAULT 0 CHECK (parked_count >= 0),
    state             TEXT    NOT NULL CHECK (state IN ('funding', 'live', 'closing', 'closed')),
    reason            TEXT             CHECK (reason IN ('empty', 'expired', 'recalled')),
    frozen            INTEGER NOT NULL DEFAULT 0 CHECK (frozen IN (0, 1)),
    created_at        INTEGER NOT NULL,
    expires_at        INTEGER NOT NULL,
    closed_at         INTEGER,
    CONSTRAINT envelope_of_leaf UNIQUE (tenant, leaf_number),
    CONSTRAINT envelope_not_overdrawn CHECK (settled_minor + refunded_minor <= funded_minor),
    CONSTRAINT envelope_not_overclaimed CHECK (settled_count + declined_count <= share_count),
    CONSTRAINT envelope_over_for_a_reason CHECK (
        (state IN ('closing', 'closed')) = (reason IS NOT NULL)),
    CONSTRAINT envelope_closed_in_balance CHECK (
        state <> 'closed' OR (
            settled_minor + refunded_minor = funded_minor AND closed_at IS NOT NULL
            AND dead_letter_count = 0 AND parked_count = 0))
) STRICT;

-- ListSentEnvelopes.
CREATE INDEX envelope_of_sender ON envelope (tenant, sender);
-- What a sender's open envelopes hold; covers the sum.
CREATE INDEX envelope_open_of_sender
    ON envelope (tenant, sender, currency, funded_minor, settled_minor, refunded_minor)
    WHERE state <> 'closed';
-- The sweeper's four questions, each by row.
CREATE INDEX envelope_expiring ON envelope (expires_at)
    WHERE state IN ('funding', 'live') AND frozen = 0;
CREATE INDEX envelope_unpublished ON envelope (row)
    WHERE state = 'funding' AND frozen = 0;
CREATE INDEX envelope_empty ON envelope (row)
    WHERE state = 'live' AND frozen = 0 AND settled_count + declined_count = share_count;
CREATE INDEX envelope_closing ON envelope (row)
    WHERE state = 'closing' AND frozen = 0;
-- What was parked and may be settled now.
CREATE INDEX envelope_parked ON envelope (row)
    WHERE parked_count > 0 AND frozen = 0;

-- Why money moved. Its entries sum to zero; `share_count` says how many shares it paid.
CREATE TABLE posting (
    row          INTEGER NOT NULL PRIMARY KEY,
    tenant       TEXT    NOT NULL,
    kind         TEXT    NOT NULL CHECK (
        kind IN ('deposit', 'withdrawal', 'fund', 'settle', 'refund', 'make_good')),
    currency     TEXT    NOT NULL,
    envelope_row INTEGER REFERENCES envelope (row),
    share_count  INTEGER NOT NULL DEFAULT 0 CHECK (share_count >= 0),
    reference    TEXT    NOT NULL DEFAULT '',
    posted_at    INTEGER NOT NULL,
    CONSTRAINT posting_of_envelope CHECK (
        (kind IN ('deposit', 'withdrawal')) = (envelope_row IS NULL))
) STRICT;

-- One debit (negative) or credit (positive), of an account or of an envelope's escrow.
CREATE TABLE entry (
    row          INTEGER NOT NULL PRIMARY KEY,
    posting_row  INTEGER NOT NULL REFERENCES posting (row),
    account_row  INTEGER REFERENCES account (row),
    envelope_row INTEGER REFERENCES envelope (row),
    amount_minor INTEGER NOT NULL CHECK (
        amount_minor <> 0 AND amount_minor BETWEEN -9000000000000000 AND 9000000000000000),
    share        INTEGER,
    CONSTRAINT entry_has_one_side CHECK ((account_row IS NULL) <> (envelope_row IS NULL)),
    CONSTRAINT entry_of_share_pays CHECK (
        share IS NULL OR (account_row IS NOT NULL AND amount_minor > 0))
) STRICT;

-- An account's history, and within it the shares it was paid: one index serves ListEntries (both
-- halves merged by row) and ListReceivedShares (the second half), because a second index would be
-- one more random write per grab.
CREATE INDEX entry_of_account ON entry (account_row, (share IS NOT NULL))
    WHERE account_row IS NOT NULL;
CREATE INDEX entry_of_escrow ON entry (envelope_row) WHERE envelope_row IS NOT NULL;

-- A share and to whom it went: the twin of the credit entry with the same row. A declined share's
-- entry credits the sender.
CREATE TABLE claim (
    row          INTEGER NOT NULL PRIMARY KEY,
    envelope_row INTEGER NOT NULL REFERENCES envelope (row),
    share        INTEGER NOT NULL CHECK (share >= 0),
    grabber      TEXT    NOT NULL CHECK (grabber <> ''),
    amount_minor INTEGER NOT NULL CHECK (amount_minor BETWEEN 1 AND 9000000000000000),
    declined     INTEGER NOT NULL CHECK (declined IN (0, 1)),
    granted_at   INTEGER NOT NULL,
    CONSTRAINT claim_of_share UNIQUE (envelope_row, share),
    CONSTRAINT claim_of_grabber UNIQUE (envelope_row, grabber)
) STRICT;

-- What a request made, for ever: the same request has no second effect.
CREATE TABLE idempotency (
    tenant       TEXT    NOT NULL,
    owner        TEXT    NOT NULL,
    method       TEXT    NOT NULL CHECK (method IN ('deposit', 'withdraw', 'fund')),
    request_id   TEXT    NOT NULL,
    request_hash BLOB    NOT NULL CHECK (length(request_hash) = 32),
    posting_row  INTEGER NOT NULL REFERENCES posting (row),
    envelope_row INTEGER REFERENCES envelope (row),
    PRIMARY KEY (tenant, owner, method, request_id)
) STRICT, WITHOUT ROWID;

-- Commitments to seeds. The secret of a batch is sealed with a key that is not in this file.
CREATE TABLE leaf_batch (
    tenant       TEXT    NOT NULL,
    batch_number INTEGER NOT NULL CHECK (batch_number >= 0),
    batch_root   BLOB    NOT NULL CHECK (length(batch_root) = 32),
    sealed       BLOB    NOT NULL,
    committed_at INTEGER NOT NULL,
    PRIMARY KEY (tenant, batch_number)
) STRICT, WITHOUT ROWID;

-- Records that can't be paid as they stand. They stay after they are settled, with `settled_at`.
-- `envelope_row` is the envelope whose close they block: none if it is unknown or closed.
CREATE TABLE dead_letter (
    row          INTEGER NOT NULL PRIMARY KEY,
    envelope     BLOB    NOT NULL CHECK (length(envelope) = 16),
    envelope_row INTEGER REFERENCES envelope (row),
    share        INTEGER NOT NULL,
    grabber      TEXT    NOT NULL,
    amount_minor INTEGER NOT NULL,
    declined     INTEGER NOT NULL CHECK (declined IN (0, 1)),
    granted_at   INTEGER NOT NULL,
    reason       TEXT    NOT NULL,
    tries        INTEGER NOT NULL CHECK (tries > 0),
    created_at   INTEGER NOT NULL,
    settled_at   INTEGER,
    CONSTRAINT dead_letter_is_one UNIQUE (envelope, share, grabber, amount_minor, declined)
) STRICT;
CREATE INDEX dead_letter_open ON dead_letter (row) WHERE settled_at IS NULL;

-- Records of frozen envelopes: settled when the envelope is unfrozen, and then taken out.
CREATE TABLE parked (
    row          INTEGER NOT NULL PRIMARY KEY,
    envelope_row INTEGER NOT NULL REFERENCES envelope (row),
    share        INTEGER NOT NULL,
    grabber      TEXT    NOT NULL,
    amount_minor INTEGER NOT NULL,
    declined     INTEGER NOT NULL CHECK (declined IN (0, 1)),
    granted_at   INTEGER NOT NULL,
    CONSTRAINT parked_is_one UNIQUE (envelope_row, share, grabber, amount_minor, declined)
) STRICT;

-- What operators did, and why.
CREATE TABLE admin_act (
    row      INTEGER NOT NULL PRIMARY KEY,
    act      TEXT    NOT NULL,
    envelope BLOB             CHECK (length(envelope) = 16),
    operator TEXT    NOT NULL,
    reason   TEXT    NOT NULL,
    at       INTEGER NOT NULL,
    result   TEXT    NOT NULL
) STRICT;
CREATE INDEX admin_act_of_envelope ON admin_act (envelope) WHERE envelope IS NOT NULL;

-- History is final.
CREATE TRIGGER entry_is_not_changed BEFORE UPDATE ON entry
BEGIN SELECT RAISE(ABORT, 'entries are final: correct by another posting'); END;
CREATE TRIGGER entry_is_not_deleted BEFORE DELETE ON entry
BEGIN SELECT RAISE(ABORT, 'entries are final: correct by another posting'); END;
CREATE TRIGGER posting_is_not_changed BEFORE UPDATE ON posting
BEGIN SELECT RAISE(ABORT, 'postings are final: correct by another posting'); END;
CREATE TRIGGER posting_is_not_deleted BEFORE DELETE ON posting
BEGIN SELECT RAISE(ABORT, 'postings are final: correct by another posting'); END;
CREATE TRIGGER claim_is_not_changed BEFORE UPDATE ON claim
BEGIN SELECT RAISE(ABORT, 'claims are final'); END;
CREATE TRIGGER claim_is_not_deleted BEFORE DELETE ON claim
BEGIN SELECT RAISE(ABORT, 'claims are final'); END;
CREATE TRIGGER admin_act_is_not_changed BEFORE UPDATE ON admin_act
BEGIN SELECT RAISE(ABORT, 'acts are final'); END;
CREATE TRIGGER admin_act_is_not_deleted BEFORE DELETE ON admin_act
BEGIN SELECT RAISE(ABORT, 'acts are final'); END;
CREATE TRIGGER idempotency_is_not_changed BEFORE UPDATE ON idempotency
BEGIN SELECT RAISE(ABORT, 'idempotency rows are final'); END;
CREATE TRIGGER idempotency_is_not_deleted BEFORE DELETE ON idempotency
BEGIN SELECT RAISE(ABORT, 'idempotency rows are final'); END;
CREATE TRIGGER leaf_batch_is_not_changed BEFORE UPDATE ON leaf_batch
BEGIN SELECT RAISE(ABORT, 'commitments are final'); END;
CREATE TRIGGER leaf_batch_is_not_deleted BEFORE DELETE ON leaf_batch
BEGIN SELECT RAISE(ABORT, 'commitments are final'); END;

-- Accounts and envelopes change in what they hold, not in what they are.
CREATE TRIGGER account_stays_whose_it_is
BEFORE UPDATE OF row, tenant, kind, owner, currency ON account
BEGIN SELECT RAISE(ABORT, 'an account stays whose it is'); END;
CREATE TRIGGER account_is_not_deleted BEFORE DELETE ON account
BEGIN SELECT RAISE(ABORT, 'accounts are not deleted'); END;
CREATE TRIGGER envelope_keeps_its_terms
BEFORE UPDATE OF row, id, day, tenant, sender, currency, terms, leaf_number, share_count,
    funded_minor, created_at, expires_at ON envelope
BEGIN SELECT RAISE(ABORT, 'the terms of an envelope never change'); END;
CREATE TRIGGER envelope_stays_closed
BEFORE UPDATE ON envelope WHEN OLD.state = 'closed'
BEGIN SELECT RAISE(ABORT, 'a closed envelope stays as it is'); END;
CREATE TRIGGER envelope_is_not_deleted BEFORE DELETE ON envelope
BEGIN SELECT RAISE(ABORT, 'envelopes are not deleted'); END;
CREATE TRIGGER claim_of_open_envelope BEFORE INSERT ON claim
WHEN (SELECT state = 'closed' OR NEW.share >= share_count FROM envelope WHERE row = NEW.envelope_row)
BEGIN SELECT RAISE(ABORT, 'no such share, or its envelope is closed'); END;
