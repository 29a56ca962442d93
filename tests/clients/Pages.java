// An HTTP client in Java that fetches a page several times, each over a connection of its own. For each page it prints whether the
// connection was resumed, and the page.
//
// java -cp .peers/java Pages CA TLSv1.2|TLSv1.3 URL TIMES

import java.io.IOException;
import java.io.InputStream;
import java.net.URL;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.nio.file.Path;
import java.security.KeyStore;
import java.security.cert.CertificateFactory;
import javax.net.ssl.HttpsURLConnection;
import javax.net.ssl.SSLContext;
import javax.net.ssl.SSLSession;
import javax.net.ssl.TrustManagerFactory;

final class Pages {
    private Pages() {}

    public static void main(String[] args) throws Exception {
        System.setProperty("http.keepAlive", "false");
        System.setProperty("https.protocols", args[1]);
        HttpsURLConnection.setDefaultSSLSocketFactory(context(Path.of(args[0])).getSocketFactory());
        // A resumed session has the creation time of the first one.
        long created = 0;
        for (int turn = 0; turn < Integer.parseInt(args[3]); turn++) {
            HttpsURLConnection connection = (HttpsURLConnection) new URL(args[2]).openConnection();
            connection.connect();
            SSLSession session = connection.getSSLSession().orElseThrow();
            boolean resumed = session.getCreationTime() == created;
            created = session.getCreationTime();
            System.out.print(session.getProtocol() + " resumed: " + resumed + " page: " + page(connection));
        }
    }

    private static String page(HttpsURLConnection connection) throws IOException {
        try (InputStream body = connection.getInputStream()) {
            return new String(body.readAllBytes(), StandardCharsets.UTF_8);
        }
    }

    private static SSLContext context(Path authority) throws Exception {
        KeyStore trusted = KeyStore.getInstance(KeyStore.getDefaultType());
        trusted.load(null, null);
        try (InputStream pem = Files.newInputStream(authority)) {
            trusted.setCertificateEntry("ca", CertificateFactory.getInstance("X.509").generateCertificate(pem));
        }
        TrustManagerFactory trust = TrustManagerFactory.getInstance(TrustManagerFactory.getDefaultAlgorithm());
        trust.init(trusted);
        SSLContext context = SSLContext.getInstance("TLS");
        context.init(null, trust.getTrustManagers(), null);
        return context;
    }
}
