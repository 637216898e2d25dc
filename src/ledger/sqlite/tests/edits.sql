-- ledger.edit: what somebody can do who owns the file and has disarmed the schema. The audit must
-- name what was edited: the kind of the discrepancy, and what stands in its detail. The rows are those of
-- attacks.sql.

-- ledger.edit: BalanceWrong account 3 (owner, CNY) has 81, its entries sum to 80
UPDATE account SET available_minor = available_minor + 1 WHERE owner = 'bob';

-- ledger.edit: PostingUnbalanced (settle) sums to 1
UPDATE entry SET amount_minor = 41 WHERE row =
    (SELECT max(row) FROM claim WHERE grabber = 'bob');

-- ledger.edit: EnvelopeUnbalanced of share 0 says 40, its entry says nothing
DELETE FROM entry WHERE row = (SELECT max(row) FROM claim WHERE grabber = 'bob');

-- ledger.edit: EnvelopeUnbalanced of share 0 says 39, its entry says 40
UPDATE claim SET amount_minor = 39 WHERE envelope_row = 2 AND share = 0;

-- ledger.edit: EnvelopeUnbalanced of share 0 says 40, its entry says 40
UPDATE claim SET grabber = 'mallory' WHERE envelope_row = 2 AND share = 0;

-- ledger.edit: EnvelopeUnbalanced pays share 0 without a claim
DELETE FROM claim WHERE envelope_row = 2 AND share = 0;

-- ledger.edit: EnvelopeUnbalanced envelope row 2: funded 100, settled 30
UPDATE envelope SET settled_minor = 30 WHERE row = 2;

-- ledger.edit: EnvelopeUnbalanced envelope row 2: funded 101
UPDATE envelope SET funded_minor = 101 WHERE row = 2;

-- ledger.edit: PostingUnbalanced posting 1 (deposit) sums to nothing
DELETE FROM entry WHERE posting_row = 1;

-- ledger.edit: PostingUnbalanced entry 1 of posting 1 belongs to another
DELETE FROM posting WHERE row = 1;

-- ledger.edit: PostingUnbalanced belongs to another tenant, currency or envelope
UPDATE account SET currency = 'USD' WHERE owner = 'bob';

-- ledger.edit: EnvelopeUnbalanced envelope row 2: money of another owner than its sender
UPDATE envelope SET sender = 'mallory' WHERE row = 2;

-- ledger.edit: EnvelopeUnbalanced contradicts its terms: another sender
UPDATE envelope SET sender = 'mallory' WHERE row = 2;

-- ledger.edit: EnvelopeUnbalanced contradicts its terms: expires
UPDATE envelope SET expires_at = expires_at - 1 WHERE row = 2;

-- ledger.edit: EnvelopeUnbalanced contradicts its terms: shares 4, not 5
UPDATE envelope SET terms = replace(terms, '"share_count":4', '"share_count":5') WHERE row = 2;

-- ledger.edit: EnvelopeUnbalanced contradicts its terms: leaf 7, not 1
UPDATE envelope SET leaf_number = 7 WHERE row = 2;

-- ledger.edit: EnvelopeUnbalanced envelope row 2 can't be read
UPDATE envelope SET terms = 'gone' WHERE row = 2;

-- ledger.edit: EnvelopeUnbalanced envelope row 2 can't be read
UPDATE envelope SET state = 'forgotten' WHERE row = 2;

-- ledger.edit: EnvelopeUnbalanced 3 dead letters and 0 parked records that are not there
UPDATE envelope SET dead_letter_count = 3 WHERE row = 2;

-- ledger.edit: PostingUnbalanced posting 1 (deposit) does not go with its request (missing)
DELETE FROM idempotency WHERE method = 'deposit';

-- ledger.edit: PostingUnbalanced (fund) does not go with its request (fund)
UPDATE idempotency SET owner = 'mallory' WHERE request_id = 'e2';

-- ledger.edit: AmountWrong batch 0 of leaves: its root is not that of its secret
UPDATE leaf_batch SET batch_root = zeroblob(32) WHERE batch_number = 0;

-- ledger.edit: EnvelopeUnbalanced contradicts its terms: another root of leaves
UPDATE leaf_batch SET batch_root = zeroblob(32) WHERE batch_number = 0;

-- ledger.edit: AmountWrong batch 1 of leaves:
UPDATE leaf_batch SET sealed = (SELECT sealed FROM leaf_batch WHERE batch_number = 0)
    WHERE batch_number = 1;

-- ledger.edit: EnvelopeUnbalanced contradicts its terms: another root of leaves
DELETE FROM leaf_batch WHERE batch_number = 0;

-- ledger.edit: PostingUnbalanced belongs to another tenant, currency or envelope
UPDATE account SET currency = 'none of the codes' WHERE owner = 'alice';

-- ledger.edit: PostingUnbalanced (missing) does not go with its request (deposit)
DELETE FROM posting WHERE row = 1;

-- ledger.edit: EnvelopeUnbalanced made good 39 of 40 for share 0, which its entries or the claims contradict
UPDATE made_good SET amount_minor = 39;

-- ledger.edit: EnvelopeUnbalanced envelope row 2: made good 40, on record are 39
UPDATE made_good SET amount_minor = 39;

-- ledger.edit: EnvelopeUnbalanced (make_good): what it made good is not on record
DELETE FROM made_good;

-- ledger.edit: EnvelopeUnbalanced envelope row 2: made good 41, on record are 40
UPDATE envelope SET made_good_minor = 41 WHERE row = 2;

-- ledger.edit: EnvelopeUnbalanced made good 40 of 40 for share 0, which its entries or the claims contradict
UPDATE made_good SET grabber = 'alice';

-- ledger.edit: EnvelopeUnbalanced made good 40 of 40 for share 0, which its entries or the claims contradict
DELETE FROM claim WHERE envelope_row = 2 AND share = 0;
