-- ledger.edit: what a superuser can do who has disarmed the schema. The audit must name what was edited: the
-- kind of the discrepancy, and what stands in its detail. The rows are those of attacks.sql.

-- ledger.edit: BalanceWrong (owner, CNY) has 81, its entries sum to 80
UPDATE account SET available_minor = available_minor + 1 WHERE owner = 'bob';

-- ledger.edit: PostingUnbalanced (settle) sums to 1
UPDATE claim SET amount_minor = 41 WHERE envelope_row = :open AND share = 0;

-- ledger.edit: EnvelopeUnbalanced of 1 shares takes 40 from the escrow, its claims are 1 over 41
UPDATE claim SET amount_minor = 41 WHERE envelope_row = :open AND share = 0;

-- ledger.edit: EnvelopeUnbalanced of 1 shares takes 40 from the escrow, its claims are 0 over 0
DELETE FROM claim WHERE envelope_row = :open AND share = 0;

-- ledger.edit: BalanceWrong has 80, its entries sum to 40
UPDATE claim SET account_row = (SELECT row FROM account WHERE owner = 'alice')
    WHERE envelope_row = :open AND share = 0;

-- ledger.edit: EnvelopeUnbalanced the claim of share 0 over 40 belongs to another tenant, currency, envelope
UPDATE claim SET account_row = 999 WHERE envelope_row = :open AND share = 0;

-- ledger.edit: EnvelopeUnbalanced the claim of share 4 over 40 belongs to another
UPDATE claim SET share = 4 WHERE envelope_row = :open AND share = 0;

-- ledger.edit: EnvelopeUnbalanced its claims paid 0 in 0 shares and declined 2
UPDATE claim SET declined = true WHERE envelope_row = :open AND share = 0;

-- ledger.edit: EnvelopeUnbalanced envelope row :open: funded 100, settled 30
UPDATE envelope SET settled_minor = 30 WHERE row = :open;

-- ledger.edit: EnvelopeUnbalanced envelope row :open: funded 101
UPDATE envelope SET funded_minor = 101 WHERE row = :open;

-- ledger.edit: EnvelopeUnbalanced settled 9000000000000000000, refunded 9000000000000000000
UPDATE envelope SET settled_minor = 9000000000000000000, refunded_minor = 9000000000000000000
    WHERE row = :open;

-- ledger.edit: PostingUnbalanced posting 1 (deposit) sums to nothing
DELETE FROM entry WHERE posting_row = 1;

-- ledger.edit: PostingUnbalanced of posting 1 belongs to another
DELETE FROM posting WHERE row = 1;

-- ledger.edit: PostingUnbalanced belongs to another tenant, currency or envelope
UPDATE account SET currency = 'USD' WHERE owner = 'alice';

-- ledger.edit: EnvelopeUnbalanced envelope row :open: money of another owner than its sender
UPDATE envelope SET sender = 'mallory' WHERE row = :open;

-- ledger.edit: EnvelopeUnbalanced contradicts its terms: another sender
UPDATE envelope SET sender = 'mallory' WHERE row = :open;

-- ledger.edit: EnvelopeUnbalanced contradicts its terms: expires
UPDATE envelope SET expires_at = expires_at - 1 WHERE row = :open;

-- ledger.edit: EnvelopeUnbalanced contradicts its terms: shares 4, not 5
UPDATE envelope SET terms = replace(terms, '"share_count":4', '"share_count":5') WHERE row = :open;

-- ledger.edit: EnvelopeUnbalanced contradicts its terms: leaf 7, not 1
UPDATE envelope SET leaf_number = 7 WHERE row = :open;

-- ledger.edit: EnvelopeUnbalanced envelope row :open can't be read
UPDATE envelope SET terms = 'gone' WHERE row = :open;

-- ledger.edit: EnvelopeUnbalanced envelope row :open can't be read
UPDATE envelope SET state = 'forgotten' WHERE row = :open;

-- ledger.edit: EnvelopeUnbalanced can't be read
UPDATE envelope SET id = 'short' WHERE row = :open;

-- ledger.edit: EnvelopeUnbalanced 3 dead letters and 0 parked records that are not there
UPDATE envelope SET dead_letter_count = 3 WHERE row = :open;

-- ledger.edit: PostingUnbalanced posting 1 (deposit) does not go with its request (missing)
DELETE FROM idempotency WHERE method = 'deposit';

-- ledger.edit: PostingUnbalanced (fund) does not go with its request (fund)
UPDATE idempotency SET owner = 'mallory' WHERE request_id = 'e2';

-- ledger.edit: AmountWrong batch 0 of leaves: its root is not that of its secret
UPDATE leaf_batch SET batch_root = sha256('') WHERE batch_number = 0;

-- ledger.edit: EnvelopeUnbalanced contradicts its terms: another root of leaves
UPDATE leaf_batch SET batch_root = sha256('') WHERE batch_number = 0;

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

-- ledger.edit: EnvelopeUnbalanced envelope row :open: made good 40, on record are 39
UPDATE made_good SET amount_minor = 39;

-- ledger.edit: EnvelopeUnbalanced (make_good): what it made good is not on record
DELETE FROM made_good;

-- ledger.edit: EnvelopeUnbalanced envelope row :open: made good 41, on record are 40
UPDATE envelope SET made_good_minor = 41 WHERE row = :open;

-- ledger.edit: EnvelopeUnbalanced made good 40 of 40 for share 0, which its entries or the claims contradict
UPDATE made_good SET account_row = (SELECT row FROM account WHERE owner = 'alice');

-- ledger.edit: EnvelopeUnbalanced made good 40 of 40 for share 0, which its entries or the claims contradict
DELETE FROM claim WHERE envelope_row = :open AND share = 0;
