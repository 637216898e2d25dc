-- ledger.right: what a server has no right to. Every statement must be refused for that reason.

-- ledger.right: changing an entry
UPDATE entry SET amount_minor = 1;

-- ledger.right: deleting entries
DELETE FROM entry;

-- ledger.right: changing a claim
UPDATE claim SET amount_minor = 1;

-- ledger.right: deleting claims
DELETE FROM claim;

-- ledger.right: emptying postings
TRUNCATE posting;

-- ledger.right: deleting envelopes
DELETE FROM envelope;

-- ledger.right: forgetting requests
DELETE FROM idempotency;

-- ledger.right: inventing a migration
INSERT INTO migration (number) VALUES (9);

-- ledger.right: dropping a table
DROP TABLE claim;

-- ledger.right: switching a trigger off
ALTER TABLE entry DISABLE TRIGGER ALL;

-- ledger.right: a table of its own
CREATE TABLE of_mine (row bigint);

-- ledger.right: editing what was made good
UPDATE made_good SET amount_minor = 1;

-- ledger.right: making a trigger of a function that runs as the books' owner
CREATE TEMP TABLE of_mine (envelope_row bigint, share integer);
CREATE TRIGGER of_mine AFTER INSERT ON of_mine REFERENCING NEW TABLE AS made
    FOR EACH STATEMENT EXECUTE FUNCTION refuse_claims();
