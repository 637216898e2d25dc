-- ledger.edit: what somebody can do who owns the file and has disarmed the schema. The audit must
-- name what was edited. The rows are those of attacks.sql.

-- ledger.edit: account 3 (owner, CNY) has 81, its entries sum to 80
UPDATE account SET available_minor = available_minor + 1 WHERE owner = 'bob';

-- ledger.edit: (settle) sums to 1
UPDATE entry SET amount_minor = 41 WHERE row =
    (SELECT max(row) FROM claim WHERE grabber = 'bob');

-- ledger.edit: of share 0 says 40, its entry says nothing
DELETE FROM entry WHERE row = (SELECT max(row) FROM claim WHERE grabber = 'bob');

-- ledger.edit: of share 0 says 39, its entry says 40
UPDATE claim SET amount_minor = 39 WHERE envelope_row = 2 AND share = 0;

-- ledger.edit: of share 0 says 40, its entry says 40
UPDATE claim SET grabber = 'mallory' WHERE envelope_row = 2 AND share = 0;

-- ledger.edit: pays share 0 without a claim
DELETE FROM claim WHERE envelope_row = 2 AND share = 0;

-- ledger.edit: envelope row 2: funded 100, settled 30
UPDATE envelope SET settled_minor = 30 WHERE row = 2;

-- ledger.edit: envelope row 2: funded 101
UPDATE envelope SET funded_minor = 101 WHERE row = 2;

-- ledger.edit: posting 1 (deposit) sums to nothing
DELETE FROM entry WHERE posting_row = 1;

-- ledger.edit: entry 1 of posting 1 belongs to another
DELETE FROM posting WHERE row = 1;

-- ledger.edit: belongs to another tenant, currency or envelope
UPDATE account SET currency = 'USD' WHERE owner = 'bob';
