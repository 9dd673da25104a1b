package generation

import "ocspd/pki"

// Head is what the generation in force says of itself. The records are not looked at, so this is quick however many there are;
// Load may still refuse them. fs.ErrNotExist where no generation is in force.
func Head(dir, name string, issuer pki.IssuerID) (Meta, error) {
	g, err := loadHead(dir, name, issuer)
	if err != nil {
		return Meta{}, err
	}
	return g.meta, nil
}

// Check reads all files of the generation in force, as Load does, in little memory.
func Check(dir, name string, issuer pki.IssuerID) error {
	g, err := loadHead(dir, name, issuer)
	if err != nil {
		return err
	}
	f, err := openBase(dir, g.base)
	if err != nil {
		return err
	}
	defer f.Close()
	return g.readBase(f, nil, nil)
}
