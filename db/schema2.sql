-- What an import changes, in blocks as its records are: 'records' holds what was said before, where anything was, and what is said now, in
-- the order of serials, the first of which is lo. Rows of table history are of schema 1, or by hand.
CREATE TABLE change (
	id      INTEGER PRIMARY KEY,
	import  INTEGER NOT NULL REFERENCES import,
	lo      BLOB NOT NULL,
	records BLOB NOT NULL,
	sha256  BLOB NOT NULL                      -- over import, lo and records
) STRICT;
CREATE UNIQUE INDEX change_range ON change (import, lo);
CREATE INDEX import_issuer ON import (issuer);
