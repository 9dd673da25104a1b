-- Times are seconds since 1970. Serials are the content octets of the DER INTEGER, as BLOBs: never a number, never text.

CREATE TABLE issuer (
	id          INTEGER PRIMARY KEY,
	certificate BLOB NOT NULL UNIQUE CHECK (length(certificate) = 32), -- SHA-256 of it
	name        TEXT NOT NULL,                                         -- in the configuration
	generation  INTEGER NOT NULL DEFAULT 0,                            -- in force; 0 before the first
	gen_file    TEXT, gen_sha256 BLOB, gen_count INTEGER,
	base_file   TEXT, base_sha256 BLOB, base_count INTEGER,
	leaf        INTEGER,                                               -- of the audit log, that put it in force
	since       INTEGER
) STRICT;

-- How the last reads of each configured location went.
CREATE TABLE feed (
	issuer        INTEGER NOT NULL REFERENCES issuer,
	location      TEXT NOT NULL,
	kind          INTEGER NOT NULL,
	attempt       INTEGER,
	success       INTEGER,
	etag          TEXT NOT NULL DEFAULT '',
	last_modified TEXT NOT NULL DEFAULT '',
	file          TEXT NOT NULL DEFAULT '',
	digest        BLOB,
	error         TEXT NOT NULL DEFAULT '',
	refused_since INTEGER,
	PRIMARY KEY (issuer, location)
) STRICT, WITHOUT ROWID;

-- One reading of a source. The row outlives its blocks: history refers to it.
CREATE TABLE import (
	id          INTEGER PRIMARY KEY AUTOINCREMENT,
	issuer      INTEGER NOT NULL REFERENCES issuer,
	lineage     TEXT NOT NULL,
	kind        INTEGER NOT NULL,
	state       TEXT NOT NULL CHECK (state IN ('staged', 'current', 'superseded', 'collected', 'aborted')),
	location    TEXT NOT NULL,
	number      TEXT NOT NULL,                 -- of a CRL, hex; '' where there is none
	delta       INTEGER NOT NULL,              -- 1: a delta CRL on top of the import before
	this_update INTEGER NOT NULL,
	next_update INTEGER NOT NULL,
	digest      BLOB NOT NULL CHECK (length(digest) = 32),
	size        INTEGER NOT NULL,
	scope       TEXT NOT NULL,
	at          INTEGER NOT NULL,
	count       INTEGER NOT NULL DEFAULT 0,    -- records in the blocks
	carried     INTEGER NOT NULL DEFAULT 0,    -- of them, revocations that the source no longer lists
	generation  INTEGER                        -- that it came into force with
) STRICT;
CREATE INDEX import_state ON import (state);

-- The records of an import with serials from lo up to, not including, hi; '' as lo begins, '' as hi ends the import.
-- A block fits one page.
CREATE TABLE block (
	id      INTEGER PRIMARY KEY,
	import  INTEGER NOT NULL REFERENCES import,
	lo      BLOB NOT NULL,
	hi      BLOB NOT NULL,
	records BLOB NOT NULL,
	sha256  BLOB NOT NULL                      -- over import, lo, hi and records
) STRICT;
CREATE UNIQUE INDEX block_range ON block (import, lo);

-- What is in force: for each kind and scope of an issuer's sources, the import that counts.
CREATE TABLE lineage (
	issuer      INTEGER NOT NULL REFERENCES issuer,
	key         TEXT NOT NULL,
	import      INTEGER NOT NULL REFERENCES import,
	this_update INTEGER NOT NULL,
	next_update INTEGER NOT NULL,
	PRIMARY KEY (issuer, key)
) STRICT, WITHOUT ROWID;

-- Revocations by hand in force.
CREATE TABLE hand (
	issuer     INTEGER NOT NULL REFERENCES issuer,
	serial     BLOB NOT NULL CHECK (length(serial) BETWEEN 1 AND 20),
	reason     INTEGER NOT NULL,
	revoked_at INTEGER NOT NULL,
	invalidity INTEGER,
	at         INTEGER NOT NULL,
	actor      TEXT NOT NULL,
	PRIMARY KEY (issuer, serial)
) STRICT, WITHOUT ROWID;

-- Carried revocations that were undone as mistakes; each goes with the next import of its lineage.
CREATE TABLE cleared (
	issuer  INTEGER NOT NULL REFERENCES issuer,
	serial  BLOB NOT NULL CHECK (length(serial) BETWEEN 1 AND 20),
	lineage TEXT NOT NULL,
	PRIMARY KEY (issuer, serial, lineage)
) STRICT, WITHOUT ROWID;

-- What changed, by serial. Rows of an import count once it has a generation.
CREATE TABLE history (
	id              INTEGER PRIMARY KEY,
	issuer          INTEGER NOT NULL REFERENCES issuer,
	serial          BLOB NOT NULL,
	import          INTEGER REFERENCES import, -- or NULL: by hand
	generation      INTEGER,                   -- by hand
	at              INTEGER NOT NULL,
	from_state      INTEGER NOT NULL, from_reason INTEGER NOT NULL, from_revoked_at INTEGER, from_invalidity INTEGER,
	to_state        INTEGER NOT NULL, to_reason   INTEGER NOT NULL, to_revoked_at   INTEGER, to_invalidity   INTEGER,
	carried         INTEGER NOT NULL,          -- 1: the source no longer lists it, and it stays revoked
	actor           TEXT NOT NULL,
	note            TEXT NOT NULL
) STRICT;
CREATE INDEX history_serial ON history (issuer, serial);
CREATE INDEX history_import ON history (import) WHERE import IS NOT NULL;
