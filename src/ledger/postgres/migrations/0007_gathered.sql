-- ledger.migrate_0007: that the shares of an envelope are gathered is on record.
--
-- Why: as soon as one stripe of an envelope is used up, what is left in all of them is gathered in the first
-- one. Who repairs another stripe later has to know that it grants nothing any more, whatever the hot store lost.
-- What the previous release sees meanwhile: nothing but a wait for a moment. While an audit of everything runs,
-- this waits for its end, and whoever asks for an envelope waits behind it: let none run. That release deals no
-- envelope to several stripes, so it has nothing to gather. A process of it that starts afterwards is refused.

ALTER TABLE envelope ADD COLUMN gathered boolean NOT NULL DEFAULT false;

-- Once, and for ever.
CREATE TRIGGER envelope_stays_gathered BEFORE UPDATE OF gathered ON envelope
    FOR EACH ROW WHEN (OLD.gathered AND NOT NEW.gathered) EXECUTE FUNCTION refuse();
-- An envelope of one stripe has nothing to gather. A constraint would read all envelopes now, and the terms of a
-- gathered one with each of its batches.
CREATE TRIGGER envelope_gathered_was_dealt BEFORE INSERT OR UPDATE OF gathered ON envelope
    FOR EACH ROW WHEN (NEW.gathered AND coalesce((NEW.terms::json ->> 'stripes')::integer, 1) <= 1)
    EXECUTE FUNCTION refuse();

-- A closed envelope stays as it is, but for what is made good of it.
DROP TRIGGER envelope_stays_closed ON envelope;
CREATE TRIGGER envelope_stays_closed
    BEFORE UPDATE OF row, id, day, tenant, sender, currency, terms, leaf_number, share_count,
        funded_minor, settled_count, settled_minor, declined_count, refunded_minor, best_share,
        best_minor, dead_letter_count, parked_count, state, reason, frozen, gathered, created_at,
        expires_at, closed_at ON envelope
    FOR EACH ROW WHEN (OLD.state = 'closed') EXECUTE FUNCTION refuse();
