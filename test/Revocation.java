import java.io.FileInputStream;
import java.net.URI;
import java.security.cert.*;
import java.util.*;

/** Revocation RESPONDER ROOT CERTIFICATE [INTERMEDIATE]: validates a path as Java does, by OCSP alone. */
class Revocation {
	public static void main(String[] args) throws Exception {
		CertificateFactory factory = CertificateFactory.getInstance("X.509");
		List<X509Certificate> certs = new ArrayList<>();
		for (int i = 1; i < args.length; i++) {
			try (FileInputStream in = new FileInputStream(args[i])) {
				certs.add((X509Certificate) factory.generateCertificate(in));
			}
		}
		PKIXParameters parameters = new PKIXParameters(Set.of(new TrustAnchor(certs.get(0), null)));
		CertPathValidator validator = CertPathValidator.getInstance("PKIX");
		PKIXRevocationChecker checker = (PKIXRevocationChecker) validator.getRevocationChecker();
		checker.setOcspResponder(new URI(args[0]));
		checker.setOptions(EnumSet.of(PKIXRevocationChecker.Option.NO_FALLBACK));
		parameters.addCertPathChecker(checker);
		try {
			validator.validate(factory.generateCertPath(certs.subList(1, certs.size())), parameters);
			System.out.println("valid");
		} catch (CertPathValidatorException e) {
			System.out.println(e.getMessage());
			System.exit(1);
		}
	}
}
