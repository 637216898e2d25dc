-- ledger.migrate_0005: what was shown to somebody and went to somebody else is made good, once.
--
-- Why: a hot store that lost acknowledged grabs gave their shares to others, and who had been shown an
-- amount got nothing. The reserve pays it now, up to a cap.
-- What the previous release sees meanwhile: it refuses the file, whose schema it does not know.

-- One row for what the reserve paid to a grabber of an envelope, and one for what went back to it where the
-- envelope pays him a share after all. `share` is what was shown to him; in a row that goes back it is what
-- he was paid. `reserve_row` is the account that paid.
CREATE TABLE made_good (
    envelope_row INTEGER NOT NULL REFERENCES envelope (row),
    grabber      TEXT    NOT NULL CHECK (grabber <> ''),
    back         INTEGER NOT NULL CHECK (back IN (0, 1)),
    share        INTEGER NOT NULL CHECK (share >= 0),
    shown_minor  INTEGER NOT NULL CHECK (shown_minor BETWEEN 1 AND 9000000000000000),
    amount_minor INTEGER NOT NULL CHECK (amount_minor BETWEEN 1 AND 9000000000000000),
    posting_row  INTEGER NOT NULL UNIQUE REFERENCES posting (row),
    reserve_row  INTEGER NOT NULL REFERENCES account (row),
    at           INTEGER NOT NULL,
    CONSTRAINT made_good_once PRIMARY KEY (envelope_row, grabber, back),
    CONSTRAINT made_good_is_shown CHECK (amount_minor <= shown_minor)
) STRICT, WITHOUT ROWID;

-- What the cap counts.
CREATE INDEX made_good_lately ON made_good (reserve_row, at) WHERE back = 0;

-- Only what another has by a claim, and only what the grabber's own claim does not pay.
CREATE TRIGGER made_good_of_taken_share BEFORE INSERT ON made_good
WHEN NEW.back = 0 AND (
    NOT EXISTS (SELECT 1 FROM claim c WHERE c.envelope_row = NEW.envelope_row AND c.share = NEW.share
        AND c.grabber <> NEW.grabber AND c.amount_minor = NEW.shown_minor)
    OR NEW.amount_minor <> NEW.shown_minor - coalesce(
        (SELECT iif(c.declined, NEW.shown_minor, c.amount_minor) FROM claim c
         WHERE c.envelope_row = NEW.envelope_row AND c.grabber = NEW.grabber), 0))
BEGIN SELECT RAISE(ABORT, 'nothing is owed to this grabber'); END;
CREATE TRIGGER made_good_goes_back_in_part BEFORE INSERT ON made_good
WHEN NEW.back = 1 AND NEW.amount_minor IS NOT
    (SELECT min(m.amount_minor, NEW.shown_minor) FROM made_good m
     WHERE m.envelope_row = NEW.envelope_row AND m.grabber = NEW.grabber AND m.back = 0)
BEGIN SELECT RAISE(ABORT, 'this was not made good'); END;
-- Who was made good is paid a share only where that went back before.
CREATE TRIGGER claim_of_made_good BEFORE INSERT ON claim
WHEN NEW.declined = 0
    AND EXISTS (SELECT 1 FROM made_good m WHERE m.envelope_row = NEW.envelope_row
        AND m.grabber = NEW.grabber AND m.back = 0)
    AND NOT EXISTS (SELECT 1 FROM made_good m WHERE m.envelope_row = NEW.envelope_row
        AND m.grabber = NEW.grabber AND m.back = 1 AND m.share = NEW.share
        AND m.shown_minor = NEW.amount_minor)
BEGIN SELECT RAISE(ABORT, 'this grabber was made good'); END;

CREATE TRIGGER made_good_is_not_changed BEFORE UPDATE ON made_good
BEGIN SELECT RAISE(ABORT, 'what was made good is final'); END;
CREATE TRIGGER made_good_is_not_deleted BEFORE DELETE ON made_good
BEGIN SELECT RAISE(ABORT, 'what was made good is final'); END;

-- A closed envelope stays as it is, but for what is made good of it: that is not its money.
DROP TRIGGER envelope_stays_closed;
CREATE TRIGGER envelope_stays_closed
BEFORE UPDATE OF row, id, day, tenant, sender, currency, terms, leaf_number, share_count, funded_minor,
    settled_count, settled_minor, declined_count, refunded_minor, best_claim, dead_letter_count,
    parked_count, state, reason, frozen, created_at, expires_at, closed_at
ON envelope WHEN OLD.state = 'closed'
BEGIN SELECT RAISE(ABORT, 'a closed envelope stays as it is'); END;
