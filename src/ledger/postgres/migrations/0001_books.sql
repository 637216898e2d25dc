-- ledger.migrate_0001: the books.
--
-- Why: the first release that keeps its books in PostgreSQL.
-- What the previous release sees meanwhile: there is none.
--
-- The schema is the last line: it refuses what the code must not ask for. Nobody is paid twice
-- (claim_of_share, claim_of_grabber), nobody is overdrawn (account_in_bounds), no envelope gives
-- out more than was put in (envelope_not_overdrawn), and history is never changed (the triggers).
-- A mistake is corrected by another posting. The same names guard the books in SQLite.

-- Whose money. An owner has at least nothing; deposits and won shares stop at AMOUNT_MINOR_MAX (9.0e15)
-- by the code, refunds don't. The outside (what was brought in, as a negative number) and the reserve
-- may be negative; 9.0e18 is the most whose sums still fit an integer of 64 bits.
CREATE TABLE account (
    row             bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    tenant          text   NOT NULL,
    kind            text   NOT NULL CHECK (kind IN ('owner', 'outside', 'reserve')),
    owner           text   NOT NULL,
    currency        text   NOT NULL,
    available_minor bigint NOT NULL DEFAULT 0,
    CONSTRAINT account_is_one UNIQUE (tenant, kind, owner, currency),
    CONSTRAINT account_is_named CHECK ((kind = 'owner') = (owner <> '')),
    CONSTRAINT account_in_bounds CHECK (
        available_minor BETWEEN -9000000000000000000 AND 9000000000000000000
        AND (kind <> 'owner' OR available_minor >= 0))
) WITH (fillfactor = 70);

-- An envelope and its escrow.
CREATE TABLE envelope (
    row               bigint  NOT NULL PRIMARY KEY,
    id                bytea   NOT NULL UNIQUE CHECK (length(id) = 16),
    day               integer NOT NULL CHECK (day BETWEEN 0 AND 65535),
    tenant            text    NOT NULL,
    sender            text    NOT NULL,
    currency          text    NOT NULL,
    terms             text    NOT NULL,
    leaf_number       bigint  NOT NULL CHECK (leaf_number >= 0),
    share_count       integer NOT NULL CHECK (share_count > 0),
    funded_minor      bigint  NOT NULL CHECK (funded_minor BETWEEN 1 AND 9000000000000000),
    settled_count     integer NOT NULL DEFAULT 0 CHECK (settled_count >= 0),
    settled_minor     bigint  NOT NULL DEFAULT 0 CHECK (settled_minor >= 0),
    declined_count    integer NOT NULL DEFAULT 0 CHECK (declined_count >= 0),
    refunded_minor    bigint  NOT NULL DEFAULT 0 CHECK (refunded_minor >= 0),
    made_good_minor   bigint  NOT NULL DEFAULT 0 CHECK (made_good_minor >= 0),
    best_share        integer,
    best_minor        bigint,
    dead_letter_count integer NOT NULL DEFAULT 0 CHECK (dead_letter_count >= 0),
    parked_count      integer NOT NULL DEFAULT 0 CHECK (parked_count >= 0),
    state             text    NOT NULL CHECK (state IN ('funding', 'live', 'closing', 'closed')),
    reason            text             CHECK (reason IN ('empty', 'expired', 'recalled')),
    frozen            boolean NOT NULL DEFAULT false,
    created_at        bigint  NOT NULL,
    expires_at        bigint  NOT NULL,
    closed_at         bigint,
    CONSTRAINT envelope_of_leaf UNIQUE (tenant, leaf_number),
    CONSTRAINT envelope_not_overdrawn CHECK (settled_minor + refunded_minor <= funded_minor),
    CONSTRAINT envelope_not_overclaimed CHECK (settled_count + declined_count <= share_count),
    CONSTRAINT envelope_best_is_whole CHECK ((best_share IS NULL) = (best_minor IS NULL)),
    CONSTRAINT envelope_over_for_a_reason CHECK (
        (state IN ('closing', 'closed')) = (reason IS NOT NULL)),
    CONSTRAINT envelope_closed_in_balance CHECK (
        state <> 'closed' OR (
            settled_minor + refunded_minor = funded_minor AND closed_at IS NOT NULL
            AND dead_letter_count = 0 AND parked_count = 0))
) WITH (fillfactor = 70);
CREATE SEQUENCE envelope_row OWNED BY envelope.row;

-- ListSentEnvelopes.
CREATE INDEX envelope_of_sender ON envelope (tenant, sender, row);
-- What a sender's open envelopes hold.
CREATE INDEX envelope_open_of_sender ON envelope (tenant, sender, currency) WHERE state <> 'closed';
-- The sweeper's questions, each by row.
CREATE INDEX envelope_expiring ON envelope (expires_at)
    WHERE state IN ('funding', 'live') AND NOT frozen;
CREATE INDEX envelope_unpublished ON envelope (row) WHERE state = 'funding' AND NOT frozen;
CREATE INDEX envelope_empty ON envelope (row)
    WHERE state = 'live' AND NOT frozen AND settled_count + declined_count = share_count;
CREATE INDEX envelope_closing ON envelope (row) WHERE state = 'closing' AND NOT frozen;
CREATE INDEX envelope_parked ON envelope (row) WHERE parked_count > 0 AND NOT frozen;
CREATE INDEX envelope_frozen ON envelope (row) WHERE frozen;

-- Why money moved. Its entries, and the claims that it paid, sum to zero; `share_count` says how many.
CREATE TABLE posting (
    row          bigint  NOT NULL PRIMARY KEY,
    tenant       text    NOT NULL,
    kind         text    NOT NULL CHECK (
        kind IN ('deposit', 'withdrawal', 'fund', 'settle', 'refund', 'make_good')),
    currency     text    NOT NULL,
    envelope_row bigint REFERENCES envelope (row),
    share_count  integer NOT NULL DEFAULT 0 CHECK (share_count >= 0),
    reference    text    NOT NULL DEFAULT '',
    posted_at    bigint  NOT NULL,
    CONSTRAINT posting_of_envelope CHECK (
        (kind IN ('deposit', 'withdrawal')) = (envelope_row IS NULL))
);
CREATE SEQUENCE posting_row OWNED BY posting.row;
-- What moved an envelope's money, for the audit.
CREATE INDEX posting_of_envelope_row ON posting (envelope_row) WHERE kind IN ('fund', 'refund');

-- One debit (negative) or credit (positive), of an account or of an envelope's escrow. The credits for
-- shares are claims. References to what was read and locked in the same transaction are left to the
-- code and the audit: a foreign key would look each of a batch's rows up again.
CREATE SEQUENCE entry_row;
CREATE TABLE entry (
    row          bigint  NOT NULL PRIMARY KEY,
    posting_row  bigint  NOT NULL,
    account_row  bigint,
    envelope_row bigint,
    amount_minor bigint  NOT NULL CHECK (
        amount_minor <> 0 AND amount_minor BETWEEN -9000000000000000 AND 9000000000000000),
    CONSTRAINT entry_has_one_side CHECK ((account_row IS NULL) <> (envelope_row IS NULL))
);
CREATE INDEX entry_of_account ON entry (account_row, row) WHERE account_row IS NOT NULL;
CREATE INDEX entry_of_escrow ON entry (envelope_row, row) WHERE envelope_row IS NOT NULL;

-- A share and to whom it went: the grabber's account. Unless it was declined, it is the entry that
-- credits this account, in the posting that debits the escrow; a declined share's money goes back by
-- an entry of the sender's. Rows come from the sequence of the entries, so that an account's history
-- has one order.
CREATE TABLE claim (
    row          bigint  NOT NULL DEFAULT nextval('entry_row'),
    envelope_row bigint  NOT NULL,
    share        integer NOT NULL CHECK (share >= 0),
    posting_row  bigint  NOT NULL,
    account_row  bigint  NOT NULL,
    amount_minor bigint  NOT NULL CHECK (amount_minor BETWEEN 1 AND 9000000000000000),
    declined     boolean NOT NULL,
    granted_at   bigint  NOT NULL,
    CONSTRAINT claim_of_share PRIMARY KEY (envelope_row, share),
    CONSTRAINT claim_of_grabber UNIQUE (envelope_row, account_row)
);
CREATE INDEX claim_of_account ON claim (account_row, row);

-- What a request made, for ever: the same request has no second effect.
CREATE TABLE idempotency (
    tenant       text   NOT NULL,
    owner        text   NOT NULL,
    method       text   NOT NULL CHECK (method IN ('deposit', 'withdraw', 'fund')),
    request_id   text   NOT NULL,
    request_hash bytea  NOT NULL CHECK (length(request_hash) = 32),
    posting_row  bigint NOT NULL REFERENCES posting (row),
    envelope_row bigint REFERENCES envelope (row),
    CONSTRAINT request_is_made_once PRIMARY KEY (tenant, owner, method, request_id)
);

-- Commitments to seeds. The secret of a batch is sealed with a key that is not in this database.
CREATE TABLE leaf_batch (
    tenant       text   NOT NULL,
    batch_number bigint NOT NULL CHECK (batch_number >= 0),
    batch_root   bytea  NOT NULL CHECK (length(batch_root) = 32),
    sealed       bytea  NOT NULL,
    committed_at bigint NOT NULL,
    CONSTRAINT batch_is_committed_to_once PRIMARY KEY (tenant, batch_number)
);

-- Records that can't be paid as they stand. They stay after they are settled, with `settled_at`.
-- `envelope_row` is the envelope whose close they block: none if it is unknown or closed.
CREATE TABLE dead_letter (
    row          bigint  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    envelope     bytea   NOT NULL CHECK (length(envelope) = 16),
    envelope_row bigint REFERENCES envelope (row),
    share        bigint  NOT NULL,
    grabber      text    NOT NULL,
    amount_minor bigint  NOT NULL,
    declined     boolean NOT NULL,
    granted_at   bigint  NOT NULL,
    reason       text    NOT NULL,
    tries        integer NOT NULL CHECK (tries > 0),
    created_at   bigint  NOT NULL,
    settled_at   bigint,
    CONSTRAINT dead_letter_is_one UNIQUE (envelope, share, grabber, amount_minor, declined)
);
CREATE INDEX dead_letter_open ON dead_letter (row) WHERE settled_at IS NULL;

-- Records of frozen envelopes: settled when the envelope is unfrozen, and then taken out.
CREATE TABLE parked (
    row          bigint  GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    envelope_row bigint  NOT NULL REFERENCES envelope (row),
    share        bigint  NOT NULL,
    grabber      text    NOT NULL,
    amount_minor bigint  NOT NULL,
    declined     boolean NOT NULL,
    granted_at   bigint  NOT NULL,
    CONSTRAINT parked_is_one UNIQUE (envelope_row, share, grabber, amount_minor, declined)
);

-- What operators did, and why.
CREATE TABLE admin_act (
    row      bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    act      text   NOT NULL,
    envelope bytea           CHECK (length(envelope) = 16),
    operator text   NOT NULL,
    reason   text   NOT NULL,
    at       bigint NOT NULL,
    result   text   NOT NULL
);
CREATE INDEX admin_act_of_envelope ON admin_act (envelope, row) WHERE envelope IS NOT NULL;

-- The hot store's kind, the number of its set of keys, its partitions. At most one row.
CREATE TABLE hot_layout (
    row             integer NOT NULL PRIMARY KEY CHECK (row = 1),
    store           text    NOT NULL CHECK (store <> ''),
    layout          integer NOT NULL CHECK (layout BETWEEN 0 AND 65535),
    partition_count integer NOT NULL CHECK (partition_count BETWEEN 1 AND 1024)
);

-- In which epoch a partition stands, and for which process of the hot store. A partition that was
-- never registered has no row and stands in epoch 1.
CREATE TABLE hot_partition (
    partition integer NOT NULL PRIMARY KEY CHECK (partition BETWEEN 0 AND 1023),
    epoch     bigint  NOT NULL CHECK (epoch >= 2),
    server    text    NOT NULL CHECK (server <> '')
);

-- Processes that settle, and until when each counts. Efficiency only.
CREATE TABLE settle_lease (
    holder text   NOT NULL PRIMARY KEY CHECK (holder <> ''),
    until  timestamptz NOT NULL
);

CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    RAISE EXCEPTION USING ERRCODE = 'restrict_violation', CONSTRAINT = TG_NAME, TABLE = TG_TABLE_NAME,
        MESSAGE = TG_NAME || ': correct by another posting';
END $$;

-- A claim is of a share that there is, of an envelope that is not closed. Looked at once a statement.
CREATE FUNCTION refuse_claims() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT 1 FROM made m LEFT JOIN envelope n ON n.row = m.envelope_row
               WHERE n.row IS NULL OR n.state = 'closed' OR m.share >= n.share_count) THEN
        RAISE EXCEPTION USING ERRCODE = 'restrict_violation', CONSTRAINT = TG_NAME,
            TABLE = TG_TABLE_NAME, MESSAGE = 'no such share, or its envelope is closed';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER claim_of_open_envelope AFTER INSERT ON claim
    REFERENCING NEW TABLE AS made FOR EACH STATEMENT EXECUTE FUNCTION refuse_claims();

-- History is final.
CREATE TRIGGER entry_is_final BEFORE UPDATE OR DELETE OR TRUNCATE ON entry
    FOR EACH STATEMENT EXECUTE FUNCTION refuse();
CREATE TRIGGER posting_is_final BEFORE UPDATE OR DELETE OR TRUNCATE ON posting
    FOR EACH STATEMENT EXECUTE FUNCTION refuse();
CREATE TRIGGER claim_is_final BEFORE UPDATE OR DELETE OR TRUNCATE ON claim
    FOR EACH STATEMENT EXECUTE FUNCTION refuse();
CREATE TRIGGER admin_act_is_final BEFORE UPDATE OR DELETE OR TRUNCATE ON admin_act
    FOR EACH STATEMENT EXECUTE FUNCTION refuse();
CREATE TRIGGER idempotency_is_final BEFORE UPDATE OR DELETE OR TRUNCATE ON idempotency
    FOR EACH STATEMENT EXECUTE FUNCTION refuse();
CREATE TRIGGER leaf_batch_is_final BEFORE UPDATE OR DELETE OR TRUNCATE ON leaf_batch
    FOR EACH STATEMENT EXECUTE FUNCTION refuse();
CREATE TRIGGER hot_layout_is_final BEFORE UPDATE OR DELETE OR TRUNCATE ON hot_layout
    FOR EACH STATEMENT EXECUTE FUNCTION refuse();

-- Accounts and envelopes change in what they hold, not in what they are.
CREATE TRIGGER account_is_not_deleted BEFORE DELETE OR TRUNCATE ON account
    FOR EACH STATEMENT EXECUTE FUNCTION refuse();
CREATE TRIGGER envelope_is_not_deleted BEFORE DELETE OR TRUNCATE ON envelope
    FOR EACH STATEMENT EXECUTE FUNCTION refuse();
CREATE TRIGGER account_stays_whose_it_is
    BEFORE UPDATE OF tenant, kind, owner, currency ON account
    FOR EACH STATEMENT EXECUTE FUNCTION refuse();
CREATE TRIGGER envelope_keeps_its_terms
    BEFORE UPDATE OF row, id, day, tenant, sender, currency, terms, leaf_number, share_count,
        funded_minor, created_at, expires_at ON envelope
    FOR EACH STATEMENT EXECUTE FUNCTION refuse();
CREATE TRIGGER envelope_stays_closed BEFORE UPDATE ON envelope
    FOR EACH ROW WHEN (OLD.state = 'closed') EXECUTE FUNCTION refuse();
-- An epoch that came back would let a batch pass that was read before the store was replaced; a
-- server that changed within one would let two processes grant in it.
CREATE TRIGGER hot_partition_only_advances BEFORE UPDATE ON hot_partition
    FOR EACH ROW WHEN (NEW.partition <> OLD.partition OR NEW.epoch <> OLD.epoch + 1)
    EXECUTE FUNCTION refuse();
CREATE TRIGGER hot_partition_is_not_deleted BEFORE DELETE OR TRUNCATE ON hot_partition
    FOR EACH STATEMENT EXECUTE FUNCTION refuse();
