-- SHA-256 of what is in force besides blocks: the issuer's lineages, revocations by hand and what was cleared. Empty before the first change under this schema.
ALTER TABLE issuer ADD COLUMN state BLOB NOT NULL DEFAULT x'';
