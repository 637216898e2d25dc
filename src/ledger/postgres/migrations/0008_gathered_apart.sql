-- ledger.migrate_0008: that the shares of an envelope are gathered is a row of its own.
--
-- Why: it was a mark on the envelope, whose row is locked by whoever settles what was won of it, one batch after
-- the other. So it waited for half a second in a burst, and everybody who came to that envelope with it.
-- What the previous release sees meanwhile: it works as before, and does not know what is gathered from now on, so it
-- would bring back a stripe that has given its shares away. So no process of it may deal envelopes to several stripes, and
-- none of these may be open: switch hot.stripe_above_shares off everywhere, and wait until they are closed. `migrate`
-- refuses while one is open. A process of that release that starts afterwards is refused. `envelope.gathered` stays for it
-- to read, and says nothing any more. Whoever writes to envelopes waits for a moment at the end.
-- The right to read and to add to it, which every call asks for: `red-envelope migrate --grant-to` at once.

CREATE FUNCTION refuse_dealt(above bigint) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
    IF EXISTS (SELECT FROM envelope WHERE row > above AND state <> 'closed'
               AND coalesce((terms::json ->> 'stripes')::integer, 1) > 1) THEN
        RAISE EXCEPTION 'an envelope that is dealt to several stripes is open: switch hot.stripe_above_shares off, and '
            'migrate when the last of them is closed';
    END IF;
END $$;
SELECT refuse_dealt(0);

-- The reference comes when all is copied: it locks the table of envelopes until the end.
CREATE TABLE gathered (
    envelope_row bigint NOT NULL PRIMARY KEY
);
INSERT INTO gathered SELECT row FROM envelope WHERE gathered;

-- Once, and for ever.
CREATE TRIGGER gathered_is_final BEFORE UPDATE OR DELETE OR TRUNCATE ON gathered
    FOR EACH STATEMENT EXECUTE FUNCTION refuse();

-- An envelope of one stripe has nothing to gather, nor has one that is over. Who ends one locks its key, and so waits
-- for those that gather and is waited for by them; afterwards they find it over.
CREATE FUNCTION refuse_gathered() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    PERFORM FROM envelope n WHERE n.row = NEW.envelope_row AND n.state IN ('funding', 'live')
        AND coalesce((n.terms::json ->> 'stripes')::integer, 1) > 1 FOR KEY SHARE;
    IF NOT FOUND THEN
        RAISE EXCEPTION USING ERRCODE = 'restrict_violation', CONSTRAINT = TG_NAME,
            TABLE = TG_TABLE_NAME, MESSAGE = 'nothing is to be gathered of this envelope';
    END IF;
    RETURN NEW;
END $$;
CREATE TRIGGER gathered_of_dealt_envelope BEFORE INSERT ON gathered
    FOR EACH ROW EXECUTE FUNCTION refuse_gathered();
-- As the other functions that ask the tables of the books.
ALTER FUNCTION refuse_gathered() SECURITY DEFINER SET search_path = red_envelope, pg_temp;
REVOKE EXECUTE ON FUNCTION refuse_gathered() FROM PUBLIC;

-- It locks the envelope's key and nothing else, so who settles keeps nobody from gathering.
ALTER TABLE gathered ADD CONSTRAINT gathered_of_envelope FOREIGN KEY (envelope_row) REFERENCES envelope (row);
-- What was being funded before this lock: of the newest day and the one before. A row's number begins with its day.
SELECT refuse_dealt((SELECT ((coalesce(max(row), 0) >> 40) - 1) << 40 FROM envelope));
DROP FUNCTION refuse_dealt;

-- A mark that nobody reads is not to be made by mistake.
CREATE TRIGGER envelope_is_gathered_elsewhere BEFORE INSERT OR UPDATE OF gathered ON envelope
    FOR EACH ROW WHEN (NEW.gathered) EXECUTE FUNCTION refuse();
