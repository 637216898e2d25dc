-- ledger.migrate_0003: a refund always fits its account.
--
-- Why: an owner's account held at most 9.0e15, so a sender who was full could not take a refund and
-- the money stood still. Deposits and won shares keep that limit (the code asks before it posts); the
-- schema now allows what the outside can owe. All accounts of a currency together are what came from
-- outside, so no sum overflows.
-- What the previous release sees meanwhile: it refuses this schema. The rows are as they were.
--
-- SQLite can't change a constraint, so the table is built anew; references to it are checked when the
-- migration is done.

CREATE TABLE account_next (
    row             INTEGER NOT NULL PRIMARY KEY,
    tenant          TEXT    NOT NULL,
    kind            TEXT    NOT NULL CHECK (kind IN ('owner', 'outside', 'reserve')),
    owner           TEXT    NOT NULL,
    currency        TEXT    NOT NULL,
    available_minor INTEGER NOT NULL DEFAULT 0,
    CONSTRAINT account_is_one UNIQUE (tenant, kind, owner, currency),
    CONSTRAINT account_is_named CHECK ((kind = 'owner') = (owner <> '')),
    CONSTRAINT account_in_bounds CHECK (
        available_minor BETWEEN -9000000000000000000 AND 9000000000000000000
        AND (kind <> 'owner' OR available_minor >= 0))
) STRICT;

INSERT INTO account_next (row, tenant, kind, owner, currency, available_minor)
SELECT row, tenant, kind, owner, currency, available_minor FROM account;

DROP TABLE account;
ALTER TABLE account_next RENAME TO account;

CREATE TRIGGER account_stays_whose_it_is
BEFORE UPDATE OF row, tenant, kind, owner, currency ON account
BEGIN SELECT RAISE(ABORT, 'an account stays whose it is'); END;
CREATE TRIGGER account_is_not_deleted BEFORE DELETE ON account
BEGIN SELECT RAISE(ABORT, 'accounts are not deleted'); END;
