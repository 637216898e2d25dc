-- ledger.migrate_0003: who only serves has a lease as well.
--
-- Why: books that were restored must be served by nobody before they begin anew, and a process that leaves
-- settlement to others could not be seen.
-- What the previous release sees meanwhile: nothing. The table is one of its own, so that who divides the
-- partitions by settle_lease counts nobody who does not settle.

CREATE TABLE serve_lease (
    holder text        NOT NULL PRIMARY KEY CHECK (holder <> ''),
    until  timestamptz NOT NULL
);
