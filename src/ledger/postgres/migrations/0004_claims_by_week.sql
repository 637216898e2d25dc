-- ledger.migrate_0004: claims have a table a week, by their envelope's creation day.
--
-- Why: claims are most of the books. In one table each grab's two unique keys dirty pages of an index of all
-- claims that ever were; in a table a week they stay in memory, and the tables of past weeks are only read,
-- so that they are frozen once and may lie on another disk.
-- What the previous release sees meanwhile: it waits while the claims that there are are read once (their rows
-- must be proven to be below the first day's). Afterwards it works as before: the rows that it gives to
-- envelopes are below the first day's, and their claims go on to the table of before.
-- The right to call claims_of_day: `red-envelope migrate --grant-to` once more.

ALTER TABLE claim RENAME TO claim_before;
ALTER TABLE claim_before RENAME CONSTRAINT claim_of_share TO claim_of_share_before;
ALTER TABLE claim_before RENAME CONSTRAINT claim_of_grabber TO claim_of_grabber_before;
ALTER INDEX claim_of_account RENAME TO claim_of_account_before;

-- As in 0001. An envelope's row says its day: day * 2^40 + a number. So both keys hold in all tables at once.
CREATE TABLE claim (
    row          bigint  NOT NULL DEFAULT nextval('entry_row'),
    envelope_row bigint  NOT NULL,
    share        integer NOT NULL CONSTRAINT claim_share_check CHECK (share >= 0),
    posting_row  bigint  NOT NULL,
    account_row  bigint  NOT NULL,
    amount_minor bigint  NOT NULL
        CONSTRAINT claim_amount_minor_check CHECK (amount_minor BETWEEN 1 AND 9000000000000000),
    declined     boolean NOT NULL,
    granted_at   bigint  NOT NULL,
    CONSTRAINT claim_of_share PRIMARY KEY (envelope_row, share),
    CONSTRAINT claim_of_grabber UNIQUE (envelope_row, account_row)
) PARTITION BY RANGE (envelope_row);
CREATE INDEX claim_of_account ON claim (account_row, row);
CREATE TRIGGER claim_of_open_envelope AFTER INSERT ON claim
    REFERENCING NEW TABLE AS made FOR EACH STATEMENT EXECUTE FUNCTION refuse_claims();
CREATE TRIGGER claim_is_final BEFORE UPDATE OR DELETE OR TRUNCATE ON claim
    FOR EACH STATEMENT EXECUTE FUNCTION refuse();

ALTER TABLE claim ATTACH PARTITION claim_before FOR VALUES FROM (MINVALUE) TO (1::bigint << 40);

-- Where the rows of a day's envelopes begin; the table of their claims is there then, and the next week's on
-- the last day of one. A week begins on a Thursday, as 1970 did. Whoever funds an envelope asks, so that no
-- envelope has a day without a table. It runs with the rights of who owns the books: a server may not make
-- tables.
CREATE FUNCTION claims_of_day(day integer) RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = red_envelope, pg_temp AS $$
DECLARE
    first integer;
    suffix text;
    watch text;
BEGIN
    IF day NOT BETWEEN 1 AND 65535 THEN
        RAISE EXCEPTION USING ERRCODE = 'check_violation', MESSAGE = 'no envelope is of day ' || day;
    END IF;
    FOR first IN SELECT DISTINCT d - d % 7 FROM unnest(ARRAY[day, day + 1]) d ORDER BY 1 LOOP
        suffix := to_char(date '1970-01-01' + first, 'YYYYMMDD');
        CONTINUE WHEN to_regclass('claim_' || suffix) IS NOT NULL;
        -- One at a time: who waits finds the table.
        PERFORM pg_advisory_xact_lock(3, 1);
        CONTINUE WHEN to_regclass('claim_' || suffix) IS NOT NULL;
        EXECUTE format($make$
            CREATE TABLE claim_%1$s (LIKE claim INCLUDING DEFAULTS INCLUDING CONSTRAINTS,
                CONSTRAINT claim_of_share_%1$s PRIMARY KEY (envelope_row, share),
                CONSTRAINT claim_of_grabber_%1$s UNIQUE (envelope_row, account_row));
            CREATE INDEX claim_of_account_%1$s ON claim_%1$s (account_row, row);
            ALTER TABLE claim ATTACH PARTITION claim_%1$s
                FOR VALUES FROM (%2$s::bigint << 40) TO (%3$s::bigint << 40);
            $make$, suffix, greatest(first, 1), first + 7);
        -- Whatever watches `claim` watches its table, too.
        FOR watch IN SELECT pg_get_triggerdef(oid) FROM pg_trigger
                WHERE tgrelid = 'claim'::regclass AND NOT tgisinternal LOOP
            EXECUTE regexp_replace(watch, ' ON (red_envelope\.)?claim ', ' ON claim_' || suffix || ' ');
        END LOOP;
    END LOOP;
    RETURN day::bigint << 40;
END $$;
REVOKE EXECUTE ON FUNCTION claims_of_day FROM PUBLIC;
