-- ledger.attack: what somebody with the file in hand might try. Every statement must be refused.
-- Row 1 is a closed envelope of two stripes; row 2 an open one of 4 shares that paid bob 40 of 100 and took
-- carol's declined 5 back, and of which dave was made good the 40 of bob's share; row 3 one of two stripes
-- that is gathered.

-- ledger.attack: a share twice
INSERT INTO claim
    (row, envelope_row, share, grabber, amount_minor, declined, granted_at) VALUES (900, 2, 0, 'mallory', 1, 0, 0);

-- ledger.attack: a grabber twice
INSERT INTO claim
    (row, envelope_row, share, grabber, amount_minor, declined, granted_at) VALUES (900, 2, 2, 'bob', 1, 0, 0);

-- ledger.attack: a grabber twice after declining
INSERT INTO claim
    (row, envelope_row, share, grabber, amount_minor, declined, granted_at) VALUES (900, 2, 2, 'carol', 1, 0, 0);

-- ledger.attack: nothing as a share
INSERT INTO claim
    (row, envelope_row, share, grabber, amount_minor, declined, granted_at) VALUES (900, 2, 2, 'mallory', 0, 0, 0);

-- ledger.attack: a negative share
INSERT INTO claim
    (row, envelope_row, share, grabber, amount_minor, declined, granted_at) VALUES (900, 2, 2, 'mallory', -1, 0, 0);

-- ledger.attack: a share that there is not
INSERT INTO claim
    (row, envelope_row, share, grabber, amount_minor, declined, granted_at) VALUES (900, 2, 4, 'mallory', 1, 0, 0);

-- ledger.attack: a share of a closed envelope
INSERT INTO claim
    (row, envelope_row, share, grabber, amount_minor, declined, granted_at) VALUES (900, 1, 1, 'mallory', 1, 0, 0);

-- ledger.attack: a share of no envelope
INSERT INTO claim
    (row, envelope_row, share, grabber, amount_minor, declined, granted_at) VALUES (900, 99, 1, 'mallory', 1, 0, 0);

-- ledger.attack: text as an amount
INSERT INTO claim
    (row, envelope_row, share, grabber, amount_minor, declined, granted_at) VALUES (900, 2, 2, 'mallory', 'much', 0, 0);

-- ledger.attack: a fraction as an amount
INSERT INTO claim
    (row, envelope_row, share, grabber, amount_minor, declined, granted_at) VALUES (900, 2, 2, 'mallory', 1.5, 0, 0);

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
UPDATE envelope SET refunded_minor = 61 WHERE row = 2;

-- ledger.attack: settling too much
UPDATE envelope SET settled_minor = 96 WHERE row = 2;

-- ledger.attack: negative refunds
UPDATE envelope SET refunded_minor = -1 WHERE row = 2;

-- ledger.attack: too many shares
UPDATE envelope SET settled_count = 4 WHERE row = 2;

-- ledger.attack: funding more
UPDATE envelope SET funded_minor = 200 WHERE row = 2;

-- ledger.attack: other terms
UPDATE envelope SET terms = '{}' WHERE row = 2;

-- ledger.attack: a later expiry
UPDATE envelope SET expires_at = expires_at + 1 WHERE row = 2;

-- ledger.attack: closing out of balance
UPDATE envelope SET state = 'closed', reason = 'empty', closed_at = 1 WHERE row = 2;

-- ledger.attack: opening again
UPDATE envelope SET state = 'live', reason = NULL WHERE row = 1;

-- ledger.attack: moving a closed sum
UPDATE envelope SET settled_minor = 39 WHERE row = 1;

-- ledger.attack: deleting an envelope
DELETE FROM envelope WHERE row = 2;

-- ledger.attack: editing an entry
UPDATE entry SET amount_minor = 41 WHERE amount_minor = 40;

-- ledger.attack: deleting an entry
DELETE FROM entry WHERE row = 1;

-- ledger.attack: replacing an entry
INSERT OR REPLACE INTO entry (row, posting_row, account_row, amount_minor) VALUES (1, 1, 1, 5);

-- ledger.attack: an entry of nothing
INSERT INTO entry (posting_row, account_row, envelope_row, amount_minor, share)
    VALUES (1, 1, NULL, 0, NULL);

-- ledger.attack: an entry of two sides
INSERT INTO entry (posting_row, account_row, envelope_row, amount_minor, share)
    VALUES (1, 1, 2, 5, NULL);

-- ledger.attack: an entry of no side
INSERT INTO entry (posting_row, account_row, envelope_row, amount_minor, share)
    VALUES (1, NULL, NULL, 5, NULL);

-- ledger.attack: an entry of no posting
INSERT INTO entry (posting_row, account_row, envelope_row, amount_minor, share)
    VALUES (999, 1, NULL, 5, NULL);

-- ledger.attack: a share that takes
INSERT INTO entry (posting_row, account_row, envelope_row, amount_minor, share)
    VALUES (1, 1, NULL, -5, 3);

-- ledger.attack: editing a posting
UPDATE posting SET kind = 'refund' WHERE row = 1;

-- ledger.attack: deleting a posting
DELETE FROM posting WHERE row = 1;

-- ledger.attack: editing a claim
UPDATE claim SET grabber = 'mallory' WHERE grabber = 'bob';

-- ledger.attack: deleting a claim
DELETE FROM claim;

-- ledger.attack: editing an act
UPDATE admin_act SET operator = 'nobody';

-- ledger.attack: deleting an act
DELETE FROM admin_act;

-- ledger.attack: forgetting a request
DELETE FROM idempotency;

-- ledger.attack: changing a request
UPDATE idempotency SET request_hash = zeroblob(32);

-- ledger.attack: another root
UPDATE leaf_batch SET batch_root = zeroblob(32);

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

-- ledger.attack: an epoch that is replaced
INSERT OR REPLACE INTO hot_partition (partition, epoch, server) VALUES (0, 2, 'redis m');

-- ledger.attack: another hot store
UPDATE hot_layout SET store = 'redis', partition_count = 64;

-- ledger.attack: no hot store
DELETE FROM hot_layout;

-- ledger.attack: a second hot store
INSERT INTO hot_layout (row, store, layout, partition_count) VALUES (2, 'redis', 1, 64);

-- ledger.attack: making good twice
INSERT INTO made_good (envelope_row, grabber, back, share, shown_minor, amount_minor, posting_row,
    reserve_row, at)
    SELECT 2, 'dave', 0, 0, 40, 40, 1, reserve_row, 0 FROM made_good;

-- ledger.attack: making one's own share good
INSERT INTO made_good (envelope_row, grabber, back, share, shown_minor, amount_minor, posting_row,
    reserve_row, at)
    SELECT 2, 'bob', 0, 0, 40, 40, 1, reserve_row, 0 FROM made_good;

-- ledger.attack: making a share good that nobody has
INSERT INTO made_good (envelope_row, grabber, back, share, shown_minor, amount_minor, posting_row,
    reserve_row, at)
    SELECT 2, 'mallory', 0, 2, 40, 40, 1, reserve_row, 0 FROM made_good;

-- ledger.attack: making more good than the share is worth
INSERT INTO made_good (envelope_row, grabber, back, share, shown_minor, amount_minor, posting_row,
    reserve_row, at)
    SELECT 2, 'mallory', 0, 0, 41, 41, 1, reserve_row, 0 FROM made_good;

-- ledger.attack: making a declined envelope good
INSERT INTO made_good (envelope_row, grabber, back, share, shown_minor, amount_minor, posting_row,
    reserve_row, at)
    SELECT 2, 'carol', 0, 0, 40, 40, 1, reserve_row, 0 FROM made_good;

-- ledger.attack: giving back more than was made good
INSERT INTO made_good (envelope_row, grabber, back, share, shown_minor, amount_minor, posting_row,
    reserve_row, at)
    SELECT 2, 'dave', 1, 2, 50, 50, 1, reserve_row, 0 FROM made_good;

-- ledger.attack: giving back what was not made good
INSERT INTO made_good (envelope_row, grabber, back, share, shown_minor, amount_minor, posting_row,
    reserve_row, at)
    SELECT 2, 'bob', 1, 2, 40, 40, 1, reserve_row, 0 FROM made_good;

-- ledger.attack: a share for who was made good
INSERT INTO claim
    (row, envelope_row, share, grabber, amount_minor, declined, granted_at) VALUES (900, 2, 2, 'dave', 1, 0, 0);

-- ledger.attack: editing what was made good
UPDATE made_good SET amount_minor = 39;

-- ledger.attack: deleting what was made good
DELETE FROM made_good;

-- ledger.attack: taking back that an envelope is gathered
UPDATE envelope SET gathered = 0 WHERE row = 3;

-- ledger.attack: gathering an envelope of one stripe
UPDATE envelope SET gathered = 1 WHERE row = 2;

-- ledger.attack: gathering a closed envelope
UPDATE envelope SET gathered = 1 WHERE row = 1;

-- ledger.attack: an envelope of one stripe that begins gathered
INSERT INTO envelope (row, id, day, tenant, sender, currency, terms, leaf_number, share_count, funded_minor, state,
    created_at, expires_at, gathered)
    SELECT 99, zeroblob(16), day, tenant, sender, currency, terms, 99, share_count, funded_minor, 'live', created_at,
        expires_at, 1 FROM envelope WHERE row = 2;
