-- ledger.attack: what somebody with the file in hand might try. Every statement must be refused.
-- `:closed` is the row of a closed envelope of two stripes; `:open` that of one of 4 shares that paid bob 40 of 100
-- and took carol's declined 5 back, and of which dave was made good the 40 of bob's share; `:gathered` that of one of
-- two stripes that is gathered; `:week` the table of their claims.

-- ledger.attack: a share twice
INSERT INTO claim (envelope_row, share, posting_row, account_row, amount_minor, declined, granted_at)
    SELECT :open, 0, 1, row, 1, false, 0 FROM account WHERE owner = 'alice';

-- ledger.attack: a grabber twice
INSERT INTO claim (envelope_row, share, posting_row, account_row, amount_minor, declined, granted_at)
    SELECT :open, 2, 1, row, 1, false, 0 FROM account WHERE owner = 'bob';

-- ledger.attack: a grabber twice after declining
INSERT INTO claim (envelope_row, share, posting_row, account_row, amount_minor, declined, granted_at)
    SELECT :open, 2, 1, row, 1, false, 0 FROM account WHERE owner = 'carol';

-- ledger.attack: nothing as a share
INSERT INTO claim (envelope_row, share, posting_row, account_row, amount_minor, declined, granted_at)
    SELECT :open, 2, 1, row, 0, false, 0 FROM account WHERE owner = 'alice';

-- ledger.attack: a negative share
INSERT INTO claim (envelope_row, share, posting_row, account_row, amount_minor, declined, granted_at)
    SELECT :open, 2, 1, row, -1, false, 0 FROM account WHERE owner = 'alice';

-- ledger.attack: a share that there is not
INSERT INTO claim (envelope_row, share, posting_row, account_row, amount_minor, declined, granted_at)
    SELECT :open, 4, 1, row, 1, false, 0 FROM account WHERE owner = 'alice';

-- ledger.attack: a share of a closed envelope
INSERT INTO claim (envelope_row, share, posting_row, account_row, amount_minor, declined, granted_at)
    SELECT :closed, 1, 1, row, 1, false, 0 FROM account WHERE owner = 'alice';

-- ledger.attack: a share of no envelope
INSERT INTO claim (envelope_row, share, posting_row, account_row, amount_minor, declined, granted_at)
    SELECT 99, 1, 1, row, 1, false, 0 FROM account WHERE owner = 'alice';

-- ledger.attack: overdrawing
UPDATE account SET available_minor = -1 WHERE owner = 'bob';

-- ledger.attack: more than an account holds
UPDATE account SET available_minor = 9000000000000000001 WHERE owner = 'bob';

-- ledger.attack: stealing an account
UPDATE account SET owner = 'mallory' WHERE owner = 'bob';

-- ledger.attack: a second account
INSERT INTO account (tenant, kind, owner, currency) VALUES ('default', 'owner', 'bob', 'CNY');

-- ledger.attack: deleting an account
DELETE FROM account WHERE owner = 'bob';

-- ledger.attack: refunding too much
UPDATE envelope SET refunded_minor = 61 WHERE row = :open;

-- ledger.attack: settling too much
UPDATE envelope SET settled_minor = 96 WHERE row = :open;

-- ledger.attack: negative refunds
UPDATE envelope SET refunded_minor = -1 WHERE row = :open;

-- ledger.attack: too many shares
UPDATE envelope SET settled_count = 4 WHERE row = :open;

-- ledger.attack: funding more
UPDATE envelope SET funded_minor = 200 WHERE row = :open;

-- ledger.attack: other terms
UPDATE envelope SET terms = '{}' WHERE row = :open;

-- ledger.attack: a later expiry
UPDATE envelope SET expires_at = expires_at + 1 WHERE row = :open;

-- ledger.attack: closing out of balance
UPDATE envelope SET state = 'closed', reason = 'empty', closed_at = 1 WHERE row = :open;

-- ledger.attack: opening again
UPDATE envelope SET state = 'live', reason = NULL WHERE row = :closed;

-- ledger.attack: moving a closed sum
UPDATE envelope SET settled_minor = 39 WHERE row = :closed;

-- ledger.attack: deleting an envelope
DELETE FROM envelope WHERE row = :open;

-- ledger.attack: editing an entry
UPDATE entry SET amount_minor = 41 WHERE amount_minor = 40;

-- ledger.attack: deleting an entry
DELETE FROM entry WHERE row = 1;

-- ledger.attack: an entry of nothing
INSERT INTO entry (row, posting_row, account_row, envelope_row, amount_minor)
    VALUES (900, 1, 1, NULL, 0);

-- ledger.attack: an entry of two sides
INSERT INTO entry (row, posting_row, account_row, envelope_row, amount_minor)
    VALUES (900, 1, 1, 2, 5);

-- ledger.attack: an entry of no side
INSERT INTO entry (row, posting_row, account_row, envelope_row, amount_minor)
    VALUES (900, 1, NULL, NULL, 5);

-- ledger.attack: half a best share
UPDATE envelope SET best_minor = NULL WHERE row = :open;

-- ledger.attack: editing a posting
UPDATE posting SET kind = 'refund' WHERE row = 1;

-- ledger.attack: deleting a posting
DELETE FROM posting WHERE row = 1;

-- ledger.attack: editing a claim
UPDATE claim SET account_row = account_row + 1;

-- ledger.attack: deleting a claim
DELETE FROM claim;

-- ledger.attack: editing a claim in its week's table
UPDATE :week SET account_row = account_row + 1;

-- ledger.attack: deleting a claim from its week's table
DELETE FROM :week;

-- ledger.attack: emptying a week's table
TRUNCATE :week;

-- ledger.attack: a share of a closed envelope, into its week's table
INSERT INTO :week (envelope_row, share, posting_row, account_row, amount_minor, declined, granted_at)
    SELECT :closed, 1, 1, row, 1, false, 0 FROM account WHERE owner = 'alice';

-- ledger.attack: a share twice, into its week's table
INSERT INTO :week (envelope_row, share, posting_row, account_row, amount_minor, declined, granted_at)
    SELECT :open, 0, 1, row, 1, false, 0 FROM account WHERE owner = 'alice';

-- ledger.attack: a share of an envelope of another week
INSERT INTO :week (envelope_row, share, posting_row, account_row, amount_minor, declined, granted_at)
    SELECT 99, 1, 1, row, 1, false, 0 FROM account WHERE owner = 'alice';

-- ledger.attack: a day that no envelope has
SELECT claims_of_day(0);

-- ledger.attack: editing an act
UPDATE admin_act SET operator = 'nobody';

-- ledger.attack: deleting an act
DELETE FROM admin_act;

-- ledger.attack: forgetting a request
DELETE FROM idempotency;

-- ledger.attack: changing a request
UPDATE idempotency SET request_hash = '\x0000000000000000000000000000000000000000000000000000000000000000';

-- ledger.attack: another root
UPDATE leaf_batch SET batch_root = '\x0000000000000000000000000000000000000000000000000000000000000000';

-- ledger.attack: no root
DELETE FROM leaf_batch;

-- ledger.attack: an epoch that comes back
UPDATE hot_partition SET epoch = epoch - 1;

-- ledger.attack: an epoch that is skipped
UPDATE hot_partition SET epoch = epoch + 2;

-- ledger.attack: another server in the same epoch
UPDATE hot_partition SET server = 'redis m';

-- ledger.attack: an epoch that begins again
DELETE FROM hot_partition;

-- ledger.attack: another hot store
UPDATE hot_layout SET store = 'embedded', partition_count = 1;

-- ledger.attack: no hot store
DELETE FROM hot_layout;

-- ledger.attack: a second hot store
INSERT INTO hot_layout (row, store, layout, partition_count) VALUES (2, 'redis', 1, 64);

-- ledger.attack: emptying entry
TRUNCATE entry CASCADE;

-- ledger.attack: emptying claim
TRUNCATE claim CASCADE;

-- ledger.attack: emptying posting
TRUNCATE posting CASCADE;

-- ledger.attack: emptying envelope
TRUNCATE envelope CASCADE;

-- ledger.attack: emptying idempotency
TRUNCATE idempotency CASCADE;

-- ledger.attack: making good twice
INSERT INTO made_good (envelope_row, account_row, back, share, shown_minor, amount_minor, posting_row,
    reserve_row, at)
    SELECT :open, a.row, false, 0, 40, 40, 1, m.reserve_row, 0 FROM made_good m, account a WHERE a.owner = 'dave';

-- ledger.attack: making one's own share good
INSERT INTO made_good (envelope_row, account_row, back, share, shown_minor, amount_minor, posting_row,
    reserve_row, at)
    SELECT :open, a.row, false, 0, 40, 40, 1, m.reserve_row, 0 FROM made_good m, account a WHERE a.owner = 'bob';

-- ledger.attack: making a share good that nobody has
INSERT INTO made_good (envelope_row, account_row, back, share, shown_minor, amount_minor, posting_row,
    reserve_row, at)
    SELECT :open, a.row, false, 2, 40, 40, 1, m.reserve_row, 0 FROM made_good m, account a WHERE a.owner = 'alice';

-- ledger.attack: making more good than the share is worth
INSERT INTO made_good (envelope_row, account_row, back, share, shown_minor, amount_minor, posting_row,
    reserve_row, at)
    SELECT :open, a.row, false, 0, 41, 41, 1, m.reserve_row, 0 FROM made_good m, account a WHERE a.owner = 'alice';

-- ledger.attack: making a declined envelope good
INSERT INTO made_good (envelope_row, account_row, back, share, shown_minor, amount_minor, posting_row,
    reserve_row, at)
    SELECT :open, a.row, false, 0, 40, 40, 1, m.reserve_row, 0 FROM made_good m, account a WHERE a.owner = 'carol';

-- ledger.attack: giving back more than was made good
INSERT INTO made_good (envelope_row, account_row, back, share, shown_minor, amount_minor, posting_row,
    reserve_row, at)
    SELECT :open, a.row, true, 2, 50, 50, 1, m.reserve_row, 0 FROM made_good m, account a WHERE a.owner = 'dave';

-- ledger.attack: giving back what was not made good
INSERT INTO made_good (envelope_row, account_row, back, share, shown_minor, amount_minor, posting_row,
    reserve_row, at)
    SELECT :open, a.row, true, 2, 40, 40, 1, m.reserve_row, 0 FROM made_good m, account a WHERE a.owner = 'bob';

-- ledger.attack: a share for who was made good
INSERT INTO claim (envelope_row, share, posting_row, account_row, amount_minor, declined, granted_at)
    SELECT :open, 2, 1, row, 1, false, 0 FROM account WHERE owner = 'dave';

-- ledger.attack: a share for who was made good, into its week's table
INSERT INTO :week (envelope_row, share, posting_row, account_row, amount_minor, declined, granted_at)
    SELECT :open, 2, 1, row, 1, false, 0 FROM account WHERE owner = 'dave';

-- ledger.attack: a share for who was made good, behind a temporary table of that name
CREATE TEMP TABLE made_good (LIKE red_envelope.made_good);
INSERT INTO claim (envelope_row, share, posting_row, account_row, amount_minor, declined, granted_at)
    SELECT :open, 2, 1, row, 1, false, 0 FROM account WHERE owner = 'dave';

-- ledger.attack: a share of a closed envelope, behind a temporary table that calls it open
CREATE TEMP TABLE envelope AS SELECT row, 'live'::text AS state, 99 AS share_count FROM red_envelope.envelope;
INSERT INTO claim (envelope_row, share, posting_row, account_row, amount_minor, declined, granted_at)
    SELECT :closed, 2, 1, row, 1, false, 0 FROM account WHERE owner = 'dave';

-- ledger.attack: editing what was made good
UPDATE made_good SET amount_minor = 39;

-- ledger.attack: deleting what was made good
DELETE FROM made_good;

-- ledger.attack: emptying made_good
TRUNCATE made_good CASCADE;

-- ledger.attack: taking back that an envelope is gathered
DELETE FROM gathered WHERE envelope_row = :gathered;

-- ledger.attack: saying of another one that it is gathered
UPDATE gathered SET envelope_row = :open WHERE envelope_row = :gathered;

-- ledger.attack: taking back that any is gathered
TRUNCATE gathered;

-- ledger.attack: gathering an envelope of one stripe
INSERT INTO gathered (envelope_row) VALUES (:open);

-- ledger.attack: gathering a closed envelope
INSERT INTO gathered (envelope_row) VALUES (:closed);

-- ledger.attack: gathering an envelope by a mark that nobody reads
UPDATE envelope SET gathered = true WHERE row = :gathered;

-- ledger.attack: an envelope that begins gathered
INSERT INTO envelope (row, id, day, tenant, sender, currency, terms, leaf_number, share_count, funded_minor, state,
    created_at, expires_at, gathered)
    SELECT 99, decode(repeat('00', 16), 'hex'), day, tenant, sender, currency, terms, 99, share_count, funded_minor, 'live', created_at,
        expires_at, true FROM envelope WHERE row = :gathered;
