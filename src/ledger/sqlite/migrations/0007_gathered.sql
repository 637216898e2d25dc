-- ledger.migrate_0007: that the shares of an envelope are gathered is on record.
--
-- Why: as soon as one stripe of an envelope is used up, what is left in all of them is gathered in the first
-- one. Who repairs another stripe later has to know that it grants nothing any more, whatever the hot store lost.
-- What the previous release sees meanwhile: it refuses this schema. The rows are as they were.

-- An envelope of one stripe has nothing to gather.
ALTER TABLE envelope ADD COLUMN gathered INTEGER NOT NULL DEFAULT 0 CHECK (gathered IN (0, 1))
    CONSTRAINT envelope_gathered_was_dealt CHECK (
        gathered = 0 OR coalesce(json_extract(terms, '$.stripes'), 1) > 1);

-- Once, and for ever.
CREATE TRIGGER envelope_stays_gathered
BEFORE UPDATE OF gathered ON envelope WHEN OLD.gathered > NEW.gathered
BEGIN SELECT RAISE(ABORT, 'what is gathered stays gathered'); END;

-- A closed envelope stays as it is, but for what is made good of it.
DROP TRIGGER envelope_stays_closed;
CREATE TRIGGER envelope_stays_closed
BEFORE UPDATE OF row, id, day, tenant, sender, currency, terms, leaf_number, share_count, funded_minor,
    settled_count, settled_minor, declined_count, refunded_minor, best_claim, dead_letter_count,
    parked_count, state, reason, frozen, gathered, created_at, expires_at, closed_at
ON envelope WHEN OLD.state = 'closed'
BEGIN SELECT RAISE(ABORT, 'a closed envelope stays as it is'); END;
