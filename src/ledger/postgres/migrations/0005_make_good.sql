-- ledger.migrate_0005: what was shown to somebody and went to somebody else is made good, once.
--
-- Why: a hot store that lost acknowledged grabs gave their shares to others, and who had been shown an
-- amount got nothing. The reserve pays it now, up to a cap.
-- What the previous release sees meanwhile: it works as before and makes nothing good. It can't claim a
-- share for somebody who was made good: after its tries it sets such a record aside. So leave
-- ledger.make_good_max out until all processes are new, or replay such letters.
-- The right to read made_good, which settlement asks for: `red-envelope migrate --grant-to` at once.

-- One row for what the reserve paid to a grabber of an envelope, and one for what went back to it where the
-- envelope pays him a share after all. `share` is what was shown to him; in a row that goes back it is what
-- he was paid. `reserve_row` is the account that paid.
CREATE TABLE made_good (
    envelope_row bigint  NOT NULL REFERENCES envelope (row),
    account_row  bigint  NOT NULL REFERENCES account (row),
    back         boolean NOT NULL,
    share        integer NOT NULL CHECK (share >= 0),
    shown_minor  bigint  NOT NULL CHECK (shown_minor BETWEEN 1 AND 9000000000000000),
    amount_minor bigint  NOT NULL CHECK (amount_minor BETWEEN 1 AND 9000000000000000),
    posting_row  bigint  NOT NULL UNIQUE REFERENCES posting (row),
    reserve_row  bigint  NOT NULL REFERENCES account (row),
    at           bigint  NOT NULL,
    CONSTRAINT made_good_once PRIMARY KEY (envelope_row, account_row, back),
    CONSTRAINT made_good_is_shown CHECK (amount_minor <= shown_minor)
);

-- What the cap counts.
CREATE INDEX made_good_lately ON made_good (at) WHERE NOT back;

-- Only what another has by a claim, and only what the grabber's own claim does not pay; what goes back was
-- made good.
CREATE FUNCTION refuse_made_good() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF NOT NEW.back AND (
        NOT EXISTS (SELECT FROM claim c WHERE c.envelope_row = NEW.envelope_row AND c.share = NEW.share
            AND c.account_row <> NEW.account_row AND c.amount_minor = NEW.shown_minor)
        OR NEW.amount_minor <> NEW.shown_minor - coalesce(
            (SELECT CASE WHEN c.declined THEN NEW.shown_minor ELSE c.amount_minor END FROM claim c
             WHERE c.envelope_row = NEW.envelope_row AND c.account_row = NEW.account_row), 0))
    OR NEW.back AND NEW.amount_minor IS DISTINCT FROM
        (SELECT least(m.amount_minor, NEW.shown_minor) FROM made_good m
         WHERE m.envelope_row = NEW.envelope_row AND m.account_row = NEW.account_row AND NOT m.back)
    THEN
        RAISE EXCEPTION USING ERRCODE = 'restrict_violation', CONSTRAINT = TG_NAME,
            TABLE = TG_TABLE_NAME, MESSAGE = 'nothing is owed to this grabber, or was made good';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER made_good_of_taken_share BEFORE INSERT ON made_good
    FOR EACH ROW EXECUTE FUNCTION refuse_made_good();

-- Who was made good is paid a share only where that went back before. Looked at once a statement: first
-- whether anybody was made good of its envelopes, then by the key for each of its claims.
CREATE FUNCTION refuse_claims_of_made_good() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM (SELECT DISTINCT envelope_row FROM made) e
               JOIN made_good m ON m.envelope_row = e.envelope_row)
    AND EXISTS (
        SELECT FROM made c
            JOIN made_good m ON m.envelope_row = c.envelope_row AND m.account_row = c.account_row
                AND NOT m.back
        WHERE NOT c.declined AND NOT EXISTS (
            SELECT FROM made_good b WHERE b.envelope_row = m.envelope_row
                AND b.account_row = m.account_row AND b.back AND b.share = c.share
                AND b.shown_minor = c.amount_minor)) THEN
        RAISE EXCEPTION USING ERRCODE = 'restrict_violation', CONSTRAINT = TG_NAME,
            TABLE = TG_TABLE_NAME, MESSAGE = 'this grabber was made good';
    END IF;
    RETURN NULL;
END $$;
CREATE TRIGGER claim_of_made_good AFTER INSERT ON claim
    REFERENCING NEW TABLE AS made FOR EACH STATEMENT EXECUTE FUNCTION refuse_claims_of_made_good();
-- And for statements that name a week's table. Those to come get what `claim` has.
DO $$ DECLARE week regclass; BEGIN
    FOR week IN SELECT inhrelid FROM pg_inherits WHERE inhparent = 'claim'::regclass LOOP
        EXECUTE format('CREATE TRIGGER claim_of_made_good AFTER INSERT ON %s
            REFERENCING NEW TABLE AS made FOR EACH STATEMENT
            EXECUTE FUNCTION refuse_claims_of_made_good()', week);
    END LOOP;
END $$;

CREATE TRIGGER made_good_is_final BEFORE UPDATE OR DELETE OR TRUNCATE ON made_good
    FOR EACH STATEMENT EXECUTE FUNCTION refuse();

-- A closed envelope stays as it is, but for what is made good of it: that is not its money.
DROP TRIGGER envelope_stays_closed ON envelope;
CREATE TRIGGER envelope_stays_closed
    BEFORE UPDATE OF row, id, day, tenant, sender, currency, terms, leaf_number, share_count,
        funded_minor, settled_count, settled_minor, declined_count, refunded_minor, best_share,
        best_minor, dead_letter_count, parked_count, state, reason, frozen, created_at, expires_at,
        closed_at ON envelope
    FOR EACH ROW WHEN (OLD.state = 'closed') EXECUTE FUNCTION refuse();

-- They ask the tables of the books, whoever writes and whatever temporary table he has made before.
ALTER FUNCTION refuse_claims() SECURITY DEFINER SET search_path = red_envelope, pg_temp;
ALTER FUNCTION refuse_made_good() SECURITY DEFINER SET search_path = red_envelope, pg_temp;
ALTER FUNCTION refuse_claims_of_made_good() SECURITY DEFINER SET search_path = red_envelope, pg_temp;
-- Nobody else makes a trigger of them: on a table of his own, with casts of his own, they would run his code.
REVOKE EXECUTE ON FUNCTION refuse_claims(), refuse_made_good(), refuse_claims_of_made_good() FROM PUBLIC;
